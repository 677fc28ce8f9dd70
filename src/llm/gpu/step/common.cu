// A decode step as one kernel: one block on each multiprocessor goes through all phases of all layers. Weights do not
// depend on what is computed, so some warps do nothing but fetch tiles of them, across the ends of phases, until shared
// memory is full: memory works on while the blocks wait for each other. Few are on their way at a time, or whatever else is
// read would queue behind them. The files of this folder are one source, compiled at run time (NVRTC) without any header,
// for compute capability 8.0 and later. Sums are float32. Element kinds: 1 float16, 2 bfloat16.
//
// The host says with -D: DEPTH, tiles a warp has in shared memory; SLOT, bytes of a tile's place; FLIGHT, how many of them
// are on their way at most.

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
#ifndef FLIGHT
#define FLIGHT 2
#endif
#ifndef AHEAD
#define AHEAD 4
#endif
#ifndef PACE
#define PACE 2500
#endif

u32 constexpr THREADS = 256;            // that compute
u32 constexpr WARPS = THREADS / 32;
u32 constexpr PAIRS = WARPS / 2;        // of warps side by side, each with one that fetches
u32 constexpr FETCHERS = 32 * PAIRS;    // threads that fetch
u32 constexpr TILE = 64;                // columns of a tile
u32 constexpr WIDEST = TILE * WARPS;    // columns of a block at a time at most
u32 constexpr ROWS = 8;                 // sequences at most
u32 constexpr GROUP = 16;               // query heads of a key head at most
u32 constexpr WORK = 32 * 1024;         // bytes of shared memory for activations; the tiles' places follow

// What a phase does.
u32 constexpr PRODUCT = 0, ATTEND = 1, ADD = 2;
// How weights lie. PLAIN: [inputs, outputs]. INT8 and INT4: in tiles, see `packed_tile`.
u32 constexpr PLAIN = 0, INT8 = 1, INT4 = 2;
// What the second number of a group is: nothing, the integer that stands for 0, or what 0 stands for.
u32 constexpr NONE = 0, ZERO = 1, MINIMUM = 2;

struct Phase {
  u16 const* x;           // product: [rows, stride]; attend: queries, keys, values; add: [rows, outputs]
  float const* squares;   // [ROWS, square_count]: parts of the sums of x's squares
  float const* norm;      // product, add: RMSNorm's weight; attend: the queries'
  float const* key_norm;  // attend
  u8 const* weights;      // product
  u32 const* order;       // product: where in x the weights' inputs are, if not in their place
  u16 const* bias;        // product: [outputs]
  u16 const* residual;    // [rows, outputs], added last
  void* out;              // [rows, outputs]; float32 if wide
  float* out_squares;     // [ROWS, strips]
  u16* keys;              // attend: [slots, kv_heads, capacity, dim]
  u16* values;
  u16 const* cos;         // attend: [positions, rotary]
  u16 const* sin;
  u32 kind, weight_kind, inputs, outputs, stride;
  u32 across, tile_k, tiles, strips, tile_bytes, group, second;
  u32 square_count, gated, wide, counters, window, rotary;
  float cap;
  u32 end;
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
};

template <u32 KIND>
__device__ __forceinline__ float widen(u16 bits) {
  if (KIND == 2) {
    return __uint_as_float((u32)bits << 16);
  }
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <u32 KIND>
__device__ __forceinline__ u16 narrow(float value) {
  u16 bits;
  if (KIND == 2) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  return bits;
}

template <u32 KIND>
__device__ __forceinline__ float rounded(float value) { return widen<KIND>(narrow<KIND>(value)); }

// What other blocks wrote in this launch is read past the L1 cache.
__device__ __forceinline__ uint4 read16(void const* at) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}
__device__ __forceinline__ u16 read2(void const* at) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
  return v;
}

template <u32 KIND>
__device__ __forceinline__ void unpack(uint4 packed, float* to) {
  u32 const words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    to[2 * i] = widen<KIND>((u16)words[i]);
    to[2 * i + 1] = widen<KIND>((u16)(words[i] >> 16));
  }
}

template <u32 KIND>
__device__ __forceinline__ u32 pair(float low, float high) { return narrow<KIND>(low) | (u32)narrow<KIND>(high) << 16; }

__device__ __forceinline__ float warp_sum(float value) {
  for (u32 step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
  for (u32 step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  return value;
}

__device__ __forceinline__ float bounded(float value, float cap) { return cap > 0.0f ? cap * tanhf(value / cap) : value; }

__device__ __forceinline__ float activate(float x, u32 gelu) {
  // GELU's tanh approximation: Hendrycks & Gimpel 2016.
  return gelu ? 0.5f * x * (1.0f + tanhf(0.7978845608f * x * (1.0f + 0.044715f * x * x))) : x / (1.0f + __expf(-x));
}

__device__ __forceinline__ u32 shared_address(void const* at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void fetch16(u32 to, void const* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ u32 shared4(u32 at) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint4 shared16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

// Four 8x8 matrices, of which lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ uint4 matrices4(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint4 turned4(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint2 matrices2(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ uint2 turned2(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

// c [16, 8] += a [16, 16] b [16, 8]; PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4, a
// has (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), b (2t, g), (2t + 8, g), each with its neighbour in k; c has
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <u32 KIND>
__device__ __forceinline__ void multiply(float (&c)[4], uint4 a, uint2 b) {
  if (KIND == 2) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  }
}

// A barrier in shared memory on which `count` threads arrive; what they wrote before is seen by who finds it passed.
__device__ __forceinline__ void prepare(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier) {
  u64 state;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(barrier) : "memory");
}
// Whether it was passed an odd or even number of times less one.
__device__ __forceinline__ bool has_passed(u32 barrier, u32 parity) {
  u32 passed;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
  return passed;
}

// All threads that compute meet.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// Waits until `wanted` parts of a phase are final, for the whole block.
__device__ __forceinline__ void await(u32 const* counter, u32 wanted) {
  if (threadIdx.x == 0) {
    u32 have;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(have) : "l"(counter) : "memory");
    } while (have < wanted);
  }
  meet();
}

// Says that a part of a phase, which the whole block wrote, is final.
__device__ __forceinline__ void publish(u32* counter) {
  meet();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}

// Whether this block is the last of `parts` that come here with what they wrote.
__device__ __forceinline__ bool comes_last(u32* counter, u32 parts) {
  __shared__ u32 last;
  meet();
  if (threadIdx.x == 0) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    last = before == parts - 1;
  }
  meet();
  return last;
}

// How many parts of a phase become final.
__device__ __forceinline__ u32 parts_of(Step const& s, u32 index) {
  return s.phases[index].kind == ATTEND ? s.rows * s.kv_heads : s.phases[index].strips;
}
