//! The decode kernel against float64, on shapes drawn at random: products of every kind of weight, attention of every kind.
//! Outputs are poisoned before. The same source runs on the GPU, where there is one, and on the CPU (`emulator.h`).
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod attention;
mod attention_rows;
mod dequantize;
mod emulator;
mod matmul;
mod top_logits;

use half::{bf16, f16};

use self::emulator::Emulator;
use super::super::buffers::{Buffer, Pinned, single_stream};
use super::super::matrix::{PackedMatrix, WeightsAt};
use super::super::packed_tiles::{MatrixSize, TileKinds};
use super::abi::{DecodeParams, MAX_STRIP_N, MOST_ROWS, PhaseDescriptor};
use super::kernel::{DecodeKernel, PhaseList};
use super::matmul::StripWidth;
use super::read_ahead::ReadAhead;
use super::row_class::RowClass;
use super::rows::{QuerySizes, TableRow, row_table};
use super::variant::VariantTarget;
use crate::backend::tensorrt::device::Device;
use crate::tensor::DType;

/// Classes of launches whose rows are of a table, and what each is tested with.
const ROWS: [(RowClass, DType, usize); 4] = [
    (RowClass::Eight, DType::Float16, 16),
    (RowClass::Thirty2, DType::Float16, 8),
    (RowClass::Sixty4, DType::Float16, 16),
    (RowClass::Sixty4, DType::BFloat16, 16),
];

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

/// Shares of blocks that are not alike.
fn shares(blocks: usize) -> Vec<u32> {
    (0..blocks).map(|block| 3 + u32::from(block % 3 == 1) * 2).collect()
}

/// Who runs the kernel.
enum KernelHost {
    Gpu(Device, DecodeKernel),
    Cpu(Emulator),
}

/// Memory of either, and what a test does with it.
struct Bench {
    machine: KernelHost,
    dtype: DType,
    /// Bits of a cached element.
    kv_bits: usize,
    class: RowClass,
    device: Vec<Buffer>,
    host: Vec<Box<[AlignedLine]>>,
}

/// Host memory, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct AlignedLine([u8; 64]);

impl Bench {
    /// The CPU, and the GPU if there is one, with a row for each slot.
    fn all(test: &str, dtype: DType, kv_bits: usize) -> Vec<Self> {
        Self::of_class(test, dtype, kv_bits, RowClass::Apart)
    }

    /// The same for launches of a class.
    fn of_class(test: &str, dtype: DType, kv_bits: usize, class: RowClass) -> Vec<Self> {
        let bench = |machine| Self { machine, dtype, kv_bits, class, device: Vec::new(), host: Vec::new() };
        let mut all = vec![bench(KernelHost::Cpu(Emulator::get(dtype, kv_bits, class)))];
        match Device::open() {
            Ok(device) => {
                single_stream(&device.stream);
                let target = VariantTarget { dtype, kinds: TileKinds::ALL, kv_bits, class };
                let kernel = DecodeKernel::for_device(&device, target).unwrap().expect("no kernel");
                all.push(bench(KernelHost::Gpu(device, kernel)));
            }
            Err(error) => eprintln!("SKIPPED {test} on the GPU: {error}"),
        }
        all
    }

    /// Whether large shapes take no time.
    fn is_fast(&self) -> bool {
        matches!(self.machine, KernelHost::Gpu(..))
    }

    fn blocks(&self) -> usize {
        match &self.machine {
            KernelHost::Gpu(_, kernel) => kernel.blocks,
            KernelHost::Cpu(_) => emulator::BLOCKS,
        }
    }

    /// Queries that a block takes at once.
    fn query_rows(&self) -> usize {
        match &self.machine {
            KernelHost::Gpu(_, kernel) => kernel.query_rows,
            KernelHost::Cpu(emulator) => emulator.query_rows,
        }
    }

    /// A table of rows with this many splits of their chunks at least.
    fn table(&mut self, rows: &[TableRow], heads: (usize, usize), splits: usize) -> u64 {
        let (group, kv_heads) = heads;
        let sizes = QuerySizes { group, kv_heads, query_rows: self.query_rows(), blocks: self.blocks() };
        let mut table = row_table(rows, sizes);
        table.kv_splits = table.kv_splits.max(u32::try_from(splits).unwrap());
        self.bytes(bytemuck::bytes_of(&table))
    }

    fn clear(&mut self) {
        self.device.clear();
        self.host.clear();
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
        match &self.machine {
            KernelHost::Gpu(device, _) => {
                let mut buffer = Buffer::new(&device.stream, bytes.len(), "a test").unwrap();
                buffer.upload(bytes).unwrap();
                self.device.push(buffer);
                self.device[self.device.len() - 1].address()
            }
            KernelHost::Cpu(_) => {
                let lines = bytes.chunks(64).map(|some| {
                    let mut line = AlignedLine([0; 64]);
                    line.0[..some.len()].copy_from_slice(some);
                    line
                });
                self.host.push(lines.collect());
                self.host[self.host.len() - 1].as_ptr() as u64
            }
        }
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
        match &self.machine {
            KernelHost::Gpu(device, _) => {
                let buffer = self.device.iter().find(|buffer| buffer.address() == address).unwrap();
                let mut pinned = Pinned::new(&device.stream, bytes).unwrap();
                buffer.download(&mut pinned, 0, bytes).unwrap();
                pinned.bytes().unwrap()[..bytes].to_vec()
            }
            KernelHost::Cpu(_) => {
                let lines = self.host.iter().find(|lines| lines.as_ptr() as u64 == address).unwrap();
                lines.iter().flat_map(|line| line.0).take(bytes).collect()
            }
        }
    }

    fn read_short(&self, address: u64, count: usize) -> Vec<f64> {
        let bytes = self.read(address, 2 * count);
        let two = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match self.dtype {
            DType::BFloat16 => two.map(|b| bf16::from_le_bytes(b).to_f64()).collect(),
            _ => two.map(|b| f16::from_le_bytes(b).to_f64()).collect(),
        }
    }

    fn read_floats(&self, address: u64, count: usize) -> Vec<f64> {
        let bytes = self.read(address, 4 * count);
        bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    }

    /// A packed matrix to `[inputs, outputs]` in float16.
    fn dequantize(&self, matrix: PackedMatrix, out: u64) {
        match &self.machine {
            KernelHost::Gpu(device, kernel) => {
                kernel.dequantize(&device.stream, matrix, out).unwrap();
                device.stream.synchronize().unwrap();
            }
            KernelHost::Cpu(emulator) => emulator.dequantize(matrix, out),
        }
    }

    fn run(&mut self, phases: &[PhaseDescriptor], counters: usize, params: DecodeParams) {
        // Narrow strips of eight rows are no larger than wide ones of 64.
        let partial_sums = self.bytes(&vec![0xff; 2 * self.blocks() * MOST_ROWS * MAX_STRIP_N / 2 * 4]);
        let attention_partials = self.bytes(&vec![0xff; 1 << 24]);
        let params =
            ReadAhead::new(50 << 20, 132).of_launch(DecodeParams { partial_sums, attention_partials, ..params });
        match &self.machine {
            KernelHost::Gpu(device, kernel) => {
                let list =
                    PhaseList::new(&device.stream, phases, counters, (&shares(kernel.blocks)[..], self.class)).unwrap();
                kernel.launch(&device.stream, &list, params).unwrap();
                device.stream.synchronize().unwrap();
            }
            KernelHost::Cpu(emulator) => emulator.run(phases, counters, params),
        }
    }
}
