// A decode step as one kernel: one block on each multiprocessor goes through all phases of all layers. Weights do not
// depend on what is computed, so some warps do nothing but fetch tiles of them, across the ends of phases, until shared
// memory is full: memory works on while the blocks wait for each other. Few are on their way at a time, or whatever else is
// read would queue behind them. The files of this folder are one source, compiled at run time (NVRTC) without any header,
// for compute capability 8.0 and later. Sums are float32. Element kinds: 1 float16, 2 bfloat16.
//
// The host says with -D: RING_DEPTH, tiles a warp has in shared memory; SLOT_BYTES, bytes of a tile's place; WORK_BYTES, bytes of shared memory
// for activations, before the tiles; TILE_KINDS, which kinds of packed tiles there are, a bit each; KV_BITS, bits of a cached
// element, 16 or 8; ELEMENT, which kind of elements there are, if not both (half as much to compile). `variants.txt` has what
// it says. As measured: TILES_IN_FLIGHT, how many of them are on their way at most; PREFETCH_TILES, how many pairs' tiles are brought into the
// L2 cache once shared memory is full, one in PREFETCH_CLOCKS clocks.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef RING_DEPTH
#define RING_DEPTH 3
#endif
#ifndef SLOT_BYTES
#define SLOT_BYTES 5120
#endif
#ifndef WORK_BYTES
#define WORK_BYTES 32768
#endif
#ifndef TILE_KINDS
#define TILE_KINDS 31
#endif
#ifndef KV_BITS
#define KV_BITS 16
#endif
#ifndef TILES_IN_FLIGHT
#define TILES_IN_FLIGHT 2
#endif
#ifndef PREFETCH_TILES
#define PREFETCH_TILES 4
#endif
#ifndef PREFETCH_CLOCKS
#define PREFETCH_CLOCKS 2500
#endif
#ifndef MARK
#define MARK(point)  // where benches/step_phases.cu takes the time
#endif

u32 constexpr COMPUTE_THREADS = 256;            // that compute
u32 constexpr COMPUTE_WARPS = COMPUTE_THREADS / 32;
u32 constexpr WARP_PAIRS = COMPUTE_WARPS / 2;        // of warps side by side, each with one that fetches
u32 constexpr PRODUCER_THREADS = 32 * WARP_PAIRS;    // threads that fetch
u32 constexpr TILE_N = 64;                // columns of a tile
u32 constexpr MAX_STRIP = TILE_N * COMPUTE_WARPS;    // columns of a block at a time at most
u32 constexpr MAX_ROWS = 8;                 // sequences at most
u32 constexpr MAX_GROUP = 16;               // query heads of a key head at most
u32 constexpr PACKED_STRIP = 16;               // outputs of a strip of packed tiles

// What a phase does. (Enumerators, since a compiler warns of constants that nobody names.)
enum : u32 { MATMUL = 0, ATTENTION = 1, NORM_ADD = 2 };
// How weights lie. PLAIN: [inputs, outputs]. INT8 and INT4: in tiles, see tile_mma.cu.
enum : u32 { PLAIN = 0, INT8 = 1, INT4 = 2 };
// What the second number of a group is: the integer that stands for 0, or what 0 stands for.
enum : u32 { ZERO_POINT = 1, MINIMUM = 2 };

struct PhaseDescriptor {
  u16 const* x;           // product: [rows, stride]; attend: queries, keys, values; add: [rows, outputs]
  float const* x_squares;   // [MAX_ROWS, square_count]: parts of the sums of x's squares
  float const* norm_weight;      // product, add: RMSNorm's weight; attend: the queries'
  float const* key_norm_weight;  // attend
  u8 const* weights;      // product
  u32 const* input_order;       // product: where in x the weights' inputs are, if not in their place
  u16 const* bias;        // product: [outputs]; gated: of gates, then of what they let through
  u16 const* residual;    // [rows, outputs], added last
  void* out;              // [rows, outputs], half of them if gated; float32 if wide
  float* out_squares;     // [MAX_ROWS, strips]
  u8* keys;               // attend: [slots, kv_heads, capacity, dim]; in 8 bits an integer is 128 less than its byte
  u8* values;
  float* key_scales;      // attend, in 8 bits: [slots, kv_heads, capacity], what a row's integers are multiplied with
  float* value_scales;
  u16 const* cos;         // attend: [positions, rotary]
  u16 const* sin;
  u32 const* first_units;       // product: [blocks + 1], each block's first strip << 16 and, plain, tile in it
  u32 const* strip_owners;      // product, plain: [strips], first and last << 16 of the blocks with a part
  u32 kind, weight_kind, inputs, outputs, x_stride;
  u32 tiles_across, tile_k, k_tiles, strips, tile_bytes, group_size, offset_kind;
  u32 x_square_parts, gated, out_is_float32, first_counter, window, rotary_dim;
  float logit_softcap;
  u32 completions;              // product, add: how many times a part of it becomes final
};

struct DecodeParams {
  PhaseDescriptor const* phases;
  u32* counters;        // zero: how many parts of each phase are final; then those of strips and heads
  float* partial_sums;       // [2 * blocks, MAX_ROWS, MAX_STRIP]
  float* attention_partials;     // [rows * kv_heads * splits, MAX_GROUP, dim], then as many [MAX_GROUP, 2]
  u32 const* cached;    // [rows]
  u32 const* occupied;   // [rows]: 0 for a row nobody is in
  u32 phase_count, rows, first_slot, capacity, rope_positions;
  u32 heads, kv_heads, head_dim, gelu, kv_splits;
  float norm_eps, attention_scale, attention_softcap;
  u32 end;
  u32 const* block_of_sm;     // [multiprocessors]: which block's work each does, if not any's
  u32* block_clocks;           // [blocks, 2]: if wanted, clocks a block took, and the multiprocessor it was on
};
