// Fetching weights. A product's tiles are dealt out by the host (`dealt`), a block has one stretch of them. Four warps fetch,
// each for a pair of warps that compute, and each pair has places in shared memory for tiles of its own.

// TileColumns of a tile of plain weights: those of a block's warps are `across` tiles wide, and if pairs of outputs are gates and
// what they let through, half of them are gates.
struct TileColumns {
  u32 first, end;
};

__device__ __forceinline__ TileColumns tile_columns(u32 strip, u32 column, u32 across, u32 outputs, u32 gated) {
  u32 const half = across / 2, inner = outputs / 2;
  if (gated && column >= half) {
    return {min(inner + (strip * half + column - half) * TILE_N, outputs), outputs};
  }
  return gated ? TileColumns{(strip * half + column) * TILE_N, inner} : TileColumns{(strip * across + column) * TILE_N, outputs};
}

// Barriers of each pair's places for tiles: that one has landed, that both warps have used it.
struct RingBarriers {
  u64 landed[WARP_PAIRS][RING_DEPTH];
  u64 used[WARP_PAIRS][RING_DEPTH];
};

// The order of a block's strips. Inputs of packed weights that do not fit at once are taken in chunks, for two strips each.
struct StripWalk {
  u32 along, chunk, end;       // along the inputs: of a strip, at a time; the strip after the last
  u32 strip, from, to, first;  // the first is that of the two

  __device__ __forceinline__ void next() {
    if (chunk >= along || (strip == first && first + 1 < end)) {
      ++strip;
      return;
    }
    bool const is_over = to >= along;
    first += is_over ? 2 : 0;
    from = is_over ? 0 : to;
    to = is_over ? chunk : min(along, to + chunk);
    strip = first;
  }
};

// Packed weights, along the inputs, in pairs of times four tiles: how many of a strip, how many inputs one has, how many fit
// at a time.
struct KSteps {
  u32 all, deep, chunk;
};

// Bytes of all warps' sums for two strips, before the inputs.
__device__ __forceinline__ u32 partial_sum_bytes(u32 across, u32 rows) { return (2 * COMPUTE_WARPS * rows * (across * PACKED_STRIP + 1) * 4 + 127) / 128 * 128; }

__device__ __forceinline__ KSteps k_steps_of(PhaseDescriptor const& p, u32 rows) {
  u32 const all = (p.k_tiles * p.tiles_across + 7) / 8, deep = 8 / p.tiles_across * p.tile_k;
  u32 const room = (WORK_BYTES - partial_sum_bytes(p.tiles_across, rows)) / rows - 192;
  return {all, deep, min(all, room / (deep * 2 + deep / p.group_size * 4))};
}

// Where a fetching warp is in all phases' tiles: the strip, and where along the inputs, in tiles or, packed, in pairs of
// times four tiles. KSteps of warps that are not side by side take the next in turn.
struct TileCursor {
  u8 const* weights;
  u32 phase, at, end_at, step, tiles, across, inputs, outputs, weight_kind, tile_bytes, gated;
  StripWalk walk;
};

__device__ __forceinline__ bool is_at_end(TileCursor const& at) {
  return at.walk.strip > at.walk.end || (at.walk.strip == at.walk.end && at.at >= at.end_at);
}

// From behind an end along the inputs to where it goes on.
__device__ __forceinline__ void wrap(TileCursor& at) {
  while (at.at >= at.walk.to && !is_at_end(at)) {
    u32 const over = at.at - at.walk.to;
    at.walk.next();
    at.at = at.walk.from + over;
  }
}

// Goes on to the next phase in which the pair has a tile, if it is at the end of one's.
__device__ __forceinline__ void settle(TileCursor& at, DecodeParams const& s, u32 me, u32 pair) {
  while (is_at_end(at)) {
    if (++at.phase >= s.phase_count) {
      return;
    }
    PhaseDescriptor const& p = s.phases[at.phase];
    if (p.kind == MATMUL) {
      bool const plain = p.weight_kind == PLAIN;
      u32 const first = p.first_units[me], end = p.first_units[me + 1];
      KSteps const pairs = plain ? KSteps{p.k_tiles, 0, p.k_tiles} : k_steps_of(p, s.rows);
      at.weights = p.weights;
      at.tiles = p.k_tiles;
      at.across = p.tiles_across;
      at.inputs = p.inputs;
      at.outputs = p.outputs;
      at.weight_kind = p.weight_kind;
      at.tile_bytes = p.tile_bytes;
      at.gated = p.gated;
      at.step = plain ? COMPUTE_WARPS / at.across : WARP_PAIRS;
      at.at = first % 65536 + (plain ? 2 * pair / at.across : pair);
      at.end_at = end % 65536;
      at.walk = {pairs.all, pairs.chunk, end >> 16, first >> 16, 0, pairs.chunk, first >> 16};
      wrap(at);
    }
  }
}

__device__ __forceinline__ void advance(TileCursor& at, DecodeParams const& s, u32 me, u32 pair) {
  at.at += at.step;
  wrap(at);
  settle(at, s, me, pair);
}

// The first of a pair's packed tiles in one of its strips, and how many bytes of it there are.
struct ByteRange {
  u8 const* from;
  u32 bytes;
};

__device__ __forceinline__ ByteRange packed_range(TileCursor const& at, u32 side) {
  u32 const deep = 8 / at.across, first = at.at * deep;
  u32 const strip = at.gated ? at.walk.strip + side * (at.outputs / 2 / PACKED_STRIP) : at.walk.strip * at.across + side;
  return {at.weights + ((u64)strip * at.tiles + first) * at.tile_bytes, min(deep, at.tiles - first) * at.tile_bytes};
}

// Begins to fetch a tile for each warp of the pair.
__device__ __forceinline__ void fetch_tiles(TileCursor const& at, u32 pair, u32 place) {
  u32 const lane = threadIdx.x % 32;
  if (at.weight_kind == PLAIN) {
    // 32 inputs of 2 x 64 outputs; sixteen bytes are swapped about so that ldmatrix meets each bank once.
    u32 const t = at.at, c = lane % 8, side = lane / 8 % 2, k = lane / 16;
    TileColumns const columns = tile_columns(at.walk.strip, 2 * pair % at.across + side, at.across, at.outputs, at.gated);
    u32 const column = columns.first + c * 8;
    u8 const* const from = at.weights + ((u64)(t * 32 + k) * at.outputs + column) * 2;
#pragma unroll
    for (u32 j = 0; j < 16; ++j) {
      u32 const row = k + 2 * j;
      bool const there = t * 32 + row < at.inputs && column < columns.end;
      cp_async_16(place + side * SLOT_BYTES + row * 128 + ((c ^ swizzle(row)) * 16), there ? from + (u64)(2 * j) * at.outputs * 2 : at.weights,
              there ? 16 : 0);
    }
  } else {
    for (u32 side = 0; side < at.across; ++side) {
      ByteRange const stretch = packed_range(at, side);
      u32 const all = 8 / at.across * at.tile_bytes, to = place + side * all;
#pragma unroll 8
      for (u32 i = lane * 16; i < all; i += 512) {
        cp_async_16(to + i, i < stretch.bytes ? stretch.from + i : at.weights, i < stretch.bytes ? 16 : 0);
      }
    }
  }
  cp_async_commit();
}

// Brings a pair's plain tiles into the L2 cache.
__device__ __forceinline__ void prefetch_tiles(TileCursor const& at, u32 pair) {
  u32 const k = at.at * 32 + threadIdx.x % 32;
#pragma unroll
  for (u32 side = 0; side < 2; ++side) {
    TileColumns const columns = tile_columns(at.walk.strip, 2 * pair % at.across + side, at.across, at.outputs, at.gated);
    if (k < at.inputs && columns.first < columns.end) {
      prefetch_l2(at.weights + ((u64)k * at.outputs + columns.first) * 2);
    }
  }
}

// Fetches a pair of warps' tiles of all phases.
__device__ __forceinline__ void run_producer(DecodeParams const& s, RingBarriers& places, u32 me, u32 pair, u32 ring) {
  u32 const lane = threadIdx.x % 32, landed = shared_address(places.landed[pair]), used = shared_address(places.used[pair]);
  TileCursor at = {nullptr, ~0u};
  settle(at, s, me, pair);
  TileCursor ahead = at;
  u32 fetched = 0, told = 0, lead = 0;
  // Says that all but the last `flying` tiles have landed, once each lane has seen its own part do so.
  auto const tell = [&](u32 flying) {
    __syncwarp();
    for (; told + flying < fetched; ++told) {
      if (lane == 0) {
        mbarrier_arrive(landed + told % RING_DEPTH * 8);
      }
    }
  };
  while (at.phase < s.phase_count) {
    u32 const place = fetched % RING_DEPTH, round = fetched / RING_DEPTH;
    if (round > 0 && !mbarrier_test_wait(used + place * 8, (round + 1) % 2)) {
      // What is on its way arrives before a place is free. Meanwhile memory goes on, as fast as it can, into the L2 cache.
      cp_async_wait_all();
      tell(0);
      u32 since = (u32)clock();
      while (!mbarrier_test_wait(used + place * 8, (round + 1) % 2)) {
        if (lead < PREFETCH_TILES && ahead.phase < s.phase_count && ahead.weight_kind == PLAIN && (u32)clock() - since > PREFETCH_CLOCKS) {
          prefetch_tiles(ahead, pair);
          advance(ahead, s, me, pair);
          ++lead;
          since += PREFETCH_CLOCKS;
        } else {
          back_off();
        }
      }
      __syncwarp();
    }
    fetch_tiles(at, pair, ring + (pair * RING_DEPTH + place) * 2 * SLOT_BYTES);
    advance(at, s, me, pair);
    if (lead > 0) {
      --lead;
    } else {
      ahead = at;
    }
    ++fetched;
    cp_async_wait_group<TILES_IN_FLIGHT - 1>();
    tell(TILES_IN_FLIGHT - 1);
  }
  cp_async_wait_all();
  tell(0);
}
