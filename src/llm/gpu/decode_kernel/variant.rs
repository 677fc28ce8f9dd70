//! What the decode kernel is compiled with: which elements, which kinds of packed tiles, how much shared memory.
//!
//! `variants.txt` has those that a package brings compiled (`scripts/kernels-ptx.sh`).

use super::super::driver::kind;
use super::super::packed_tiles::{self, Kinds};
use super::abi::{FETCHERS, PLAIN_TILE, WARPS};
use crate::convert::Transformer;
use crate::tensor::DType;

/// Bytes of shared memory for activations. Blocks of packed weights take all inputs, of several sequences better at a time.
const WORK: usize = 32 << 10;
const WORK_PACKED: [usize; 2] = [80 << 10, 48 << 10];
/// Shared memory the kernel has besides.
const STATIC: usize = 3 << 10;
const PACKED_TILES: usize = 4;
/// Tiles a warp has in shared memory: fewer than two would leave memory waiting, more gain nothing.
const LEAST_DEPTH: usize = 2;
const DEPTH: usize = 8;
const DEPTH_PACKED: usize = 4;
const LARGEST_HEAD: usize = 256;
/// Query heads of a key head at most, as abi.cu has it.
pub(super) const GROUP: usize = 16;
/// Threads of a block.
pub(super) const THREADS: usize = 32 * (WARPS + FETCHERS);

/// Bytes of a warp's place for a tile of any of these kinds.
fn slot(kinds: Kinds) -> usize {
    kinds.iter().map(|(_, groups)| PACKED_TILES * packed_tiles::bytes_of_tile(groups)).fold(PLAIN_TILE, usize::max)
}

/// One way to compile it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variant {
    depth: usize,
    slot: usize,
    work: usize,
    kinds: Kinds,
    kept: usize,
    dtype: DType,
}

impl Variant {
    /// For a device whose blocks may have so much shared memory, and caches of `kept` bits; or why there is none.
    pub(super) fn new(memory: usize, dtype: DType, (kinds, kept): (Kinds, usize)) -> Result<Self, String> {
        let (slot, room) = (slot(kinds), memory.saturating_sub(STATIC));
        let depth = |work: usize| room.saturating_sub(work) / (WARPS * slot);
        let [much, little] = WORK_PACKED;
        let (work, most) = match kinds == Kinds::default() {
            true => (WORK, DEPTH),
            false if depth(much) >= DEPTH_PACKED => (much, DEPTH_PACKED),
            false => (little, DEPTH_PACKED),
        };
        let depth = depth(work).min(most);
        if depth < LEAST_DEPTH {
            let wanted = (STATIC + work + LEAST_DEPTH * WARPS * slot).div_ceil(1 << 10);
            return Err(format!("a block of this GPU has {} KB of shared memory, it wants {wanted}", memory >> 10));
        }
        Ok(Self { depth, slot, work, kinds, kept, dtype })
    }

    /// What the source is compiled with.
    pub(super) fn options(&self) -> Vec<String> {
        let Self { depth, slot, work, kinds, kept, dtype } = *self;
        let numbers = [("RING_DEPTH", depth), ("SLOT_BYTES", slot), ("WORK_BYTES", work), ("TILE_KINDS", kinds.0 as usize), ("KV_BITS", kept)];
        let mut options: Vec<String> = numbers.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
        options.push(format!("-DELEMENT={}", kind(dtype)));
        options
    }

    /// Bytes of shared memory it is launched with.
    pub(super) fn shared(&self) -> usize {
        self.work + WARPS * self.depth * self.slot
    }
}

/// Whether the kernel can take a model's steps, or why not.
pub(super) fn check(model: &Transformer, dtype: DType) -> Result<(), String> {
    let d = model.head_dim;
    let qkv = (model.heads + 2 * model.kv_heads) * d;
    // Eight elements are read at once; gates come in strips.
    let eights = [model.hidden_size, qkv, model.heads * d, model.intermediate_size, model.vocab_size, d];
    if !matches!(dtype, DType::Float16 | DType::BFloat16) {
        return Err("it computes in 16 bits, this model in 32".to_owned());
    }
    if d > LARGEST_HEAD {
        return Err(format!("this model's heads of {d} are larger than {LARGEST_HEAD}"));
    }
    if model.group() > GROUP {
        return Err(format!("{} of this model's query heads share a key head, more than {GROUP}", model.group()));
    }
    if model.ropes.iter().any(|rope| !rope.dimension().is_multiple_of(2)) {
        return Err("this model turns an odd number of a head's elements".to_owned());
    }
    if let Some(size) = eights.iter().find(|size| !size.is_multiple_of(8)) {
        return Err(format!("a size of this model, {size}, is no multiple of 8"));
    }
    if !model.intermediate_size.is_multiple_of(packed_tiles::STRIP) {
        let size = model.intermediate_size;
        return Err(format!("this model's intermediate size, {size}, is no multiple of {}", packed_tiles::STRIP));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory a block may have, in KB, less the one that CUDA takes (CUDA C++ Programming Guide, "Technical
    /// Specifications per Compute Capability"): 8.6, 8.9, 12.x; 8.0, 8.7; 9.0, 10.x, 11.0.
    const MEMORIES: [usize; 3] = [99, 163, 227];

    /// Kinds that models have: none; each alone; GGUF's Q4_0 with an output matrix in Q8_0; all, for whatever else there is.
    const PACKAGED: [u32; 8] = [0, 1, 2, 4, 8, 16, 20, 31];

    /// What a package has is what devices ask for.
    #[test]
    fn the_list_of_variants_is_whole() {
        let mut lines = Vec::new();
        for memory in MEMORIES {
            for kept in [16, 8] {
                let plain = (DType::BFloat16, Kinds::default());
                for (dtype, kinds) in std::iter::once(plain).chain(PACKAGED.map(|kinds| (DType::Float16, Kinds(kinds))))
                {
                    let variant = Variant::new(memory << 10, dtype, (kinds, kept));
                    lines.extend(variant.map(|variant| variant.options().join(" ")));
                }
            }
        }
        lines.sort();
        lines.dedup();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/llm/gpu/decode_kernel/variants.txt");
        if std::env::var_os("UPDATE_VARIANTS").is_some() {
            std::fs::write(&path, lines.join("\n") + "\n").unwrap();
        }
        let have = std::fs::read_to_string(&path).unwrap();
        assert_eq!(have.lines().collect::<Vec<_>>(), lines, "UPDATE_VARIANTS=1 writes it anew");
    }

    #[test]
    fn variants_fit_their_device() {
        for memory in MEMORIES {
            for kinds in 0..32 {
                if let Ok(variant) = Variant::new(memory << 10, DType::Float16, (Kinds(kinds), 16)) {
                    assert!(variant.shared() + STATIC <= memory << 10, "{memory} {variant:?}");
                }
            }
        }
        let why = Variant::new(99 << 10, DType::Float16, (Kinds(1), 16)).unwrap_err();
        assert_eq!(why, "a block of this GPU has 99 KB of shared memory, it wants 119");
        let wider: Vec<u32> =
            [0, 1, 31].into_iter().flat_map(|kinds| Kinds(kinds).or_all()).map(|kinds| kinds.0).collect();
        assert_eq!(wider, [0, 1, 31, 31]);
    }
}
