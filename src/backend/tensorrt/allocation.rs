//! Allocates device memory: from the driver's pool, or directly where the pool fails early.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaContext, CudaStream, DriverError, result};

use super::device;
use crate::backend::BackendError;
use crate::diagnostic::Diagnostic;
use crate::memory::format_bytes;

/// Environment variable, `pool` or `direct`, for the source of device memory.
pub const VARIABLE: &str = "WATUS_DEVICE_MEMORY";

/// Device memory that is freed when it is dropped. Its address never changes.
#[derive(Debug)]
pub struct Allocation {
    address: CUdeviceptr,
    bytes: usize,
    pooled: bool,
    stream: Arc<CudaStream>,
}

/// Whether to allocate from the pool (cuMemAllocAsync), given the value of [`VARIABLE`]. On an AGX Orin of 64 GB the
/// pool fails at 20 GB where cuMemAlloc does not (unslothai/unsloth#3113), so integrated devices do not use it.
fn is_pooled(said: Option<&str>, integrated: bool, has_pool: bool) -> Result<bool, BackendError> {
    let refuse = |what: String| BackendError::Unavailable {
        what,
        help: format!("leave out {VARIABLE}, or set it to `direct` (cuMemAlloc) or `pool` (cuMemAllocAsync)"),
    };
    match said {
        None | Some("") => Ok(has_pool && !integrated),
        Some("direct") => Ok(false),
        Some("pool") if has_pool => Ok(true),
        Some("pool") => Err(refuse(format!("{VARIABLE} is `pool`, and this GPU's driver has no memory pools"))),
        Some(other) => Err(refuse(format!("{VARIABLE} is `{other}`"))),
    }
}

fn pooled(context: &CudaContext) -> Result<bool, BackendError> {
    let said = std::env::var_os(VARIABLE);
    let said = said.as_ref().map(|said| said.to_string_lossy());
    is_pooled(said.as_deref(), device::is_integrated(context), context.has_async_alloc())
}

/// The error for a failed allocation of `bytes` for `what`, with the free memory.
fn exhausted(context: &CudaContext, bytes: usize, what: &str, error: DriverError) -> BackendError {
    let free = device::free_memory(context).map_or("unknown how much".to_owned(), format_bytes);
    let more = match device::is_integrated(context) {
        true => "; `watus-build doctor` tells whether this Jetson refuses large allocations (nvmap, page-cache)",
        false => "",
    };
    let message = format!("no device memory for {what} ({}, {free} is free): {error}", format_bytes(bytes as u64));
    BackendError::Run(Diagnostic::new(message).with_help(format!(
        "close other programs, or lower max_batch_size, max_input_len or max_output_len in the recipe{more}"
    )))
}

impl Allocation {
    /// Allocates `bytes` for `what`, uninitialised.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        let context = stream.context();
        let pooled = pooled(context)?;
        let fail = |error: DriverError| exhausted(context, bytes, what, error);
        context.bind_to_thread().map_err(fail)?;
        // SAFETY: bytes without a meaning until somebody writes them, which `Buffer` is about.
        let address = match pooled {
            true => unsafe { result::malloc_async(stream.cu_stream(), bytes) },
            false => unsafe { result::malloc_sync(bytes) },
        };
        Ok(Self { address: address.map_err(fail)?, bytes, pooled, stream: Arc::clone(stream) })
    }

    /// Address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The stream that uses the memory.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread());
        if self.pooled {
            // SAFETY: from the pool, and freed once; the driver waits for what is on the stream.
            context.record_err(unsafe { result::free_async(self.address, self.stream.cu_stream()) });
            return;
        }
        // Of any stream: packed weights are unpacked on one of their own.
        context.record_err(context.synchronize());
        // SAFETY: from cuMemAlloc, freed once, and nothing uses it any more.
        context.record_err(unsafe { result::free_sync(self.address) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integrated_devices_do_without_the_pool() {
        for (said, integrated, has_pool, wanted) in [
            (None, false, true, Ok(true)),
            (None, true, true, Ok(false)),
            (None, false, false, Ok(false)),
            (Some(""), true, true, Ok(false)),
            (Some("pool"), true, true, Ok(true)),
            (Some("direct"), false, true, Ok(false)),
            (Some("pool"), true, false, Err("no memory pools")),
            (Some("managed"), false, true, Err("WATUS_DEVICE_MEMORY is `managed`")),
        ] {
            let found = is_pooled(said, integrated, has_pool).map_err(|error| error.to_string());
            match (&found, wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(*found, wanted, "{said:?} {integrated} {has_pool}"),
                (Err(found), Err(wanted)) => assert!(found.contains(wanted), "{found}"),
                _ => panic!("{said:?} {integrated} {has_pool}: {found:?}, not {wanted:?}"),
            }
        }
    }
}
