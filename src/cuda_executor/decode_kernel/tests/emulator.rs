//! The decode kernel compiled for the CPU by the host's C++ compiler, with `emulator.h` in place of `primitives.cu`; every block
//! a library of its own and a thread.
#![allow(unsafe_code)]

use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use super::super::abi::{DecodeParams, DequantizeParams, MAX_GROUP, PhaseDescriptor, TopLogitsParams};
use super::super::kernel::{EMULATED, dequantize_grid, dequantize_params};
use super::super::partition::Partition;
use super::super::row_class::RowClass;
use super::PackedMatrix;
use crate::cuda_executor::driver::{kind, word};
use crate::tensor::DType;

/// More than one, so that they wait for each other.
pub(super) const BLOCKS: usize = 3;

/// Held by whoever uses the libraries: each has the state of one block.
static IN_USE: std::sync::Mutex<()> = std::sync::Mutex::new(());

type RunBlock = unsafe extern "C" fn(*const DecodeParams, u32, u32, u32);
type RunTopLogits = unsafe extern "C" fn(*const TopLogitsParams, u32, u32);
type RunDequantize = unsafe extern "C" fn(*const DequantizeParams, u32, u32, u32, u32);

/// The blocks' libraries, and what they were compiled for.
#[derive(Clone, Copy)]
pub(super) struct Emulator {
    libraries: &'static [Library],
    dtype: DType,
    class: RowClass,
    pub(super) query_rows: usize,
}

impl Emulator {
    /// Compiled once for all tests: for float16 with packed weights, and so little memory that inputs come in chunks; for
    /// bfloat16 with much; for caches in 8 bits. For rows of any slots: eight, 32 with a cache of 8 bits, 64.
    pub(super) fn get(dtype: DType, kv_bits: usize, class: RowClass) -> Self {
        static LIBRARIES: [OnceLock<Vec<Library>>; 6] = [const { OnceLock::new() }; 6];
        let (which, query_blocks, options) = match (class, dtype, kv_bits) {
            (RowClass::Apart, _, 8) => (2, 1, "-DSLOT_BYTES=4096 -DWORK_BYTES=49152 -DTILE_KINDS=0 -DKV_BITS=8"),
            (RowClass::Apart, DType::BFloat16, _) => (0, 1, "-DSLOT_BYTES=4096 -DWORK_BYTES=49152 -DTILE_KINDS=0"),
            (RowClass::Apart, ..) => (1, 1, "-DSLOT_BYTES=5120 -DWORK_BYTES=28672 -DTILE_KINDS=31"),
            (RowClass::Eight, ..) => (3, 1, "-DSLOT_BYTES=5120 -DWORK_BYTES=28672 -DTILE_KINDS=31 -DROW_BLOCKS=1"),
            (RowClass::Thirty2, ..) => {
                (4, 2, "-DSLOT_BYTES=5120 -DWORK_BYTES=49152 -DTILE_KINDS=31 -DKV_BITS=8 -DROW_BLOCKS=4")
            }
            (RowClass::Sixty4, ..) => (5, 4, "-DSLOT_BYTES=5120 -DWORK_BYTES=65536 -DTILE_KINDS=31 -DROW_BLOCKS=8"),
        };
        let shared = if class == RowClass::Apart { "-DSHARED_SLOTS=0" } else { "-DSHARED_SLOTS=1" };
        let queries = format!("-DQUERY_BLOCKS={query_blocks}");
        let options: Vec<&str> = options.split(' ').chain([shared, &queries]).collect();
        let libraries = LIBRARIES[which].get_or_init(|| compile(&options));
        Self { libraries, dtype, class, query_rows: MAX_GROUP * query_blocks }
    }

    /// Runs `top_logits.cu` with so many blocks to a row.
    pub(super) fn top_logits(self, params: &TopLogitsParams, blocks: usize, rows: usize) {
        let _in_use = IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the function has this signature; the caller's buffers have these sizes.
        unsafe {
            let run: Symbol<'_, RunTopLogits> = self.libraries[0].get(b"run_top_logits").unwrap();
            run(params, word(blocks), word(rows));
        }
    }

    pub(super) fn run(self, phases: &[PhaseDescriptor], counters: usize, params: DecodeParams) {
        let _in_use = IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let counted = phases.len() + counters;
        let mut counters = vec![0_u32; counted + BLOCKS];
        let mut partition = Partition::new(phases, &super::shares(BLOCKS), self.class);
        let table = std::mem::take(&mut partition.table);
        let phases = partition.at(table.as_ptr() as u64);
        let params = DecodeParams {
            phases: phases.as_ptr() as u64,
            counters: counters.as_mut_ptr() as u64,
            claims: counters[counted..].as_mut_ptr() as u64,
            phase_count: word(phases.len()),
            ..params
        };
        std::thread::scope(|scope| {
            for (block, library) in self.libraries.iter().enumerate() {
                let params = &params;
                scope.spawn(move || {
                    // SAFETY: the function has this signature; addresses in `params` are of memory that outlives this.
                    unsafe {
                        let run: Symbol<'_, RunBlock> = library.get(b"run_block").unwrap();
                        run(params, kind(self.dtype), word(block), word(BLOCKS));
                    }
                });
            }
        });
    }

    /// A packed matrix to `[inputs, outputs]` in float16.
    pub(super) fn dequantize(self, matrix: PackedMatrix, out: u64) {
        let (params, grid) = (dequantize_params(matrix, out), dequantize_grid(matrix.layout));
        let _in_use = IN_USE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the function has this signature; the caller's buffers have these sizes.
        unsafe {
            let run: Symbol<'_, RunDequantize> = self.libraries[0].get(b"run_dequantize").unwrap();
            run(&raw const params, matrix.layout.bits, grid.x, grid.y, grid.threads);
        }
    }
}

fn compile(options: &[&str]) -> Vec<Library> {
    let folder = tempfile::tempdir().unwrap();
    let (path, library) = (folder.path().join("decode.cc"), folder.path().join("decode.so"));
    std::fs::write(&path, EMULATED).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-DRING_DEPTH=3"]).args(options).arg("-o");
    // A library's templates must keep their own variables.
    let done = command.arg(&library).arg(&path).arg("-fno-gnu-unique").output();
    let done = done.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let load = |block: usize| {
        let copy = folder.path().join(format!("block{block}.so"));
        std::fs::copy(&library, &copy).unwrap();
        // SAFETY: it was made here.
        unsafe { Library::new(copy) }.unwrap()
    };
    (0..BLOCKS).map(load).collect()
}
