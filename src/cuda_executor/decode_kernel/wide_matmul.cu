// Products of many rows (ROW_BLOCKS > 1), of plain and of packed weights. Activations of all rows are read from the L2
// cache for each strip, so a strip is as wide as its sums fit into registers: WIDE_COLUMNS columns of 64 outputs, a
// pair of warps each. Of plain weights both warps multiply all tiles of their pair's slots, each for half of the rows;
// of packed ones each warp has half of the outputs and all rows, so that no integer is made a float twice.
//
// Few strips share many blocks, so a block's stretch is cut along the inputs as in plain_matmul.cu, in units of
// WIDE_TILES_DEEP tiles. The parts of a strip are too large to be added up by one block: once a block is through with
// its stretch, it waits for the other parts of the strips it has parts of, adds up some of the rows of all parts, in
// the order of the blocks, and finishes these.

// Eight floats side by side in shared memory.
__device__ __forceinline__ void load_eight(float const* from, float (&to)[8]) {
  float4 const low = *(float4 const*)from, high = *(float4 const*)(from + 4);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// A block's stretch of units of a phase.
struct WideStretch {
  u32 first_strip, first_unit, end_strip, end_unit;  // up to unit `end_unit` of strip `end_strip`

  __device__ __forceinline__ u32 begin_of(u32 strip) const { return strip == first_strip ? first_unit : 0; }
  __device__ __forceinline__ u32 end_of(u32 strip, u32 units) const { return strip == end_strip ? end_unit : units; }
  __device__ __forceinline__ bool has(u32 strip) const {
    return strip < end_strip || (strip == end_strip && end_unit > 0);
  }
};

// The blocks with a part of a strip.
struct StripOwners {
  u32 first, last;
};

template <u32 KIND>
struct WideMatmul {
  PhaseContext const& c;
  TileRing& ring;
  RmsScales const& scales;
  WideStretch stretch;
  u32 fitting, buffers;  // units whose inputs fit into a buffer, a power of 2; buffers, one or two
  u32 made, made_shift;  // outputs of a strip, a power of 2
  bool by_outputs;       // whether the warps of a pair share its outputs, not the rows

  __device__ __forceinline__ RowsStager stager(u32 from, u32 to) const {
    u32 const inputs = unit_inputs(c.p);
    return {{from * inputs, (to - from) * inputs / 8}, 31u - __clz(fitting * inputs / 8)};
  }
  __device__ __forceinline__ u8* buffer(u32 number) const {
    return c.work + (number % buffers) * (WORK_BYTES / 2 / 128 * 128);
  }

  // Units of a strip whose inputs are in a buffer at once.
  struct Chunk {
    u32 from, to, number;
  };

  // Adds units, whose inputs are staged, to this warp's sums. If there are two buffers, the inputs of the units from
  // `to` to `next` are copied and normed meanwhile, between products: warps that do one thing leave room to those that
  // do the other.
  template <u32 BITS, u32 GROUPS>
  __device__ __forceinline__ void multiply(Chunk const& chunk, u32 next, WideSums& sum) {
    u8* const inputs = buffer(chunk.number);
    u32 const stride = stager(chunk.from, chunk.to).of.stride(), lane = threadIdx.x % 32;
    StagedInputs const x = {shared_address(inputs), stride, c.rows};
    bool const is_minimum = c.p.offset_kind == MINIMUM;
    RowAddresses rows;
#pragma unroll
    for (u32 n = 0; n < ROW_BLOCKS; ++n) {
      rows[n] = x.address + min(n * 8 + lane / 4, c.rows - 1) * stride + lane % 4 * 16;
    }
    bool const has_next = buffers == 2 && next > chunk.to;
    if (has_next) {
      stager(chunk.to, next).copy(c, buffer(chunk.number + 1));
    }
#pragma unroll 1
    for (u32 unit = chunk.from; unit < chunk.to; ++unit) {
      u32 const slot = ring.acquire(), tile = (unit - chunk.from) * WIDE_TILES_DEEP;
#pragma unroll 1
      for (u32 deep = 0; deep < WIDE_TILES_DEEP; ++deep) {
        if (has_next && deep == 1 && unit + 1 == chunk.to) {
          stager(chunk.to, next).template norm<KIND>(c, scales, buffer(chunk.number + 1));
        }
        if constexpr (BITS == 16) {
          mma_wide_plain_tile<KIND>(sum, slot + deep * SLOT_BYTES, x, (tile + deep) * PLAIN_TILE_K * 2);
        } else {
          u32 constexpr TILE_BYTES = PACKED_TILE_QUANT_BYTES + GROUP_TERM_BYTES * GROUPS;
          mma_wide_packed_tiles<BITS, GROUPS>(sum, slot + deep * TILE_BYTES, rows, tile + deep, is_minimum);
        }
      }
      ring.release();
    }
    sync_compute_warps();
  }

  // Adds the block's units of a strip, chunk by chunk.
  template <u32 BITS, u32 GROUPS>
  __device__ __forceinline__ void multiply_strip(u32 strip, bool is_staged, WideSums& sum) {
    u32 const end = stretch.end_of(strip, wide_units(c.p));
    Chunk chunk = {stretch.begin_of(strip), 0, 0};
#pragma unroll 1
    for (; chunk.from < end; chunk.from += fitting, ++chunk.number) {
      chunk.to = min(end, chunk.from + fitting);
      if (!is_staged && (chunk.number == 0 || buffers == 1)) {
        RowsStager const now = stager(chunk.from, chunk.to);
        now.copy(c, buffer(chunk.number));
        now.template finish<KIND>(c, scales, buffer(chunk.number));
      }
      is_staged = false;
      multiply<BITS, GROUPS>(chunk, min(end, chunk.to + fitting), sum);
    }
  }

  // Outputs of block `n` of each half's rows, of which this warp has `value`. A thread finishes eight side by side.
  __device__ __forceinline__ void finish(u32 strip, u32 n, float const (&value)[4][4]) const {
    PhaseDescriptor const& p = c.p;
    u32 constexpr MOST = 16 * WIDE_STRIP_N / 8 / COMPUTE_THREADS;
    u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32, shift = made_shift - 3;
    u32 const outputs = p.gated ? p.outputs / 2 : p.outputs;
    float* const sums = (float*)c.work;  // [16, WIDE_SUM_STRIDE]
    struct Place {
      u32 of, column, row, output;
      bool there;
    };
    auto const place = [&](u32 k) {
      u32 const i = threadIdx.x + k * COMPUTE_THREADS, of = i >> shift, column = (i & (made / 8 - 1)) * 8;
      u32 const row = (of / 8 * HALF_BLOCKS + n) * 8 + of % 8, output = strip * made + column;
      return Place{of, column, row, output, of < 16 && row < c.rows && output < outputs};
    };
    uint4 residuals[MOST];
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      Place const at = place(k);
      residuals[k] = p.residual && at.there ? load_cg_16(p.residual + (u64)at.row * p.outputs + at.output)
                                            : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      u32 const half = by_outputs ? i / 8 : warp % 2, sixteen = by_outputs ? warp % 2 * 2 + i / 4 % 2 : i / 4;
      u32 const row = half * 8 + lane % 4 * 2 + i % 2, column = sixteen * 16 + i / 2 % 2 * 8 + lane / 4;
      sums[row * WIDE_SUM_STRIDE + warp / 2 * WIDE_COLUMN_N + column] = value[i / 4][i % 4];
    }
    sync_compute_warps();
#pragma unroll
    for (u32 k = 0; k < MOST; ++k) {
      Place const at = place(k);
      float square = 0.0f;
      if (at.there) {
        float const* const from = sums + at.of * WIDE_SUM_STRIDE + at.column;
        float values[8], gates[8];
        load_eight(from, gates);
        load_eight(from + (p.gated ? made : 0), values);
        square = store_outputs<KIND>(c.s, p, at.row, at.output, values, gates, residuals[k]);
      }
      if (p.out_squares) {
        // A row's outputs are a warp's, or half a warp's.
#pragma unroll
        for (u32 other = 1; other < 16; other *= 2) {
          square += __shfl_xor_sync(0xffffffffu, square, other);
        }
        if (shift == 5) {
          square += __shfl_xor_sync(0xffffffffu, square, 16);
        }
        if (at.of < 16 && at.row < c.rows && at.column == 0) {
          p.out_squares[at.row * p.strips + strip] = square;
        }
      }
    }
    sync_compute_warps();
  }

  // All of a strip that no other block has a part of.
  __device__ __forceinline__ void finish_alone(u32 strip, WideSums& sum) const {
#pragma unroll 1
    for (u32 n = 0; n < HALF_BLOCKS; ++n) {
      float value[4][4];
#pragma unroll
      for (u32 i = 0; i < 16; ++i) {
        value[i / 4][i % 4] = sum[i / 4][0][i % 4];
#pragma unroll
        for (u32 other = 0; other + 1 < HALF_BLOCKS; ++other) {
          sum[i / 4][other][i % 4] = sum[i / 4][other + 1][i % 4];
        }
      }
      finish(strip, n, value);
    }
    complete_part(c);
  }

  // A block's part of a strip among the partial sums, by threads: each block has two, for the strip it begins in and
  // for another. [HALF_BLOCKS, 4, COMPUTE_THREADS] times four.
  __device__ __forceinline__ float4* partial_of(u32 block, bool is_second) const {
    return (float4*)(c.s.partial_sums + (u64)(2 * block + is_second) * MAX_ROWS * WIDE_STRIP_N) + threadIdx.x;
  }

  __device__ __forceinline__ void hand_in(u32 strip, WideSums const& sum) const {
    float4* const to = partial_of(c.worker, strip != stretch.first_strip);
#pragma unroll
    for (u32 i = 0; i < 4 * HALF_BLOCKS; ++i) {
      float const(&v)[4] = sum[i % 4][i / 4];
      __stcg(to + i * COMPUTE_THREADS, float4{v[0], v[1], v[2], v[3]});
    }
    signal_phase(c.s.counters + c.p.first_counter + strip);
  }

  __device__ __forceinline__ StripOwners owners_of(u32 strip) const {
    u32 const both = c.p.strip_owners[strip];
    return {both % 65536, both / 65536};
  }

  // This block's share of the rows of a strip that others have parts of, once all are there.
  __device__ __forceinline__ void finish_share(u32 strip) const {
    StripOwners const owners = owners_of(strip);
    u32 const count = owners.last - owners.first + 1, sharing = min(count, HALF_BLOCKS);
    u32 const mine = c.worker - owners.first;
    if (count == 1 || mine >= sharing) {
      return;
    }
    wait_phase(c.s.counters + c.p.first_counter + strip, count);
#pragma unroll 1
    for (u32 n = mine; n < HALF_BLOCKS; n += sharing) {
      float value[4][4] = {};
#pragma unroll 4
      for (u32 block = owners.first; block <= owners.last; ++block) {
        bool const is_second = block == owners.first && c.p.first_units[block] >> 16 < strip;
        float4 const* const from = partial_of(block, is_second) + n * 4 * COMPUTE_THREADS;
#pragma unroll
        for (u32 m = 0; m < 4; ++m) {
          float4 const v = __ldcg(from + m * COMPUTE_THREADS);
          value[m][0] += v.x;
          value[m][1] += v.y;
          value[m][2] += v.z;
          value[m][3] += v.w;
        }
      }
      finish(strip, n, value);
    }
    complete_part(c);
  }

  // The stretch, whose first chunk is staged; then its shares of what it has only parts of: where it begins and ends.
  template <u32 BITS, u32 GROUPS>
  __device__ __forceinline__ void run() {
#pragma unroll 1
    for (u32 strip = stretch.first_strip; stretch.has(strip); ++strip) {
      WideSums sum = {};
      multiply_strip<BITS, GROUPS>(strip, strip == stretch.first_strip, sum);
      MARK(3);
      StripOwners const owners = owners_of(strip);
      if (owners.first == owners.last) {
        finish_alone(strip, sum);
      } else {
        hand_in(strip, sum);
      }
    }
    MARK(4);
    u32 const last = stretch.end_unit > 0 ? stretch.end_strip : stretch.end_strip - 1;
#pragma unroll 1
    for (u32 strip = stretch.first_strip; strip <= last; strip = strip < last ? last : last + 1) {
      finish_share(strip);
    }
    MARK(5);
  }
};

template <u32 KIND>
__device__ __forceinline__ void wide_matmul(PhaseContext const& c, TileRing& ring) {
  __shared__ RmsScales scales;
  PhaseDescriptor const& p = c.p;
  u32 const begin = p.first_units[c.worker], end = p.first_units[c.worker + 1];
  if (begin == end) {
    return;
  }
  WideStretch const stretch = {begin >> 16, begin % 65536, end >> 16, end % 65536};
  u32 const made = p.gated ? WIDE_STRIP_N / 2 : WIDE_STRIP_N, inputs = unit_inputs(p);
  auto const bytes_of = [&](u32 units) { return RowsStager::bytes(units * inputs, c.rows); };
  u32 const half = WORK_BYTES / 2 / 128 * 128, buffers = bytes_of(1) <= half ? 2 : 1;
  u32 const room = buffers == 2 ? half : WORK_BYTES;
  u32 fitting = 1;
  while (bytes_of(2 * fitting) <= room && 2 * fitting * inputs / 8 <= COMPUTE_THREADS) {
    fitting *= 2;
  }
  bool const by_outputs = KIND == FLOAT16 && p.weight_kind != PLAIN;
  WideMatmul<KIND> m = {c, ring, scales, stretch, fitting, buffers, made, 31u - __clz(made), by_outputs};
  u32 const end_first = stretch.end_of(stretch.first_strip, wide_units(p));
  RowsStager const first = m.stager(stretch.first_unit, min(end_first, stretch.first_unit + fitting));
  if (c.index > 0) {
    wait_for_phase_before(c);
  }
  MARK(1);
  first.copy(c, m.buffer(0));
  if (p.norm_weight) {
    rms_scales<KIND>(c, p.inputs, scales);
  }
  first.template finish<KIND>(c, scales, m.buffer(0));
  MARK(2);
  if (KIND != FLOAT16 || p.weight_kind == PLAIN) {
    m.template run<16, 1>();
    return;
  }
  if constexpr (KIND == FLOAT16 && TILE_KINDS) {
    switch (p.weight_kind * 8 + (p.tile_bytes - PACKED_TILE_QUANT_BYTES) / GROUP_TERM_BYTES) {
#define CASES(bit, kind, bits, groups)     \
  case kind * 8 + groups:                  \
    if constexpr (TILE_KINDS >> bit & 1) { \
      m.template run<bits, groups>();      \
    }                                      \
    break;
      FOR_EACH_TILE_KIND(CASES)
#undef CASES
    }
  }
}
