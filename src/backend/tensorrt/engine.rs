//! Engines whose buffers and scratch memory are their user's, and what RTX compiles for them.

use super::TensorRt;
use crate::backend::BackendError;

#[cfg(watus_tensorrt)]
pub use present::{Engine, KernelCache};

#[cfg(watus_tensorrt)]
mod present {
    use std::sync::{Arc, Mutex, PoisonError};

    use cxx::UniquePtr;

    use super::super::ffi::bridge;
    use super::{BackendError, TensorRt};

    /// What RTX compiles when the engines of one model are loaded and first run, about a second for each.
    #[derive(Clone)]
    pub struct KernelCache(Arc<Mutex<UniquePtr<bridge::KernelCache>>>);

    /// A loaded engine of static shapes. Buffers and scratch memory are its user's, and must outlive its runs.
    pub struct Engine {
        session: UniquePtr<bridge::Session>,
        // Dropped after the session, which refers to it.
        _kernels: KernelCache,
    }

    fn load_error(error: &cxx::Exception) -> BackendError {
        BackendError::Load(error.to_string())
    }

    impl KernelCache {
        /// With what [`KernelCache::bytes`] said in an earlier process; what is not of this library, GPU and driver is left
        /// out.
        pub fn new(before: &[u8]) -> Result<Self, BackendError> {
            let cache = bridge::new_kernel_cache(before).map_err(|error| load_error(&error))?;
            Ok(Self(Arc::new(Mutex::new(cache))))
        }

        /// To be handed to a later process; empty where engines come compiled.
        pub fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).cached().unwrap_or_default()
        }
    }

    impl TensorRt {
        /// Loads a plan whose buffers and scratch memory the caller keeps; a device must be open.
        #[allow(unsafe_code)]
        pub fn engine(&self, plan: &[u8], tf32: bool, kernels: &KernelCache) -> Result<Engine, BackendError> {
            let mut cache = kernels.0.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the engine keeps the cache, and lets go of it after its session.
            let session = unsafe { bridge::load_plan_with(self.handle.0, plan, tf32, cache.pin_mut()) };
            let session = session.map_err(|error| load_error(&error))?;
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
            self.session.pin_mut().set_scratch(address, i64::try_from(bytes).unwrap_or(i64::MAX));
        }

        /// Tells where an input or output of static shape is on the device.
        pub fn set_address(&mut self, name: &str, address: usize) -> Result<(), BackendError> {
            let set = self.session.pin_mut().set_address(name, address);
            set.map_err(|error| BackendError::Run(error.to_string()))
        }

        /// Puts one run on a CUDA stream.
        pub fn enqueue(&mut self, stream: usize) -> Result<(), BackendError> {
            self.session.pin_mut().enqueue(stream).map_err(|error| BackendError::Run(error.to_string()))
        }
    }
}

#[cfg(not(watus_tensorrt))]
pub use absent::{Engine, KernelCache};

#[cfg(not(watus_tensorrt))]
#[allow(missing_docs)]
mod absent {
    use super::super::absent::missing;
    use super::{BackendError, TensorRt};

    pub struct KernelCache(());

    pub struct Engine(());

    impl KernelCache {
        pub fn new(_before: &[u8]) -> Result<Self, BackendError> {
            Err(missing())
        }

        pub fn bytes(&self) -> Vec<u8> {
            Vec::new()
        }
    }

    impl TensorRt {
        pub fn engine(&self, _plan: &[u8], _tf32: bool, _kernels: &KernelCache) -> Result<Engine, BackendError> {
            Err(missing())
        }
    }

    impl Engine {
        pub fn scratch_bytes(&self) -> usize {
            0
        }

        pub fn set_scratch(&mut self, _address: usize, _bytes: usize) {}

        pub fn set_address(&mut self, _name: &str, _address: usize) -> Result<(), BackendError> {
            Err(missing())
        }

        pub fn enqueue(&mut self, _stream: usize) -> Result<(), BackendError> {
            Err(missing())
        }
    }
}
