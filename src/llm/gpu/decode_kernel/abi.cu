// A decode step as one kernel: one block on each multiprocessor goes through all phases of all layers. Weights do not
// depend on what is computed, so some warps do nothing but fetch tiles of them, across the ends of phases, until shared
// memory is full: memory works on while the blocks wait for each other. Few are on their way at a time, or whatever else is
// read would queue behind them. The files of this folder are one source, compiled at run time (NVRTC) without any header,
// for compute capability 8.0 and later. Sums are float32. Element kinds: 1 float16, 2 bfloat16.
//
// The host says with -D: DEPTH, tiles a warp has in shared memory; SLOT, bytes of a tile's place; WORK, bytes of shared memory
// for activations, before the tiles; PACKED, which kinds of packed tiles there are, a bit each; KEPT, bits of a cached
// element, 16 or 8; ELEMENT, which kind of elements there are, if not both (half as much to compile). `variants.txt` has what
// it says. As measured: FLIGHT, how many of them are on their way at most; AHEAD, how many pairs' tiles are brought into the
// L2 cache once shared memory is full, one in PACE clocks.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef DEPTH
#define DEPTH 3
#endif
#ifndef SLOT
#define SLOT 5120
#endif
#ifndef WORK
#define WORK 32768
#endif
#ifndef PACKED
#define PACKED 31
#endif
#ifndef KEPT
#define KEPT 16
#endif
#ifndef FLIGHT
#define FLIGHT 2
#endif
#ifndef AHEAD
#define AHEAD 4
#endif
#ifndef PACE
#define PACE 2500
#endif
#ifndef MARK
#define MARK(point)  // where benches/step_phases.cu takes the time
#endif

u32 constexpr THREADS = 256;            // that compute
u32 constexpr WARPS = THREADS / 32;
u32 constexpr PAIRS = WARPS / 2;        // of warps side by side, each with one that fetches
u32 constexpr FETCHERS = 32 * PAIRS;    // threads that fetch
u32 constexpr TILE = 64;                // columns of a tile
u32 constexpr WIDEST = TILE * WARPS;    // columns of a block at a time at most
u32 constexpr ROWS = 8;                 // sequences at most
u32 constexpr GROUP = 16;               // query heads of a key head at most
u32 constexpr STRIP = 16;               // outputs of a strip of packed tiles

// What a phase does. (Enumerators, since a compiler warns of constants that nobody names.)
enum : u32 { PRODUCT = 0, ATTEND = 1, ADD = 2 };
// How weights lie. PLAIN: [inputs, outputs]. INT8 and INT4: in tiles, see tile_mma.cu.
enum : u32 { PLAIN = 0, INT8 = 1, INT4 = 2 };
// What the second number of a group is: the integer that stands for 0, or what 0 stands for.
enum : u32 { ZERO = 1, MINIMUM = 2 };

struct Phase {
  u16 const* x;           // product: [rows, stride]; attend: queries, keys, values; add: [rows, outputs]
  float const* squares;   // [ROWS, square_count]: parts of the sums of x's squares
  float const* norm;      // product, add: RMSNorm's weight; attend: the queries'
  float const* key_norm;  // attend
  u8 const* weights;      // product
  u32 const* order;       // product: where in x the weights' inputs are, if not in their place
  u16 const* bias;        // product: [outputs]; gated: of gates, then of what they let through
  u16 const* residual;    // [rows, outputs], added last
  void* out;              // [rows, outputs], half of them if gated; float32 if wide
  float* out_squares;     // [ROWS, strips]
  u8* keys;               // attend: [slots, kv_heads, capacity, dim]; in 8 bits an integer is 128 less than its byte
  u8* values;
  float* key_scales;      // attend, in 8 bits: [slots, kv_heads, capacity], what a row's integers are multiplied with
  float* value_scales;
  u16 const* cos;         // attend: [positions, rotary]
  u16 const* sin;
  u32 const* dealt;       // product: [blocks + 1], each block's first strip << 16 and, plain, tile in it
  u32 const* owners;      // product, plain: [strips], first and last << 16 of the blocks with a part
  u32 kind, weight_kind, inputs, outputs, stride;
  u32 across, tile_k, tiles, strips, tile_bytes, group, second;
  u32 square_count, gated, wide, counters, window, rotary;
  float cap;
  u32 parts;              // product, add: how many times a part of it becomes final
};

struct Step {
  Phase const* phases;
  u32* counters;        // zero: how many parts of each phase are final; then those of strips and heads
  float* partial;       // [2 * blocks, ROWS, WIDEST]
  float* attention;     // [rows * kv_heads * splits, GROUP, dim], then as many [GROUP, 2]
  u32 const* cached;    // [rows]
  u32 const* present;   // [rows]: 0 for a row nobody is in
  u32 count, rows, slot, capacity, positions;
  u32 heads, kv_heads, dim, gelu, splits;
  float eps, scale, cap;
  u32 end;
  u32 const* ranks;     // [multiprocessors]: which block's work each does, if not any's
  u32* times;           // [blocks, 2]: if wanted, clocks a block took, and the multiprocessor it was on
};
