//! Engines whose buffers and scratch memory belong to the caller, and the cache of kernels that RTX compiles for them.

use std::sync::{Arc, Mutex, PoisonError};

use super::{TensorRt, shim};
use crate::backend::BackendError;

/// Kernels that RTX compiles when the engines of a model are loaded and first run, which takes about a second per
/// engine.
#[derive(Clone)]
pub struct KernelCache(Arc<Mutex<shim::RtxCache>>);

/// A loaded engine with static shapes. Its buffers and scratch memory belong to the caller, and must outlive its runs.
pub struct Engine {
    session: shim::TrtContext,
    // Dropped after the session, which refers to it.
    _kernels: KernelCache,
}

impl KernelCache {
    /// The kernels as bytes, for a later process; empty where engines contain their kernels.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes().unwrap_or_default()
    }
}

impl TensorRt {
    /// A cache with the bytes that [`KernelCache::bytes`] returned in an earlier process; kernels of another library,
    /// GPU or driver are dropped.
    pub fn kernel_cache(&self, before: &[u8]) -> Result<KernelCache, BackendError> {
        let cache = self.library.kernel_cache(before).map_err(|error| BackendError::Load(error.into()))?;
        Ok(KernelCache(Arc::new(Mutex::new(cache))))
    }

    /// Loads a plan; the caller provides buffers and scratch memory. A device must be open.
    pub fn engine(&self, plan: &[u8], tf32: bool, kernels: &KernelCache) -> Result<Engine, BackendError> {
        let mut cache = kernels.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = self.library.load_shared(plan, tf32, &mut cache);
        let session = session.map_err(|error| BackendError::Load(error.into()))?;
        Ok(Engine { session, _kernels: kernels.clone() })
    }
}

impl Engine {
    /// Size of the scratch memory in bytes.
    pub fn scratch_bytes(&self) -> usize {
        usize::try_from(self.session.scratch_bytes()).unwrap_or(0)
    }

    /// Sets the scratch memory, which engines on the same stream may share.
    pub fn set_scratch(&mut self, address: usize, bytes: usize) {
        self.session.set_scratch(address, i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Sets the device address of an input or output.
    pub fn set_address(&mut self, name: &str, address: usize) -> Result<(), BackendError> {
        self.session.set_address(name, address).map_err(|error| BackendError::Run(error.into()))
    }

    /// Enqueues one run on a CUDA stream.
    pub fn enqueue(&mut self, stream: usize) -> Result<(), BackendError> {
        self.session.enqueue(stream).map_err(|error| BackendError::Run(error.into()))
    }
}
