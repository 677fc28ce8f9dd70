//! One request's answer, taken piece by piece by whoever owns the generator.

use std::collections::VecDeque;

use super::generator::Generator;
use super::request::{Piece, Request, Usage};
use crate::executor::LlmError;

/// The pieces of one answer as they come. The last has a `finish`; dropped before, the answer is cancelled.
pub struct RunningAnswer<'a> {
    generator: &'a mut Generator,
    request: u64,
    ready: VecDeque<Piece>,
    usage: Usage,
    /// There is no more to come.
    over: bool,
}

impl Generator {
    /// Begins to answer a request. An answer that was begun before and still runs, since it was forgotten and not dropped, is
    /// cancelled.
    pub fn begin(&mut self, request: Request) -> Result<RunningAnswer<'_>, LlmError> {
        if let Some(left) = self.begun.take() {
            self.cancel(left);
            self.collect()?;
        }
        let request = self.submit(request)?;
        self.begun = Some(request);
        Ok(RunningAnswer { generator: self, request, ready: VecDeque::new(), usage: Usage::default(), over: false })
    }

    /// Answers one request, handing every piece to `hear`; `hear` returns false to stop.
    pub fn answer(&mut self, request: Request, mut hear: impl FnMut(&Piece) -> bool) -> Result<Usage, LlmError> {
        let mut running = self.begin(request)?;
        while let Some(piece) = running.next() {
            if !hear(&piece?) {
                running.cancel()?;
                break;
            }
        }
        Ok(running.usage)
    }
}

impl RunningAnswer<'_> {
    /// What the answer has taken so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Ends the answer, if it has not ended.
    pub fn cancel(&mut self) -> Result<(), LlmError> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        self.generator.cancel(self.request);
        self.generator.collect()
    }

    /// The next piece of this answer; others' are nobody's.
    fn wait(&mut self) -> Result<Piece, LlmError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(piece);
            }
            let pieces = self.generator.step()?;
            self.ready.extend(pieces.into_iter().filter(|piece| piece.request == self.request));
        }
    }
}

impl Iterator for RunningAnswer<'_> {
    type Item = Result<Piece, LlmError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let piece = self.wait().and_then(|mut piece| match piece.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(piece),
        });
        match &piece {
            Ok(piece) => {
                self.usage = piece.usage;
                self.over = piece.finish.is_some();
            }
            // What failed holds no slot any more.
            Err(_) => self.over = true,
        }
        Some(piece)
    }
}

impl Drop for RunningAnswer<'_> {
    fn drop(&mut self) {
        // Nobody is left who could be told; the next answer is.
        let _ = self.cancel();
    }
}
