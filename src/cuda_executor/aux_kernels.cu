// The small kernels around TensorRT's engines: masks, rotary rows, caches, embeddings, and weights on their way in.
// Compiled at run time (NVRTC) without any header. Element kinds: 0 float32, 1 float16, 2 bfloat16.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __forceinline__ float widen(u16 bits, u32 kind) {
  if (kind == 2) {
    return __uint_as_float((u32)bits << 16);
  }
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ u16 narrow(float value, u32 kind) {
  if (kind == 2) {  // to nearest, ties to even; a NaN keeps its top bits
    u32 const bits = __float_as_uint(value);
    bool const nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return nan ? (u16)(bits >> 16 | 64) : (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
  }
  u16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
  return out;
}

__device__ __forceinline__ float load(void const* data, u64 index, u32 kind) {
  return kind == 0 ? ((float const*)data)[index] : widen(((u16 const*)data)[index], kind);
}

__device__ __forceinline__ void store(void* data, u64 index, float value, u32 kind) {
  if (kind == 0) {
    ((float*)data)[index] = value;
  } else {
    ((u16*)data)[index] = narrow(value, kind);
  }
}

// A value that float16 cannot hold becomes infinite: that is as bad as one that was so before.
__device__ __forceinline__ void check(float value, u32 kind, u32* bad) {
  if (!(fabsf(value) <= (kind == 1 ? 65504.0f : 3.4e38f))) {
    atomicAdd(bad, 1u);
  }
}

// in [rows, columns] -> out[k * stride + first + r]: a checkpoint's [outputs, inputs] into the engine's [inputs,
// outputs], beside other parts. Block (32, 8), grid (columns / 32, rows / 32).
extern "C" __global__ void transpose(void const* in, u32 in_kind, void* out, u32 out_kind, u32 rows, u32 columns,
                                     u32 stride, u32 first, u32* bad) {
  __shared__ float tile[32][33];
  u32 const k0 = blockIdx.x * 32, r0 = blockIdx.y * 32;
  for (u32 y = threadIdx.y; y < 32; y += 8) {
    if (r0 + y < rows && k0 + threadIdx.x < columns) {
      float const value = load(in, (u64)(r0 + y) * columns + k0 + threadIdx.x, in_kind);
      check(value, out_kind, bad);
      tile[y][threadIdx.x] = value;
    }
  }
  __syncthreads();
  for (u32 y = threadIdx.y; y < 32; y += 8) {
    if (k0 + y < columns && r0 + threadIdx.x < rows) {
      store(out, (u64)(k0 + y) * stride + first + r0 + threadIdx.x, tile[threadIdx.x][y], out_kind);
    }
  }
}

// out[first + i] = in[i] * scale + offset.
extern "C" __global__ void convert(void const* in, u32 in_kind, void* out, u32 out_kind, u64 count, u64 first,
                                   float scale, float offset, u32* bad) {
  u64 const i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) {
    float const value = load(in, i, in_kind) * scale + offset;
    check(value, out_kind, bad);
    store(out, first + i, value, out_kind);
  }
}

// mask [batch, group * chunk, cache + chunk]; see Sight::mask. Grid (columns / 256, group * chunk, batch).
extern "C" __global__ void mask(void* out, u32 kind, u32 const* cached, u32 chunk, u32 cache, u32 window,
                                float hidden) {
  u32 const width = cache + chunk;
  u32 const column = blockIdx.x * blockDim.x + threadIdx.x;
  if (column >= width) {
    return;
  }
  u32 const past = cached[blockIdx.z];
  u32 const query = past + blockIdx.y % chunk;
  bool const is_past = column < cache;
  u32 const key = is_past ? column : past + column - cache;
  bool const seen = (is_past ? key < past : key <= query) && (window == 0 || key + window > query);
  u64 const row = (u64)blockIdx.z * gridDim.y + blockIdx.y;
  store(out, row * width + column, seen ? 0.0f : hidden, kind);
}

// Rows of a table [positions, words] for each sequence's next positions: out [batch, chunk, words]. Grid (chunk,
// batch).
extern "C" __global__ void rotary(u32 const* table, u32* out, u32 const* cached, u32 words, u32 last) {
  u32 const position = min(cached[blockIdx.y] + blockIdx.x, last);
  u64 const row = (u64)blockIdx.y * gridDim.x + blockIdx.x;
  for (u32 i = threadIdx.x; i < words; i += blockDim.x) {
    out[row * words + i] = table[(u64)position * words + i];
  }
}

// New keys and values [batch, heads, chunk, words] behind the cached ones [batch, heads, capacity, words]. Grid (chunk,
// batch * heads).
extern "C" __global__ void append(u32 const* key, u32 const* value, u32* keys, u32* values, u32 const* cached,
                                  u32 const* count, u32 heads, u32 capacity, u32 words) {
  u32 const sequence = blockIdx.y / heads;
  if (blockIdx.x >= count[sequence]) {
    return;
  }
  u64 const from = ((u64)blockIdx.y * gridDim.x + blockIdx.x) * words;
  u64 const to = ((u64)blockIdx.y * capacity + cached[sequence] + blockIdx.x) * words;
  for (u32 i = threadIdx.x; i < words; i += blockDim.x) {
    keys[to + i] = key[from + i];
    values[to + i] = value[from + i];
  }
}

// A row's largest magnitude, by one warp.
__device__ __forceinline__ float largest_of(void const* in, u64 first, u32 dim, u32 kind) {
  float largest = 0.0f;
  for (u32 i = threadIdx.x % 32; i < dim; i += 32) {
    largest = fmaxf(largest, fabsf(load(in, first + i, kind)));
  }
  for (u32 step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  return largest;
}

// The same of caches in 8 bits [batch, heads, capacity, dim], integers plus 128, each row with what they are multiplied
// with [batch, heads, capacity]. Block 64: a warp for the key, one for the value.
extern "C" __global__ void append8(void const* key, void const* value, u32 kind, u8* keys, u8* values,
                                   float* key_scales, float* value_scales, u32 const* cached, u32 const* count,
                                   u32 heads, u32 capacity, u32 dim) {
  u32 const sequence = blockIdx.y / heads;
  if (blockIdx.x >= count[sequence]) {
    return;
  }
  bool const is_key = threadIdx.x < 32;
  void const* const in = is_key ? key : value;
  u64 const from = ((u64)blockIdx.y * gridDim.x + blockIdx.x) * dim;
  u64 const to = (u64)blockIdx.y * capacity + cached[sequence] + blockIdx.x;
  float const largest = largest_of(in, from, dim, kind), inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  u8* const out = (is_key ? keys : values) + to * dim;
  for (u32 i = threadIdx.x % 32; i < dim; i += 32) {
    out[i] = (u8)(int)(rintf(load(in, from + i, kind) * inverse) + 128.0f);
  }
  if (threadIdx.x % 32 == 0) {
    (is_key ? key_scales : value_scales)[to] = largest / 127.0f;
  }
}

// Such caches as the engines want them, as far as they are filled. Grid (capacity, batch * heads), block 64.
extern "C" __global__ void widen8(u8 const* keys, u8 const* values, float const* key_scales, float const* value_scales,
                                  void* key, void* value, u32 kind, u32 const* cached, u32 heads, u32 dim) {
  if (blockIdx.x >= cached[blockIdx.y / heads]) {
    return;
  }
  bool const is_key = threadIdx.x < 32;
  u64 const row = (u64)blockIdx.y * gridDim.x + blockIdx.x;
  float const scale = (is_key ? key_scales : value_scales)[row];
  u8 const* const in = is_key ? keys : values;
  for (u32 i = threadIdx.x % 32; i < dim; i += 32) {
    store(is_key ? key : value, row * dim + i, ((int)in[row * dim + i] - 128) * scale, kind);
  }
}

// Blocks [from, words] to blocks [to, words], the rows both have. Grid (rows, blocks).
extern "C" __global__ void spread(u32 const* in, u32* out, u32 from, u32 to, u32 words) {
  u64 const source = ((u64)blockIdx.y * from + blockIdx.x) * words;
  u64 const target = ((u64)blockIdx.y * to + blockIdx.x) * words;
  for (u32 i = threadIdx.x; i < words; i += blockDim.x) {
    out[target + i] = in[source + i];
  }
}
