//! Engines whose buffers and scratch memory are their user's, and what RTX compiles for them.

use std::sync::{Arc, Mutex, PoisonError};

use super::{TensorRt, shim};
use crate::backend::BackendError;

/// What RTX compiles when the engines of one model are loaded and first run, about a second for each.
#[derive(Clone)]
pub struct KernelCache(Arc<Mutex<shim::KernelCache>>);

/// A loaded engine of static shapes. Buffers and scratch memory are its user's, and must outlive its runs.
pub struct Engine {
    session: shim::Session,
    // Dropped after the session, which refers to it.
    _kernels: KernelCache,
}

impl KernelCache {
    /// To be handed to a later process; empty where engines come compiled.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes().unwrap_or_default()
    }
}

impl TensorRt {
    /// A cache with what [`KernelCache::bytes`] said in an earlier process; what is not of this library, GPU and driver is left
    /// out.
    pub fn kernel_cache(&self, before: &[u8]) -> Result<KernelCache, BackendError> {
        let cache = self.library.kernel_cache(before).map_err(|error| BackendError::Load(error.into()))?;
        Ok(KernelCache(Arc::new(Mutex::new(cache))))
    }

    /// Loads a plan whose buffers and scratch memory the caller keeps; a device must be open.
    pub fn engine(&self, plan: &[u8], tf32: bool, kernels: &KernelCache) -> Result<Engine, BackendError> {
        let mut cache = kernels.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = self.library.load_shared(plan, tf32, &mut cache);
        let session = session.map_err(|error| BackendError::Load(error.into()))?;
        Ok(Engine { session, _kernels: kernels.clone() })
    }
}

impl Engine {
    /// Device memory it computes in, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        usize::try_from(self.session.scratch_bytes()).unwrap_or(0)
    }

    /// Gives it that memory, which other engines of the same stream may use too.
    pub fn set_scratch(&mut self, address: usize, bytes: usize) {
        self.session.set_scratch(address, i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Tells where an input or output of static shape is on the device.
    pub fn set_address(&mut self, name: &str, address: usize) -> Result<(), BackendError> {
        self.session.set_address(name, address).map_err(|error| BackendError::Run(error.into()))
    }

    /// Puts one run on a CUDA stream.
    pub fn enqueue(&mut self, stream: usize) -> Result<(), BackendError> {
        self.session.enqueue(stream).map_err(|error| BackendError::Run(error.into()))
    }
}
