// One function for each PTX instruction that the kernel uses, by its name in the PTX ISA, and barriers made of them.
// For the tests emulator.h has the same functions for a CPU: with them all other files run there as they are.

// Dynamic shared memory, for activations and tiles. Where it does not begin at a multiple of 128 bytes, each row of a
// tile lies across two lines and a step takes a tenth longer (H100).
#define SHARED_MEMORY(name) extern __shared__ __align__(128) uint4 name[]

template <u32 KIND>
__device__ __forceinline__ float widen(u16 bits) {
  if (KIND == BFLOAT16) {
    return __uint_as_float((u32)bits << 16);
  }
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <u32 KIND>
__device__ __forceinline__ u16 narrow(float value) {
  u16 bits;
  if (KIND == BFLOAT16) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  return bits;
}

// Two values to float16, the first in the lower half.
__device__ __forceinline__ u32 narrow_f16x2(float low, float high) {
  u32 bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Sixteen bytes that are read once, of what no kernel writes meanwhile, and that are written once: the first to leave
// the caches.
__device__ __forceinline__ uint4 load_once_16(void const* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__device__ __forceinline__ void store_once_16(void* at, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Loads past the L1 cache (.cg), which may have what was there before another block wrote in this launch: 16 bytes, 2
// bytes.
__device__ __forceinline__ uint4 load_cg_16(void const* at) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ u16 load_cg_2(void const* at) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ u32 shared_address(void const* at) { return (u32)__cvta_generic_to_shared(at); }

// Begins to copy 16 bytes to shared memory, of which the first `bytes` are read and the rest become zero.
__device__ __forceinline__ void cp_async_16(u32 to, void const* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// 8 and 16 bytes of shared memory.
__device__ __forceinline__ uint2 load_shared_8(u32 at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint4 load_shared_16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

// Copies since the last call are a group; waits for all groups, or for all but the last COUNT.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
template <u32 COUNT>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}

// Asks for the 128 bytes at an address to be fetched into the L2 cache.
__device__ __forceinline__ void prefetch_l2(void const* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Two or four 8x8 matrices of 16 bits from shared memory to a warp's registers, transposed (trans) or not: lane l gives
// the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ uint4 ldmatrix_x4(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ uint4 ldmatrix_x4_trans(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ uint2 ldmatrix_x2(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint2 ldmatrix_x2_trans(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(v.x), "=r"(v.y)
               : "r"(at)
               : "memory");
  return v;
}

// c [16, 8] += a [16, 16] b [16, 8]; PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4,
// a has (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), b (2t, g), (2t + 8, g), each with its neighbour in k; c has
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <u32 KIND>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], uint4 a, uint2 b) {
  if (KIND == BFLOAT16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  }
}

// A barrier in shared memory, complete each time that `count` threads have arrived; whoever finds it complete sees what
// they wrote before.
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

// Whether the phase of this parity (0 for the first) is complete.
__device__ __forceinline__ bool mbarrier_test_wait(u32 barrier, u32 parity) {
  u32 passed;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(passed)
               : "r"(barrier), "r"(parity)
               : "memory");
  return passed;
}

// The multiprocessor that this block is on.
__device__ __forceinline__ u32 sm_id() {
  u32 v;
  asm("mov.u32 %0, %%smid;" : "=r"(v));
  return v;
}

// Leaves the multiprocessor to other warps for 64 ns or so.
__device__ __forceinline__ void back_off() { asm volatile("nanosleep.u32 64;" ::: "memory"); }

// All compute warps wait for each other; producer warps do not take part.
__device__ __forceinline__ void sync_compute_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(COMPUTE_THREADS) : "memory");
}

// All compute warps wait until `wanted` parts of a phase's outputs are final, and then see them.
__device__ __forceinline__ void wait_phase(u32 const* counter, u32 wanted) {
  if (threadIdx.x == 0) {
    u32 have;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(have) : "l"(counter) : "memory");
    } while (have < wanted);
  }
  sync_compute_warps();
}

// Says that a part of a phase's outputs, which all compute warps wrote, is final.
__device__ __forceinline__ void signal_phase(u32* counter) {
  sync_compute_warps();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}

// Whether this block is the last of `parts` blocks to arrive here, and then sees what the others wrote before.
__device__ __forceinline__ bool is_last_arrival(u32* counter, u32 parts) {
  __shared__ u32 last;
  sync_compute_warps();
  if (threadIdx.x == 0) {
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    last = before == parts - 1;
  }
  sync_compute_warps();
  return last;
}

// a - b of two float16 each.
__device__ __forceinline__ u32 sub_f16x2(u32 a, u32 b) {
  u32 v;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

// a b + c of two float16 each.
__device__ __forceinline__ u32 fma_f16x2(u32 a, u32 b, u32 c) {
  u32 v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}

// (a & mask) | bits
__device__ __forceinline__ u32 lop3_and_or(u32 a, u32 mask, u32 bits) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(bits));
  return v;
}
