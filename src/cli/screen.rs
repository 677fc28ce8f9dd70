//! The terminal while a live view has it: the view is on the terminal's second screen, so that the first comes back as it was.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// To the second screen, and back (xterm's control sequences, "DECSET 1049").
const TAKE: &str = "\x1b[?1049h";
const GIVE: &str = "\x1b[?1049l";
/// To the first place; clear to the end of the line, to the end of the screen.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_REST: &str = "\x1b[J";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The second screen, which is left when this is dropped.
pub(super) struct Screen(());

impl Screen {
    pub(super) fn take() -> io::Result<Self> {
        TAKEN.store(true, Ordering::Relaxed);
        let screen = Self(());
        write(TAKE)?;
        Ok(screen)
    }

    /// Draws over what was there, in one write, so that nothing flickers.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        write(&format!("{HOME}{}{CLEAR_LINE}{CLEAR_REST}", lines.join(&format!("{CLEAR_LINE}\r\n"))))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether a view has the terminal.
pub(super) fn is_taken() -> bool {
    TAKEN.load(Ordering::Relaxed)
}

/// Leaves the second screen, if it was taken. For whoever ends the process.
pub(super) fn restore() {
    if TAKEN.swap(false, Ordering::Relaxed) {
        // Nobody is left to be told.
        let _ = write(GIVE);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Columns and rows of the terminal; those of old where it does not tell.
pub(super) fn size() -> (usize, usize) {
    let told = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let told = told.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
    told.filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or((80, 24))
}
