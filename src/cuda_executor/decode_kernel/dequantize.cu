// A packed matrix to [inputs, outputs] in float16, for TensorRT's engines: what it writes is four times (4 bits) or
// twice what it reads, so memory is all that should count. A warp unpacks a tile of two strips, 32 outputs, without
// waiting for any other; blocks that follow each other write beside each other, in the same rows of outputs. Each byte
// is read and written once, and goes by the caches as far as they allow.
//
// Grid (outputs of a block, tiles along the inputs).

u32 constexpr WARP_N = DEQUANTIZE_STRIPS * PACKED_TILE_N;

// Where in a warp's shared memory, [WARP_N outputs, 32 inputs], sixteen bytes of an output lie. Eight lanes that write
// them, or eight rows that one ldmatrix reads, are in different banks.
__device__ __forceinline__ u32 turned_place(u32 output, u32 part) { return output * 64 + (part ^ output / 8) * 16; }

// Two integers, as `dequantize` makes them, to their values: each is rounded to float32, then to float16.
__device__ __forceinline__ u32 scale_pair(u32 pair, u32 excess, GroupTerms const& terms) {
  u32 const q = sub_f16x2(pair, excess);  // exact
  return narrow_f16x2(fmaf(terms.scale, widen<FLOAT16>((u16)q), terms.offset),
                      fmaf(terms.scale, widen<FLOAT16>((u16)(q >> 16)), terms.offset));
}

// This lane's eight inputs, of 32, of outputs `output` and `output` + 8, to shared memory. They are `low` and `high`,
// in 4 bits one word each.
template <u32 BITS>
__device__ __forceinline__ void unpack_block(u8* turned, u32 output, uint4 const& v, uint2 words, bool is_minimum) {
  uint4 const low = BITS == 4 ? dequantize<BITS>(v.x, 0) : dequantize<BITS>(v.x, v.y);
  uint4 const high = BITS == 4 ? dequantize<BITS>(v.y, 0) : dequantize<BITS>(v.z, v.w);
  GroupTerms const first = group_terms(words.x, is_minimum), second = group_terms(words.y, is_minimum);
  u32 const excess = excess_pair<BITS>(false), excess_high = excess_pair<BITS>(true), part = threadIdx.x % 4;
  *(uint4*)(turned + turned_place(output, part)) =
      make_uint4(scale_pair(low.x, excess, first), scale_pair(low.z, excess, first), scale_pair(high.x, excess, first),
                 scale_pair(high.z, excess, first));
  *(uint4*)(turned + turned_place(output + 8, part)) =
      make_uint4(scale_pair(low.y, excess_high, second), scale_pair(low.w, excess_high, second),
                 scale_pair(high.y, excess_high, second), scale_pair(high.w, excess_high, second));
}

// A warp's 32 inputs from `first_k` on, from shared memory to their rows.
__device__ __forceinline__ void store_turned(DequantizeParams const& p, u8 const* turned, u32 first_k, u32 first_n) {
  u32 const lane = threadIdx.x % 32, n = first_n + lane % 4 * 8;
  // Row r of matrix m is output 8 (r / 2) + 2 m + r % 2, so that a lane gets eight outputs that lie side by side.
  u32 const output = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
#pragma unroll
  for (u32 part = 0; part < 4; ++part) {
    uint4 const row = ldmatrix_x4_trans(shared_address(turned) + turned_place(output, part));
    u32 const k = first_k + part * 8 + lane / 4;
    if (k < p.inputs && n < p.outputs) {
      u32 const to = p.input_order ? p.input_order[k] : k;
      store_once_16(p.out + (u64)to * p.outputs + n, row);
    }
  }
}

template <u32 BITS>
__device__ __forceinline__ void dequantize_matrix(DequantizeParams const& p) {
  u32 constexpr TILE_K = 512 / BITS, BLOCKS = 16 / BITS;  // inputs of a tile, and blocks of 32 of them
  __shared__ __align__(128) u8 turned[DEQUANTIZE_WARPS][WARP_N * 64];
  u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = (blockIdx.x * DEQUANTIZE_WARPS + warp) * WARP_N;
  if (n >= p.outputs) {
    return;
  }
  // There is an even number of strips, so both of them.
  u64 const strip_bytes = (u64)gridDim.y * p.tile_bytes;
  u8 const* const tile = p.weights + n / PACKED_TILE_N * strip_bytes + blockIdx.y * p.tile_bytes;
  u32 const group_size = min(p.group_size, TILE_K);
  uint4 w[DEQUANTIZE_STRIPS][2];
  uint2 words[DEQUANTIZE_STRIPS][BLOCKS];
#pragma unroll
  for (u32 s = 0; s < DEQUANTIZE_STRIPS; ++s) {
    u8 const* const from = tile + s * strip_bytes;
    w[s][0] = load_once_16(from + lane * 16);
    w[s][1] = load_once_16(from + 512 + lane * 16);
#pragma unroll
    for (u32 b = 0; b < BLOCKS; ++b) {
      u32 const group = b * 32 / group_size;
      words[s][b] = *(uint2 const*)(from + PACKED_TILE_QUANT_BYTES + group * GROUP_TERM_BYTES + lane / 4 * 8);
    }
  }
#pragma unroll
  for (u32 b = 0; b < BLOCKS; ++b) {
#pragma unroll
    for (u32 s = 0; s < DEQUANTIZE_STRIPS; ++s) {
      uint4 v = w[s][b * BITS / 8];
      if (BITS == 4 && b % 2) {
        v.x = v.z;
        v.y = v.w;
      }
      unpack_block<BITS>(turned[warp], s * PACKED_TILE_N + lane / 4, v, words[s][b], p.offset_kind == MINIMUM);
    }
    __syncwarp();
    store_turned(p, turned[warp], blockIdx.y * TILE_K + b * 32, n);
    __syncwarp();  // before the next block takes its place
  }
}

extern "C" __global__ void __launch_bounds__(32 * DEQUANTIZE_WARPS, 8) dequantize_int4(DequantizeParams p) {
  dequantize_matrix<4>(p);
}
extern "C" __global__ void __launch_bounds__(32 * DEQUANTIZE_WARPS, 8) dequantize_int8(DequantizeParams p) {
  dequantize_matrix<8>(p);
}
