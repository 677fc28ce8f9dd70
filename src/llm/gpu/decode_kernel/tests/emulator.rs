//! The decode kernel compiled for the CPU by the host's C++ compiler, with `emulator.h` in place of `primitives.cu`; every block
//! a library of its own and a thread.
#![allow(unsafe_code)]

use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use super::super::abi::{Launch, Phase, Places, second};
use super::super::kernel::expansion;
use super::super::partition::Dealt;
use crate::llm::gpu::driver::word;
use crate::llm::gpu::packed_tiles::Layout;
use crate::tensor::DType;

/// More than one, so that they wait for each other.
pub(super) const BLOCKS: usize = 3;

/// One at a time: a library has one block's state.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

type RunRank = unsafe extern "C" fn(*const u64, u32, u32, u32);
type RunBlock = unsafe extern "C" fn(*const Launch, u32, u32, u32);

/// The blocks' libraries.
#[derive(Clone, Copy)]
pub(super) struct Emulator(&'static [Library]);

impl Emulator {
    /// Compiled once for all tests: for float16 with packed weights, and so little memory that inputs come in chunks; for
    /// bfloat16 with much; for caches in 8 bits.
    pub(super) fn get(dtype: DType, kept: usize) -> Self {
        static LIBRARIES: [OnceLock<Vec<Library>>; 3] = [const { OnceLock::new() }; 3];
        let (which, options): (_, &[&str]) = match (dtype, kept) {
            (_, 8) => (2, &["-DSLOT_BYTES=4096", "-DWORK_BYTES=49152", "-DTILE_KINDS=0", "-DKV_BITS=8"]),
            (DType::BFloat16, _) => (0, &["-DSLOT_BYTES=4096", "-DWORK_BYTES=49152", "-DTILE_KINDS=0"]),
            _ => (1, &["-DSLOT_BYTES=5120", "-DWORK_BYTES=28672", "-DTILE_KINDS=31"]),
        };
        Self(LIBRARIES[which].get_or_init(|| compile(options)))
    }

    /// Runs `top_logits.cu` with so many blocks to a row.
    pub(super) fn rank(self, (shares, rows): (usize, usize), vocabulary: usize, places: &Places) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Places { logits, inverses, lists, masses, counters, out } = *places;
        let addresses = [logits, inverses, lists, masses, counters, out];
        // SAFETY: the function has this signature; the caller's buffers have these sizes.
        unsafe {
            let run: Symbol<'_, RunRank> = self.0[0].get(b"run_rank").unwrap();
            run(addresses.as_ptr(), word(vocabulary), word(shares), word(rows));
        }
    }

    pub(super) fn run(self, phases: &[Phase], counters: usize, launch: Launch, dtype: DType) {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut counters = vec![0_u32; phases.len() + counters];
        let mut dealt = Dealt::new(phases, &super::shares(BLOCKS));
        let table = std::mem::take(&mut dealt.table);
        let phases = dealt.at(table.as_ptr() as u64);
        let launch = Launch {
            phases: phases.as_ptr() as u64,
            counters: counters.as_mut_ptr() as u64,
            count: word(phases.len()),
            ..launch
        };
        let kind = if dtype == DType::BFloat16 { 2 } else { 1 };
        std::thread::scope(|scope| {
            for (block, library) in self.0.iter().enumerate() {
                let launch = &launch;
                scope.spawn(move || {
                    // SAFETY: the function has this signature; addresses in `launch` are of memory that outlives this.
                    unsafe {
                        let run: Symbol<'_, RunBlock> = library.get(b"run_block").unwrap();
                        run(launch, kind, word(block), word(BLOCKS));
                    }
                });
            }
        });
    }
}

impl Emulator {
    /// A packed matrix to `[inputs, outputs]` in float16.
    pub(super) fn expand(self, (tiled, order, layout): (&[u8], Option<&[u32]>, Layout)) -> Vec<u16> {
        #[repr(C)]
        struct Unpacked(*const u8, *mut u16, *const u32, [u32; 6]);
        type RunExpand = unsafe extern "C" fn(*const Unpacked, u32, u32, u32);
        let mut out = vec![u16::MAX; layout.inputs * layout.outputs];
        let sizes = [layout.inputs, layout.outputs, layout.tile_bytes(), layout.group].map(word);
        let [inputs, outputs, bytes, group] = sizes;
        let order = order.map_or(std::ptr::null(), <[u32]>::as_ptr);
        let numbers = [layout.bits, inputs, outputs, bytes, group, second(layout.second)];
        let what = Unpacked(tiled.as_ptr(), out.as_mut_ptr(), order, numbers);
        let (grid, threads) = expansion(layout);
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // SAFETY: the function has this signature; the buffers have these sizes.
        unsafe {
            let run: Symbol<'_, RunExpand> = self.0[0].get(b"run_expand").unwrap();
            run(&raw const what, grid.0, grid.1, threads);
        }
        out
    }
}

fn compile(options: &[&str]) -> Vec<Library> {
    let folder = tempfile::tempdir().unwrap();
    let source = concat!(
        include_str!("../abi.cu"),
        include_str!("emulator.h"),
        include_str!("../math.cu"),
        include_str!("../tile_mma.cu"),
        include_str!("../producer.cu"),
        include_str!("../inputs.cu"),
        include_str!("../plain_matmul.cu"),
        include_str!("../packed_matmul.cu"),
        include_str!("../attention.cu"),
        include_str!("../kernel.cu"),
        include_str!("../top_logits.cu"),
        include_str!("emulator.cc")
    );
    let (path, library) = (folder.path().join("step.cc"), folder.path().join("step.so"));
    std::fs::write(&path, source).unwrap();
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
