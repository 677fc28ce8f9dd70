//! The memory that a model may take on this machine, and the TensorRT that will build it.

use crate::backend::tensorrt::TensorRt;
use crate::backend::tensorrt::device::Device;
use crate::memory::{self, Memory};
use crate::spec::{Family, Version};

/// Free memory for a model.
#[derive(Debug, Clone)]
pub(super) struct Room {
    /// Free bytes.
    pub(super) free: u64,
    /// Whose they are: a GPU's name, or this machine.
    pub(super) place: String,
    /// Whether the model's engines and the host that loads them share them.
    pub(super) shared: bool,
    /// The installed TensorRT.
    pub(super) tensorrt: Option<Version>,
}

impl Room {
    /// That of the GPU, or without one of the machine, whose CPU then computes.
    pub(super) fn here() -> Self {
        let tensorrt = TensorRt::open().ok().map(|tensorrt| tensorrt.version);
        let available = || Memory::of_this_machine().map_or(u64::MAX, |memory| memory.available);
        match Device::open().and_then(|device| Ok((device.info()?, device))) {
            Ok((info, device)) => {
                let free = device.free_memory().unwrap_or(info.memory);
                Self { free, place: info.name, shared: device.is_integrated(), tensorrt }
            }
            Err(_) => {
                Self { free: available(), place: "this machine, which has no GPU".to_owned(), shared: true, tensorrt }
            }
        }
    }

    /// What an estimate may come to: estimates are not exact, and others want memory too.
    pub(super) fn budget(&self) -> u64 {
        self.free / 10 * 9
    }

    /// The family of TensorRT, which decides on the shapes that engines have.
    pub(super) fn family(&self) -> Family {
        self.tensorrt.map_or(Family::Rtx, |version| version.family)
    }

    /// Whether it computes in bfloat16: TensorRT since 9 does.
    pub(super) fn has_bfloat16(&self) -> bool {
        self.tensorrt.is_none_or(|version| version.family == Family::Rtx || version.major >= 9)
    }

    /// In words: "24.0 GB free on Orin".
    pub(super) fn text(&self) -> String {
        format!("{} free on {}", memory::format_bytes(self.free), self.place)
    }
}
