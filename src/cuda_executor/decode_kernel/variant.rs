//! Compile-time variants of the decode kernel: element types, kinds of packed tiles, shared memory.
//!
//! `variants.txt` lists those that packages contain precompiled (`scripts/kernels-ptx.sh`).

use super::super::driver::kind;
use super::super::packed_tiles::{self, TileKind, TileKinds};
use super::abi::{BLOCK_ROWS, COMPUTE_WARPS, MAX_GROUP, MAX_HEAD_DIM, PACKED_TILE_N, PLAIN_TILE_BYTES};
use super::partition::MAX_STRIPS;
use super::row_class::RowClass;
use crate::convert::{Activation, LayerKind, LayerTypes, Rope, Transformer};
use crate::spec::KvCache;
use crate::tensor::DType;

/// Shared memory for activations, in bytes.
const WORK: usize = 32 << 10;
/// The same for wide strips of plain weights: inputs of so many rows come in fewer chunks.
const WORK_WIDE: usize = 64 << 10;
/// Fewest slots of a ring beside [`WORK_WIDE`].
const DEPTH_WIDE: usize = 3;
/// Shared memory for activations from which on a block takes 64 queries at once, or 32.
const WORK_OF_QUERIES: [(usize, usize); 2] = [(64 << 10, 4), (40 << 10, 2)];
/// Shared memory for activations with packed weights, in bytes: blocks need all inputs of a product, preferably of
/// several sequences at once. The preferred size, then the smallest sufficient one.
const WORK_PACKED: [usize; 2] = [80 << 10, 48 << 10];
/// Most static shared memory of the kernel, in bytes.
const STATIC: usize = 3 << 10;
/// Packed tiles that a warp multiplies at once: its half of a slot of the ring.
const PACKED_TILES: usize = 4;
/// Fewest slots of the ring that two warps share; with fewer, loads would stall.
const LEAST_DEPTH: usize = 2;
/// Most slots of a ring; more gain nothing.
const DEPTH: usize = 8;
/// Most slots of a ring with packed tiles.
const DEPTH_PACKED: usize = 4;

/// Bytes of a warp's half of a slot for tiles of these kinds.
fn slot(kinds: TileKinds) -> usize {
    let bytes = |kind: TileKind| PACKED_TILES * packed_tiles::bytes_of_tile(kind.groups);
    kinds.iter().map(bytes).fold(PLAIN_TILE_BYTES, usize::max)
}

/// The model and GPU properties that a variant is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct VariantTarget {
    pub(super) dtype: DType,
    pub(super) kinds: TileKinds,
    /// Bits of a cached element.
    pub(super) kv_bits: usize,
    pub(super) class: RowClass,
}

/// A compile-time variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Variant {
    depth: usize,
    slot: usize,
    work: usize,
    pub(super) target: VariantTarget,
}

impl Variant {
    /// The variant for a device whose blocks may have `memory` bytes of shared memory; the error says why there is
    /// none.
    pub(super) fn new(memory: usize, target: VariantTarget) -> Result<Self, String> {
        let (slot, room) = (slot(target.kinds), memory.saturating_sub(STATIC));
        let depth = |work: usize| room.saturating_sub(work) / (COMPUTE_WARPS * slot);
        let [much, little] = WORK_PACKED;
        let is_wide = target.class.finishers() > 0;
        // The inputs of 64 rows fit twice, so that some are copied while others are multiplied.
        let least_packed = if target.class == RowClass::Sixty4 { LEAST_DEPTH } else { DEPTH_PACKED };
        let (work, most) = match target.kinds == TileKinds::default() {
            true if is_wide && depth(WORK_WIDE) >= DEPTH_WIDE => (WORK_WIDE, DEPTH),
            true => (WORK, DEPTH),
            false if depth(much) >= least_packed => (much, DEPTH_PACKED),
            false => (little, DEPTH_PACKED),
        };
        let depth = depth(work).min(most);
        if depth < LEAST_DEPTH {
            let wanted = (STATIC + work + LEAST_DEPTH * COMPUTE_WARPS * slot).div_ceil(1 << 10);
            return Err(format!("a block of this GPU has {} KB of shared memory, it wants {wanted}", memory >> 10));
        }
        Ok(Self { depth, slot, work, target })
    }

    /// The compiler options.
    pub(super) fn options(&self) -> Vec<String> {
        let Self { depth, slot, work, target: VariantTarget { dtype, kinds, kv_bits, class } } = *self;
        let mut options = vec![
            format!("-DRING_DEPTH={depth}"),
            format!("-DSLOT_BYTES={slot}"),
            format!("-DWORK_BYTES={work}"),
            format!("-DTILE_KINDS={}", kinds.0),
            format!("-DKV_BITS={kv_bits}"),
            format!("-DELEMENT={}", kind(dtype)),
        ];
        if class != RowClass::Apart {
            options.push(format!("-DROW_BLOCKS={}", class.most() / BLOCK_ROWS));
            options.push("-DSHARED_SLOTS=1".to_owned());
            options.push(format!("-DQUERY_BLOCKS={}", self.query_blocks()));
        }
        options
    }

    fn query_blocks(&self) -> usize {
        WORK_OF_QUERIES.iter().find(|(work, _)| self.work >= *work).map_or(1, |(_, blocks)| *blocks)
    }

    /// Queries of a slot and key head that a block takes at once.
    pub(super) fn query_rows(&self) -> usize {
        MAX_GROUP * self.query_blocks()
    }

    /// Bytes of dynamic shared memory to launch it with.
    pub(super) fn shared(&self) -> usize {
        self.work + COMPUTE_WARPS * self.depth * self.slot
    }
}

/// Whether the kernel supports a model; the error says why not.
///
/// The kernel is a second implementation of `convert/layer.rs`, so this names every field of the description and of the
/// types it runs in: whoever adds a field must decide here what the kernel makes of it.
pub(super) fn check(model: &Transformer, types: LayerTypes) -> Result<(), String> {
    let Transformer {
        // Sizes; what the kernel asks of them is below.
        vocab_size,
        hidden_size,
        intermediate_size,
        heads,
        kv_heads,
        head_dim,
        // Each layer's window and rotary table: its attention phase has them.
        ref layers,
        ref ropes,
        // SiLU, or GELU by its tanh: `DecodeParams::gelu`.
        activation: Activation::Silu | Activation::Gelu,
        // Numbers of a launch (`DecodeParams`).
        norm_eps: _,
        attention_scale: _,
        attention_softcap: _,
        // A number of the head's phase.
        logit_softcap: _,
        // Weights that a phase has where the model has them (`Role`): without one its address is 0.
        qk_norm: _,
        qkv_bias: _,
        output_bias: _,
        mlp_bias: _,
        post_norms: _,
        // Added to norms, or joined to one matrix, when weights are loaded (`weights.rs`).
        norm_offset: _,
        fused: _,
        // Multiplied in where embeddings are looked up (`host.rs`).
        embedding_scale: _,
        // Where tensors are found.
        tied: _,
        prefix: _,
        output: _,
        // Nothing of the arithmetic.
        family: _,
        max_position: _,
        notes: _,
    } = *model;
    let LayerTypes { dtype, kv_cache } = types;
    if let Some(LayerKind { window: _, rope }) = layers.iter().find(|layer| layer.rope >= ropes.len()) {
        return Err(format!("a layer of this model has rotary table {rope} of {}", ropes.len()));
    }
    if !matches!(dtype, DType::Float16 | DType::BFloat16) {
        return Err("it computes in 16 bits, this model in 32".to_owned());
    }
    check_heads(model, kv_cache)?;
    let qkv = (heads + 2 * kv_heads) * head_dim;
    check_sizes(&[hidden_size, qkv, heads * head_dim, intermediate_size, vocab_size, head_dim], intermediate_size)
}

/// What attention asks of the heads.
fn check_heads(model: &Transformer, kv_cache: KvCache) -> Result<(), String> {
    let (head_dim, group) = (model.head_dim, model.group());
    if head_dim > MAX_HEAD_DIM {
        return Err(format!("this model's heads of {head_dim} are larger than {MAX_HEAD_DIM}"));
    }
    match kv_cache {
        KvCache::Auto => {}
        // A cached row is read sixteen bytes at a time.
        KvCache::Int8 if head_dim.is_multiple_of(16) => {}
        KvCache::Int8 => {
            return Err(format!("this model's heads of {head_dim} are no multiple of 16, as in 8 bits they must be"));
        }
    }
    if group > MAX_GROUP {
        return Err(format!("{group} of this model's query heads share a key head, more than {MAX_GROUP}"));
    }
    // The tables hold the angles and their factor.
    let is_longer = |Rope { frequencies, factor: _ }: &&Rope| 2 * frequencies.len() > head_dim;
    match model.ropes.iter().find(is_longer) {
        Some(rope) => Err(format!("this model turns {} elements of heads of {head_dim}", rope.dimension())),
        None => Ok(()),
    }
}

/// Checks alignment and size: eight elements are read at once, gates come in strips, and strips are numbered in 16 bits, the
/// narrowest with [`PACKED_TILE_N`] outputs. Tiles along the inputs are longer, and so fewer.
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
    use crate::checkpoint::read_json;
    use crate::convert;

    /// What the kernel cannot compute it does not take, and says why.
    #[test]
    fn a_model_is_taken_or_declined_for_a_reason() {
        type Change = fn(&mut Transformer, &mut LayerTypes);
        let cases: [(Change, Option<&str>); 15] = [
            (|_, _| {}, None),
            (|model, types| (model.head_dim, types.kv_cache) = (16, KvCache::Int8), None),
            (|_, types| types.kv_cache = KvCache::Int8, Some("heads of 8 are no multiple of 16, as in 8 bits")),
            (
                |model, types| (model.head_dim, types.kv_cache) = (40, KvCache::Int8),
                Some("heads of 40 are no multiple"),
            ),
            (|_, types| types.dtype = DType::BFloat16, None),
            (|_, types| types.dtype = DType::Float32, Some("this model in 32")),
            (|model, _| model.head_dim = 256, None),
            (|model, _| model.head_dim = 264, Some("heads of 264 are larger than 256")),
            (|model, _| (model.heads, model.kv_heads) = (16, 1), None),
            (|model, _| (model.heads, model.kv_heads) = (17, 1), Some("17 of this model's query heads")),
            (|model, _| model.layers[1].rope = 1, Some("rotary table 1 of 1")),
            (|model, _| model.ropes[0].frequencies.push(1.0), Some("turns 10 elements of heads of 8")),
            (|model, _| model.hidden_size = 36, Some("36, is no multiple of 8")),
            (|model, _| model.vocab_size = 63, Some("63, is no multiple of 8")),
            (|model, _| model.intermediate_size = 56, Some("56, is no multiple of 16")),
        ];
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llm/llama/config.json");
        let llama = convert::describe(&path, &read_json(&path).unwrap(), 64).unwrap();
        for (at, (change, why)) in cases.into_iter().enumerate() {
            let (mut model, mut types) = (llama.clone(), LayerTypes::new(DType::Float16));
            change(&mut model, &mut types);
            match (check(&model, types), why) {
                (Ok(()), None) => {}
                (Err(told), Some(why)) if told.contains(why) => {}
                (found, why) => panic!("case {at}: {found:?}, not {why:?}"),
            }
        }
    }

    /// Largest shared memory of a block in KB, less the 1 KB that CUDA reserves (CUDA C++ Programming Guide, "Technical
    /// Specifications per Compute Capability"): 8.6, 8.9, 12.x; 8.0, 8.7; 9.0, 10.x, 11.0.
    const MEMORIES: [usize; 3] = [99, 163, 227];

    /// Sets of tile kinds that models have: none; each alone; 4 bits in groups of 128 or 64 with an output matrix in 8; GGUF's
    /// Q4_0 with one in Q8_0, and 4 bits in groups of 32; all, for any other.
    const PACKAGED: [u32; 10] = [0, 1, 2, 4, 8, 9, 10, 16, 20, 31];

    /// Packages contain the variants that devices ask for.
    #[test]
    fn the_list_of_variants_is_whole() {
        let mut lines = Vec::new();
        let classes = std::iter::once(RowClass::Apart).chain(RowClass::SHARED);
        let each = classes.flat_map(|class| MEMORIES.map(|memory| (class, memory)));
        for ((class, memory), kv_bits) in each.flat_map(|each| [16, 8].map(|kv_bits| (each, kv_bits))) {
            let of = |dtype, kinds| VariantTarget { dtype, kinds: TileKinds(kinds), kv_bits, class };
            let plain = of(DType::BFloat16, 0);
            for target in std::iter::once(plain).chain(PACKAGED.map(|kinds| of(DType::Float16, kinds))) {
                let variant = Variant::new(memory << 10, target);
                lines.extend(variant.map(|variant| variant.options().join(" ")));
            }
        }
        lines.sort();
        lines.dedup();
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda_executor/decode_kernel/variants.txt");
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
        let of = |kinds, class| VariantTarget { dtype: DType::Float16, kinds: TileKinds(kinds), kv_bits: 16, class };
        for (memory, kinds) in MEMORIES.into_iter().flat_map(|memory| (0..32).map(move |kinds| (memory, kinds))) {
            for class in [RowClass::Apart, RowClass::Eight, RowClass::Sixty4] {
                if let Ok(variant) = Variant::new(memory << 10, of(kinds, class)) {
                    assert!(variant.shared() + STATIC <= memory << 10, "{memory} {variant:?}");
                    assert!(variant.query_rows() * 2 * (MAX_HEAD_DIM + 8) < variant.work, "{variant:?}");
                }
            }
        }
        let why = Variant::new(99 << 10, of(1, RowClass::Apart)).unwrap_err();
        assert_eq!(why, "a block of this GPU has 99 KB of shared memory, it wants 119");
        // Weights that are widened for want of that have a kernel everywhere.
        assert!(MEMORIES.iter().all(|memory| Variant::new(memory << 10, of(0, RowClass::Apart)).is_ok()));
        let wider: Vec<u32> =
            [0, 1, 31].into_iter().flat_map(|kinds| TileKinds(kinds).or_all()).map(|kinds| kinds.0).collect();
        assert_eq!(wider, [0, 1, 31, 31]);
    }
}
