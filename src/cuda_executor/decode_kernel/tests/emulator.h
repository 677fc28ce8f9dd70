// The decode kernel's primitives for a CPU: a block's threads are coroutines that take turns, a warp's collective
// operations wait for all 32 lanes. Slow and exact; misaligned addresses end the program. Each block is a library
// loaded for itself, so that `__shared__` can be `static`.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sched.h>
#include <ucontext.h>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __expf expf
#define SHARED_MEMORY(name) static uint4 name[1 << 14]

struct float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct uint2 {
  unsigned x, y;
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <typename T>
inline T __ldcg(T const* at) {
  T value;
  memcpy((void*)&value, at, sizeof value);
  return value;
}
template <typename T>
inline void __stcg(T* at, T value) {
  memcpy((void*)at, &value, sizeof value);
}

// A thread.
struct Fiber {
  ucontext_t context;
  unsigned thread;
  bool done;
  std::vector<char> stack;
};
static Fiber* running;
static ucontext_t scheduler;
static unsigned this_block, blocks_in_all, threads_in_all;
static void yield() { swapcontext(&running->context, &scheduler); }

struct Index {
  unsigned x, y;
};
static unsigned this_column, columns_in_all = 1;  // of a grid's second dimension
#define threadIdx (Index{running->thread, 0})
#define blockIdx (Index{this_block, this_column})
#define gridDim (Index{blocks_in_all, columns_in_all})

// Where some threads wait for each other.
struct Gate {
  unsigned count, passed;
};
static Gate block_gate, compute_gate, warp_gates[32];
static bool is_last_at(Gate& gate, unsigned size) { return ++gate.count == size; }
static void open(Gate& gate) {
  gate.count = 0;
  ++gate.passed;
}
static void pass(Gate& gate, unsigned size) {
  unsigned const passed = gate.passed;
  if (is_last_at(gate, size)) {
    open(gate);
  } else {
    while (gate.passed == passed) {
      yield();
    }
  }
}
inline void __syncthreads() { pass(block_gate, threads_in_all); }
inline void __syncwarp() { pass(warp_gates[running->thread / 32], 32); }

// All lanes bring words along; the last to arrive computes everybody's results.
static u32 brought[32][32][12], results[32][32][4];
template <typename F>
static void together(u32 const* in, u32 count, u32* out, u32 results_of_lane, F compute) {
  u32 const warp = running->thread / 32, lane = running->thread % 32;
  memcpy(brought[warp][lane], in, count * 4);
  Gate& gate = warp_gates[warp];
  u32 const passed = gate.passed;
  if (is_last_at(gate, 32)) {
    compute(brought[warp], results[warp]);
    open(gate);
  } else {
    while (gate.passed == passed) {
      yield();
    }
  }
  memcpy(out, results[warp][lane], results_of_lane * 4);
  __syncwarp();
}

inline u64 __shfl_xor_sync(u32, u64 value, u32 step) {
  u32 words[2];
  memcpy(words, &value, 8);
  together(words, 2, words, 2, [step](auto& in, auto& out) {
    for (u32 lane = 0; lane < 32; ++lane) {
      memcpy(out[lane], in[lane ^ step], 8);
    }
  });
  memcpy(&value, words, 8);
  return value;
}
inline float __shfl_xor_sync(u32, float value, u32 step) {
  u32 bits;
  memcpy(&bits, &value, 4);
  together(&bits, 1, &bits, 1, [step](auto& in, auto& out) {
    for (u32 lane = 0; lane < 32; ++lane) {
      out[lane][0] = in[lane ^ step][0];
    }
  });
  memcpy(&value, &bits, 4);
  return value;
}

inline bool __all_sync(u32, bool value) {
  u32 word = value;
  together(&word, 1, &word, 1, [](auto& in, auto& out) {
    u32 all = 1;
    for (u32 lane = 0; lane < 32; ++lane) {
      all &= in[lane][0];
    }
    for (u32 lane = 0; lane < 32; ++lane) {
      out[lane][0] = all;
    }
  });
  return word;
}

inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
  u64 const bytes = a | (u64)b << 32;
  u32 out = 0;
  for (u32 i = 0; i < 4; ++i) {
    out |= (u32)(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  }
  return out;
}
inline float __uint_as_float(u32 bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline u32 __float_as_uint(float value) {
  u32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline int __clz(u32 v) { return __builtin_clz(v); }
inline u32 clock() {
  static u32 now;
  return now += 100;
}

template <u32 KIND>
inline float widen(u16 bits) {
  if (KIND == BFLOAT16) {
    u32 const wide = (u32)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  _Float16 value;
  memcpy(&value, &bits, 2);
  return (float)value;
}
template <u32 KIND>
inline u16 narrow(float value) {
  if (KIND == BFLOAT16) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return value != value ? (u16)0x7fc0 : (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  _Float16 const half = (_Float16)value;
  u16 bits;
  memcpy(&bits, &half, 2);
  return bits;
}

inline u32 narrow_f16x2(float low, float high) { return narrow<1>(low) | (u32)narrow<1>(high) << 16; }

static void const* aligned(void const* at, uintptr_t size) {
  if ((uintptr_t)at % size) {
    fprintf(stderr, "an address is not a multiple of %u\n", (u32)size);
    abort();
  }
  return at;
}
inline uint4 load_cg_16(void const* at) { return *(uint4 const*)aligned(at, 16); }
inline uint4 load_once_16(void const* at) { return *(uint4 const*)aligned(at, 16); }
inline void store_once_16(void* at, uint4 v) { *(uint4*)aligned(at, 16) = v; }
inline u16 load_cg_2(void const* at) { return *(u16 const*)aligned(at, 2); }

static char shared_origin[16];
inline u32 shared_address(void const* at) { return (u32)((char const*)at - shared_origin); }
static char* shared_at(u32 address, u32 size) { return (char*)aligned(shared_origin + (int)address, size); }
inline void cp_async_16(u32 to, void const* from, u32 bytes) {
  memset(shared_at(to, 16), 0, 16);
  memcpy(shared_at(to, 16), aligned(from, 16), bytes);
}
inline void cp_async_commit() {}
inline void cp_async_wait_all() {}
template <u32 COUNT>
inline void cp_async_wait_group() {}
inline void prefetch_l2(void const*) {}
inline uint2 load_shared_8(u32 at) { return *(uint2 const*)shared_at(at, 8); }
inline uint4 load_shared_16(u32 at) { return *(uint4 const*)shared_at(at, 16); }

// As many 8x8 matrices as `Words` has words.
template <typename Words, bool TURNED>
static Words matrices(u32 at) {
  u32 constexpr COUNT = sizeof(Words) / 4;
  Words words;
  together(&at, 1, &words.x, COUNT, [](auto& in, auto& out) {
    for (u32 m = 0; m < COUNT; ++m) {
      u16 rows[8][8];
      for (u32 row = 0; row < 8; ++row) {
        memcpy(rows[row], shared_at(in[m * 8 + row][0], 16), 16);
      }
      for (u32 lane = 0; lane < 32; ++lane) {
        u32 const g = lane / 4, t = lane % 4 * 2;
        u16 const low = TURNED ? rows[t][g] : rows[g][t], high = TURNED ? rows[t + 1][g] : rows[g][t + 1];
        out[lane][m] = low | (u32)high << 16;
      }
    }
  });
  return words;
}
inline uint4 ldmatrix_x4(u32 at) { return matrices<uint4, false>(at); }
inline uint4 ldmatrix_x4_trans(u32 at) { return matrices<uint4, true>(at); }
inline uint2 ldmatrix_x2(u32 at) { return matrices<uint2, false>(at); }
inline uint2 ldmatrix_x2_trans(u32 at) { return matrices<uint2, true>(at); }

template <u32 KIND>
inline void mma_m16n8k16(float (&c)[4], uint4 a, uint2 b) {
  u32 in[10] = {a.x, a.y, a.z, a.w, b.x, b.y}, out[4];
  memcpy(in + 6, c, 16);
  together(in, 10, out, 4, [](auto& in, auto& out) {
    float a[16][16], b[16][8];
    for (u32 lane = 0; lane < 32; ++lane) {
      u32 const g = lane / 4, t = lane % 4 * 2;
      for (u32 e = 0; e < 2; ++e) {
        for (u32 i = 0; i < 4; ++i) {
          a[g + i % 2 * 8][t + e + i / 2 * 8] = widen<KIND>((u16)(in[lane][i] >> (16 * e)));
        }
        for (u32 i = 0; i < 2; ++i) {
          b[t + e + i * 8][g] = widen<KIND>((u16)(in[lane][4 + i] >> (16 * e)));
        }
      }
    }
    for (u32 lane = 0; lane < 32; ++lane) {
      for (u32 i = 0; i < 4; ++i) {
        float sum;
        memcpy(&sum, &in[lane][6 + i], 4);
        for (u32 k = 0; k < 16; ++k) {
          sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
        }
        memcpy(&out[lane][i], &sum, 4);
      }
    }
  });
  memcpy(c, out, 16);
}
inline u32 sub_f16x2(u32 a, u32 b) {
  u32 const low = narrow<1>(widen<1>((u16)a) - widen<1>((u16)b));
  return low | (u32)narrow<1>(widen<1>((u16)(a >> 16)) - widen<1>((u16)(b >> 16))) << 16;
}
inline u32 fma_f16x2(u32 a, u32 b, u32 c) {
  auto const of = [&](u32 shift) {
    auto const at = [&](u32 v) { return widen<1>((u16)(v >> shift)); };
    return (u32)narrow<1>(at(a) * at(b) + at(c)) << shift;  // the product is exact
  };
  return of(0) | of(16);
}
inline void back_off() {}
inline u32 sm_id() { return this_block / 2; }  // two blocks each, one after the other
inline u32 atomicExch(u32* at, u32 value) { return __atomic_exchange_n(at, value, __ATOMIC_RELAXED); }
inline u32 lop3_and_or(u32 a, u32 mask, u32 bits) { return (a & mask) | bits; }

inline void mbarrier_init(u32 barrier, u32 count) {
  ((u32*)shared_at(barrier, 8))[0] = 0;
  ((u32*)shared_at(barrier, 8))[1] = count;
}
inline void mbarrier_arrive(u32 barrier) { ++*(u32*)shared_at(barrier, 8); }
inline bool mbarrier_test_wait(u32 barrier, u32 parity) {
  u32 const* const at = (u32 const*)shared_at(barrier, 8);
  bool const passed = at[0] / at[1] % 2 != parity;
  if (!passed) {
    yield();
  }
  return passed;
}
inline void sync_compute_warps() { pass(compute_gate, COMPUTE_THREADS); }
inline void wait_phase(u32 const* counter, u32 wanted) {
  if (threadIdx.x == 0) {
    while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < wanted) {
      yield();
    }
  }
  sync_compute_warps();
}
inline void signal_phase(u32* counter) {
  sync_compute_warps();
  if (threadIdx.x == 0) {
    __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
  }
}
inline bool is_last_arrival(u32* counter, u32 parts) {
  static u32 last;
  sync_compute_warps();
  if (threadIdx.x == 0) {
    last = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL) == parts - 1;
  }
  sync_compute_warps();
  return last;
}
