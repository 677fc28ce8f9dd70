// Decode steps: a few tokens through a layer, at the speed of memory. Weights are read once, from [inputs, outputs] as the
// prefill engines have them; sums are float32. Compiled at run time (NVRTC) without any header; compute capability 8.0
// has all of it. Element kinds: 1 float16, 2 bfloat16.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

template <u32 KIND>
__device__ __forceinline__ float widen(u16 bits) {
  if (KIND == 2) {
    return __uint_as_float((u32)bits << 16);
  }
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

template <u32 KIND>
__device__ __forceinline__ u16 narrow(float value) {
  u16 bits;
  if (KIND == 2) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  }
  return bits;
}

// Eight elements that are read once: past the L1 cache.
__device__ __forceinline__ uint4 read_once(void const* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

template <u32 KIND>
__device__ __forceinline__ void unpack(uint4 packed, float* to) {
  u32 const words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    to[2 * i] = widen<KIND>((u16)words[i]);
    to[2 * i + 1] = widen<KIND>((u16)(words[i] >> 16));
  }
}

__device__ __forceinline__ float warp_sum(float value) {
  for (u32 step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

__device__ __forceinline__ float bounded(float value, float cap) { return cap > 0.0f ? cap * tanhf(value / cap) : value; }

__device__ __forceinline__ float activate(float x, u32 gelu) {
  // GELU's tanh approximation: Hendrycks & Gimpel 2016.
  return gelu ? 0.5f * x * (1.0f + tanhf(0.7978845608f * x * (1.0f + 0.044715f * x * x))) : x / (1.0f + __expf(-x));
}

u32 constexpr THREADS = 256;
u32 constexpr COLUMNS = 64;  // of a block: eight threads of eight columns
u32 constexpr LANES = THREADS / 8;
u32 constexpr DEPTH = 1024;  // inputs held in shared memory at a time

// What a product reads, and what becomes of it.
struct Product {
  u16 const* x;            // [rows, inputs]; if gated [rows, 2 * inputs]: gates, then what they let through
  float const* norm;       // [inputs]: x is RMS-normalised first
  u16 const* weights;      // [inputs, outputs]
  u16 const* bias;         // [outputs]
  u16 const* residual;     // [rows, outputs], added
  void* out;               // [rows, outputs], in the element type or, wide, float32
  float* partial;          // [splits, rows, outputs]
  u32* counters;           // one per block of columns, zero
  u32 inputs, outputs, rows, gated, gelu, wide;
  float eps, cap;
};

// rows x inputs times inputs x outputs. Grid (outputs / 64, splits of the inputs).
template <u32 KIND, u32 ROWS>
__device__ __forceinline__ void product(Product const& p) {
  __shared__ __align__(16) float x[ROWS][DEPTH];
  __shared__ float sums[THREADS / 32][ROWS][COLUMNS];
  __shared__ float scale[ROWS][THREADS / 32];
  __shared__ u32 is_last;
  u32 const thread = threadIdx.x, warp = thread / 32;
  u32 const column = blockIdx.x * COLUMNS + thread % 8 * 8;
  u32 const lane = thread / 8;
  u32 const share = (p.inputs + gridDim.y * LANES - 1) / (gridDim.y * LANES) * LANES;
  u32 const first = blockIdx.y * share, last = min(first + share, p.inputs);
  u32 const stride = p.gated ? 2 * p.inputs : p.inputs;
  if (p.norm) {
    // All threads on each row: its reads are on the way of everything else.
    float square[ROWS] = {};
    for (u32 k = thread * 8; k < p.inputs; k += THREADS * 8) {
#pragma unroll
      for (u32 row = 0; row < ROWS; ++row) {
        if (row < p.rows) {
          float value[8];
          unpack<KIND>(*(uint4 const*)(p.x + (u64)row * stride + k), value);
#pragma unroll
          for (u32 i = 0; i < 8; ++i) {
            square[row] = fmaf(value[i], value[i], square[row]);
          }
        }
      }
    }
#pragma unroll
    for (u32 row = 0; row < ROWS; ++row) {
      float const part = warp_sum(square[row]);
      if (thread % 32 == 0) {
        scale[row][warp] = part;
      }
    }
    __syncthreads();
    if (thread < ROWS) {
      float all = 0.0f;
      for (u32 part = 0; part < THREADS / 32; ++part) {
        all += scale[thread][part];
      }
      scale[thread][0] = rsqrtf(all / p.inputs + p.eps);
    }
    __syncthreads();
  }
  float sum[ROWS][8] = {};
  for (u32 begin = first; begin < last; begin += DEPTH) {
    u32 const count = min(DEPTH, last - begin);
    for (u32 i = thread * 8; i < count; i += THREADS * 8) {
      u32 const k = begin + i;
#pragma unroll
      for (u32 row = 0; row < ROWS; ++row) {
        float value[8] = {};
        if (row < p.rows) {
          u16 const* const from = p.x + (u64)row * stride + k;
          unpack<KIND>(*(uint4 const*)from, value);
          if (p.gated) {
            float through[8];
            unpack<KIND>(*(uint4 const*)(from + p.inputs), through);
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
              value[j] = activate(value[j], p.gelu) * through[j];
            }
          }
          if (p.norm) {
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
              value[j] *= scale[row][0] * p.norm[k + j];
            }
          }
        }
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
          // As the engines have it between their products.
          x[row][i + j] = widen<KIND>(narrow<KIND>(value[j]));
        }
      }
    }
    __syncthreads();
    if (column < p.outputs) {
      u16 const* weights = p.weights + (u64)begin * p.outputs + column;
#pragma unroll 4
      for (u32 k = lane; k < count; k += LANES) {
        float w[8];
        unpack<KIND>(read_once(weights + (u64)k * p.outputs), w);
#pragma unroll
        for (u32 row = 0; row < ROWS; ++row) {
          float const value = x[row][k];
#pragma unroll
          for (u32 i = 0; i < 8; ++i) {
            sum[row][i] = fmaf(value, w[i], sum[row][i]);
          }
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (u32 row = 0; row < ROWS; ++row) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      float value = sum[row][i];
      value += __shfl_xor_sync(0xffffffffu, value, 8);
      value += __shfl_xor_sync(0xffffffffu, value, 16);
      if (thread % 32 < 8) {
        sums[warp][row][thread % 8 * 8 + i] = value;
      }
    }
  }
  __syncthreads();
  u64 const size = (u64)p.rows * p.outputs;
  for (u32 i = thread; i < p.rows * COLUMNS; i += THREADS) {
    u32 const row = i / COLUMNS, c = i % COLUMNS, n = blockIdx.x * COLUMNS + c;
    if (n < p.outputs) {
      float value = 0.0f;
      for (u32 part = 0; part < THREADS / 32; ++part) {
        value += sums[part][row][c];
      }
      sums[0][row][c] = value;
      if (gridDim.y > 1) {
        p.partial[blockIdx.y * size + (u64)row * p.outputs + n] = value;
      }
    }
  }
  if (gridDim.y > 1) {
    // The block that comes last adds the shares, always in the same order.
    __threadfence();
    __syncthreads();
    if (thread == 0) {
      is_last = atomicAdd(p.counters + blockIdx.x, 1u) == gridDim.y - 1;
    }
    __syncthreads();
    if (!is_last) {
      return;
    }
    __threadfence();
  }
  for (u32 i = thread; i < p.rows * COLUMNS; i += THREADS) {
    u32 const row = i / COLUMNS, c = i % COLUMNS, n = blockIdx.x * COLUMNS + c;
    if (n >= p.outputs) {
      continue;
    }
    u64 const at = (u64)row * p.outputs + n;
    float value = 0.0f;
    if (gridDim.y > 1) {
#pragma unroll 8
      for (u32 split = 0; split < gridDim.y; ++split) {
        value += __ldcg(p.partial + split * size + at);
      }
    } else {
      value = sums[0][row][c];
    }
    if (p.wide) {
      ((float*)p.out)[at] = bounded(value, p.cap);
      continue;
    }
    if (p.bias) {
      value = widen<KIND>(narrow<KIND>(value)) + widen<KIND>(p.bias[n]);
    }
    if (p.residual) {
      value = widen<KIND>(narrow<KIND>(value)) + widen<KIND>(p.residual[at]);
    }
    ((u16*)p.out)[at] = narrow<KIND>(value);
  }
  if (gridDim.y > 1 && thread == 0) {
    p.counters[blockIdx.x] = 0;
  }
}

#define PRODUCT(NAME, KIND, ROWS) \
  extern "C" __global__ void __launch_bounds__(256) NAME(Product p) { product<KIND, ROWS>(p); }
PRODUCT(product_f16_1, 1, 1)
PRODUCT(product_f16_2, 1, 2)
PRODUCT(product_f16_4, 1, 4)
PRODUCT(product_bf16_1, 2, 1)
PRODUCT(product_bf16_2, 2, 2)
PRODUCT(product_bf16_4, 2, 4)

struct Place {
  u16* qkv;                 // [rows, (heads + 2 kv_heads) * dim]: queries are turned where they lie
  float const* query_norm;  // [dim]
  float const* key_norm;
  u16 const* cos;           // [rows, rotary]
  u16 const* sin;
  u16* keys;                // [rows, kv_heads, capacity, dim]
  u16* values;
  u32 const* cached;        // [rows]
  u32 const* count;         // [rows]: 0 for a row nobody is in
  u32 heads, kv_heads, dim, rotary, capacity;
  float eps, scale;
};

// Norms and turns queries and keys, and puts new keys and values where they belong. Grid (heads + 2 kv_heads, rows),
// a warp for each.
template <u32 KIND>
__device__ __forceinline__ void place(Place const& p) {
  u32 const head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x;
  u16* const x = p.qkv + ((u64)row * gridDim.x + head) * p.dim;
  bool const is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
  u32 const kv = is_query ? 0 : (head - p.heads) % p.kv_heads;
  u32 const position = min(p.cached[row], p.capacity - 1);
  u16* const to = is_query ? x : (is_value ? p.values : p.keys) + (((u64)row * p.kv_heads + kv) * p.capacity + position) * p.dim;
  if (!is_query && p.count[row] == 0) {
    return;
  }
  if (is_value) {
    for (u32 i = lane; i < p.dim; i += 32) {
      to[i] = x[i];
    }
    return;
  }
  __shared__ float held[256];
  float const* const norm = is_query ? p.query_norm : p.key_norm;
  float factor = 1.0f;
  if (norm) {
    float square = 0.0f;
    for (u32 i = lane; i < p.dim; i += 32) {
      float const value = widen<KIND>(x[i]);
      square += value * value;
    }
    factor = rsqrtf(warp_sum(square) / p.dim + p.eps);
  }
  for (u32 i = lane; i < p.dim; i += 32) {
    float const value = widen<KIND>(x[i]);
    held[i] = norm ? widen<KIND>(narrow<KIND>(value * factor * norm[i])) : value;
  }
  __syncwarp();
  u32 const half = p.rotary / 2;
  for (u32 i = lane; i < p.dim; i += 32) {
    float value = held[i];
    if (i < p.rotary) {
      float const other = i < half ? -held[i + half] : held[i - half];
      u64 const at = (u64)row * p.rotary + i;
      value = value * widen<KIND>(p.cos[at]) + other * widen<KIND>(p.sin[at]);
    }
    to[i] = narrow<KIND>(is_query ? value * p.scale : value);
  }
}

extern "C" __global__ void place_f16(Place p) { place<1>(p); }
extern "C" __global__ void place_bf16(Place p) { place<2>(p); }

struct Attend {
  u16 const* qkv;     // [rows, (heads + 2 kv_heads) * dim]: its queries
  u16 const* keys;    // [rows, kv_heads, capacity, dim]
  u16 const* values;
  u16* out;           // [rows, heads * dim]
  float* partial;     // [rows, heads, splits, dim + 2]: sums, then the largest score and the sum of weights
  u32* counters;      // [rows, kv_heads], zero
  u32 const* cached;  // [rows]
  u32 heads, kv_heads, dim, capacity, window;
  float cap;
};

u32 constexpr SPAN = 64;      // positions of a block
u32 constexpr GROUP = 16;     // query heads of a key head at most
u32 constexpr ATTEND = 128;   // threads

// Attention of one new token a row over what is cached and itself. Grid (splits of the capacity, kv_heads, rows).
template <u32 KIND>
__device__ __forceinline__ void attend(Attend const& p) {
  __shared__ __align__(16) float query[GROUP][256];
  __shared__ float weight[GROUP][SPAN];
  __shared__ float high[GROUP], total[GROUP];
  __shared__ u32 is_last;
  u32 const thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 const split = blockIdx.x, kv = blockIdx.y, row = blockIdx.z;
  u32 const group = p.heads / p.kv_heads;
  u32 const length = min(p.cached[row] + 1, p.capacity);
  u32 const from = p.window && length > p.window ? length - p.window : 0;
  u32 const first_split = from / SPAN, splits = (length + SPAN - 1) / SPAN;
  if (split < first_split || split >= splits) {
    return;
  }
  u32 const begin = max(split * SPAN, from), end = min(split * SPAN + SPAN, length);
  u64 const head0 = (u64)kv * group;
  for (u32 i = thread; i < group * p.dim; i += ATTEND) {
    u64 const at = ((u64)row * (p.heads + 2 * p.kv_heads) + head0) * p.dim + i;
    query[i / p.dim][i % p.dim] = widen<KIND>(p.qkv[at]);
  }
  for (u32 i = thread; i < group * SPAN; i += ATTEND) {
    weight[i / SPAN][i % SPAN] = -3.4e38f;
  }
  __syncthreads();
  u64 const base = ((u64)row * p.kv_heads + kv) * p.capacity * p.dim;
  // Eight threads a position, four elements at a time.
  u32 const part = thread % 8;
  for (u32 at = split * SPAN + thread / 8; at < split * SPAN + SPAN; at += ATTEND / 8) {
    bool const seen = at >= begin && at < end;
    float score[GROUP] = {};
    if (seen) {
      for (u32 d = part * 4; d < p.dim; d += 32) {
        uint2 const packed = *(uint2 const*)(p.keys + base + (u64)at * p.dim + d);
        float const k0 = widen<KIND>((u16)packed.x), k1 = widen<KIND>((u16)(packed.x >> 16));
        float const k2 = widen<KIND>((u16)packed.y), k3 = widen<KIND>((u16)(packed.y >> 16));
#pragma unroll
        for (u32 g = 0; g < GROUP; ++g) {
          if (g < group) {
            float4 const q = *(float4 const*)&query[g][d];
            score[g] += q.x * k0 + q.y * k1 + q.z * k2 + q.w * k3;
          }
        }
      }
    }
#pragma unroll
    for (u32 g = 0; g < GROUP; ++g) {
      if (g < group) {
        float value = score[g];
        value += __shfl_xor_sync(0xffffffffu, value, 1);
        value += __shfl_xor_sync(0xffffffffu, value, 2);
        value += __shfl_xor_sync(0xffffffffu, value, 4);
        if (seen && part == 0) {
          weight[g][at % SPAN] = bounded(value, p.cap);
        }
      }
    }
  }
  __syncthreads();
  for (u32 g = warp; g < group; g += ATTEND / 32) {
    float const a = weight[g][lane], b = weight[g][lane + 32];
    float largest = fmaxf(a, b);
    for (u32 step = 16; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    }
    float const wa = a > -3.0e38f ? __expf(a - largest) : 0.0f, wb = b > -3.0e38f ? __expf(b - largest) : 0.0f;
    weight[g][lane] = wa;
    weight[g][lane + 32] = wb;
    float const sum = warp_sum(wa + wb);
    if (lane == 0) {
      high[g] = largest;
      total[g] = sum;
    }
  }
  __syncthreads();
  u32 const parts = (p.capacity + SPAN - 1) / SPAN;
  u32 const record = p.dim + 2;
  for (u32 d = thread; d < p.dim; d += ATTEND) {
    float sum[GROUP] = {};
#pragma unroll 8
    for (u32 at = begin; at < end; ++at) {
      float const value = widen<KIND>(p.values[base + (u64)at * p.dim + d]);
#pragma unroll
      for (u32 g = 0; g < GROUP; ++g) {
        if (g < group) {
          sum[g] = fmaf(weight[g][at % SPAN], value, sum[g]);
        }
      }
    }
#pragma unroll
    for (u32 g = 0; g < GROUP; ++g) {
      if (g < group) {
        p.partial[(((u64)row * p.heads + head0 + g) * parts + split) * record + d] = sum[g];
      }
    }
  }
  if (thread < group) {
    float* const end_of = p.partial + (((u64)row * p.heads + head0 + thread) * parts + split) * record + p.dim;
    end_of[0] = high[thread];
    end_of[1] = total[thread];
  }
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    is_last = atomicAdd(p.counters + row * p.kv_heads + kv, 1u) == splits - first_split - 1;
  }
  __syncthreads();
  if (!is_last) {
    return;
  }
  __threadfence();
  for (u32 g = 0; g < group; ++g) {
    float const* const parts_of = p.partial + ((u64)row * p.heads + head0 + g) * parts * record;
    float largest = -3.4e38f;
    for (u32 s = first_split; s < splits; ++s) {
      largest = fmaxf(largest, __ldcg(parts_of + s * record + p.dim));
    }
    for (u32 d = thread; d < p.dim; d += ATTEND) {
      float sum = 0.0f, weights = 0.0f;
      for (u32 s = first_split; s < splits; ++s) {
        float const* const one = parts_of + s * record;
        float const scale = __expf(__ldcg(one + p.dim) - largest);
        sum = fmaf(scale, __ldcg(one + d), sum);
        weights = fmaf(scale, __ldcg(one + p.dim + 1), weights);
      }
      p.out[((u64)row * p.heads + head0 + g) * p.dim + d] = narrow<KIND>(sum / weights);
    }
  }
  if (thread == 0) {
    p.counters[row * p.kv_heads + kv] = 0;
  }
}

extern "C" __global__ void __launch_bounds__(128) attend_f16(Attend p) { attend<1>(p); }
extern "C" __global__ void __launch_bounds__(128) attend_bf16(Attend p) { attend<2>(p); }

// out = residual + norm(x): Gemma's norms after attention and MLP. A block a row.
template <u32 KIND>
__device__ __forceinline__ void norm_add(u16 const* x, float const* norm, u16 const* residual, u16* out, u32 size, float eps) {
  __shared__ float sums[8];
  u64 const row = (u64)blockIdx.x * size;
  float square = 0.0f;
  for (u32 i = threadIdx.x; i < size; i += 256) {
    float const value = widen<KIND>(x[row + i]);
    square += value * value;
  }
  square = warp_sum(square);
  if (threadIdx.x % 32 == 0) {
    sums[threadIdx.x / 32] = square;
  }
  __syncthreads();
  float all = 0.0f;
  for (u32 i = 0; i < 8; ++i) {
    all += sums[i];
  }
  float const factor = rsqrtf(all / size + eps);
  for (u32 i = threadIdx.x; i < size; i += 256) {
    float const value = widen<KIND>(narrow<KIND>(widen<KIND>(x[row + i]) * factor * norm[i]));
    out[row + i] = narrow<KIND>(value + widen<KIND>(residual[row + i]));
  }
}

extern "C" __global__ void norm_add_f16(u16 const* x, float const* norm, u16 const* residual, u16* out, u32 size, float eps) {
  norm_add<1>(x, norm, residual, out, size, eps);
}
extern "C" __global__ void norm_add_bf16(u16 const* x, float const* norm, u16 const* residual, u16* out, u32 size, float eps) {
  norm_add<2>(x, norm, residual, out, size, eps);
}
