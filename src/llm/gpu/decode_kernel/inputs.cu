// Inputs on their way to the weights: from memory to shared memory, normed there.

// Eight inputs of a row that are not in their place.
__device__ __forceinline__ uint4 gathered(Phase const& p, u32 row, u32 k) {
  u16 const* const from = p.x + (u64)row * p.stride;
  u32 x[4] = {};
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    x[i / 2] |= (u32)read2(from + p.order[k + i]) << (i % 2 * 16);
  }
  return make_uint4(x[0], x[1], x[2], x[3]);
}

// RMSNorm's weights of eight inputs.
struct Weights {
  float4 low, high;
};

__device__ __forceinline__ Weights norms_of(Phase const& p, u32 k) {
  if (p.order) {
    u32 const* const at = p.order + k;
    float const* const n = p.norm;
    return {{n[at[0]], n[at[1]], n[at[2]], n[at[3]]}, {n[at[4]], n[at[5]], n[at[6]], n[at[7]]}};
  }
  return {*(float4 const*)(p.norm + k), *(float4 const*)(p.norm + k + 4)};
}

// Eight inputs, normed with the row's factor.
template <u32 KIND>
__device__ __forceinline__ uint4 normed(uint4 x, Weights const& norm, float factor) {
  float v[8];
  unpack<KIND>(x, v);
  return make_uint4(pair<KIND>(v[0] * (factor * norm.low.x), v[1] * (factor * norm.low.y)),
                    pair<KIND>(v[2] * (factor * norm.low.z), v[3] * (factor * norm.low.w)),
                    pair<KIND>(v[4] * (factor * norm.high.x), v[5] * (factor * norm.high.y)),
                    pair<KIND>(v[6] * (factor * norm.high.z), v[7] * (factor * norm.high.w)));
}

// What RMSNorm multiplies each row with: 1 / sqrt(mean of squares + eps). As many warps as there can be for each row.
struct Factors {
  float parts[ROWS][WARPS], of[ROWS];
};

template <u32 KIND>
__device__ __forceinline__ void norm_factors(Step const& s, Phase const& p, u32 size, Factors& factors) {
  u32 const rows = s.rows, warps = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  u32 const lane = threadIdx.x % 32, row = threadIdx.x / 32 / warps, part = threadIdx.x / 32 % warps;
  if (row < rows) {
    float square = 0.0f;
    if (p.squares) {
#pragma unroll 1
      for (u32 i = part * 32 + lane; i < p.square_count; i += warps * 32) {
        square += __ldcg(p.squares + row * p.square_count + i);
      }
    } else {
#pragma unroll 1
      for (u32 k = (part * 32 + lane) * 8; k < size; k += warps * 256) {
        float value[8];
        unpack<KIND>(read16(p.x + (u64)row * p.stride + k), value);
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
  meet();
  if (threadIdx.x < rows) {
    float square = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < warps; ++i) {
      square += factors.parts[threadIdx.x][i];
    }
    factors.of[threadIdx.x] = rsqrtf(__fdividef(square, (float)size) + s.eps);
  }
  meet();
}

// The norm's weights of a thread's first two times eight inputs, read before the inputs are there.
struct Early {
  Weights first, second;
};

// Brings inputs of all rows to shared memory, as the weights want them. A thread takes every THREADSth eight of each row.
struct Stager {
  u32 first, eights;  // the first input, and how many times eight there are of a row
  u32 group;          // inputs that are summed up, a power of 2, if any

  // Bytes from row to row: rows two apart meet other banks. Sums of a row come after all rows.
  __device__ __forceinline__ u32 stride() const { return (eights * 16 + 127) / 128 * 128 + 64; }
  __device__ __forceinline__ u32 shift() const { return 28 - __clz(group); }
  __device__ __forceinline__ u32 sums() const { return eights >> shift(); }

  // The norm's weights of the thread's first inputs.
  __device__ __forceinline__ Early early(Phase const& p) const {
    auto const of = [&](u32 eight) {
      return p.norm && eight < eights && first + eight * 8 < p.inputs ? norms_of(p, first + eight * 8) : Weights{};
    };
    return {of(threadIdx.x), of(threadIdx.x + THREADS)};
  }

  // Begins to read them.
  __device__ __forceinline__ void begin(Phase const& p, u32 rows, u8* work) const {
#pragma unroll 1
    for (u32 row = 0; row < rows; ++row) {
      u16 const* const from = p.x + (u64)row * p.stride + first;
      u32 const to = shared_address(work) + row * stride(), there = p.inputs - first;
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += THREADS) {
        if (p.order) {
          *(uint4*)(work + row * stride() + eight * 16) = eight * 8 < there ? gathered(p, row, first + eight * 8) : make_uint4(0, 0, 0, 0);
        } else {
          fetch16(to + eight * 16, eight * 8 < there ? from + eight * 8 : p.x, eight * 8 < there ? 16 : 0);
        }
      }
    }
    commit();
  }

  // Norms each once it is there, and adds up groups.
  template <u32 KIND>
  __device__ __forceinline__ void finish(Phase const& p, u32 rows, Factors const& factors, Early const& early, u8* work) const {
    wait_for_all();
    float* const totals = (float*)(work + rows * stride());
    if (p.norm || group) {
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += THREADS) {
        u32 const k = first + eight * 8;
        bool const is_normed = p.norm && k < p.inputs;
        Weights norm = eight == threadIdx.x ? early.first : early.second;
        if (is_normed && eight > threadIdx.x + THREADS) {
          norm = norms_of(p, k);
        }
#pragma unroll 1
        for (u32 row = 0; row < rows; ++row) {
          uint4* const at = (uint4*)(work + row * stride() + eight * 16);
          uint4 x = *at;
          if (is_normed) {
            x = normed<KIND>(x, norm, factors.of[row]);
            *at = x;
          }
          if (group) {
            float v[8];
            unpack<KIND>(x, v);
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
    meet();
  }

  // Both, for inputs that are there.
  template <u32 KIND>
  __device__ __forceinline__ void bring(Phase const& p, u32 rows, Factors const& factors, u8* work) const {
    begin(p, rows, work);
    finish<KIND>(p, rows, factors, early(p), work);
  }

  // The first inputs of a phase, once the phase before is done, and what their rows are normed with.
  template <u32 KIND>
  __device__ __forceinline__ void open(Step const& s, Phase const& p, u32 index, Factors& factors, u8* work) const {
    Early const norms = early(p);
    if (index > 0) {
      await(s.counters + index - 1, parts_of(s, index - 1));
    }
    MARK(1);
    begin(p, s.rows, work);
    if (p.norm) {
      norm_factors<KIND>(s, p, p.inputs, factors);
    }
    finish<KIND>(p, s.rows, factors, norms, work);
    MARK(2);
  }
};
