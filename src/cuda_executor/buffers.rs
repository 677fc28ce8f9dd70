//! Device memory by bytes, and pinned host memory to copy from.
#![allow(unsafe_code)]

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};

use super::driver::{Address, device_error};
use crate::backend::BackendError;
use crate::backend::tensorrt::allocation::Allocation;

/// Device memory. Its address never changes.
pub(super) struct Buffer {
    memory: Allocation,
}

impl Buffer {
    /// Allocates zeroed memory, for buffers that are read before all of it is written. An engine must not read NaN in a
    /// cache row that is masked but was never written.
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        let buffer = Self::unset(stream, bytes, what)?;
        buffer.clear()?;
        Ok(buffer)
    }

    /// Allocates uninitialised memory, for buffers that are written before they are read. All work on a buffer is in
    /// the stream's order.
    pub(super) fn unset(stream: &Arc<CudaStream>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        Ok(Self { memory: Allocation::new(stream, bytes.max(4), what)? })
    }

    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address()
    }

    fn stream(&self) -> &CudaStream {
        self.memory.stream()
    }

    /// The address of `bytes` from offset `first`; an error if they are out of bounds.
    fn part(&self, first: usize, bytes: usize) -> Result<Address, BackendError> {
        let end = first.checked_add(bytes).filter(|end| *end <= self.len());
        end.ok_or_else(|| {
            BackendError::Run(format!("{bytes} bytes from {first} on of a buffer of {}", self.len()).into())
        })?;
        self.stream().context().bind_to_thread().map_err(device_error)?;
        Ok(self.address() + first as u64)
    }

    /// Copies from pageable memory; the bytes are read before this returns.
    pub(super) fn upload(&mut self, bytes: &[u8]) -> Result<(), BackendError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let place = self.part(0, bytes.len())?;
        // SAFETY: the part is within the buffer; the driver has taken pageable bytes when it returns.
        unsafe { result::memcpy_htod_async(place, bytes, self.stream().cu_stream()) }.map_err(device_error)
    }

    /// Copies from pinned memory, in the stream's order.
    pub(super) fn upload_pinned(&mut self, pinned: &Pinned, bytes: usize) -> Result<(), BackendError> {
        self.upload_part(0, pinned, bytes)
    }

    /// Copies from pinned memory to offset `first`, in the stream's order. The pinned memory must not be written before
    /// the copy is done: record an event behind it, for [`Pinned::write_after`].
    pub(super) fn upload_part(&mut self, first: usize, pinned: &Pinned, bytes: usize) -> Result<(), BackendError> {
        if bytes == 0 {
            return Ok(());
        }
        let place = self.part(first, bytes)?;
        // SAFETY: both hold `bytes`, and the caller leaves the pinned ones alone until they are copied.
        unsafe { result::memcpy_htod_async(place, &pinned.bytes()?[..bytes], self.stream().cu_stream()) }
            .map_err(device_error)
    }

    /// Zeroes the buffer, in the stream's order.
    pub(super) fn clear(&self) -> Result<(), BackendError> {
        self.clear_part(0, self.len())
    }

    /// Zeroes `bytes` from offset `first`, in the stream's order.
    pub(super) fn clear_part(&self, first: usize, bytes: usize) -> Result<(), BackendError> {
        if bytes == 0 {
            return Ok(());
        }
        let place = self.part(first, bytes)?;
        // SAFETY: the buffer lives, and the part is within it.
        unsafe { result::memset_d8_async(place, 0, bytes, self.stream().cu_stream()) }.map_err(device_error)
    }

    /// Waits for the stream, and copies `bytes` from offset `first` into pinned memory.
    pub(super) fn download(&self, pinned: &mut Pinned, first: usize, bytes: usize) -> Result<(), BackendError> {
        let target = &mut pinned.slice.as_mut_slice().map_err(device_error)?[..bytes];
        if bytes > 0 {
            let place = self.part(first, bytes)?;
            // SAFETY: both hold `bytes`, and the copy is done before `target` is given back.
            unsafe { result::memcpy_dtoh_async(target, place, self.stream().cu_stream()) }.map_err(device_error)?;
        }
        self.stream().synchronize().map_err(device_error)
    }
}

/// Page-locked host memory.
pub(super) struct Pinned {
    slice: PinnedHostSlice<u8>,
}

impl Pinned {
    pub(super) fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, BackendError> {
        // SAFETY: plain bytes, written before they are read.
        let slice = unsafe { stream.context().alloc_pinned_with_flags(bytes.max(4), 0) }.map_err(device_error)?;
        Ok(Self { slice })
    }

    pub(super) fn bytes(&self) -> Result<&[u8], BackendError> {
        self.slice.as_slice().map_err(device_error)
    }

    /// The memory for writing, after all copies from it on `stream` are done.
    pub(super) fn write(&mut self, stream: &CudaStream) -> Result<&mut [u8], BackendError> {
        stream.synchronize().map_err(device_error)?;
        self.slice.as_mut_slice().map_err(device_error)
    }

    /// The memory for writing, after the copies recorded by the event `copied` are done.
    pub(super) fn write_after(&mut self, copied: &CudaEvent) -> Result<&mut [u8], BackendError> {
        copied.synchronize().map_err(device_error)?;
        self.slice.as_mut_slice().map_err(device_error)
    }
}

/// Copies within the device, in the stream's order.
pub(super) fn copy(stream: &CudaStream, from: Address, to: Address, bytes: usize) -> Result<(), BackendError> {
    // SAFETY: the caller holds both buffers, at least this long.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.map_err(device_error)
}

/// Disables cudarc's own events, which would be captured into graphs: work is ordered by the only stream.
pub(super) fn single_stream(stream: &CudaStream) {
    // SAFETY: every buffer of the executor is used on this stream alone, or where events of our own say in which order.
    unsafe { stream.context().disable_event_tracking() };
}
