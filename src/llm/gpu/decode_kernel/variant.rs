//! What the decode kernel is compiled with: which elements, which kinds of packed tiles, how much shared memory.
//!
//! `variants.txt` has those that a package brings compiled (`scripts/kernels-ptx.sh`).

use super::super::driver::kind;
use super::super::packed_tiles::{self, TileKind, TileKinds};
use super::abi::{COMPUTE_WARPS, MAX_GROUP, MAX_HEAD_DIM, PACKED_TILE_N, PLAIN_TILE_BYTES};
use super::partition::MAX_STRIPS;
use crate::convert::{Activation, LayerKind, Transformer};
use crate::tensor::DType;

/// Bytes of shared memory for activations.
const WORK: usize = 32 << 10;
/// The same where weights are packed: blocks take all inputs of a product, better those of several sequences at a time. What
/// there is more of first, what is enough second.
const WORK_PACKED: [usize; 2] = [80 << 10, 48 << 10];
/// Bytes of shared memory that the kernel declares itself, at most.
const STATIC: usize = 3 << 10;
/// Packed tiles that a warp multiplies at a time, which are its half of a slot of the ring.
const PACKED_TILES: usize = 4;
/// Slots at least of the ring that two warps share: with fewer, memory would wait.
const LEAST_DEPTH: usize = 2;
/// Slots at most: more gain nothing.
const DEPTH: usize = 8;
/// The same of packed tiles.
const DEPTH_PACKED: usize = 4;

/// Bytes of a warp's half of a slot that has room for tiles of any of these kinds.
fn slot(kinds: TileKinds) -> usize {
    let bytes = |kind: TileKind| PACKED_TILES * packed_tiles::bytes_of_tile(kind.groups);
    kinds.iter().map(bytes).fold(PLAIN_TILE_BYTES, usize::max)
}

/// What a variant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VariantTarget {
    pub(super) dtype: DType,
    pub(super) kinds: TileKinds,
    /// Bits of a cached element.
    pub(super) kv_bits: usize,
}

/// One way to compile the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variant {
    depth: usize,
    slot: usize,
    work: usize,
    pub(super) target: VariantTarget,
}

impl Variant {
    /// For a device whose blocks may have so much shared memory; or why there is none.
    pub(super) fn new(memory: usize, target: VariantTarget) -> Result<Self, String> {
        let (slot, room) = (slot(target.kinds), memory.saturating_sub(STATIC));
        let depth = |work: usize| room.saturating_sub(work) / (COMPUTE_WARPS * slot);
        let [much, little] = WORK_PACKED;
        let (work, most) = match target.kinds == TileKinds::default() {
            true => (WORK, DEPTH),
            false if depth(much) >= DEPTH_PACKED => (much, DEPTH_PACKED),
            false => (little, DEPTH_PACKED),
        };
        let depth = depth(work).min(most);
        if depth < LEAST_DEPTH {
            let wanted = (STATIC + work + LEAST_DEPTH * COMPUTE_WARPS * slot).div_ceil(1 << 10);
            return Err(format!("a block of this GPU has {} KB of shared memory, it wants {wanted}", memory >> 10));
        }
        Ok(Self { depth, slot, work, target })
    }

    /// What the source is compiled with.
    pub(super) fn options(&self) -> Vec<String> {
        let Self { depth, slot, work, target: VariantTarget { dtype, kinds, kv_bits } } = *self;
        vec![
            format!("-DRING_DEPTH={depth}"),
            format!("-DSLOT_BYTES={slot}"),
            format!("-DWORK_BYTES={work}"),
            format!("-DTILE_KINDS={}", kinds.0),
            format!("-DKV_BITS={kv_bits}"),
            format!("-DELEMENT={}", kind(dtype)),
        ]
    }

    /// Bytes of shared memory it is launched with.
    pub(super) fn shared(&self) -> usize {
        self.work + COMPUTE_WARPS * self.depth * self.slot
    }
}

/// Whether the kernel can take a model's steps, or why not.
///
/// The kernel is a second implementation of what `convert/layer.rs` says in ONNX, so it names every field of the description:
/// whoever adds one has to decide here what the kernel makes of it.
pub(super) fn check(model: &Transformer, dtype: DType) -> Result<(), String> {
    let Transformer {
        vocab_size,
        hidden_size,
        intermediate_size,
        heads,
        kv_heads,
        head_dim,
        ref layers,
        ref ropes,
        activation,
        // The phases have these as numbers (`DecodeProgram`).
        norm_eps: _,
        attention_scale: _,
        attention_softcap: _,
        logit_softcap: _,
        // The phases have weights for these where the model has (`Role`).
        qk_norm: _,
        qkv_bias: _,
        output_bias: _,
        mlp_bias: _,
        post_norms: _,
        // The kernel is compiled for it (`KV_BITS`).
        kv_type: _,
        // These are done when weights are loaded or embeddings looked up.
        norm_offset: _,
        embedding_scale: _,
        fused: _,
        tied: _,
        prefix: _,
        output: _,
        // These say nothing of the arithmetic.
        family: _,
        max_position: _,
        notes: _,
    } = *model;
    match activation {
        Activation::Silu | Activation::Gelu => {}
    }
    // A window and a rotary table are each layer's own.
    if let Some(LayerKind { window: _, rope }) = layers.iter().find(|layer| layer.rope >= ropes.len()) {
        return Err(format!("a layer of this model has rotary table {rope} of {}", ropes.len()));
    }
    if !matches!(dtype, DType::Float16 | DType::BFloat16) {
        return Err("it computes in 16 bits, this model in 32".to_owned());
    }
    if head_dim > MAX_HEAD_DIM {
        return Err(format!("this model's heads of {head_dim} are larger than {MAX_HEAD_DIM}"));
    }
    let group = model.group();
    if group > MAX_GROUP {
        return Err(format!("{group} of this model's query heads share a key head, more than {MAX_GROUP}"));
    }
    if ropes.iter().any(|rope| !rope.dimension().is_multiple_of(2)) {
        return Err("this model turns an odd number of a head's elements".to_owned());
    }
    let qkv = (heads + 2 * kv_heads) * head_dim;
    check_sizes(&[hidden_size, qkv, heads * head_dim, intermediate_size, vocab_size, head_dim], intermediate_size)
}

/// Eight elements are read at once; gates come in strips; strips are numbered in 16 bits, the narrowest making
/// [`PACKED_TILE_N`] outputs. Tiles along the inputs, which are longer than that, are then fewer.
fn check_sizes(sizes: &[usize], intermediate_size: usize) -> Result<(), String> {
    if let Some(size) = sizes.iter().find(|size| !size.is_multiple_of(8)) {
        return Err(format!("a size of this model, {size}, is no multiple of 8"));
    }
    let most = MAX_STRIPS * PACKED_TILE_N;
    if let Some(size) = sizes.iter().find(|size| **size > most) {
        return Err(format!("a size of this model, {size}, is larger than {most}"));
    }
    if !intermediate_size.is_multiple_of(PACKED_TILE_N) {
        return Err(format!("this model's intermediate size, {intermediate_size}, is no multiple of {PACKED_TILE_N}"));
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
            for kv_bits in [16, 8] {
                let plain = VariantTarget { dtype: DType::BFloat16, kinds: TileKinds::default(), kv_bits };
                let half = |kinds| VariantTarget { dtype: DType::Float16, kinds: TileKinds(kinds), kv_bits };
                for target in std::iter::once(plain).chain(PACKAGED.map(half)) {
                    let variant = Variant::new(memory << 10, target);
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
    fn sizes_that_tables_have_no_room_for_are_declined() {
        assert_eq!(check_sizes(&[64, 1_048_560], 64), Ok(()));
        for (size, why) in [(1_048_568, "larger than 1048560"), (100, "no multiple of 8")] {
            assert_eq!(check_sizes(&[64, size], 64).unwrap_err(), format!("a size of this model, {size}, is {why}"));
        }
    }

    #[test]
    fn variants_fit_their_device() {
        let half = |kinds| VariantTarget { dtype: DType::Float16, kinds: TileKinds(kinds), kv_bits: 16 };
        for memory in MEMORIES {
            for kinds in 0..32 {
                if let Ok(variant) = Variant::new(memory << 10, half(kinds)) {
                    assert!(variant.shared() + STATIC <= memory << 10, "{memory} {variant:?}");
                }
            }
        }
        let why = Variant::new(99 << 10, half(1)).unwrap_err();
        assert_eq!(why, "a block of this GPU has 99 KB of shared memory, it wants 119");
        let wider: Vec<u32> =
            [0, 1, 31].into_iter().flat_map(|kinds| TileKinds(kinds).or_all()).map(|kinds| kinds.0).collect();
        assert_eq!(wider, [0, 1, 31, 31]);
    }
}
