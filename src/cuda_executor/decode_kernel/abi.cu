// What host and kernel agree on: options, constants, and the structs that the host fills in. README.md explains the
// kernel.
//
// abi.rs reads the constants below from this text, so that they are declared here alone; it declares the structs once
// more, and their sizes (static_assert) and fields (its test) are compared. The files of this folder are one source,
// joined in the order that kernel.rs lists and compiled by NVRTC without any header, for a package or when a model is
// loaded, for compute capability 8.0 and later.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// Options. variant.rs chooses them for a model and a device; variants.txt lists those that a package has compiled.
#ifndef RING_DEPTH
#define RING_DEPTH 3  // slots of a ring; of each a compute warp has half: one plain tile, or four packed ones
#endif
#ifndef SLOT_BYTES
#define SLOT_BYTES 5120  // shared memory of such a half
#endif
#ifndef WORK_BYTES
#define WORK_BYTES 32768  // shared memory for activations, before the ring
#endif
#ifndef TILE_KINDS
#define TILE_KINDS 31  // kinds of packed tiles that are multiplied, one bit each; see packed_matmul.cu
#endif
#ifndef KV_BITS
#define KV_BITS 16  // bits of a cached key's or value's element: 16 or 8
#endif
#ifndef ROW_BLOCKS
#define ROW_BLOCKS 1  // times eight rows that a launch may have
#endif
#ifndef SHARED_SLOTS
#define SHARED_SLOTS 0  // 1: rows are those of a table, and several of them may be of one cache slot
#endif
#ifndef QUERY_BLOCKS
#define QUERY_BLOCKS 1  // times sixteen queries of one slot and key head that a block takes at once, where SHARED_SLOTS
#endif
// ELEMENT: the one kind of elements to compile for, FLOAT16 or BFLOAT16; both where it is not defined.

#ifndef MARK
#define MARK(point)  // where benches/step_phases.cu takes the time
#endif

// A thread block: warps that multiply, and for each two of them one that fetches their tiles.
u32 constexpr COMPUTE_WARPS = 8;
u32 constexpr PRODUCER_WARPS = 4;
u32 constexpr COMPUTE_THREADS = 32 * COMPUTE_WARPS;
u32 constexpr BLOCK_THREADS = COMPUTE_THREADS + 32 * PRODUCER_WARPS;
static_assert(COMPUTE_WARPS == 2 * PRODUCER_WARPS, "a producer warp serves a pair of compute warps");

u32 constexpr MOST_SLOTS_IN_FLIGHT = 3;              // of a ring
u32 constexpr BLOCK_ROWS = 8;                        // columns of mma's second operand
u32 constexpr MOST_ROWS = 64;                        // of a launch, in any variant
u32 constexpr MAX_ROWS = BLOCK_ROWS * (ROW_BLOCKS);  // of a launch
static_assert(MAX_ROWS <= MOST_ROWS, "a table of rows has no room for more");
static_assert(ROW_BLOCKS == 1 || (SHARED_SLOTS && ROW_BLOCKS % 2 == 0), "two warps share the rows of a wide strip");

u32 constexpr MAX_GROUP = 16;      // query heads that share a key head: rows of mma's first operand
u32 constexpr MAX_HEAD_DIM = 256;  // elements of a head

// Tiles of weights: inputs (k) and outputs (n). A strip is the tiles side by side that a block multiplies at once, over
// all k.
u32 constexpr PLAIN_TILE_K = 32;
u32 constexpr PLAIN_TILE_N = 64;
u32 constexpr PLAIN_TILE_BYTES = 4096;
u32 constexpr MAX_STRIP_N = COMPUTE_WARPS * PLAIN_TILE_N;
u32 constexpr PACKED_TILE_N = 16;
u32 constexpr PACKED_TILE_QUANT_BYTES = 1024;  // of a packed tile's integers
u32 constexpr GROUP_TERM_BYTES = 64;           // of the scales and offsets of a group of inputs, behind the integers
u32 constexpr NORM_ADD_STRIP_N = 128;          // outputs of a strip of NORM_ADD
u32 constexpr WIDE_COLUMN_N = 64;              // outputs of a wide strip that a pair of warps multiplies
u32 constexpr WIDE_COLUMNS = 4;                // such columns of a wide strip
u32 constexpr WIDE_TILES_DEEP = 2;             // tiles along the inputs in a unit of a wide strip
u32 constexpr WIDE_STRIP_N = WIDE_COLUMNS * WIDE_COLUMN_N;
static_assert(PLAIN_TILE_BYTES == PLAIN_TILE_K * PLAIN_TILE_N * sizeof(u16), "a plain tile is of 16-bit elements");
static_assert(GROUP_TERM_BYTES == PACKED_TILE_N * 2 * sizeof(u16), "two 16-bit numbers for each output");

u32 constexpr DEQUANTIZE_WARPS = 4;   // of a block that widens packed weights, and the strips of each
u32 constexpr DEQUANTIZE_STRIPS = 2;  // as many as packed matrices always have, or a multiple

u32 constexpr TOP_LOGITS = 64;          // tokens that a row's ranking finds: two for each lane of a warp
u32 constexpr LOGITS_PER_BLOCK = 2048;  // that one block ranks
u32 constexpr EXP_SUMS_BYTES = 12;      // of what a block adds up

// Elements of activations and plain weights. (Enumerators, since a compiler warns of constants that nobody names.)
enum : u32 { FLOAT16 = 1, BFLOAT16 = 2 };
// What a phase does: out = x * weights; attention; out = residual + RMSNorm(x).
enum : u32 { MATMUL = 0, ATTENTION = 1, NORM_ADD = 2 };
// How weights lie: PLAIN as [inputs, outputs] in 16 bits; INT8 and INT4 in packed tiles (tile_mma.cu).
enum : u32 { PLAIN = 0, INT8 = 1, INT4 = 2 };
// What the second number of a group is: the integer that stands for 0, or the value that integer 0 stands for.
enum : u32 { ZERO_POINT = 1, MINIMUM = 2 };

// One phase of a step. Its fields are those that its kind names.
struct PhaseDescriptor {
  u16 const* x;                  // MATMUL: [rows, x_stride]; ATTENTION: q, k and v; NORM_ADD: [rows, outputs]
  float const* x_squares;        // [MAX_ROWS, x_square_parts]: parts of the sum of x's squares; null: none yet
  float const* norm_weight;      // MATMUL, NORM_ADD: of RMSNorm; ATTENTION: of the queries' norm
  float const* key_norm_weight;  // ATTENTION
  u8 const* weights;             // MATMUL
  u32 const* input_order;        // MATMUL: column of x of each input of the weights, if permuted (GPTQ act-order)
  u16 const* bias;               // MATMUL: [outputs]
  u16 const* residual;           // [rows, outputs], added last
  void* out;                     // [rows, outputs]; gated: [rows, outputs / 2]
  float* out_squares;            // [MAX_ROWS, strips]: parts of the sum of out's squares, for the next norm
  u8* keys;                      // ATTENTION: [slots, kv_heads, capacity, head_dim]; in 8 bits integer + 128
  u8* values;
  float* key_scales;  // ATTENTION, in 8 bits: [slots, kv_heads, capacity]
  float* value_scales;
  u16 const* cos;  // ATTENTION: [rope_positions, rotary_dim]
  u16 const* sin;
  u32 const* first_units;   // MATMUL: [blocks + 1]: each block's first strip << 16 and, PLAIN, tile in it
  u32 const* strip_owners;  // MATMUL, PLAIN: [strips]: first and, << 16, last block with a part of it
  u32 kind, weight_kind, inputs, outputs, x_stride;
  u32 tiles_across;     // MATMUL: tiles side by side in a strip; columns of a wide one
  u32 tile_k, k_tiles;  // MATMUL: inputs of a tile, tiles along all inputs
  u32 strips, tile_bytes;
  u32 group_size, offset_kind;  // MATMUL, packed: inputs of a tile with one scale; ZERO_POINT or MINIMUM
  u32 x_square_parts;
  u32 gated;  // MATMUL: the first half of the outputs are gates: out = act(gate) * up
  u32 out_is_float32;
  u32 first_counter;       // of the phase's strips (MATMUL) or pairs (row, key head) (ATTENTION); SHARED_SLOTS: that of
                           // what is appended, then those of pairs (query chunk, key head)
  u32 window, rotary_dim;  // ATTENTION: positions a query sees (0: all); rotated elements of a head
  float logit_softcap;     // MATMUL, float32: out = cap * tanh(out / cap), if not 0
  u32 completions;         // MATMUL, NORM_ADD: how often it is signalled that a part of out is final
};

// Rows of one slot, one behind the other, whose queries a block takes at once.
struct QueryChunk {
  u32 first, count;  // its rows
  u32 run;           // the first of all the slot's rows in this launch
  u32 padding;
};

u32 constexpr MOST_SPLITS = 128;  // of a chunk and key head

// The rows of a launch, where SHARED_SLOTS: written for each launch. Rows of one slot follow each other, at
// consecutive positions.
struct RowTable {
  u32 rows, wanted, chunks, kv_splits;  // rows; those with logits; of the queries; splits of a chunk and key head
  u32 slot[MOST_ROWS];
  u32 position[MOST_ROWS];
  u32 wanted_rows[MOST_ROWS];  // row of each row of logits
  QueryChunk chunk[MOST_ROWS];
};

// A launch: the phases, and what they have in common. The kernel's one parameter.
struct DecodeParams {
  PhaseDescriptor const* phases;
  u32* counters;              // zeroed: completions of each phase, then arrivals at strips and (row, key head)
  float* partial_sums;        // [2 * blocks, MAX_ROWS, MAX_STRIP_N or WIDE_STRIP_N]
  float* attention_partials;  // [rows * kv_heads * kv_splits, MAX_GROUP, head_dim], then as many [MAX_GROUP, 2];
                              // SHARED_SLOTS: of query chunks, with QUERY_ROWS for MAX_GROUP
  u32 const* cached;          // [rows]: positions that are cached
  u32 const* occupied;        // [rows]: 0 where there is no sequence
  u32 phase_count, rows, first_slot, capacity, rope_positions;
  u32 heads, kv_heads, head_dim, gelu, kv_splits;
  float norm_eps, attention_scale, attention_softcap;
  u32 sm_count;            // multiprocessors that were measured; 0: each block does the share of its blockIdx
  u32 const* block_of_sm;  // [sm_count]: whose share of the work each does
  u32* claims;             // [blocks]: zeroed; which shares are taken, if any were measured
  u32* block_clocks;       // [blocks, 2]: if wanted, clocks that a block took, and its multiprocessor
  RowTable const* table;   // where SHARED_SLOTS, instead of cached, occupied, rows, first_slot and kv_splits
  u32 slots_in_flight;     // slots whose copies a producer warp has under way at most, 1 to 3
  u32 prefetch_tiles;      // pairs of plain tiles that it has in the L2 cache ahead of a full ring at most
  u32 prefetch_clocks;     // clocks between two such requests
  u32 padding;
};

// A row's likeliest tokens, best first, as `sort_key` has them, and what all tokens of the row add up to.
struct TopLogitsRow {
  u64 keys[TOP_LOGITS];
  float sum_exp;                 // of exp(logit - best)
  float sum_exp_at_temperature;  // of exp((logit - best) / temperature)
};

// The ranking of rows of logits (top_logits.cu).
struct TopLogitsParams {
  float const* logits;                // [rows, vocabulary]
  float const* inverse_temperatures;  // [rows]
  u64* lists;                         // [rows, blocks of a row, TOP_LOGITS]
  float* sums;                        // [rows, blocks of a row]: ExpSums of EXP_SUMS_BYTES
  u32* counters;                      // [rows]: zeroed, and zero again afterwards
  TopLogitsRow* out;                  // [rows]
  u32 vocabulary, padding;
};

// A packed matrix to plain float16 (dequantize.cu).
struct DequantizeParams {
  u8 const* weights;
  u16* out;                // [inputs, outputs]
  u32 const* input_order;  // as in PhaseDescriptor
  u32 inputs, outputs, tile_bytes, group_size, offset_kind, padding;
};

u32 constexpr PHASE_DESCRIPTOR_BYTES = 224;
u32 constexpr DECODE_PARAMS_BYTES = 152;
u32 constexpr ROW_TABLE_BYTES = 1808;
u32 constexpr TOP_LOGITS_PARAMS_BYTES = 56;
u32 constexpr TOP_LOGITS_ROW_BYTES = 520;
u32 constexpr DEQUANTIZE_PARAMS_BYTES = 48;
static_assert(sizeof(PhaseDescriptor) == PHASE_DESCRIPTOR_BYTES, "as abi.rs has it");
static_assert(sizeof(DecodeParams) == DECODE_PARAMS_BYTES, "as abi.rs has it");
static_assert(sizeof(RowTable) == ROW_TABLE_BYTES, "as abi.rs has it");
static_assert(sizeof(TopLogitsParams) == TOP_LOGITS_PARAMS_BYTES, "as abi.rs has it");
static_assert(sizeof(TopLogitsRow) == TOP_LOGITS_ROW_BYTES, "as abi.rs has it");
static_assert(sizeof(DequantizeParams) == DEQUANTIZE_PARAMS_BYTES, "as abi.rs has it");
