// The kernel: phase after phase of a list.

template <u32 KIND>
__device__ __forceinline__ void matmul(PhaseContext const& c, TileRing& ring) {
  if constexpr (ROW_BLOCKS > 1) {
    wide_matmul<KIND>(c, ring);
  } else if (KIND == FLOAT16 && TILE_KINDS && c.p.weight_kind != PLAIN) {
    packed_matmul(c, ring);
  } else {
    plain_matmul<KIND>(c, ring);
  }
}

// Whose share of the work this block does: its own, or, where multiprocessors were measured, that of the one it is on,
// which may not be the block's alone: if another block has the share, the next that is free. There are as many shares
// as blocks, so each block finds one. One thread asks.
__device__ __forceinline__ u32 claim_share(DecodeParams const& s) {
  u32 share = blockIdx.x;
  if (s.sm_count > 0) {
    u32 const sm = sm_id();
    share = sm < s.sm_count ? s.block_of_sm[sm] : share;
    while (atomicExch(s.claims + share, 1u)) {
      share = share + 1 < gridDim.x ? share + 1 : 0;
    }
  }
  return share;
}

template <u32 KIND>
__device__ __forceinline__ void decode(DecodeParams const& s) {
  SHARED_MEMORY(shared);
  __shared__ PhaseDescriptor p;
  __shared__ RingBarriers barriers;
  __shared__ u32 volatile worker;  // read once a phase: held in a register, eight rows take 0.3 % longer (H100)
  u32 const warp = threadIdx.x / 32, slots = shared_address(shared) + WORK_BYTES, start = (u32)clock();
  if (threadIdx.x == COMPUTE_THREADS) {
    worker = claim_share(s);
  }
  if (threadIdx.x < PRODUCER_WARPS * RING_DEPTH) {
    mbarrier_init(shared_address(barriers.full) + threadIdx.x * 8, 1);
    mbarrier_init(shared_address(barriers.empty) + threadIdx.x * 8, 2);
  }
  __syncthreads();
  if (warp >= COMPUTE_WARPS) {
    run_producer(s, barriers, worker, warp - COMPUTE_WARPS, slots);
    return;
  }
  TileRing ring = {barriers, slots, 0};
  u32 const phases = phase_count_of(s);
  for (u32 index = 0; index < phases; ++index) {
    sync_compute_warps();  // the phase before is done with its description
    if (threadIdx.x < sizeof(PhaseDescriptor) / 4) {
      ((u32*)&p)[threadIdx.x] = ((u32 const*)(s.phases + index))[threadIdx.x];
    }
    sync_compute_warps();
    PhaseContext const c = {s, p, index, rows_of(s, p), worker, (u8*)shared};
    MARK(0);
    if (p.kind == MATMUL) {
      matmul<KIND>(c, ring);
    } else if (p.kind == ATTENTION) {
      if constexpr (SHARED_SLOTS) {
        attention_rows<KIND>(c);
      } else {
        attention<KIND>(c);
      }
    } else {
      norm_add<KIND>(c);
    }
  }
  if (s.block_clocks && threadIdx.x == 0) {
    s.block_clocks[2 * worker] = (u32)clock() - start;
    s.block_clocks[2 * worker + 1] = sm_id();
  }
}

#if !defined(ELEMENT) || ELEMENT == 1
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1) decode_f16(DecodeParams s) { decode<FLOAT16>(s); }
#endif
#if !defined(ELEMENT) || ELEMENT == 2
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, 1) decode_bf16(DecodeParams s) { decode<BFLOAT16>(s); }
#endif
