//! The child process's side of a build.

use std::io::{BufRead, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{CURRENT, Job, SKIPPED_TACTIC, WorkerMessage, run};
use crate::backend::BackendError;
use crate::backend::tensorrt::TensorRt;
use crate::progress::{Event, Progress};

/// Main function of a child: reads the job from `input`, writes messages to `output`.
pub fn child_main(mut input: impl BufRead + Send + 'static, output: impl Write + Send + 'static) -> Result<(), String> {
    // Die with the parent, whatever kills it.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let mut line = String::new();
    input.read_line(&mut line).map_err(|error| error.to_string())?;
    let job: Job = serde_json::from_str(&line).map_err(|error| format!("not a build job: {error}"))?;
    let cancel = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancel);
    std::thread::spawn(move || {
        let mut rest = String::new();
        let _ = input.read_line(&mut rest);
        stop.store(true, Ordering::Relaxed);
    });
    let speaker = Arc::new(Speaker(Mutex::new(output)));
    let log = Arc::clone(&speaker);
    let all = job.verbose;
    TensorRt::set_log_sink(move |severity, text| {
        if severity <= 2 || all || text.contains(SKIPPED_TACTIC) {
            let engine = CURRENT.lock().map(|engine| engine.clone()).unwrap_or_default();
            log.say(&WorkerMessage::Log { severity, text, engine });
        }
    });
    let result = run(&job, Arc::clone(&speaker) as Arc<dyn Progress>, cancel);
    speaker.say(&match result {
        Ok(()) => WorkerMessage::Done,
        Err(BackendError::Unavailable { what, help }) => WorkerMessage::Unavailable { what, help },
        Err(error) => WorkerMessage::Failed(error.into()),
    });
    Ok(())
}

/// Writes messages, one per line, each line in one piece.
struct Speaker<W>(Mutex<W>);

impl<W: Write> Speaker<W> {
    fn say(&self, message: &WorkerMessage) {
        if let (Ok(mut output), Ok(line)) = (self.0.lock(), serde_json::to_string(message)) {
            let _ = writeln!(output, "{line}");
            let _ = output.flush();
        }
    }
}

impl<W: Write + Send> Progress for Speaker<W> {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Phase { name, steps } => self.say(&WorkerMessage::Phase { name: name.to_owned(), steps }),
            Event::Step { phase, done } => self.say(&WorkerMessage::Step { phase: phase.to_owned(), done }),
            Event::PhaseDone { name } => self.say(&WorkerMessage::PhaseDone { name: name.to_owned() }),
            _ => {}
        }
    }
}
