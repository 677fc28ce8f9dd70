// Producer warps: each fetches the tiles of a pair of compute warps into their ring, phase after phase. Weights do not
// depend on what is computed, so it runs ahead of the computation until the ring is full.

// Where a producer warp is in the tiles of all phases. Steps along the inputs are dealt out to the pairs in turn.
struct TileCursor {
  u8 const* weights;
  u32 phase, k, end_k, stride;  // `k`: the step along the inputs; `end_k`: the last strip's; `stride`: from one of the
                                // pair's to its next
  u32 tiles, across, inputs, outputs, weight_kind, tile_bytes, gated;
  StripWalk walk;
};

__device__ __forceinline__ bool is_at_end(TileCursor const& at) {
  return at.walk.strip > at.walk.end || (at.walk.strip == at.walk.end && at.k >= at.end_k);
}

// From beyond the end of a chunk to where the walk goes on.
__device__ __forceinline__ void wrap(TileCursor& at) {
  while (at.k >= at.walk.to && !is_at_end(at)) {
    u32 const over = at.k - at.walk.to;
    at.walk.next();
    at.k = at.walk.from + over;
  }
}

// At the end of a phase's tiles: to the next phase in which the pair has any.
__device__ __forceinline__ void enter_phase(TileCursor& at, DecodeParams const& s, u32 worker, u32 pair) {
  while (is_at_end(at)) {
    if (++at.phase >= phase_count_of(s)) {
      return;
    }
    PhaseDescriptor const& p = s.phases[at.phase];
    if (p.kind == MATMUL) {
      bool const plain = p.weight_kind == PLAIN, wide = ROW_BLOCKS > 1;
      u32 const first = p.first_units[worker], end = p.first_units[worker + 1];
      u32 const units = wide ? wide_units(p) : p.k_tiles;
      KSteps const steps = plain || wide ? KSteps{units, 0, units} : packed_steps(p, rows_of(s, p));
      at.weights = p.weights;
      at.tiles = p.k_tiles;
      at.across = p.tiles_across;
      at.inputs = p.inputs;
      at.outputs = p.outputs;
      at.weight_kind = p.weight_kind;
      at.tile_bytes = p.tile_bytes;
      at.gated = p.gated;
      at.stride = wide ? 1 : plain ? COMPUTE_WARPS / at.across : PRODUCER_WARPS;
      at.k = first % 65536 + (wide ? 0 : plain ? 2 * pair / at.across : pair);
      at.end_k = end % 65536;
      at.walk = walk_of(steps, first >> 16, end >> 16);
      wrap(at);
    }
  }
}

__device__ __forceinline__ void advance(TileCursor& at, DecodeParams const& s, u32 worker, u32 pair) {
  at.k += at.stride;
  wrap(at);
  enter_phase(at, s, worker, pair);
}

// The columns of a pair's plain tiles: `side` is the warp. In a wide strip both tiles are of one column, one behind
// the other.
__device__ __forceinline__ TileColumns columns_at(TileCursor const& at, u32 pair, u32 side) {
  if (ROW_BLOCKS > 1) {
    return tile_columns(at.walk.strip, pair, at.across, at.outputs, at.gated);
  }
  return tile_columns(at.walk.strip, 2 * pair % at.across + side, at.across, at.outputs, at.gated);
}

// Begins to copy two plain tiles, 32 inputs of 64 outputs each. Lanes take the sixteen bytes of both tiles by turns.
__device__ __forceinline__ void copy_plain_tiles(TileCursor const& at, u32 pair, u32 slot) {
  u32 const lane = threadIdx.x % 32, c = lane % 8, side = lane / 8 % 2, k = lane / 16;
  u32 const t = ROW_BLOCKS > 1 ? at.k * WIDE_TILES_DEEP + side : at.k;
  TileColumns const columns = columns_at(at, pair, side);
  u32 const column = columns.first + c * 8;
  u8 const* const from = at.weights + ((u64)(t * PLAIN_TILE_K + k) * at.outputs + column) * 2;
#pragma unroll
  for (u32 j = 0; j < PLAIN_TILE_K / 2; ++j) {
    u32 const row = k + 2 * j;
    bool const there = t * PLAIN_TILE_K + row < at.inputs && column < columns.end;
    cp_async_16(slot + side * SLOT_BYTES + row * 128 + ((c ^ swizzle(row)) * 16),
                there ? from + (u64)(2 * j) * at.outputs * 2 : at.weights, there ? 16 : 0);
  }
}

// The bytes of a pair's packed tiles in one of the strip's columns of tiles.
struct ByteRange {
  u8 const* from;
  u32 bytes;
};

__device__ __forceinline__ ByteRange packed_range(TileCursor const& at, u32 side) {
  u32 const deep = 8 / at.across, first = at.k * deep;
  u32 const strip =
      at.gated ? at.walk.strip + side * (at.outputs / 2 / PACKED_TILE_N) : at.walk.strip * at.across + side;
  return {at.weights + ((u64)strip * at.tiles + first) * at.tile_bytes, min(deep, at.tiles - first) * at.tile_bytes};
}

// A pair's packed tiles of a wide strip: `side` is which of four strips of 16 outputs. The last may not be there.
__device__ __forceinline__ ByteRange wide_packed_range(TileCursor const& at, u32 pair, u32 side) {
  TileColumns const columns = tile_columns(at.walk.strip, pair, at.across, at.outputs, at.gated);
  u32 const strip = columns.first / PACKED_TILE_N + side, first = at.k * WIDE_TILES_DEEP;
  bool const there = columns.first + side * PACKED_TILE_N < columns.end;
  return {at.weights + ((u64)strip * at.tiles + first) * at.tile_bytes,
          there ? min(WIDE_TILES_DEEP, at.tiles - first) * at.tile_bytes : 0};
}

// Begins to copy a pair's eight packed tiles of a wide strip.
__device__ __forceinline__ void copy_wide_packed_tiles(TileCursor const& at, u32 pair, u32 slot) {
  for (u32 side = 0; side < WIDE_COLUMN_N / PACKED_TILE_N; ++side) {
    ByteRange const range = wide_packed_range(at, pair, side);
    u32 const all = WIDE_TILES_DEEP * at.tile_bytes, to = slot + side * all;
#pragma unroll 4
    for (u32 i = threadIdx.x % 32 * 16; i < all; i += 512) {
      cp_async_16(to + i, i < range.bytes ? range.from + i : at.weights, i < range.bytes ? 16 : 0);
    }
  }
}

// Begins to copy eight packed tiles; what is beyond the last becomes zero.
__device__ __forceinline__ void copy_packed_tiles(TileCursor const& at, u32 slot) {
  for (u32 side = 0; side < at.across; ++side) {
    ByteRange const range = packed_range(at, side);
    u32 const all = 8 / at.across * at.tile_bytes, to = slot + side * all;
#pragma unroll 8
    for (u32 i = threadIdx.x % 32 * 16; i < all; i += 512) {
      cp_async_16(to + i, i < range.bytes ? range.from + i : at.weights, i < range.bytes ? 16 : 0);
    }
  }
}

__device__ __forceinline__ void copy_tiles(TileCursor const& at, u32 pair, u32 slot) {
  if (at.weight_kind == PLAIN) {
    copy_plain_tiles(at, pair, slot);
  } else if (ROW_BLOCKS > 1) {
    copy_wide_packed_tiles(at, pair, slot);
  } else {
    copy_packed_tiles(at, slot);
  }
  cp_async_commit();
}

// Asks for two plain tiles in the L2 cache.
__device__ __forceinline__ void prefetch_tiles(TileCursor const& at, u32 pair) {
#pragma unroll
  for (u32 side = 0; side < 2; ++side) {
    u32 const tile = ROW_BLOCKS > 1 ? at.k * WIDE_TILES_DEEP + side : at.k;
    u32 const k = tile * PLAIN_TILE_K + threadIdx.x % 32;
    TileColumns const columns = columns_at(at, pair, side);
    if (k < at.inputs && columns.first < columns.end) {
      prefetch_l2(at.weights + ((u64)k * at.outputs + columns.first) * 2);
    }
  }
}

// Waits for all copies but those for the last `slots`.
__device__ __forceinline__ void wait_copies(u32 slots) {
  static_assert(MOST_SLOTS_IN_FLIGHT == 3, "up to two besides the first");
  if (slots == 0) {
    cp_async_wait_group<0>();
  } else if (slots == 1) {
    cp_async_wait_group<1>();
  } else {
    cp_async_wait_group<2>();
  }
}

// Fetches a pair's tiles of all phases into its ring, which begins at `slots`.
__device__ __forceinline__ void run_producer(DecodeParams const& s, RingBarriers& barriers, u32 worker, u32 pair,
                                             u32 slots) {
  u32 const lane = threadIdx.x % 32;
  u32 const full = shared_address(barriers.full[pair]), empty = shared_address(barriers.empty[pair]);
  TileCursor at = {nullptr, ~0u};
  enter_phase(at, s, worker, pair);
  TileCursor ahead = at;  // of what is prefetched, `lead` steps further
  u32 fetched = 0, announced = 0, lead = 0;
  // Says that slots are full, all but the last `in_flight`, once each lane has seen its own copies arrive.
  auto const announce = [&](u32 in_flight) {
    __syncwarp();
    for (; announced + in_flight < fetched; ++announced) {
      if (lane == 0) {
        mbarrier_arrive(full + announced % RING_DEPTH * 8);
      }
    }
  };
  // Whether a slot is empty. All lanes ask, since each will write to it, and go by one answer.
  auto const is_empty = [&](u32 slot, u32 round) {
    return __all_sync(0xffffffffu, mbarrier_test_wait(empty + slot * 8, (round + 1) % 2));
  };
  while (at.phase < phase_count_of(s)) {
    u32 const slot = fetched % RING_DEPTH, round = fetched / RING_DEPTH;
    if (round > 0 && !is_empty(slot, round)) {
      // The ring is full. What is in flight arrives before a slot is empty; after that, memory goes on into the L2
      // cache.
      cp_async_wait_all();
      announce(0);
      u32 since = (u32)clock();
      while (!is_empty(slot, round)) {
        bool const more = lead < s.prefetch_tiles && ahead.phase < phase_count_of(s) && ahead.weight_kind == PLAIN;
        if (more && __all_sync(0xffffffffu, (u32)clock() - since > s.prefetch_clocks)) {
          prefetch_tiles(ahead, pair);
          advance(ahead, s, worker, pair);
          ++lead;
          since += s.prefetch_clocks;
        } else {
          back_off();
        }
      }
    }
    copy_tiles(at, pair, slots + (pair * RING_DEPTH + slot) * 2 * SLOT_BYTES);
    advance(at, s, worker, pair);
    if (lead > 0) {
      --lead;
    } else {
      ahead = at;
    }
    ++fetched;
    wait_copies(s.slots_in_flight - 1);
    announce(s.slots_in_flight - 1);
  }
  cp_async_wait_all();
  announce(0);
}
