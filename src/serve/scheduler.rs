//! The thread that owns the model. Handlers send requests to it and receive token events; dropping a handler cancels
//! its request.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::error::ApiError;
use super::metrics::Metrics;
use super::permits::Permit;
use super::state::{About, Phase, State};
use crate::generation::compiler::GrammarCompiler;
use crate::generation::{Generator, Piece, Request};

/// What a handler receives. The last event is a token event with a finish reason, or a failure.
#[derive(Debug)]
pub(super) enum JobEvent {
    Piece(Piece),
    Failed(ApiError),
}

/// A place among the requests that are prepared, wait or run; dropping it frees the place.
#[derive(Debug)]
pub(super) struct QueuePlace {
    open: Arc<AtomicUsize>,
    arrived: Instant,
    deadline: Instant,
    /// Permit for a large grammar.
    permit: Option<Permit>,
}

impl QueuePlace {
    /// Waits for a permit and keeps it; an error after the request's timeout.
    pub(super) async fn wait_for(&mut self, permit: impl Future<Output = Option<Permit>>) -> Result<(), ApiError> {
        match tokio::time::timeout_at(self.deadline.into(), permit).await {
            Ok(permit) => {
                self.permit = permit;
                Ok(())
            }
            Err(_) => Err(ApiError::deadline((self.deadline - self.arrived).as_secs())),
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct AnswerJob {
    request: Request,
    place: QueuePlace,
    events: UnboundedSender<JobEvent>,
}

enum Command {
    Submit(u64, Box<AnswerJob>),
    Cancel(u64),
    /// Cancels all answers, because the server shuts down.
    CutOff,
}

/// The handlers' side.
pub(super) struct Scheduler {
    commands: Sender<Command>,
    /// Number of unfinished requests.
    open: Arc<AtomicUsize>,
    numbers: AtomicUsize,
    limit: OnceLock<usize>,
    queue: usize,
    timeout: Duration,
}

/// The events of a running answer. Dropping it cancels the request.
pub(super) struct AnswerEvents {
    number: u64,
    events: UnboundedReceiver<JobEvent>,
    commands: Sender<Command>,
}

impl AnswerEvents {
    /// The next event; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<JobEvent> {
        self.events.recv().await
    }
}

impl Drop for AnswerEvents {
    fn drop(&mut self) {
        // The worker may be gone; then there is nothing to cancel.
        let _ = self.commands.send(Command::Cancel(self.number));
    }
}

impl Scheduler {
    /// Creates both sides, with room for `queue` waiting requests and a `timeout` for each.
    pub(super) fn new(queue: usize, timeout: Duration) -> (Self, Inbox) {
        let (commands, receiver) = std::sync::mpsc::channel();
        let open = Arc::new(AtomicUsize::new(0));
        let (numbers, limit) = (AtomicUsize::new(0), OnceLock::new());
        let scheduler = Self { commands, open: Arc::clone(&open), numbers, limit, queue, timeout };
        (scheduler, Inbox { commands: receiver, jobs: HashMap::new(), numbers: HashMap::new() })
    }

    /// Sets how many answers run at once, once the model is loaded.
    pub(super) fn set_slots(&self, slots: usize) {
        let _ = self.limit.set(slots + self.queue);
    }

    /// Reserves a place for a request that is yet to be prepared; an error if the queue is full.
    pub(super) fn reserve(&self) -> Result<QueuePlace, ApiError> {
        let limit = self.limit.get().copied().unwrap_or(self.queue);
        let room = |open: usize| (open < limit).then_some(open + 1);
        match self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => {
                let arrived = Instant::now();
                Ok(QueuePlace { open: Arc::clone(&self.open), arrived, deadline: arrived + self.timeout, permit: None })
            }
            Err(open) => Err(ApiError::busy(open, 1)),
        }
    }

    /// Queues a request in its reserved place.
    pub(super) fn submit(&self, place: QueuePlace, request: Request) -> Result<AnswerEvents, ApiError> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) as u64;
        let (events, receiver) = unbounded_channel();
        let job = AnswerJob { request, place, events };
        let answer = AnswerEvents { number, events: receiver, commands: self.commands.clone() };
        match self.commands.send(Command::Submit(number, Box::new(job))) {
            Ok(()) => Ok(answer),
            Err(_) => Err(ApiError::not_ready(Phase::Failed.name())),
        }
    }

    /// Ends every answer at once with an error.
    pub(super) fn cut_off(&self) {
        let _ = self.commands.send(Command::CutOff);
    }

    /// Number of unfinished requests.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// The worker thread's side.
pub(super) struct Inbox {
    commands: Receiver<Command>,
    /// Running jobs by the generator's request number.
    jobs: HashMap<u64, RunningJob>,
    /// The generator's request numbers by the handlers' numbers.
    numbers: HashMap<u64, u64>,
}

struct RunningJob {
    number: u64,
    _place: QueuePlace,
    arrived: Instant,
    deadline: Instant,
    last: Option<Instant>,
    events: UnboundedSender<JobEvent>,
}

/// Interval at which an idle worker signals that it is alive.
const BEAT: Duration = Duration::from_millis(500);

impl Inbox {
    /// Runs the generator until the handlers are gone, or until the engine fails, which is the error.
    pub(super) fn work(mut self, mut generator: Generator, state: &State, metrics: &Metrics) -> Result<(), String> {
        let timeout = |deadline: Instant, arrived: Instant| ApiError::deadline((deadline - arrived).as_secs());
        loop {
            state.beat();
            if !self.listen(&mut generator, metrics) {
                return Ok(());
            }
            let now = Instant::now();
            let late: Vec<u64> = self.jobs.iter().filter(|job| job.1.deadline <= now).map(|job| *job.0).collect();
            for number in late {
                generator.cancel(number);
                let failure = self.jobs.get(&number).map(|job| timeout(job.deadline, job.arrived));
                self.end(number, failure, metrics);
            }
            let pieces = match generator.step() {
                Ok(pieces) => pieces,
                Err(error) => {
                    // The device's memory may be in any state: only a fresh process may be trusted.
                    state.enter(Phase::Failed);
                    let message = format!("the engine failed: {error}");
                    let numbers: Vec<u64> = self.jobs.keys().copied().collect();
                    numbers.iter().for_each(|number| self.end(*number, Some(ApiError::engine(&*message)), metrics));
                    return Err(message);
                }
            };
            // Before anybody hears of an answer's end and asks for them.
            metrics.speculated(generator.speculation());
            for piece in pieces {
                self.deliver(piece, &mut generator, state, metrics);
            }
            metrics.load(generator.load(), generator.executor().memory());
            metrics.kept(generator.kept_prefixes());
        }
    }

    /// Takes all commands, waiting for one if there is nothing to do; false if there will be no more.
    fn listen(&mut self, generator: &mut Generator, metrics: &Metrics) -> bool {
        loop {
            let command = if generator.is_idle() {
                match self.commands.recv_timeout(BEAT) {
                    Ok(command) => command,
                    Err(RecvTimeoutError::Timeout) => return true,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Submit(number, job) => {
                    let AnswerJob { request, place, events } = *job;
                    match generator.submit(request) {
                        Ok(own) => {
                            self.numbers.insert(number, own);
                            let (arrived, deadline) = (place.arrived, place.deadline);
                            let running = RunningJob { number, _place: place, arrived, deadline, last: None, events };
                            self.jobs.insert(own, running);
                        }
                        Err(error) => drop(events.send(JobEvent::Failed(error.into()))),
                    }
                }
                Command::CutOff => {
                    for own in self.jobs.keys().copied().collect::<Vec<_>>() {
                        generator.cancel(own);
                        self.end(own, Some(ApiError::cut_off()), metrics);
                    }
                }
                Command::Cancel(number) => {
                    // Answers that have ended are "cancelled" too, when their handlers let go.
                    if let Some(own) = self.numbers.get(&number).copied() {
                        generator.cancel(own);
                        self.end(own, None, metrics);
                        metrics.cancelled();
                    }
                }
            }
        }
    }

    fn deliver(&mut self, piece: Piece, generator: &mut Generator, state: &State, metrics: &Metrics) {
        let number = piece.request;
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let now = Instant::now();
        match job.last.replace(now) {
            None => metrics.first_token(now - job.arrived, &piece.usage),
            Some(last) => metrics.next_token(now - last),
        }
        if let Some(failure) = piece.failure {
            return self.end(number, Some(ApiError::of_answer(failure)), metrics);
        }
        let (finish, usage) = (piece.finish, piece.usage);
        let heard = job.events.send(JobEvent::Piece(piece)).is_ok();
        if finish.is_some() {
            state.measured(&usage);
        }
        if finish.is_some() || !heard {
            generator.cancel(number);
            self.end(number, None, metrics);
        }
    }

    fn end(&mut self, number: u64, failure: Option<ApiError>, metrics: &Metrics) {
        let Some(job) = self.jobs.remove(&number) else { return };
        self.numbers.remove(&job.number);
        if let Some(failure) = failure {
            let _ = job.events.send(JobEvent::Failed(failure));
        }
        metrics.answered(job.arrived.elapsed());
    }
}

/// The loaded model's properties that handlers need.
pub(super) fn about(generator: &mut Generator, special: bool) -> About {
    let info = generator.executor().info();
    About {
        engine: info.name,
        device: info.device,
        warnings: generator.executor().warnings(),
        slots: generator.executor().slots(),
        limits: generator.limits(),
        max_len: generator.executor().max_len(),
        text: Arc::clone(generator.text()),
        compiler: Arc::new(GrammarCompiler::new(Arc::clone(generator.text()))),
        special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{BackendError, BackendInfo};
    use crate::checkpoint::Checkpoint;
    use crate::executor::{Executor, HostLogits, LlmError, MemoryUse, Rows, Step, StepLogits};
    use crate::text::{Text, text_files};

    /// An executor that refuses one token as the request's fault and one as its own, returns no logits for another, and
    /// fails at one like a device. Counts the slots that it was told to empty.
    #[derive(Default)]
    struct Faulty(Arc<AtomicUsize>);

    const REFUSED: u32 = 3;
    const FATAL: u32 = 4;
    const SPOILT: u32 = 6;
    const INTERNAL: u32 = 9;

    impl Executor for Faulty {
        fn info(&self) -> BackendInfo {
            BackendInfo { name: "faulty".to_owned(), device: "none".to_owned() }
        }
        fn slots(&self) -> usize {
            2
        }
        fn max_len(&self) -> usize {
            16
        }
        fn vocab_size(&self) -> usize {
            64
        }
        fn pass(&self, _: usize, remaining: usize) -> usize {
            remaining
        }
        fn prefill(&mut self, _: usize, _: usize, tokens: &[u32], _: Rows) -> Result<Vec<f32>, LlmError> {
            match tokens {
                [.., REFUSED] => Err(LlmError::request("not this one")),
                [.., INTERNAL] => Err(LlmError::internal("no such step")),
                [.., FATAL] => Err(LlmError::Backend(BackendError::Run("illegal address".into()))),
                [.., SPOILT] => Ok(vec![f32::NAN; 64]),
                _ => Ok(vec![0.0; 64]),
            }
        }
        fn forget(&mut self, _: usize) -> Result<(), LlmError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn launch(&mut self, _: &[Step]) -> Result<(), LlmError> {
            Ok(())
        }
        fn collect(&mut self) -> Result<Box<dyn StepLogits + '_>, LlmError> {
            Ok(Box::new(HostLogits(vec![vec![0.0; 64]])))
        }
        fn copy(&mut self, _: usize, _: usize, _: usize) -> Result<(), LlmError> {
            Ok(())
        }
        fn release(&mut self, _: usize) {}
        fn memory(&self) -> MemoryUse {
            MemoryUse::default()
        }
        fn bandwidth(&mut self) -> Result<f64, LlmError> {
            Ok(1.0)
        }
        fn bytes_per_step(&self) -> u64 {
            1
        }
    }

    fn generator(forgotten: &Arc<AtomicUsize>) -> (Generator, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf/llama.gguf");
        let checkpoint = Checkpoint::open(&[path]).unwrap();
        let gguf = checkpoint.gguf.as_ref().unwrap();
        for (name, content) in text_files(&checkpoint.config_path, gguf, &checkpoint.config).unwrap() {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let text = Arc::new(Text::open(folder.path()).unwrap());
        (Generator::new(Box::new(Faulty(Arc::clone(forgotten))), text, 15), folder)
    }

    #[test]
    fn only_the_engines_own_failure_ends_the_server() {
        let forgotten = Arc::new(AtomicUsize::new(0));
        let (generator, _folder) = generator(&forgotten);
        let (scheduler, inbox) = Scheduler::new(8, Duration::from_secs(60));
        let (state, metrics) = (State::new(), Metrics::new("m"));
        let ask = |last: u32| {
            let request = Request { prompt: vec![5, last], max_tokens: 1, ignore_end: true, ..Request::default() };
            scheduler.submit(scheduler.reserve().unwrap(), request).unwrap()
        };
        let mut answers = [ask(REFUSED), ask(7), ask(SPOILT), ask(INTERNAL), ask(FATAL), ask(8)];
        let ended = inbox.work(generator, &state, &metrics);
        assert_eq!(ended, Err("the engine failed: illegal address".to_owned()));
        assert_eq!(state.phase(), Phase::Failed);
        let mut heard = |answer: usize| match answers[answer].events.try_recv() {
            Ok(JobEvent::Failed(error)) => (error.status.as_u16(), error.message),
            Ok(JobEvent::Piece(piece)) => (200, format!("{:?}", piece.finish)),
            Err(error) => (0, error.to_string()),
        };
        assert_eq!(heard(0), (400, "not this one".to_owned()), "one request's own fault");
        assert_eq!(heard(1).0, 200, "others go on");
        let spoilt = heard(2);
        assert!(spoilt.0 == 400 && spoilt.1.contains("not finite"), "{spoilt:?}");
        assert_eq!(forgotten.load(Ordering::Relaxed), 1, "what is no number stays in no slot");
        assert_eq!(heard(3), (500, "no such step".to_owned()), "one answer's end, and no fault of who asked");
        assert_eq!(heard(4).0, 500);
        assert_eq!(heard(5).0, 500, "who waits is told, too");
        drop(answers);
        assert_eq!(scheduler.open(), 0, "every place is free again");
    }

    #[test]
    fn places_are_taken_before_anything_is_prepared() {
        let (scheduler, _inbox) = Scheduler::new(2, Duration::from_secs(60));
        let places: Vec<QueuePlace> = (0..2).map(|_| scheduler.reserve().unwrap()).collect();
        assert_eq!(scheduler.reserve().unwrap_err().status.as_u16(), 429);
        drop(places);
        assert!(scheduler.reserve().is_ok());
    }
}
