// The kernel: phase after phase, and what the host calls it.

template <u32 KIND>
__device__ __forceinline__ void step(Step const& s) {
  SHARED_MEMORY(shared);
  __shared__ Phase p;
  __shared__ Places places;
  u32 const warp = threadIdx.x / 32, ring = shared_address(shared) + WORK;
  if (threadIdx.x < PAIRS * DEPTH) {
    prepare(shared_address(places.landed) + threadIdx.x * 8, 1);
    prepare(shared_address(places.used) + threadIdx.x * 8, 2);
  }
  __syncthreads();
  if (warp >= WARPS) {
    fetch_all(s, places, warp - WARPS, ring);
    return;
  }
  u32 used = 0;
  for (u32 index = 0; index < s.count; ++index) {
    meet();  // the phase before is done with its description
    if (threadIdx.x < sizeof(Phase) / 4) {
      ((u32*)&p)[threadIdx.x] = ((u32 const*)(s.phases + index))[threadIdx.x];
    }
    meet();
    if (p.kind == PRODUCT) {
      product<KIND>(s, p, index, places, used, ring, (u8*)shared);
    } else if (p.kind == ATTEND) {
      attend<KIND>(s, p, index, (u8*)shared);
    } else {
      add<KIND>(s, p, index);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS + FETCHERS, 1) step_f16(Step s) { step<1>(s); }
extern "C" __global__ void __launch_bounds__(THREADS + FETCHERS, 1) step_bf16(Step s) { step<2>(s); }

// A packed matrix to [inputs, outputs] in float16, for the engines. Grid (tiles, columns / 64), a warp for each 16 inputs.
template <u32 BITS>
__device__ __forceinline__ void expand(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  u32 constexpr DEEP = BITS == 4 ? 128 : 64;
  float constexpr MIDDLE = BITS == 4 ? 8.0f : 128.0f;
  u32 const lane = threadIdx.x % 32, step = threadIdx.x / 32;
  u8 const* const tile = weights + ((u64)blockIdx.y * gridDim.x + blockIdx.x) * tile_bytes;
  u32 words[8] = {};
  if (BITS == 4) {
    uint4 const w = *(uint4 const*)(tile + step * 512 + lane * 16);
    words[0] = w.x;
    words[2] = w.y;
    words[4] = w.z;
    words[6] = w.w;
  } else {
    uint4 const v = *(uint4 const*)(tile + step * 1024 + lane * 16), w = *(uint4 const*)(tile + step * 1024 + 512 + lane * 16);
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
    words[4] = w.x;
    words[5] = w.y;
    words[6] = w.z;
    words[7] = w.w;
  }
  u32 const* const terms = (u32 const*)(tile + 4096 + step * 16 / min(group, DEEP) * 256 + lane / 4 * 32);
  // Rows of 16 inputs and 64 outputs, through shared memory: a row is written whole.
  __shared__ __align__(16) u16 turned[8][16][TILE + 8];
#pragma unroll
  for (u32 m = 0; m < 4; ++m) {
    uint4 const a = integers<BITS>(words[2 * m], words[2 * m + 1]);
    u32 const quads[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      u32 const term = terms[m * 2 + i % 2];
      float const scale = widen<1>((u16)term), last = widen<1>((u16)(term >> 16));
      float const offset = second == ZERO ? scale * (MIDDLE - last) : second == MINIMUM ? fmaf(scale, MIDDLE, last) : 0.0f;
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        float const q = widen<1>((u16)(quads[i] >> (16 * e)));
        turned[step][lane % 4 * 2 + e + i / 2 * 8][m * 16 + i % 2 * 8 + lane / 4] = narrow<1>(fmaf(scale, q, offset));
      }
    }
  }
  __syncwarp();
  for (u32 i = lane; i < 16 * 8; i += 32) {
    u32 const k = blockIdx.x * DEEP + step * 16 + i / 8, n = blockIdx.y * TILE + i % 8 * 8;
    if (k < inputs && n < outputs) {
      u32 const to = order ? order[k] : k;
      *(uint4*)(out + (u64)to * outputs + n) = *(uint4 const*)&turned[step][i / 8][i % 8 * 8];
    }
  }
}

extern "C" __global__ void expand_int4(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  expand<4>(weights, out, order, inputs, outputs, tile_bytes, group, second);
}
extern "C" __global__ void expand_int8(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  expand<8>(weights, out, order, inputs, outputs, tile_bytes, group, second);
}
