// Products of plain weights, [inputs, outputs]. Rows of such a matrix are long, and memory reads long rows fastest, so
// a strip is wide: several warps side by side. There are then too few strips to go round, so a block's stretch of tiles
// may begin and end within a strip, as in Stream-K (Osama et al. 2023): each block adds up its part, and the last block
// to arrive at a strip adds all parts, always in the same order, and finishes the strip ("fixup").

template <u32 KIND>
struct PlainMatmul {
  PhaseContext const& c;
  TileRing& ring;
  u32 first_strip, first_tile, end_strip, end_tile;  // the block's tiles, up to tile end_tile of strip end_strip
  u32 column, along, warps_along;  // this warp's tile column; where it is among the warps along the inputs
  u32 width, made, made_shift;     // columns of a strip; outputs it makes, a power of 2
  u32 fitting;                     // tiles along the inputs that fit into shared memory at a time
  u32 tile;                        // this warp's next along the inputs

  __device__ __forceinline__ u32 tiles_of(u32 strip) const { return strip == end_strip ? end_tile : c.p.k_tiles; }

  __device__ __forceinline__ InputStager stager(u32 from, u32 to) const {
    return {from * c.p.tile_k, (to - from) * c.p.tile_k / 8};
  }

  // Adds the block's tiles of a strip to this warp's sums.
  __device__ __forceinline__ void multiply(u32 strip, RmsScales const& scales, float (&sum)[4][4]) {
    u32 const rows = c.rows, begin = strip == first_strip ? first_tile : 0, end = tiles_of(strip);
    for (u32 from = begin; from < end; from += fitting) {
      u32 const to = min(end, from + fitting);
      InputStager const stage = stager(from, to);
      if (strip > first_strip || from > begin) {
        stage.template load<KIND>(c, scales, c.work);
      }
      StagedInputs const inputs = {shared_address(c.work), stage.stride(), rows};
      for (; tile < to; tile += warps_along) {
        u32 const slot = ring.acquire() + threadIdx.x / 32 % 2 * SLOT_BYTES;
        mma_plain_tile<KIND>(sum, slot, inputs, (tile - from) * 64);
        ring.release();
      }
      sync_compute_warps();
    }
    tile -= c.p.k_tiles;
  }

  // All warps' sums to shared memory: [warps_along, rows, width + 8].
  __device__ __forceinline__ void store_warp_sums(float const (&sum)[4][4]) const {
    u32 const lane = threadIdx.x % 32, rows = c.rows;
    float* const sums = (float*)c.work;
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      u32 const m = i / 4, half = i / 2 % 2, row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        sums[(along * rows + row) * (width + 8) + column * PLAIN_TILE_N + m * 16 + half * 8 + lane / 4] = sum[m][i % 4];
      }
    }
    sync_compute_warps();
  }

  // The block's sum of one column.
  __device__ __forceinline__ float block_sum(u32 row, u32 at) const {
    float const* const sums = (float const*)c.work;
    float value = 0.0f;
    for (u32 part = 0; part < warps_along; ++part) {
      value += sums[(part * c.rows + row) * (width + 8) + at];
    }
    return value;
  }

  // Where a block's part of a strip is among the partial sums: each block has two, for the strip it begins in and for
  // another.
  __device__ __forceinline__ float* partial_of(u32 block, bool is_second) const {
    return c.s.partial_sums + (u64)(2 * block + is_second) * MAX_ROWS * MAX_STRIP_N;
  }

  // Hands in the block's part of a strip that others have parts of; whether it is the last to.
  __device__ __forceinline__ bool hand_in(u32 strip, u32 blocks) const {
    // Of blocks that share a strip all but the first begin in it.
    float* const to = partial_of(c.worker, strip != first_strip);
    u32 const shift = 31 - __clz(width);
    for (u32 i = threadIdx.x; i < c.rows * width; i += COMPUTE_THREADS) {
      __stcg(to + i, block_sum(i >> shift, i & (width - 1)));
    }
    return is_last_arrival(c.s.counters + c.p.first_counter + strip, blocks);
  }

  // The sum of one column over all blocks with a part.
  __device__ __forceinline__ float total(u32 strip, u32 first_owner, u32 last_owner, u32 at) const {
    float value = __ldcg(partial_of(first_owner, c.p.first_units[first_owner] >> 16 < strip) + at);
    float const* other = partial_of(first_owner + 1, false) + at;
#pragma unroll 8
    for (u32 block = first_owner; block < last_owner; ++block, other += 2 * MAX_ROWS * MAX_STRIP_N) {
      value += __ldcg(other);
    }
    return value;
  }

  // Writes a strip's outputs, once all its parts are there.
  __device__ __forceinline__ void finish(u32 strip, u32 first_owner, u32 last_owner, StripSquares& squares) const {
    for (u32 i = threadIdx.x; i < c.rows * made; i += COMPUTE_THREADS) {
      u32 const row = i >> made_shift, n = i & (made - 1), output = strip * made + n;
      OutputSum sum = {0.0f, 0.0f, load_residual<KIND>(c.p, row, output)};
      // Gated, the gate comes first.
#pragma unroll 1
      for (u32 at = n; at < width; at += made) {
        sum.gate = sum.value;
        sum.value =
            first_owner == last_owner ? block_sum(row, at) : total(strip, first_owner, last_owner, row * width + at);
      }
      float const written = store_output<KIND>(c.s, c.p, row, output, sum);
      if (c.p.out_squares) {
        float const part = warp_sum(written * written);
        if (threadIdx.x % 32 == 0) {
          squares[row][n / 32] = part;
        }
      }
    }
    store_squares(c, strip, made, squares);
    complete_part(c);
  }
};

template <u32 KIND>
__device__ __forceinline__ void plain_matmul(PhaseContext const& c, TileRing& ring) {
  __shared__ RmsScales scales;
  __shared__ StripSquares squares;
  PhaseDescriptor const& p = c.p;
  u32 const warp = threadIdx.x / 32, begin = p.first_units[c.worker], end = p.first_units[c.worker + 1];
  if (begin == end) {
    return;
  }
  u32 const width = p.tiles_across * PLAIN_TILE_N, made = p.gated ? width / 2 : width, along = warp / p.tiles_across;
  PlainMatmul<KIND> m = {c,
                         ring,
                         begin >> 16,
                         begin % 65536,
                         end >> 16,
                         end % 65536,
                         warp % p.tiles_across,
                         along,
                         COMPUTE_WARPS / p.tiles_across,
                         width,
                         made,
                         31u - __clz(made),
                         (WORK_BYTES / c.rows - 192) / 64,
                         begin % 65536 + along};
  m.stager(m.first_tile, min(m.tiles_of(m.first_strip), m.first_tile + m.fitting))
      .template load_first<KIND>(c, scales, c.work);
  for (u32 strip = m.first_strip; strip < m.end_strip || (strip == m.end_strip && m.end_tile > 0); ++strip) {
    float sum[4][4] = {};
    m.multiply(strip, scales, sum);
    MARK(3);
    m.store_warp_sums(sum);
    u32 const owners = p.strip_owners[strip], first_owner = owners % 65536, last_owner = owners / 65536;
    if (first_owner != last_owner && !m.hand_in(strip, last_owner - first_owner + 1)) {
      continue;
    }
    MARK(4);
    m.finish(strip, first_owner, last_owner, squares);
    MARK(5);
  }
}
