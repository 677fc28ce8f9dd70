// The kernel: phase after phase, and what the host calls it.

template <u32 KIND>
__device__ __forceinline__ void product(DecodeParams const& s, PhaseDescriptor const& p, u32 index, u32 me, Ring& ring, u8* work) {
  if (KIND == 1 && TILE_KINDS && p.weight_kind != PLAIN) {
    packed_matmul(s, p, index, me, ring, work);
  } else {
    plain_matmul<KIND>(s, p, index, me, ring, work);
  }
}

template <u32 KIND>
__device__ __forceinline__ void step(DecodeParams const& s) {
  SHARED_MEMORY(shared);
  __shared__ PhaseDescriptor p;
  __shared__ RingBarriers places;
  u32 const warp = threadIdx.x / 32, first_place = shared_address(shared) + WORK_BYTES, start = (u32)clock();
  u32 const me = s.block_of_sm ? s.block_of_sm[sm_id()] : blockIdx.x;
  if (threadIdx.x < WARP_PAIRS * RING_DEPTH) {
    mbarrier_init(shared_address(places.landed) + threadIdx.x * 8, 1);
    mbarrier_init(shared_address(places.used) + threadIdx.x * 8, 2);
  }
  __syncthreads();
  if (warp >= COMPUTE_WARPS) {
    run_producer(s, places, me, warp - COMPUTE_WARPS, first_place);
    return;
  }
  Ring ring = {places, first_place, 0};
  for (u32 index = 0; index < s.phase_count; ++index) {
    sync_compute_warps();  // the phase before is done with its description
    if (threadIdx.x < sizeof(PhaseDescriptor) / 4) {
      ((u32*)&p)[threadIdx.x] = ((u32 const*)(s.phases + index))[threadIdx.x];
    }
    sync_compute_warps();
    MARK(0);
    if (p.kind == MATMUL) {
      product<KIND>(s, p, index, me, ring, (u8*)shared);
    } else if (p.kind == ATTENTION) {
      attend<KIND>(s, p, index, (u8*)shared);
    } else {
      add<KIND>(s, p, index);
    }
  }
  if (s.block_clocks && threadIdx.x == 0) {
    s.block_clocks[2 * me] = (u32)clock() - start;
    s.block_clocks[2 * me + 1] = sm_id();
  }
}

#if !defined(ELEMENT) || ELEMENT == 1
extern "C" __global__ void __launch_bounds__(COMPUTE_THREADS + PRODUCER_THREADS, 1) decode_f16(DecodeParams s) { step<1>(s); }
#endif
#if !defined(ELEMENT) || ELEMENT == 2
extern "C" __global__ void __launch_bounds__(COMPUTE_THREADS + PRODUCER_THREADS, 1) decode_bf16(DecodeParams s) { step<2>(s); }
#endif

// A packed matrix to [inputs, outputs] in float16, for the engines. Grid (tiles, 64 outputs); a warp for each 32 inputs of each
// strip.
template <u32 BITS>
__device__ __forceinline__ void expand(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  u32 constexpr DEEP = 512 / BITS, BLOCKS = 16 / BITS;
  u32 const lane = threadIdx.x % 32, block = threadIdx.x / 32 % BLOCKS, q = threadIdx.x / 32 / BLOCKS, strip = blockIdx.y * 4 + q;
  // Through shared memory: a row is written whole.
  __shared__ __align__(16) u16 turned[DEEP][TILE_N + 8];
  if (strip * PACKED_STRIP < outputs) {
    u8 const* const tile = weights + ((u64)strip * gridDim.x + blockIdx.x) * tile_bytes;
    uint4 const w = *(uint4 const*)(tile + block * BITS / 8 * 512 + lane * 16);
    uint2 const words = *(uint2 const*)(tile + 1024 + block * 32 / min(group, DEEP) * 64 + lane / 4 * 8);
    GroupTerms const terms[2] = {group_terms(words.x, second == MINIMUM), group_terms(words.y, second == MINIMUM)};
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 const word = block % 2 ? (half ? w.w : w.z) : (half ? w.y : w.x);
      uint4 const a = BITS == 4 ? dequantize<BITS>(word, 0) : half ? dequantize<BITS>(w.z, w.w) : dequantize<BITS>(w.x, w.y);
      u32 const quads[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        u32 const k = block * 32 + lane % 4 * 8 + half * 4 + i / 4 * 2 + i % 2, m = i / 2 % 2;
        float const value = widen<1>((u16)(quads[i / 2] >> (16 * (i % 2)))) - dequantize_bias<BITS>(m);
        turned[k][q * PACKED_STRIP + m * 8 + lane / 4] = narrow<1>(fmaf(terms[m].scale, value, terms[m].second));
      }
    }
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < DEEP * 8; i += 128 * BLOCKS) {
    u32 const k = blockIdx.x * DEEP + i / 8, n = blockIdx.y * TILE_N + i % 8 * 8;
    if (k < inputs && n < outputs) {
      u32 const to = order ? order[k] : k;
      *(uint4*)(out + (u64)to * outputs + n) = *(uint4 const*)&turned[i / 8][i % 8 * 8];
    }
  }
}

extern "C" __global__ void dequantize_int4(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  expand<4>(weights, out, order, inputs, outputs, tile_bytes, group, second);
}
extern "C" __global__ void dequantize_int8(u8 const* weights, u16* out, u32 const* order, u32 inputs, u32 outputs, u32 tile_bytes, u32 group, u32 second) {
  expand<8>(weights, out, order, inputs, outputs, tile_bytes, group, second);
}
