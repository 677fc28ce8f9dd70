//! CUDA graphs: work that is captured once and replayed with one launch.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, DriverError};
use std::sync::Arc;

use crate::backend::BackendError;

/// A captured CUDA graph. The buffers it refers to must outlive it.
pub struct Graph(CudaGraph);

// SAFETY: whoever owns a graph launches it from one thread at a time, which is what CUDA asks; cudarc binds the context
// to the calling thread at every launch.
#[allow(unsafe_code)]
unsafe impl Send for Graph {}

fn error(error: DriverError) -> BackendError {
    BackendError::Run(format!("CUDA: {error}").into())
}

impl Graph {
    /// Captures what `work` enqueues on the stream. Engines finish their preparations in their first run, which cannot
    /// be captured: run them once before.
    pub fn capture(
        stream: &Arc<CudaStream>,
        work: impl FnOnce() -> Result<(), BackendError>,
    ) -> Result<Self, BackendError> {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(error)?;
        let captured = work();
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        captured?;
        let graph = graph.map_err(error)?;
        graph.map(Self).ok_or_else(|| BackendError::Run("CUDA captured no graph".into()))
    }

    /// Launches the graph on the stream it was captured from.
    pub fn launch(&self) -> Result<(), BackendError> {
        self.0.launch().map_err(error)
    }
}
