// A packed matrix to [inputs, outputs] in float16, for TensorRT's engines. Grid (tiles along the inputs, 64 outputs); a
// warp for each 32 inputs of each of four strips.

template <u32 BITS>
__device__ __forceinline__ void dequantize_matrix(DequantizeParams const& p) {
  u32 constexpr TILE_K = 512 / BITS, BLOCKS = 16 / BITS;
  u32 const lane = threadIdx.x % 32, block = threadIdx.x / 32 % BLOCKS, q = threadIdx.x / 32 / BLOCKS,
            strip = blockIdx.y * 4 + q;
  // Through shared memory: a row of outputs is written whole.
  __shared__ __align__(16) u16 transposed[TILE_K][PLAIN_TILE_N + 8];
  if (strip * PACKED_TILE_N < p.outputs) {
    u8 const* const tile = p.weights + ((u64)strip * gridDim.x + blockIdx.x) * p.tile_bytes;
    uint4 const w = *(uint4 const*)(tile + block * BITS / 8 * 512 + lane * 16);
    u32 const group = block * 32 / min(p.group_size, TILE_K);
    uint2 const words = *(uint2 const*)(tile + PACKED_TILE_QUANT_BYTES + group * GROUP_TERM_BYTES + lane / 4 * 8);
    bool const is_minimum = p.offset_kind == MINIMUM;
    GroupTerms const terms[2] = {group_terms(words.x, is_minimum), group_terms(words.y, is_minimum)};
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 const word = block % 2 ? (half ? w.w : w.z) : (half ? w.y : w.x);
      uint4 const a = BITS == 4 ? dequantize<BITS>(word, 0)
                      : half    ? dequantize<BITS>(w.z, w.w)
                                : dequantize<BITS>(w.x, w.y);
      u32 const pairs[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        u32 const k = block * 32 + lane % 4 * 8 + half * 4 + i / 4 * 2 + i % 2, m = i / 2 % 2;
        float const value = widen<FLOAT16>((u16)(pairs[i / 2] >> (16 * (i % 2)))) - dequantize_bias<BITS>(m);
        transposed[k][q * PACKED_TILE_N + m * 8 + lane / 4] =
            narrow<FLOAT16>(fmaf(terms[m].scale, value, terms[m].offset));
      }
    }
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < TILE_K * 8; i += 128 * BLOCKS) {
    u32 const k = blockIdx.x * TILE_K + i / 8, n = blockIdx.y * PLAIN_TILE_N + i % 8 * 8;
    if (k < p.inputs && n < p.outputs) {
      u32 const to = p.input_order ? p.input_order[k] : k;
      *(uint4*)(p.out + (u64)to * p.outputs + n) = *(uint4 const*)&transposed[i / 8][i % 8 * 8];
    }
  }
}

extern "C" __global__ void dequantize_int4(DequantizeParams p) { dequantize_matrix<4>(p); }
extern "C" __global__ void dequantize_int8(DequantizeParams p) { dequantize_matrix<8>(p); }
