//! Constants and structs shared by host and kernel.
//!
//! Constants are declared in `abi.cu` only, and read from its text at compile time. Structs are declared here a second
//! time: their sizes are compared when either side is compiled, their fields by the test below.

use bytemuck::{Pod, Zeroable};

use super::super::driver::{Address, kind};
use crate::checkpoint::GroupOffset;
use crate::executor::TOP_LOGITS;
use crate::tensor::DType;

const DECLARATIONS: &str = include_str!("abi.cu");

/// Whether `part` is in `text` at index `place`, without reading out of bounds.
const fn is_at(text: &[u8], place: usize, part: &[u8]) -> bool {
    let mut at = 0;
    while at < part.len() {
        if text[place + at] != part[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// The decimal number at index `place`, which must be followed by `;`, `,` or ` }`.
const fn number_at(text: &[u8], place: usize) -> u32 {
    let (mut at, mut number) = (place, 0);
    while text[at].is_ascii_digit() {
        number = 10 * number + (text[at] - b'0') as u32;
        at += 1;
    }
    assert!(at > place && matches!(text[at], b';' | b',' | b' '), "abi.cu gives a constant by more than a number");
    assert!(text[at] != b' ' || text[at + 1] == b'}', "abi.cu gives a constant by more than a number");
    number
}

/// The value of a constant or enumerator in `abi.cu`. An undeclared name is a compile error.
const fn constant(name: &str) -> u32 {
    let (text, name) = (DECLARATIONS.as_bytes(), name.as_bytes());
    let mut at = 1;
    while at + name.len() + 3 < text.len() {
        if text[at - 1] == b' ' && is_at(text, at, name) && is_at(text, at + name.len(), b" = ") {
            return number_at(text, at + name.len() + 3);
        }
        at += 1;
    }
    panic!("abi.cu declares no such constant")
}

/// Compute warps of a block.
pub(super) const COMPUTE_WARPS: usize = constant("COMPUTE_WARPS") as usize;
/// Threads of a block: compute warps and producer warps.
pub(super) const BLOCK_THREADS: usize = 32 * (COMPUTE_WARPS + PRODUCER_WARPS);
/// Producer warps of a block, each with a ring of its own.
pub(super) const PRODUCER_WARPS: usize = constant("PRODUCER_WARPS") as usize;
/// Most slots of a ring whose copies are under way.
pub(super) const MOST_SLOTS_IN_FLIGHT: usize = constant("MOST_SLOTS_IN_FLIGHT") as usize;
/// Rows of a block of mma's columns; most rows of a launch without a [`RowTable`].
pub(crate) const BLOCK_ROWS: usize = constant("BLOCK_ROWS") as usize;
/// Most rows of a launch of any variant.
pub(crate) const MOST_ROWS: usize = constant("MOST_ROWS") as usize;
/// Most query heads that share a key head.
pub(super) const MAX_GROUP: usize = constant("MAX_GROUP") as usize;
/// Largest head size in elements.
pub(super) const MAX_HEAD_DIM: usize = constant("MAX_HEAD_DIM") as usize;
/// Inputs of a tile of plain weights.
pub(super) const PLAIN_TILE_K: usize = constant("PLAIN_TILE_K") as usize;
/// Outputs of a tile of plain weights.
pub(super) const PLAIN_TILE_N: usize = constant("PLAIN_TILE_N") as usize;
/// Bytes of a tile of plain weights.
pub(super) const PLAIN_TILE_BYTES: usize = constant("PLAIN_TILE_BYTES") as usize;
/// Most outputs of a strip.
pub(super) const MAX_STRIP_N: usize = COMPUTE_WARPS * PLAIN_TILE_N;
/// Outputs of a packed tile.
pub(crate) const PACKED_TILE_N: usize = constant("PACKED_TILE_N") as usize;
/// Bytes of a packed tile's integers.
pub(crate) const PACKED_TILE_QUANT_BYTES: usize = constant("PACKED_TILE_QUANT_BYTES") as usize;
/// Bytes of the scales and offsets of one group of inputs in a packed tile.
pub(crate) const GROUP_TERM_BYTES: usize = constant("GROUP_TERM_BYTES") as usize;
/// Outputs of a strip of a [`NORM_ADD`] phase.
pub(super) const NORM_ADD_STRIP_N: usize = constant("NORM_ADD_STRIP_N") as usize;
/// Most splits of a query chunk and key head.
pub(super) const MOST_SPLITS: usize = constant("MOST_SPLITS") as usize;
/// Outputs of a wide strip's column, which a pair of warps multiplies.
pub(super) const WIDE_COLUMN_N: usize = constant("WIDE_COLUMN_N") as usize;
/// Columns of a wide strip.
pub(super) const WIDE_COLUMNS: usize = constant("WIDE_COLUMNS") as usize;
/// Tiles along the inputs in a unit of a wide strip.
pub(super) const WIDE_TILES_DEEP: usize = constant("WIDE_TILES_DEEP") as usize;
/// Warps of a block that dequantises a matrix.
pub(super) const DEQUANTIZE_WARPS: usize = constant("DEQUANTIZE_WARPS") as usize;
/// Strips of packed weights that such a warp dequantises.
pub(super) const DEQUANTIZE_STRIPS: usize = constant("DEQUANTIZE_STRIPS") as usize;
/// Logits that a block searches in top-logits.
pub(super) const LOGITS_PER_BLOCK: usize = constant("LOGITS_PER_BLOCK") as usize;
/// Bytes of a block's partial sums of exponentials of a row of logits.
pub(super) const EXP_SUMS_BYTES: usize = constant("EXP_SUMS_BYTES") as usize;

/// Phase kind: product with a weight matrix.
pub(super) const MATMUL: u32 = constant("MATMUL");
/// Phase kind: attention over the cache.
pub(super) const ATTENTION: u32 = constant("ATTENTION");
/// Phase kind: residual plus norm.
pub(super) const NORM_ADD: u32 = constant("NORM_ADD");

/// Weight kind: 16-bit floats, `[inputs, outputs]`.
pub(super) const PLAIN: u32 = constant("PLAIN");
/// Weight kind: packed tiles of 8-bit integers.
pub(super) const INT8: u32 = constant("INT8");
/// Weight kind: packed tiles of 4-bit integers.
pub(super) const INT4: u32 = constant("INT4");

const _: () = {
    assert!(constant("TOP_LOGITS") as usize == TOP_LOGITS, "samplers look at as many tokens as the kernel finds");
    assert!(kind(DType::Float16) == constant("FLOAT16") && kind(DType::BFloat16) == constant("BFLOAT16"));
    assert!(size_of::<PhaseDescriptor>() == constant("PHASE_DESCRIPTOR_BYTES") as usize);
    assert!(size_of::<DecodeParams>() == constant("DECODE_PARAMS_BYTES") as usize);
    assert!(size_of::<RowTable>() == constant("ROW_TABLE_BYTES") as usize);
    assert!(size_of::<TopLogitsParams>() == constant("TOP_LOGITS_PARAMS_BYTES") as usize);
    assert!(size_of::<TopLogitsRow>() == constant("TOP_LOGITS_ROW_BYTES") as usize);
    assert!(size_of::<DequantizeParams>() == constant("DEQUANTIZE_PARAMS_BYTES") as usize);
};

/// A phase of a step; `abi.cu` documents the fields.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct PhaseDescriptor {
    pub(super) x: Address,
    pub(super) x_squares: Address,
    pub(super) norm_weight: Address,
    pub(super) key_norm_weight: Address,
    pub(super) weights: Address,
    pub(super) input_order: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) out: Address,
    pub(super) out_squares: Address,
    pub(super) keys: Address,
    pub(super) values: Address,
    pub(super) key_scales: Address,
    pub(super) value_scales: Address,
    pub(super) cos: Address,
    pub(super) sin: Address,
    pub(super) first_units: Address,
    pub(super) strip_owners: Address,
    pub(super) kind: u32,
    pub(super) weight_kind: u32,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) x_stride: u32,
    pub(super) tiles_across: u32,
    pub(super) tile_k: u32,
    pub(super) k_tiles: u32,
    pub(super) strips: u32,
    pub(super) tile_bytes: u32,
    pub(super) group_size: u32,
    pub(super) offset_kind: u32,
    pub(super) x_square_parts: u32,
    pub(super) gated: u32,
    pub(super) out_is_float32: u32,
    pub(super) first_counter: u32,
    pub(super) window: u32,
    pub(super) rotary_dim: u32,
    pub(super) logit_softcap: f32,
    pub(super) completions: u32,
}

/// Rows of one slot whose queries a block takes at once.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct QueryChunk {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) run: u32,
    pub(super) padding: u32,
}

/// The rows of a launch of which several may be of one slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct RowTable {
    pub(super) rows: u32,
    pub(super) wanted: u32,
    pub(super) chunks: u32,
    pub(super) kv_splits: u32,
    pub(super) slot: [u32; MOST_ROWS],
    pub(super) position: [u32; MOST_ROWS],
    pub(super) wanted_rows: [u32; MOST_ROWS],
    pub(super) chunk: [QueryChunk; MOST_ROWS],
}

/// Parameters that the phases of a launch share.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct DecodeParams {
    pub(super) phases: Address,
    pub(super) counters: Address,
    pub(super) partial_sums: Address,
    pub(super) attention_partials: Address,
    pub(super) cached: Address,
    pub(super) occupied: Address,
    pub(super) phase_count: u32,
    pub(super) rows: u32,
    pub(super) first_slot: u32,
    pub(super) capacity: u32,
    pub(super) rope_positions: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) head_dim: u32,
    pub(super) gelu: u32,
    pub(super) kv_splits: u32,
    pub(super) norm_eps: f32,
    pub(super) attention_scale: f32,
    pub(super) attention_softcap: f32,
    pub(super) sm_count: u32,
    pub(super) block_of_sm: Address,
    pub(super) claims: Address,
    pub(super) block_clocks: Address,
    pub(super) table: Address,
    pub(super) slots_in_flight: u32,
    pub(super) prefetch_tiles: u32,
    pub(super) prefetch_clocks: u32,
    pub(super) padding: u32,
}

/// The largest logits of a row, and sums over the row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct TopLogitsRow {
    pub(super) keys: [u64; TOP_LOGITS],
    pub(super) sum_exp: f32,
    pub(super) sum_exp_at_temperature: f32,
}

/// Parameters of the search for the largest logits.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct TopLogitsParams {
    pub(super) logits: Address,
    pub(super) inverse_temperatures: Address,
    pub(super) lists: Address,
    pub(super) sums: Address,
    pub(super) counters: Address,
    pub(super) out: Address,
    pub(super) vocabulary: u32,
    pub(super) padding: u32,
}

/// A packed matrix, and the address for its dequantised float16 values.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct DequantizeParams {
    pub(super) weights: Address,
    pub(super) out: Address,
    pub(super) input_order: Address,
    pub(super) inputs: u32,
    pub(super) outputs: u32,
    pub(super) tile_bytes: u32,
    pub(super) group_size: u32,
    pub(super) offset_kind: u32,
    pub(super) padding: u32,
}

/// The kernel's number for the meaning of a group's offset.
pub(super) fn offset_kind(offset: GroupOffset) -> u32 {
    const ZERO_POINT: u32 = constant("ZERO_POINT");
    const MINIMUM: u32 = constant("MINIMUM");
    match offset {
        GroupOffset::ZeroPoint => ZERO_POINT,
        GroupOffset::Minimum => MINIMUM,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text between the braces of a struct, without comments.
    fn body(text: &str, name: &str) -> String {
        let (_, after) = text.split_once(&format!("struct {name} {{\n")).unwrap_or_else(|| panic!("no {name}"));
        let lines = after.lines().take_while(|line| !line.starts_with('}'));
        lines.map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
    }

    /// The name in a declarator without its array size: `keys` in `u8 const* keys[8]`.
    fn declared(declarator: &str) -> &str {
        let declarator = declarator.split('[').next().unwrap().trim();
        declarator.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap()
    }

    #[test]
    fn both_sides_declare_the_same_fields() {
        let here = include_str!("abi.rs");
        let names = [
            "PhaseDescriptor",
            "DecodeParams",
            "QueryChunk",
            "RowTable",
            "TopLogitsRow",
            "TopLogitsParams",
            "DequantizeParams",
        ];
        for name in names {
            let (cuda, rust) = (body(DECLARATIONS, name), body(here, name));
            let cuda = cuda.split([';', ',']).map(declared).filter(|field| !field.is_empty());
            let rust = rust.lines().filter_map(|line| line.split_once(':')).map(|(field, _)| declared(field));
            let (cuda, rust): (Vec<_>, Vec<_>) = (cuda.collect(), rust.collect());
            assert!(rust.len() > 2 && rust == cuda, "{name}: {rust:?}, in CUDA {cuda:?}");
        }
    }

    #[test]
    fn constants_are_read_as_they_are_written() {
        assert_eq!((COMPUTE_WARPS, BLOCK_ROWS, PLAIN_TILE_BYTES, ATTENTION, INT4), (8, 8, 4096, 1, 2));
        assert_eq!((number_at(b"12;", 0), number_at(b"= 3 }", 2)), (12, 3));
        for wrong in ["32 * 8;", "x;", ""] {
            let text = format!("{wrong}   ");
            assert!(std::panic::catch_unwind(|| number_at(text.as_bytes(), 0)).is_err(), "{wrong}");
        }
    }
}
