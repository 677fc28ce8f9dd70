//! The GPU, through the CUDA driver library, which is opened at run time.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, CudaStream};

use crate::backend::BackendError;
use crate::memory::{self, Memory};
use crate::spec::DeviceInfo;

/// The first CUDA device and a stream on it.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device's primary context, which TensorRT uses too.
    pub context: Arc<CudaContext>,
    /// The stream for all our work.
    pub stream: Arc<CudaStream>,
}

fn no_device(error: impl std::fmt::Display) -> BackendError {
    BackendError::NoDevice(error.to_string())
}

/// Whether the device shares the machine's memory, as on a Jetson. A Jetson may also have a graphics card that does
/// not, so the driver is asked instead of the board.
pub fn is_integrated(context: &CudaContext) -> bool {
    context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_INTEGRATED).is_ok_and(|integrated| integrated > 0)
}

/// Free device memory in bytes.
pub fn free_memory(context: &CudaContext) -> Option<u64> {
    let reported = context.mem_get_info().ok().map(|(free, _)| free as u64);
    memory::free_on_device(reported, is_integrated(context), Memory::of_this_machine())
}

#[allow(unsafe_code)]
fn driver_is_present() -> bool {
    // SAFETY: only dlopens libcuda; without the check cudarc would panic where there is none.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

impl Device {
    /// Opens device 0 (`CUDA_VISIBLE_DEVICES` may choose which that is).
    pub fn open() -> Result<Self, BackendError> {
        if !driver_is_present() {
            return Err(no_device("the CUDA driver library (libcuda.so.1) is not installed"));
        }
        let context = CudaContext::new(0).map_err(no_device)?;
        // Before whatever else is begun beside it.
        let (_, greatest) = cudarc::driver::result::stream::get_priority_range().map_err(no_device)?;
        let stream = context.new_stream_with_priority(greatest).map_err(no_device)?;
        Ok(Self { context, stream })
    }

    /// Name, compute capability and memory.
    pub fn info(&self) -> Result<DeviceInfo, BackendError> {
        let (major, minor) = self.context.compute_capability().map_err(no_device)?;
        Ok(DeviceInfo {
            name: self.context.name().map_err(no_device)?,
            compute_capability: format!("{major}.{minor}"),
            memory: self.context.total_mem().map_err(no_device)? as u64,
        })
    }

    /// Whether it shares the machine's memory.
    pub fn is_integrated(&self) -> bool {
        is_integrated(&self.context)
    }

    /// Free memory in bytes.
    pub fn free_memory(&self) -> Option<u64> {
        free_memory(&self.context)
    }

    /// Used memory in bytes; on an integrated device that of all processes.
    pub fn used_memory(&self) -> Option<u64> {
        let total = match self.is_integrated() {
            true => Memory::of_this_machine()?.total,
            false => self.context.total_mem().ok()? as u64,
        };
        Some(total.saturating_sub(self.free_memory()?))
    }

    /// Number of multiprocessors.
    pub fn multiprocessors(&self) -> Result<usize, BackendError> {
        Ok(self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1))
    }

    /// Largest shared memory of a block in bytes.
    pub fn shared_memory(&self) -> Result<usize, BackendError> {
        self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    /// Size of the L2 cache in bytes.
    pub fn cache(&self) -> Result<usize, BackendError> {
        self.number(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
    }

    fn number(&self, attribute: CUdevice_attribute) -> Result<usize, BackendError> {
        Ok(usize::try_from(self.context.attribute(attribute).map_err(no_device)?).unwrap_or(0))
    }

    /// A line for messages: name, compute capability, memory.
    pub fn description(&self) -> String {
        self.info().map_or_else(
            |_| "unknown GPU".to_owned(),
            |info| format!("{} (compute capability {})", info.name, info.compute_capability),
        )
    }
}
