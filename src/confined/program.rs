//! The program whose children do the work, and how it is started when its file is no longer what it was: an upgrade replaces the
//! file of a server that runs on, and the new program may not understand what the old one asks.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program of the process that opens it, whatever has become of its file (proc_pid_exe(5)).
const RUNNING: &str = "/proc/self/exe";
/// What the kernel adds to the path of a program whose file was replaced or removed.
const DELETED: &str = " (deleted)";

/// What is wrong where work needs a child process and the running program starts none, as its `main` has not called
/// [`crate::enable_child_processes`].
pub const NOT_ENABLED: &str = "this program has not said that it can be started again as a child";
/// What lets a program that uses this library start child processes: the help of errors for want of one.
pub const ENABLE: &str = "call `watus_build::enable_child_processes()` first thing in its `main`";

struct RegisteredProgram {
    path: PathBuf,
    /// Of the running program: device and inode of its file; `None` if the file was gone already.
    file: Option<(u64, u64)>,
    /// Whether it is the program that runs here.
    running: bool,
}

static PROGRAM: OnceLock<RegisteredProgram> = OnceLock::new();

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Registers `executable`, whose subcommands call [`super::serve`], so that work can be done in child processes. For the running
/// program `enable_child_processes` does it.
pub fn use_program(executable: PathBuf) {
    let running = env::current_exe().is_ok_and(|running| running == executable);
    let _ = PROGRAM.set(RegisteredProgram { file: identity(&executable), path: executable, running });
}

/// The registered executable; `None` in programs that only use this library. No other is ever started, unless it is named by
/// its path.
pub fn program() -> Option<&'static Path> {
    PROGRAM.get().map(|program| program.path.as_path())
}

/// A command that starts `executable`. If that is the running program it is the same one, also after its file was replaced or
/// removed. While the file is there it is started by its path, since an emulator may know no other.
pub(crate) fn command(executable: &Path) -> Command {
    let registered = PROGRAM.get().filter(|program| program.running && program.path == executable);
    match registered {
        Some(program) if program.file.is_none() || identity(executable) != program.file => {
            let mut command = Command::new(RUNNING);
            // What `ps` shows.
            command.arg0(named(executable));
            command
        }
        _ => Command::new(executable),
    }
}

/// The path that a program had before its file was replaced or removed.
fn named(program: &Path) -> &Path {
    let stripped = program.to_str().and_then(|text| text.strip_suffix(DELETED)).map(Path::new);
    stripped.filter(|_| !program.exists()).unwrap_or(program)
}

/// Path of the running program's file without links: that of another version, if the file was replaced; `None` if it was removed. For
/// what lies beside it, and for whoever starts it later.
pub(crate) fn file() -> Option<PathBuf> {
    file_of(&env::current_exe().ok()?)
}

/// The file that is now at the path of a running program.
fn file_of(program: &Path) -> Option<PathBuf> {
    fs::canonicalize(named(program)).ok()
}

/// Gives this process the name of its program, which is `exe` if it was started as the running one.
pub(crate) fn take_name() {
    let name = env::args_os().next().and_then(|program| Some(Path::new(&program).file_name()?.to_owned()));
    if let Some(name) = name {
        let _ = fs::write("/proc/self/comm", name.as_encoded_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_named_as_before_it_was_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (gone, odd) = (folder.path().join("a (deleted)"), folder.path().join("b (deleted)"));
        fs::write(&odd, "").unwrap();
        assert_eq!((named(&gone), named(&odd)), (folder.path().join("a").as_path(), odd.as_path()));
        assert_eq!(named(Path::new("/bin/ż")), Path::new("/bin/ż"));
        assert_eq!(file_of(&gone), None, "it was removed");
        let replaced = folder.path().canonicalize().unwrap().join("a");
        fs::write(&replaced, "").unwrap();
        assert_eq!(file_of(&gone), Some(replaced));
        assert_eq!(
            command(Path::new("/bin/sh")).get_program(),
            "/bin/sh",
            "what is named by its path is started by it"
        );
    }
}
