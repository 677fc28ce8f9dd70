//! Device memory by the byte, and pinned host memory to fill it from.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, PinnedHostSlice};

use super::kernels::{Address, device_error};
use crate::backend::BackendError;

/// Device memory. Its address never changes.
pub(super) struct Buffer {
    slice: CudaSlice<u8>,
    stream: Arc<CudaStream>,
}

impl Buffer {
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        // Zeroed: no engine may meet a NaN in a cache row that is masked but was never written.
        let slice = stream.alloc_zeros(bytes.max(4)).map_err(|error| {
            let free = stream.context().mem_get_info().map_or(0, |(free, _)| free);
            BackendError::Run(format!(
                "no device memory for {what} ({}, {} are free): {error}\n  hint: close other programs, or lower \
                 max_batch_size, max_input_len or max_output_len in the recipe",
                crate::memory::text(bytes as u64),
                crate::memory::text(free as u64)
            ))
        })?;
        Ok(Self { slice, stream: Arc::clone(stream) })
    }

    pub(super) fn len(&self) -> usize {
        self.slice.len()
    }

    pub(super) fn address(&self) -> Address {
        self.slice.device_ptr(&self.stream).0
    }

    /// Copies from pageable memory; the bytes are taken before this returns.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Result<(), BackendError> {
        self.stream.memcpy_htod(bytes, &mut self.slice.slice_mut(..bytes.len())).map_err(device_error)
    }

    /// Copies from pinned memory, in the stream's order.
    pub(super) fn upload_pinned(&mut self, pinned: &Pinned, bytes: usize) -> Result<(), BackendError> {
        let mut target = self.slice.slice_mut(..bytes);
        // SAFETY: both hold `bytes`; the pinned memory is not written again before `Pinned::write` has waited.
        unsafe {
            cudarc::driver::result::memcpy_htod_async(
                cudarc::driver::DevicePtrMut::device_ptr_mut(&mut target, &self.stream).0,
                &pinned.bytes()?[..bytes],
                self.stream.cu_stream(),
            )
        }
        .map_err(device_error)?;
        Ok(())
    }

    /// Zeroes it, in the stream's order.
    pub(super) fn clear(&self) -> Result<(), BackendError> {
        // SAFETY: the buffer lives, and all of it is ours.
        unsafe { cudarc::driver::result::memset_d8_async(self.address(), 0, self.len(), self.stream.cu_stream()) }
            .map_err(device_error)
    }

    /// Zeroes `bytes` from `first` on, in the stream's order.
    pub(super) fn clear_part(&self, first: usize, bytes: usize) -> Result<(), BackendError> {
        if bytes == 0 {
            return Ok(());
        }
        let end = first.checked_add(bytes).filter(|end| *end <= self.len());
        end.ok_or_else(|| BackendError::Run(format!("{bytes} bytes from {first} on of {} to clear", self.len())))?;
        let place = self.address() + first as u64;
        // SAFETY: the buffer lives, and the part is within it.
        unsafe { cudarc::driver::result::memset_d8_async(place, 0, bytes, self.stream.cu_stream()) }
            .map_err(device_error)
    }

    /// Waits for the stream and copies `bytes` from `first` on into pinned memory.
    pub(super) fn download(&self, pinned: &mut Pinned, first: usize, bytes: usize) -> Result<(), BackendError> {
        let source = self.slice.slice(first..first + bytes);
        let target = &mut pinned.slice.as_mut_slice().map_err(device_error)?[..bytes];
        self.stream.memcpy_dtoh(&source, target).map_err(device_error)?;
        self.stream.synchronize().map_err(device_error)
    }
}

/// Page-locked host memory.
pub(super) struct Pinned {
    slice: PinnedHostSlice<u8>,
    stream: Arc<CudaStream>,
}

impl Pinned {
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, BackendError> {
        // SAFETY: plain bytes, written before they are read.
        let slice = unsafe { stream.context().alloc_pinned_with_flags(bytes.max(4), 0) }.map_err(device_error)?;
        Ok(Self { slice, stream: Arc::clone(stream) })
    }

    pub(super) fn bytes(&self) -> Result<&[u8], BackendError> {
        self.slice.as_slice().map_err(device_error)
    }

    /// For writing, after what the stream still copies from it.
    pub(super) fn write(&mut self) -> Result<&mut [u8], BackendError> {
        self.stream.synchronize().map_err(device_error)?;
        self.slice.as_mut_slice().map_err(device_error)
    }
}

/// Copies within the device, in the stream's order.
pub(super) fn copy(stream: &CudaStream, from: Address, to: Address, bytes: usize) -> Result<(), BackendError> {
    // SAFETY: the caller holds both buffers, at least this long.
    unsafe { cudarc::driver::result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.map_err(device_error)
}

/// Leaves the order of work to the one stream there is: cudarc's own events would end up in captured graphs.
pub(super) fn single_stream(stream: &CudaStream) {
    // SAFETY: every buffer of the executor is used on this stream alone, or where events of our own say in which order.
    unsafe { stream.context().disable_event_tracking() };
}
