//! Measures the times of passes and decode steps on this device when a model is loaded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::CudaStream;

use super::super::buffers::{self, Buffer};
use super::super::decode_kernel::DecodeProgram;
use super::super::decode_kernel::row_class::RowClass;
use super::super::decode_kernel::rows::TableRow;
use super::super::driver::device_error;
use super::super::state::BatchRow;
use super::GpuExecutor;
use super::path::{DecodePath, EnginePass, StepKey, StepPath};
use crate::backend::BackendError;
use crate::convert::LayerShape;
use crate::executor::{LlmError, Size, Sizes};

/// Timed runs of each candidate, interleaved, so that a temporary slowdown affects all of them.
const ROUNDS: usize = 5;
/// Layers of a timed pass, since each takes the same time.
const LAYERS: usize = 9;
/// Passes of at most this many tokens are timed over all layers: their times differ little, because reading the weights
/// takes longer than the arithmetic.
const CLOSE: usize = 128;
/// Ratio of the caches that passes are timed with: the smallest, and the largest that is at most this many times
/// larger.
const FAR: usize = 4;

impl DecodePath {
    /// The value of [`DECODE`] for this path.
    fn name(self) -> &'static str {
        match self {
            Self::Engines => "engines",
            Self::Kernels | Self::Rows(_) => "kernels",
        }
    }
}

/// Environment variable, `engines` or `kernels`, to decode with one implementation only, for comparisons.
const DECODE: &str = "WATUS_DECODE";

/// A candidate: a decode step of `batch` sequences, each padded to `chunk` tokens.
#[derive(Clone, Copy)]
struct StepCandidate {
    batch: usize,
    chunk: usize,
    path: DecodePath,
}

/// A candidate with its time.
#[derive(Clone, Copy)]
struct TimedStep {
    candidate: StepCandidate,
    seconds: f64,
}

/// A launch with a row for each of a prompt's tokens from `position` on.
#[derive(Clone, Copy)]
struct RowTrial {
    class: RowClass,
    position: usize,
}

/// A pass over some of the layers.
#[derive(Clone, Copy)]
struct PassTrial {
    shape: LayerShape,
    layers: usize,
}

impl GpuExecutor {
    /// Measures passes and decode steps, and selects the fastest.
    pub(super) fn tune(&mut self) -> Result<(), LlmError> {
        // First: they want more scratch memory, and graphs of steps refer to it.
        let mut sizes = self.measure_passes()?;
        let seconds = self.measure_steps()?;
        sizes.push(Size { tokens: 1, seconds: vec![(0, seconds)] });
        self.launches = vec![(1, seconds)];
        self.add_row_sizes(&mut sizes)?;
        for Size { tokens, seconds } in &sizes {
            tracing::debug!("a pass of {tokens} tokens takes (cached positions, seconds): {seconds:?}");
        }
        self.sizes = Sizes::new(sizes);
        Ok(())
    }

    /// The median times of candidates, after a warm-up.
    fn by_turns<T: Copy>(
        &mut self,
        candidates: &[T],
        mut run: impl FnMut(&mut Self, T) -> Result<(), LlmError>,
    ) -> Result<Vec<f64>, LlmError> {
        for candidate in candidates {
            run(self, *candidate)?;
        }
        let mut samples = vec![Vec::new(); candidates.len()];
        for _ in 0..ROUNDS {
            for (candidate, samples) in candidates.iter().zip(&mut samples) {
                self.wait()?;
                let start = Instant::now();
                run(self, *candidate)?;
                self.wait()?;
                samples.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(samples
            .into_iter()
            .map(|mut samples| {
                samples.sort_by(f64::total_cmp);
                samples[samples.len() / 2]
            })
            .collect())
    }

    fn wait(&self) -> Result<(), BackendError> {
        self.state.device.stream.synchronize().map_err(device_error)
    }

    /// Time of a pass of each size, with embeddings, masks and all layers.
    fn measure_passes(&mut self) -> Result<Vec<Size>, LlmError> {
        let (caches, chunks) = (&self.options.shapes.caches, self.options.shapes.chunks.clone());
        let near = caches.first().copied().unwrap_or(0);
        let far = caches.iter().copied().rfind(|cache| *cache <= FAR * near).unwrap_or(near);
        let mut sizes: Vec<Size> = Vec::new();
        for (tokens, seconds) in chunks.iter().copied().zip(self.time_passes(near, &chunks)?) {
            sizes.push(Size { tokens, seconds: vec![(near, seconds)] });
        }
        if let Some(largest) = sizes.last().filter(|_| far > near) {
            // What attention to a longer cache costs goes by the tokens that attend.
            let (least, tokens) = (largest.seconds[0].1, largest.tokens as f64);
            let most = self.time_passes(far, &chunks[chunks.len() - 1..])?;
            let more = (most.first().copied().unwrap_or(least) - least).max(0.0) / tokens;
            for size in &mut sizes {
                size.seconds.push((far, size.seconds[0].1 + more * size.tokens as f64));
            }
        }
        self.state.cache.resize(&self.state.kernels, near)?;
        Ok(sizes)
    }

    /// Times in seconds of passes of these sizes with a cache of this size.
    fn time_passes(&mut self, cache: usize, chunks: &[usize]) -> Result<Vec<f64>, LlmError> {
        let count = self.state.model.layers.len();
        self.state.cache.resize(&self.state.kernels, cache)?;
        let some = |chunk: usize| if chunk <= CLOSE { [1, count] } else { [1, count.min(LAYERS)] };
        let trials: Vec<PassTrial> = (chunks.iter())
            .flat_map(|chunk| some(*chunk).map(|layers| (LayerShape { batch: 1, chunk: *chunk, cache }, layers)))
            .map(|(shape, layers)| PassTrial { shape, layers })
            .collect();
        let seconds = self.by_turns(&trials, |executor, trial| executor.try_pass(trial))?;
        let whole = |(pair, trials): (&[f64], &[PassTrial])| {
            let layer = (pair[1] - pair[0]).max(0.0) / (trials[1].layers - 1).max(1) as f64;
            pair[0] + layer * (count - 1) as f64
        };
        Ok(seconds.chunks_exact(2).zip(trials.chunks_exact(2)).map(whole).collect())
    }

    /// Runs a pass of dummy tokens, which leaves nothing in the cache.
    fn try_pass(&mut self, PassTrial { shape, layers }: PassTrial) -> Result<(), LlmError> {
        self.load(Some(shape), 0)?;
        self.state.cache.next_capacity = self.state.cache.capacity;
        let vocabulary = self.state.model.vocab_size;
        let tokens: Vec<u32> = (0..shape.chunk).filter_map(|at| u32::try_from(at % vocabulary).ok()).collect();
        let row = BatchRow { cached: shape.cache.saturating_sub(shape.chunk), ..BatchRow::default() };
        self.enqueue(EnginePass { shape, slot: 0, layers }, &tokens, row)
    }

    /// Adds passes that are launches of our kernel with a row for each token, where engines have no faster pass of the
    /// same size.
    fn add_row_sizes(&mut self, sizes: &mut Vec<Size>) -> Result<(), LlmError> {
        if std::env::var(DECODE).is_ok_and(|only| only == DecodePath::Engines.name()) {
            return Ok(());
        }
        let room = self.state.cache.capacity;
        let classes = self.program.as_ref().map(DecodeProgram::shared_classes).unwrap_or_default();
        // At the beginning of the cache and at its end.
        let trials: Vec<RowTrial> = classes
            .into_iter()
            .filter(|class| class.most() <= room)
            .flat_map(|class| [0, room - class.most()].map(|position| RowTrial { class, position }))
            .collect();
        let seconds = self.by_turns(&trials, |executor, RowTrial { class, position }| {
            let row = |at| TableRow { slot: 0, position: position + at, is_wanted: at + 1 == class.most() };
            let rows: Vec<TableRow> = (0..class.most()).map(row).collect();
            executor.state.place(&[BatchRow::default()])?;
            executor.replay_rows(class, &rows, 1)
        })?;
        // They left keys and values.
        self.state.cache.clear_slot(0)?;
        for (pair, seconds) in trials.chunks_exact(2).zip(seconds.chunks_exact(2)) {
            let tokens = pair[0].class.most();
            self.launches.push((tokens, seconds[0]));
            let cost = |size: &Size| size.seconds.first().map_or(f64::INFINITY, |(_, seconds)| *seconds);
            if sizes.iter().any(|size| size.tokens == tokens && cost(size) <= seconds[1]) {
                continue;
            }
            sizes.retain(|size| size.tokens != tokens);
            sizes.push(Size { tokens, seconds: vec![(0, seconds[0]), (room, seconds[1])] });
            self.row_sizes.push(tokens);
        }
        Ok(())
    }

    /// Measures which implementation of a decode step is fastest: our kernel, or TensorRT's engines, which have much
    /// faster kernels for some token counts. Returns the time of a step of one sequence in seconds.
    fn measure_steps(&mut self) -> Result<f64, LlmError> {
        let cache = self.state.cache.capacity;
        // Engines would unpack every layer at every step.
        let packed = self.state.weights.are_packed().then(|| "kernels".to_owned());
        let only = std::env::var(DECODE).ok().or(packed).filter(|_| self.program.is_some());
        let engines = self.options.shapes.steps.iter();
        let mut candidates: Vec<StepCandidate> = engines
            .map(|(batch, chunk)| StepCandidate { batch: *batch, chunk: *chunk, path: DecodePath::Engines })
            .collect();
        if self.program.is_some() {
            let batches = [1, self.options.shapes.slots];
            candidates.extend(batches.map(|batch| StepCandidate { batch, chunk: 1, path: DecodePath::Kernels }));
        }
        candidates.retain(|candidate| only.as_ref().is_none_or(|only| only == candidate.path.name()));
        let seconds = self.by_turns(&candidates, |executor, StepCandidate { batch, chunk, path }| {
            executor.state.place(&vec![BatchRow::default(); batch])?;
            Ok(executor.replay(StepKey { shape: LayerShape { batch, chunk, cache }, path, slot: 0 })?)
        })?;
        let mut best: HashMap<usize, TimedStep> = HashMap::new();
        for (candidate, seconds) in candidates.into_iter().zip(seconds) {
            let timed = TimedStep { candidate, seconds };
            let entry = best.entry(candidate.batch).or_insert(timed);
            if seconds < entry.seconds {
                *entry = timed;
            }
        }
        let one = best.get(&1).map_or(f64::INFINITY, |best| best.seconds);
        let path = |step: TimedStep| StepPath { path: step.candidate.path, chunk: step.candidate.chunk };
        self.paths = best.into_iter().map(|(batch, step)| (batch, path(step))).collect();
        Ok(one)
    }
}

/// Bytes that the device reads and writes per second when it copies.
pub(super) fn copy_bandwidth(stream: &Arc<CudaStream>) -> Result<f64, BackendError> {
    const BYTES: usize = 256 << 20;
    let from = Buffer::new(stream, BYTES, "the bandwidth test")?;
    let to = Buffer::unset(stream, BYTES, "the bandwidth test")?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        stream.synchronize().map_err(device_error)?;
        let start = Instant::now();
        for _ in 0..8 {
            buffers::copy(stream, from.address(), to.address(), BYTES)?;
        }
        stream.synchronize().map_err(device_error)?;
        best = best.min(start.elapsed().as_secs_f64() / 8.0);
    }
    Ok(2.0 * BYTES as f64 / best)
}
