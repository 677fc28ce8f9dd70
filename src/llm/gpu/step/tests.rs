//! The step kernel against float64, on shapes drawn at random: products of every kind of weight, attention of every kind.
//! Outputs are poisoned before. Needs a GPU.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attention;
mod products;

use half::{bf16, f16};

use super::super::buffers::{Buffer, Pinned};
use super::super::tiles::{Layout, tile_of};
use super::super::weights::Matrix;
use super::kernel::{ATTEND, Kernel, Launch, List, Phase, ROWS};
use super::{WIDEST, product};
use crate::backend::tensorrt::device::Device;
use crate::checkpoint::Second;
use crate::tensor::DType;

/// Numbers that look random (Vigna 2015, xorshift64*).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next()).unwrap() % limit
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
    fn float(&mut self) -> f64 {
        self.next() as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A GPU, a kernel for any weights, and memory that lives as long as this.
struct Bench {
    device: Device,
    kernel: Kernel,
    dtype: DType,
    held: Vec<Buffer>,
}

impl Bench {
    fn open(test: &str, dtype: DType) -> Option<Self> {
        let device = Device::open().inspect_err(|error| eprintln!("SKIPPED {test}: {error}")).ok()?;
        super::super::buffers::single_stream(&device.stream);
        let kernel = Kernel::for_device(&device, dtype, 5120).unwrap().expect("no kernel");
        Some(Self { device, kernel, dtype, held: Vec::new() })
    }

    fn round(&self, value: f64) -> f64 {
        match self.dtype {
            DType::BFloat16 => bf16::from_f64(value).to_f64(),
            _ => f16::from_f64(value).to_f64(),
        }
    }

    /// Largest relative error of a rounding.
    fn unit(&self) -> f64 {
        if self.dtype == DType::BFloat16 { 1.0 / 256.0 } else { 1.0 / 2048.0 }
    }

    fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let mut buffer = Buffer::new(&self.device.stream, bytes.len(), "a test").unwrap();
        buffer.upload(bytes).unwrap();
        self.held.push(buffer);
        self.held[self.held.len() - 1].address()
    }

    fn short(&mut self, values: &[f64]) -> u64 {
        let bits = |value: &f64| match self.dtype {
            DType::BFloat16 => bf16::from_f64(*value).to_bits(),
            _ => f16::from_f64(*value).to_bits(),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|value| bits(value).to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn floats(&mut self, values: &[f64]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn words(&mut self, values: &[usize]) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|value| u32::try_from(*value).unwrap().to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let buffer = self.held.iter().find(|buffer| buffer.address() == address).unwrap();
        let mut pinned = Pinned::new(&self.device.stream, bytes).unwrap();
        buffer.download(&mut pinned, bytes).unwrap();
        pinned.bytes().unwrap()[..bytes].to_vec()
    }

    fn read_short(&self, address: u64, count: usize) -> Vec<f64> {
        let bytes = self.read(address, 2 * count);
        let two = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            DType::BFloat16 => two.map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
            _ => two.map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        }
    }

    fn run(&mut self, phases: &[Phase], counters: usize, launch: Launch) {
        let list = List::new(&self.device.stream, phases, counters).unwrap();
        let (partial, attention) =
            (self.bytes(&vec![0xff; 2 * self.kernel.blocks * ROWS * WIDEST * 4]), self.bytes(&vec![0xff; 1 << 22]));
        self.kernel.launch(&self.device.stream, &list, Launch { partial, attention, ..launch }).unwrap();
        self.device.stream.synchronize().unwrap();
    }
}
