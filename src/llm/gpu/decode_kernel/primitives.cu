// What the hardware does: conversions, reads past the cache, asynchronous copies, matrix products of a warp, barriers. The
// tests have the same for a CPU, and with it run the files that follow as they are.

// Tiles' and activations' shared memory. Where its rows of 128 bytes are not aligned, a step takes a tenth longer (H100).
#define SHARED_MEMORY(name) extern __shared__ __align__(128) uint4 name[]

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

// What other blocks wrote in this launch is read past the L1 cache.
__device__ __forceinline__ uint4 load_cg_16(void const* at) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ u16 load_cg_2(void const* at) {
  u16 v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
  return v;
}

__device__ __forceinline__ u32 shared_address(void const* at) { return (u32)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void cp_async_16(u32 to, void const* from, u32 bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ uint2 load_shared_8(u32 at) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint4 load_shared_16(u32 at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

// Begins a group of copies; waits for all groups, or for all but the last few.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
template <u32 COUNT>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(COUNT) : "memory");
}

// Asks for 128 bytes to be brought into the L2 cache.
__device__ __forceinline__ void prefetch_l2(void const* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Four 8x8 matrices, of which lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ uint4 ldmatrix_x4(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint4 ldmatrix_x4_trans(u32 at) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint2 ldmatrix_x2(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

__device__ __forceinline__ uint2 ldmatrix_x2_trans(u32 at) {
  uint2 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at) : "memory");
  return v;
}

// c [16, 8] += a [16, 16] b [16, 8]; PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4 and t = lane % 4, a
// has (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), b (2t, g), (2t + 8, g), each with its neighbour in k; c has
// (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <u32 KIND>
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], uint4 a, uint2 b) {
  if (KIND == 2) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  }
}

// A barrier in shared memory on which `count` threads arrive; what they wrote before is seen by who finds it passed.
__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

// Whether it was passed an odd or even number of times less one.
__device__ __forceinline__ bool mbarrier_test_wait(u32 barrier, u32 parity) {
  u32 passed;
  asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
               : "=r"(passed) : "r"(barrier), "r"(parity) : "memory");
  return passed;
}

// The multiprocessor this block is on.
__device__ __forceinline__ u32 sm_id() {
  u32 v;
  asm("mov.u32 %0, %%smid;" : "=r"(v));
  return v;
}

// Leaves the multiprocessor to others for a moment.
__device__ __forceinline__ void back_off() { asm volatile("nanosleep.u32 64;" ::: "memory"); }

// All threads that compute meet.
__device__ __forceinline__ void sync_compute_warps() { asm volatile("bar.sync 1, %0;" ::"n"(COMPUTE_THREADS) : "memory"); }

// Waits until `wanted` parts of a phase are final, for the whole block.
__device__ __forceinline__ void wait_phase(u32 const* counter, u32 wanted) {
  if (threadIdx.x == 0) {
    u32 have;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(have) : "l"(counter) : "memory");
    } while (have < wanted);
  }
  sync_compute_warps();
}

// Says that a part of a phase, which the whole block wrote, is final.
__device__ __forceinline__ void signal_phase(u32* counter) {
  sync_compute_warps();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}

// Whether this block is the last of `parts` that come here with what they wrote.
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

// Two float16, each less the other's.
__device__ __forceinline__ u32 sub_f16x2(u32 a, u32 b) {
  u32 v;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

// (a & mask) | bits
__device__ __forceinline__ u32 lop3_and_or(u32 a, u32 mask, u32 bits) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(bits));
  return v;
}
