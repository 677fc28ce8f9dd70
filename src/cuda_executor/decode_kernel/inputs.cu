// A product's inputs on their way to mma: copied to shared memory once, and normed there.

// Eight inputs of a row that are not in their place.
__device__ __forceinline__ uint4 gather8(PhaseDescriptor const& p, u16 const* from, u32 k) {
  u32 x[4] = {};
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    x[i / 2] |= (u32)load_cg_2(from + p.input_order[k + i]) << (i % 2 * 16);
  }
  return make_uint4(x[0], x[1], x[2], x[3]);
}

// RMSNorm's weights of eight inputs.
struct NormWeights {
  float4 low, high;
};

__device__ __forceinline__ NormWeights load_norm_weights(PhaseDescriptor const& p, u32 k) {
  if (p.input_order) {
    u32 const* const at = p.input_order + k;
    float const* const n = p.norm_weight;
    return {{n[at[0]], n[at[1]], n[at[2]], n[at[3]]}, {n[at[4]], n[at[5]], n[at[6]], n[at[7]]}};
  }
  return {*(float4 const*)(p.norm_weight + k), *(float4 const*)(p.norm_weight + k + 4)};
}

// Eight inputs times their norm's weights and the row's scale.
template <u32 KIND>
__device__ __forceinline__ uint4 apply_norm(uint4 x, NormWeights const& norm, float scale) {
  float v[8];
  unpack8<KIND>(x, v);
  return make_uint4(pack2<KIND>(v[0] * (scale * norm.low.x), v[1] * (scale * norm.low.y)),
                    pack2<KIND>(v[2] * (scale * norm.low.z), v[3] * (scale * norm.low.w)),
                    pack2<KIND>(v[4] * (scale * norm.high.x), v[5] * (scale * norm.high.y)),
                    pack2<KIND>(v[6] * (scale * norm.high.z), v[7] * (scale * norm.high.w)));
}

// What RMSNorm multiplies each row with, 1 / sqrt(mean of squares + eps), in shared memory.
struct RmsScales {
  float partial[BLOCK_ROWS][COMPUTE_WARPS];  // sums of squares, of as many warps as there can be for each row
  float of[MAX_ROWS];
};

// This warp's part of the sum of a row's squares, from `part` on: of x, unless the phase before has added them up in
// parts.
template <u32 KIND>
__device__ __forceinline__ float sum_squares(PhaseDescriptor const& p, u32 row, u32 part, u32 warps, u32 size) {
  u32 const lane = threadIdx.x % 32;
  float square = 0.0f;
  if (p.x_squares) {
    u32 constexpr AT_ONCE = 8;  // on their way together: one after the other, eight rows of a 7B wait 3 us for them
    u32 const parts = p.x_square_parts;
    float const* const from = p.x_squares + row * parts;
#pragma unroll 1
    for (u32 first = part * 32 + lane; first < parts; first += AT_ONCE * warps * 32) {
      float value[AT_ONCE];
#pragma unroll
      for (u32 i = 0; i < AT_ONCE; ++i) {
        u32 const at = first + i * warps * 32;
        value[i] = at < parts ? __ldcg(from + at) : 0.0f;
      }
#pragma unroll
      for (u32 i = 0; i < AT_ONCE; ++i) {
        square += value[i];
      }
    }
  } else {
#pragma unroll 1
    for (u32 k = (part * 32 + lane) * 8; k < size; k += warps * 256) {
      float value[8];
      unpack8<KIND>(load_cg_16(p.x + (u64)row * p.x_stride + k), value);
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        square = fmaf(value[i], value[i], square);
      }
    }
  }
  return warp_sum(square);
}

// Of more rows than there are warps: each warp has some. Sums in few parts are asked for all at once.
template <u32 KIND>
__device__ __forceinline__ void rms_scales_of_many(PhaseContext const& c, u32 size, RmsScales& scales) {
  u32 constexpr TOGETHER = 4;
  u32 const lane = threadIdx.x % 32, parts = c.p.x_square_parts;
  bool const are_few = c.p.x_squares && parts <= 32;
#pragma unroll 1
  for (u32 first = threadIdx.x / 32; first < c.rows; first += TOGETHER * COMPUTE_WARPS) {
    float squares[TOGETHER];
#pragma unroll
    for (u32 i = 0; i < TOGETHER; ++i) {
      u32 const row = source_row(c.s, c.p, min(first + i * COMPUTE_WARPS, c.rows - 1));
      squares[i] = are_few && lane < parts ? __ldcg(c.p.x_squares + row * parts + lane) : 0.0f;
    }
#pragma unroll
    for (u32 i = 0; i < TOGETHER; ++i) {
      u32 const row = first + i * COMPUTE_WARPS;
      if (row < c.rows) {
        float const square =
            are_few ? warp_sum(squares[i]) : sum_squares<KIND>(c.p, source_row(c.s, c.p, row), 0, 1, size);
        if (lane == 0) {
          scales.of[row] = rsqrtf(__fdividef(square, (float)size) + c.s.norm_eps);
        }
      }
    }
  }
  sync_compute_warps();
}

template <u32 KIND>
__device__ __forceinline__ void rms_scales(PhaseContext const& c, u32 size, RmsScales& scales) {
  if (ROW_BLOCKS > 1) {
    return rms_scales_of_many<KIND>(c, size, scales);
  }
  u32 const rows = c.rows, warps = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  u32 const row = threadIdx.x / 32 / warps, part = threadIdx.x / 32 % warps;
  if (row < rows) {
    float const square = sum_squares<KIND>(c.p, source_row(c.s, c.p, row), part, warps, size);
    if (threadIdx.x % 32 == 0) {
      scales.partial[row][part] = square;
    }
  }
  sync_compute_warps();
  if (threadIdx.x < rows) {
    float square = 0.0f;
#pragma unroll
    for (u32 i = 0; i < COMPUTE_WARPS; ++i) {
      square += i < warps ? scales.partial[threadIdx.x][i] : 0.0f;
    }
    scales.of[threadIdx.x] = rsqrtf(__fdividef(square, (float)size) + c.s.norm_eps);
  }
  sync_compute_warps();
}

// The norm's weights of a thread's first two times eight inputs, which are read before the inputs are there.
struct EarlyNormWeights {
  NormWeights first, second;
};

// Copies inputs of up to eight rows to shared memory. Of each row a thread takes every COMPUTE_THREADSth eight inputs.
struct InputStager {
  u32 first, eights;  // the first input, and how many times eight there are of a row

  // Bytes from row to row: rows two apart are in different banks.
  __device__ __forceinline__ u32 stride() const { return (eights * 16 + 127) / 128 * 128 + 64; }

  __device__ __forceinline__ EarlyNormWeights early_norm_weights(PhaseDescriptor const& p) const {
    auto const of = [&](u32 eight) {
      bool const there = p.norm_weight && eight < eights && first + eight * 8 < p.inputs;
      return there ? load_norm_weights(p, first + eight * 8) : NormWeights{};
    };
    return {of(threadIdx.x), of(threadIdx.x + COMPUTE_THREADS)};
  }

  // Begins to copy.
  __device__ __forceinline__ void copy(PhaseContext const& c, u8* inputs) const {
    PhaseDescriptor const& p = c.p;
#pragma unroll 1
    for (u32 eight = threadIdx.x; eight < eights; eight += COMPUTE_THREADS) {
      u32 const k = first + eight * 8;
      bool const there = k < p.inputs;
      if (p.input_order) {
#pragma unroll 1
        for (u32 row = 0; row < c.rows; ++row) {
          u16 const* const x = p.x + (u64)source_row(c.s, p, row) * p.x_stride;
          *(uint4*)(inputs + row * stride() + eight * 16) = there ? gather8(p, x, k) : make_uint4(0, 0, 0, 0);
        }
      } else {
        u32 const to = shared_address(inputs) + eight * 16;
#pragma unroll 2
        for (u32 row = 0; row < c.rows; ++row) {
          u16 const* const from = p.x + (u64)source_row(c.s, p, row) * p.x_stride + k;
          cp_async_16(to + row * stride(), there ? from : p.x, there ? 16 : 0);
        }
      }
    }
    cp_async_commit();
  }

  // Norms eight inputs of all rows, two rows at a time: those of one are on their way while the other's are computed.
  template <u32 KIND>
  __device__ __forceinline__ void norm_eight(NormWeights const& norm, u32 rows, RmsScales const& scales,
                                             u8* first_row) const {
#pragma unroll 1
    for (u32 row = 0; row < rows; row += 2) {
      bool const both = row + 1 < rows;
      uint4* const at = (uint4*)(first_row + row * stride());
      uint4* const next = (uint4*)(first_row + (row + both) * stride());
      uint4 const x = *at, y = *next;
      float const scale = scales.of[row], next_scale = scales.of[row + both];
      *at = apply_norm<KIND>(x, norm, scale);
      if (both) {
        *next = apply_norm<KIND>(y, norm, next_scale);
      }
    }
  }

  // Norms each input once it is there.
  template <u32 KIND>
  __device__ __forceinline__ void finish(PhaseDescriptor const& p, u32 rows, RmsScales const& scales,
                                         EarlyNormWeights const& early, u8* inputs) const {
    cp_async_wait_all();
    if (p.norm_weight) {
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += COMPUTE_THREADS) {
        u32 const k = first + eight * 8;
        bool const is_normed = k < p.inputs;
        NormWeights norm = eight == threadIdx.x ? early.first : early.second;
        if (is_normed && eight > threadIdx.x + COMPUTE_THREADS) {
          norm = load_norm_weights(p, k);
        }
        if (is_normed) {
          norm_eight<KIND>(norm, rows, scales, inputs + eight * 16);
        }
      }
    }
    sync_compute_warps();
  }

  // Both, where the scales are known.
  template <u32 KIND>
  __device__ __forceinline__ void load(PhaseContext const& c, RmsScales const& scales, u8* inputs) const {
    copy(c, inputs);
    finish<KIND>(c.p, c.rows, scales, early_norm_weights(c.p), inputs);
  }

  // The first inputs of a phase, once the phase before is done, and their rows' scales.
  template <u32 KIND>
  __device__ __forceinline__ void load_first(PhaseContext const& c, RmsScales& scales, u8* inputs) const {
    EarlyNormWeights const early = early_norm_weights(c.p);
    u32 const index = c.index;
    if (index > 0) {
      wait_for_phase_before(c);
    }
    MARK(1);
    copy(c, inputs);
    if (c.p.norm_weight) {
      rms_scales<KIND>(c, c.p.inputs, scales);
    }
    finish<KIND>(c.p, c.rows, scales, early, inputs);
    MARK(2);
  }
};

// Inputs in shared memory, as `load` left them.
struct StagedInputs {
  u32 address, stride, rows;
};
