// Inputs on their way to the weights: from memory to shared memory, normed there.

// Eight inputs of a row that are not in their place.
__device__ __forceinline__ uint4 gather8(PhaseDescriptor const& p, u32 row, u32 k) {
  u16 const* const from = p.x + (u64)row * p.x_stride;
  u32 x[4] = {};
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    x[i / 2] |= (u32)load_cg_2(from + p.input_order[k + i]) << (i % 2 * 16);
  }
  return make_uint4(x[0], x[1], x[2], x[3]);
}

// RMSNorm's weights of eight inputs.
struct Weights {
  float4 low, high;
};

__device__ __forceinline__ Weights load_norm_weights(PhaseDescriptor const& p, u32 k) {
  if (p.input_order) {
    u32 const* const at = p.input_order + k;
    float const* const n = p.norm_weight;
    return {{n[at[0]], n[at[1]], n[at[2]], n[at[3]]}, {n[at[4]], n[at[5]], n[at[6]], n[at[7]]}};
  }
  return {*(float4 const*)(p.norm_weight + k), *(float4 const*)(p.norm_weight + k + 4)};
}

// Eight inputs, normed with the row's factor.
template <u32 KIND>
__device__ __forceinline__ uint4 apply_norm(uint4 x, Weights const& norm, float factor) {
  float v[8];
  unpack8<KIND>(x, v);
  return make_uint4(pack2<KIND>(v[0] * (factor * norm.low.x), v[1] * (factor * norm.low.y)),
                    pack2<KIND>(v[2] * (factor * norm.low.z), v[3] * (factor * norm.low.w)),
                    pack2<KIND>(v[4] * (factor * norm.high.x), v[5] * (factor * norm.high.y)),
                    pack2<KIND>(v[6] * (factor * norm.high.z), v[7] * (factor * norm.high.w)));
}

// What RMSNorm multiplies each row with: 1 / sqrt(mean of squares + eps). As many warps as there can be for each row.
struct RmsScales {
  float parts[MAX_ROWS][COMPUTE_WARPS], of[MAX_ROWS];
};

template <u32 KIND>
__device__ __forceinline__ void rms_scales(DecodeParams const& s, PhaseDescriptor const& p, u32 size, RmsScales& factors) {
  u32 const rows = s.rows, warps = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  u32 const lane = threadIdx.x % 32, row = threadIdx.x / 32 / warps, part = threadIdx.x / 32 % warps;
  if (row < rows) {
    float square = 0.0f;
    if (p.x_squares) {
#pragma unroll 1
      for (u32 i = part * 32 + lane; i < p.x_square_parts; i += warps * 32) {
        square += __ldcg(p.x_squares + row * p.x_square_parts + i);
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
    square = warp_sum(square);
    if (lane == 0) {
      factors.parts[row][part] = square;
    }
  }
  sync_compute_warps();
  if (threadIdx.x < rows) {
    float square = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < warps; ++i) {
      square += factors.parts[threadIdx.x][i];
    }
    factors.of[threadIdx.x] = rsqrtf(__fdividef(square, (float)size) + s.norm_eps);
  }
  sync_compute_warps();
}

// The norm's weights of a thread's first two times eight inputs, read before the inputs are there.
struct EarlyNormWeights {
  Weights first, second;
};

// Brings inputs of all rows to shared memory, as the weights want them. A thread takes every THREADSth eight of each row.
struct InputStager {
  u32 first, eights;  // the first input, and how many times eight there are of a row
  u32 group;          // inputs that are summed up, a power of 2, if any

  // Bytes from row to row: rows two apart meet other banks. Sums of a row come after all rows.
  __device__ __forceinline__ u32 stride() const { return (eights * 16 + 127) / 128 * 128 + 64; }
  __device__ __forceinline__ u32 shift() const { return 28 - __clz(group); }
  __device__ __forceinline__ u32 sums() const { return eights >> shift(); }

  // The norm's weights of the thread's first inputs.
  __device__ __forceinline__ EarlyNormWeights early(PhaseDescriptor const& p) const {
    auto const of = [&](u32 eight) {
      return p.norm_weight && eight < eights && first + eight * 8 < p.inputs ? load_norm_weights(p, first + eight * 8) : Weights{};
    };
    return {of(threadIdx.x), of(threadIdx.x + COMPUTE_THREADS)};
  }

  // Begins to read them.
  __device__ __forceinline__ void begin(PhaseDescriptor const& p, u32 rows, u8* work) const {
#pragma unroll 1
    for (u32 row = 0; row < rows; ++row) {
      u16 const* const from = p.x + (u64)row * p.x_stride + first;
      u32 const to = shared_address(work) + row * stride(), there = p.inputs - first;
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += COMPUTE_THREADS) {
        if (p.input_order) {
          *(uint4*)(work + row * stride() + eight * 16) = eight * 8 < there ? gather8(p, row, first + eight * 8) : make_uint4(0, 0, 0, 0);
        } else {
          cp_async_16(to + eight * 16, eight * 8 < there ? from + eight * 8 : p.x, eight * 8 < there ? 16 : 0);
        }
      }
    }
    cp_async_commit();
  }

  // Norms each once it is there, and adds up groups.
  template <u32 KIND>
  __device__ __forceinline__ void finish(PhaseDescriptor const& p, u32 rows, RmsScales const& factors, EarlyNormWeights const& early, u8* work) const {
    cp_async_wait_all();
    float* const totals = (float*)(work + rows * stride());
    if (p.norm_weight || group) {
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += COMPUTE_THREADS) {
        u32 const k = first + eight * 8;
        bool const is_normed = p.norm_weight && k < p.inputs;
        Weights norm = eight == threadIdx.x ? early.first : early.second;
        if (is_normed && eight > threadIdx.x + COMPUTE_THREADS) {
          norm = load_norm_weights(p, k);
        }
#pragma unroll 1
        for (u32 row = 0; row < rows; ++row) {
          uint4* const at = (uint4*)(work + row * stride() + eight * 16);
          uint4 x = *at;
          if (is_normed) {
            x = apply_norm<KIND>(x, norm, factors.of[row]);
            *at = x;
          }
          if (group) {
            float v[8];
            unpack8<KIND>(x, v);
            float sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (group > 32) {
              sum += __shfl_xor_sync(0xffffffffu, sum, 4);
            }
            if (group > 64) {
              sum += __shfl_xor_sync(0xffffffffu, sum, 8);
            }
            if ((eight & (group / 8 - 1)) == 0) {
              totals[row * sums() + (eight >> shift())] = sum;
            }
          }
        }
      }
    }
    sync_compute_warps();
  }

  // Both, for inputs that are there.
  template <u32 KIND>
  __device__ __forceinline__ void load(PhaseDescriptor const& p, u32 rows, RmsScales const& factors, u8* work) const {
    begin(p, rows, work);
    finish<KIND>(p, rows, factors, early(p), work);
  }

  // The first inputs of a phase, once the phase before is done, and what their rows are normed with.
  template <u32 KIND>
  __device__ __forceinline__ void open(DecodeParams const& s, PhaseDescriptor const& p, u32 index, RmsScales& factors, u8* work) const {
    EarlyNormWeights const norms = early(p);
    if (index > 0) {
      wait_phase(s.counters + index - 1, completions_of(s, index - 1));
    }
    MARK(1);
    begin(p, s.rows, work);
    if (p.norm_weight) {
      rms_scales<KIND>(s, p, p.inputs, factors);
    }
    finish<KIND>(p, s.rows, factors, norms, work);
    MARK(2);
  }
};
