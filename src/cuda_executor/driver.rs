//! Types for calls of the CUDA driver: addresses, 32-bit numbers, element types, errors.

use cudarc::driver::DriverError;

use crate::backend::BackendError;
use crate::tensor::DType;

/// A device address. Whoever passes one to a kernel guarantees that its memory is live and large enough.
pub(super) type Address = u64;

/// Number of an element type in the kernels' sources.
pub(super) const fn kind(dtype: DType) -> u32 {
    match dtype {
        DType::Float16 => 1,
        DType::BFloat16 => 2,
        _ => 0,
    }
}

pub(super) fn device_error(error: DriverError) -> BackendError {
    BackendError::Run(format!("CUDA: {error}").into())
}

/// A count as 32-bit number. Every count that reaches a kernel was checked against the model's sizes, which fit.
pub(super) fn word(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
