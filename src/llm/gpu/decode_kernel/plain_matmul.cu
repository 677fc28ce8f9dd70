// What all products have in common, and those of plain weights. They are read in wide strips, for memory likes long rows: a
// block's stretch of tiles may begin and end within a strip, and who comes last to a strip adds the parts, always in the same
// order.

// An output as it is written: value and what comes to it. `gate` is what it is multiplied with once activated.
template <u32 KIND>
__device__ __forceinline__ float store_output(DecodeParams const& s, PhaseDescriptor const& p, u32 row, u32 n, float value, float gate, float residual) {
  u32 const outputs = p.gated ? p.outputs / 2 : p.outputs;
  u64 const at = (u64)row * outputs + n;
  if (n >= outputs) {
    return 0.0f;
  }
  if (p.out_is_float32) {
    ((float*)p.out)[at] = soft_cap(value, p.logit_softcap);
    return 0.0f;
  }
  if (p.bias) {
    value = round_to<KIND>(value) + widen<KIND>(p.bias[p.gated ? outputs + n : n]);
  }
  if (p.gated) {
    gate = p.bias ? round_to<KIND>(gate) + widen<KIND>(p.bias[n]) : gate;
    value = activate(round_to<KIND>(gate), s.gelu) * round_to<KIND>(value);
  }
  if (p.residual) {
    value = round_to<KIND>(value) + residual;
  }
  value = round_to<KIND>(value);
  ((u16*)p.out)[at] = narrow<KIND>(value);
  return value;
}

template <u32 KIND>
__device__ __forceinline__ float load_residual(PhaseDescriptor const& p, u32 row, u32 n) {
  return p.residual && n < p.outputs ? widen<KIND>(load_cg_2(p.residual + (u64)row * p.outputs + n)) : 0.0f;
}

// Adds up each row's squares, of which warps bring 32 outputs each.
__device__ __forceinline__ void store_squares(DecodeParams const& s, PhaseDescriptor const& p, u32 strip, u32 width, float (*squares)[MAX_STRIP / 32]) {
  if (p.out_squares == nullptr) {
    return;
  }
  sync_compute_warps();
  if (threadIdx.x < s.rows) {
    float all = 0.0f;
    for (u32 part = 0; part < width / 32; ++part) {
      all += squares[threadIdx.x][part];
    }
    p.out_squares[threadIdx.x * p.strips + strip] = all;
  }
}

// Where a warp takes its tiles from: how many it has used, of places in `ring`.
struct Ring {
  RingBarriers& places;
  u32 ring, used;

  // Waits for the pair's next tiles; returns where they are.
  __device__ __forceinline__ u32 next() const {
    u32 const pair = threadIdx.x / 64, barrier = shared_address(places.landed[pair]) + used % RING_DEPTH * 8;
    while (!mbarrier_test_wait(barrier, used / RING_DEPTH % 2)) {
    }
    __syncwarp();
    return ring + (pair * RING_DEPTH + used % RING_DEPTH) * 2 * SLOT_BYTES;
  }

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive(shared_address(places.used[threadIdx.x / 64]) + used % RING_DEPTH * 8);
    }
    ++used;
  }
};

template <u32 KIND>
__device__ __forceinline__ void plain_matmul(DecodeParams const& s, PhaseDescriptor const& p, u32 index, u32 me, Ring& ring, u8* work) {
  __shared__ RmsScales factors;
  __shared__ float squares[MAX_ROWS][MAX_STRIP / 32];
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  u32 const across = warp % p.tiles_across, along = warp / p.tiles_across, turns = COMPUTE_WARPS / p.tiles_across, rows = s.rows;
  // TileColumns of a strip and outputs it makes: powers of 2.
  u32 const width = p.tiles_across * TILE_N, made = p.gated ? width / 2 : width, made_shift = 31 - __clz(made);
  u32 const begin = p.first_units[me], end = p.first_units[me + 1], first_strip = begin >> 16, first_tile = begin % 65536;
  if (begin == end) {
    return;
  }
  u32 const end_strip = end >> 16, end_tile = end % 65536;
  // Inputs that fit at a time, in tiles.
  u32 const most = (WORK_BYTES / rows - 192) / 64;
  auto const tiles_of = [&](u32 strip) { return strip == end_strip ? end_tile : p.k_tiles; };
  auto const stager = [&](u32 from, u32 to) { return InputStager{from * p.tile_k, (to - from) * p.tile_k / 8, 0}; };
  InputStager const first = stager(first_tile, min(tiles_of(first_strip), first_tile + most));
  first.open<KIND>(s, p, index, factors, work);
  u32 tile = first_tile + along;
  for (u32 strip = first_strip; strip < end_strip || (strip == end_strip && end_tile > 0); ++strip) {
    u32 const strip_begin = strip == first_strip ? first_tile : 0, strip_end = tiles_of(strip);
    float sum[4][4] = {};
    for (u32 from = strip_begin; from < strip_end; from += most) {
      u32 const to = min(strip_end, from + most);
      InputStager const stage = stager(from, to);
      if (strip > first_strip || from > strip_begin) {
        stage.load<KIND>(p, rows, factors, work);
      }
      u32 const stride = stage.stride();
      for (; tile < to; tile += turns) {
        u32 const place = ring.next() + warp % 2 * SLOT_BYTES;
        mma_plain_tile<KIND>(sum, place, shared_address(work) + (tile - from) * 64, stride, rows);
        ring.release();
      }
      sync_compute_warps();
    }
    tile -= p.k_tiles;
    MARK(3);
    // The block's part of the strip.
    u32 const wide = width + 8;
    float* const parts = (float*)work;
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      u32 const m = i / 4, half = i / 2 % 2, row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        parts[(along * rows + row) * wide + across * TILE_N + m * 16 + half * 8 + lane / 4] = sum[m][i % 4];
      }
    }
    sync_compute_warps();
    u32 const owners = p.strip_owners[strip], first_owner = owners % 65536, last_owner = owners / 65536;
    bool const alone = first_owner == last_owner;
    auto const own = [&](u32 row, u32 column) {
      float value = 0.0f;
      for (u32 part = 0; part < turns; ++part) {
        value += parts[(part * rows + row) * wide + column];
      }
      return value;
    };
    // Of blocks that share a strip all but the first begin in it.
    if (!alone) {
      u32 const slot = 2 * me + (strip == first_strip ? 0 : 1);
      u32 const shift = 31 - __clz(width);
      for (u32 i = thread; i < rows * width; i += COMPUTE_THREADS) {
        __stcg(s.partial_sums + (u64)slot * MAX_ROWS * MAX_STRIP + i, own(i >> shift, i & (width - 1)));
      }
      if (!is_last_arrival(s.counters + p.first_counter + strip, last_owner - first_owner + 1)) {
        continue;
      }
    }
    MARK(4);
    u32 const slot = 2 * first_owner + (p.first_units[first_owner] >> 16 < strip ? 1 : 0);
    auto const value_of = [&](u32 row, u32 column) {
      if (alone) {
        return own(row, column);
      }
      u32 const at = row * width + column;
      float value = __ldcg(s.partial_sums + (u64)slot * MAX_ROWS * MAX_STRIP + at);
      float const* other = s.partial_sums + (u64)(2 * first_owner + 2) * MAX_ROWS * MAX_STRIP + at;
#pragma unroll 8
      for (u32 block = first_owner; block < last_owner; ++block, other += 2 * MAX_ROWS * MAX_STRIP) {
        value += __ldcg(other);
      }
      return value;
    };
    for (u32 i = thread; i < rows * made; i += COMPUTE_THREADS) {
      u32 const row = i >> made_shift, column = i & (made - 1), n = strip * made + column;
      float const residual = load_residual<KIND>(p, row, n);
      // Last what is written, before it, if any, its gate.
      float value = 0.0f, gate = 0.0f;
#pragma unroll 1
      for (u32 side = column; side < width; side += made) {
        gate = value;
        value = value_of(row, side);
      }
      float const written = store_output<KIND>(s, p, row, n, value, gate, residual);
      if (p.out_squares) {
        float const part = warp_sum(written * written);
        if (lane == 0) {
          squares[row][column / 32] = part;
        }
      }
    }
    store_squares(s, p, strip, made, squares);
    signal_phase(s.counters + index);
    MARK(5);
  }
}

// out = residual + norm(x): Gemma's norms after attention and MLP.
template <u32 KIND>
__device__ __forceinline__ void add(DecodeParams const& s, PhaseDescriptor const& p, u32 index) {
  __shared__ RmsScales factors;
  __shared__ float squares[MAX_ROWS][MAX_STRIP / 32];
  u32 constexpr width = 128;  // of a strip
  if (blockIdx.x >= p.strips) {
    return;
  }
  wait_phase(s.counters + index - 1, completions_of(s, index - 1));
  rms_scales<KIND>(s, p, p.outputs, factors);
  for (u32 strip = blockIdx.x; strip < p.strips; strip += gridDim.x) {
    for (u32 i = threadIdx.x; i < s.rows * width; i += COMPUTE_THREADS) {
      u32 const row = i / width, n = strip * width + i % width;
      u64 const at = (u64)row * p.outputs + n;
      float value = 0.0f;
      if (n < p.outputs) {
        value = round_to<KIND>(widen<KIND>(load_cg_2(p.x + at)) * factors.of[row] * p.norm_weight[n]) + widen<KIND>(load_cg_2(p.residual + at));
        value = round_to<KIND>(value);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      float const part = warp_sum(value * value);
      if (threadIdx.x % 32 == 0) {
        squares[row][i % width / 32] = part;
      }
    }
    store_squares(s, p, strip, width, squares);
    signal_phase(s.counters + index);
  }
}
