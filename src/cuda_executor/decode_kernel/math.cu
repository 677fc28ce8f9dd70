// Arithmetic that all phases need: 16-bit elements to float32 and back, sums over a warp, activations.

template <u32 KIND>
__device__ __forceinline__ float round_to(float value) {
  return widen<KIND>(narrow<KIND>(value));
}

template <u32 KIND>
__device__ __forceinline__ void unpack8(uint4 packed, float* to) {
  u32 const words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    to[2 * i] = widen<KIND>((u16)words[i]);
    to[2 * i + 1] = widen<KIND>((u16)(words[i] >> 16));
  }
}

template <u32 KIND>
__device__ __forceinline__ u32 pack2(float low, float high) {
  return narrow<KIND>(low) | (u32)narrow<KIND>(high) << 16;
}

__device__ __forceinline__ float warp_sum(float value) {
  for (u32 step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
  for (u32 step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  }
  return value;
}

__device__ __forceinline__ float soft_cap(float value, float cap) {
  return cap > 0.0f ? cap * tanhf(value / cap) : value;
}

// SiLU, or GELU's tanh approximation (Hendrycks & Gimpel 2016).
__device__ __forceinline__ float activate(float x, u32 gelu) {
  return gelu ? 0.5f * x * (1.0f + tanhf(0.7978845608f * x * (1.0f + 0.044715f * x * x))) : x / (1.0f + __expf(-x));
}
