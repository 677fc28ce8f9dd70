// Products of a warp's tile. Inputs are taken 32 at a time: with t = lane % 4 a lane has those from 8 t on, the first four of
// them for one matrix product (places 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of its sixteen), the others for the next.

// Where sixteen bytes of a row of a plain tile are: turned by this.
__device__ __forceinline__ u32 swizzle(u32 row) { return row / 8 % 4 * 2 + row % 2; }

// Activations of 32 inputs: two times [16 inputs, tokens].
struct BFragments {
  uint2 first, second;
};

__device__ __forceinline__ BFragments load_b_fragments(u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32;
  uint4 const v = lane / 4 < rows ? load_shared_16(x + lane / 4 * stride + lane % 4 * 16) : make_uint4(0, 0, 0, 0);
  return {make_uint2(v.x, v.y), make_uint2(v.z, v.w)};
}

// 32 inputs of 64 outputs.
template <u32 KIND>
__device__ __forceinline__ void mma_plain_tile(float (&sum)[4][4], u32 place, u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32;
  BFragments const b = load_b_fragments(x, stride, rows);
  uint4 a[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 const r = lane % 8, k = r / 2 * 8 + i / 4 * 4 + lane / 16 * 2 + r % 2, c = i % 4 * 2 + lane / 8 % 2;
    a[i] = ldmatrix_x4_trans(place + k * 128 + ((c ^ swizzle(k)) * 16));
  }
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    mma_m16n8k16<KIND>(sum[i % 4], a[i], i < 4 ? b.first : b.second);
  }
}

// A packed tile is 16 outputs of 128 (INT4) or 64 (INT8) inputs in 1024 bytes: for each 64 or 32 inputs and each lane sixteen
// bytes, for each 16 inputs of them one word or two, whose integers are those of `mma_m16n8k16`'s first operand. Then for each
// group of inputs and each pair of outputs g and g + 8 two float16 each: scale and second. A strip's tiles lie one after the
// other.
//
// Integers become float16 by setting an exponent; what that adds, `dequantize_bias`, is taken off the group's sum. Of INT4 the half
// words have, from bit 2 on, the second of the four pairs of integers, the first, the fourth and the third, whose last two
// bits come first in the half word: so that two are where they are wanted, 2^4 + q and 2^8 + q, and the other two once bytes
// are swapped.
template <u32 BITS>
__device__ __forceinline__ uint4 dequantize(u32 low, u32 high) {
  uint4 a;
  if (BITS == 4) {
    u32 const swapped = __byte_perm(low, 0, 0x2301);
    a.x = lop3_and_or(low, 0x03c003c0, 0x4c004c00);
    a.y = lop3_and_or(low, 0x003c003c, 0x5c005c00);
    a.z = lop3_and_or(swapped, 0x03c003c0, 0x4c004c00);
    a.w = lop3_and_or(swapped, 0x003c003c, 0x5c005c00);
  } else {
    u32 constexpr base = 0x64006400;
    a.x = __byte_perm(low, base, 0x5150);
    a.y = __byte_perm(low, base, 0x5352);
    a.z = __byte_perm(high, base, 0x5150);
    a.w = __byte_perm(high, base, 0x5352);
  }
  return a;
}

// What `dequantize` adds, of outputs g or g + 8.
template <u32 BITS>
__device__ __forceinline__ float dequantize_bias(bool is_high) {
  return BITS == 8 ? 1024.0f : is_high ? 256.0f : 16.0f;
}

// A group's terms: scale, and what is added once: what 0 stands for, or minus the scale for each unit of what stands for 0.
struct GroupTerms {
  float scale, second;
};

__device__ __forceinline__ GroupTerms group_terms(u32 word, bool is_minimum) {
  float const scale = widen<1>((u16)word), last = widen<1>((u16)(word >> 16));
  return {scale, last * (is_minimum ? 1.0f : -scale)};
}

// Of a pair's tiles this warp's four, ACROSS strips wide: sum[j] are those of a strip. GROUPS of a tile share terms; `totals`
// are the inputs' sums by group, [rows, stride_of_totals].
template <u32 BITS, u32 GROUPS, u32 ACROSS>
__device__ __forceinline__ void mma_packed_tiles(float (&sum)[2][4], bool is_minimum, u32 place, u32 x, u32 stride, u32 rows,
                                             float const* totals, u32 stride_of_totals) {
  u32 constexpr TILE_BYTES = 1024 + 64 * GROUPS, BLOCKS = 16 / BITS, DEEP = 4 / ACROSS;  // blocks of 32 inputs
  u32 const lane = threadIdx.x % 32;
  auto const tile = [&](u32 q) { return place + (q % ACROSS * 8 / ACROSS + q / ACROSS) * TILE_BYTES; };
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g) {
    float part[4][4] = {};
    uint4 w[4];
#pragma unroll
    for (u32 i = g * BLOCKS / GROUPS; i < (g + 1) * BLOCKS / GROUPS; ++i) {
      if (BITS == 8 || i % 2 == 0 || GROUPS == 4) {
#pragma unroll
        for (u32 q = 0; q < 4; ++q) {
          w[q] = load_shared_16(tile(q) + i * BITS / 8 * 512 + lane * 16);
        }
      }
      BFragments b[DEEP];
#pragma unroll
      for (u32 deep = 0; deep < DEEP; ++deep) {
        b[deep] = load_b_fragments(x + (deep * BLOCKS + i) * 64, stride, rows);
      }
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        u32 const word = i % 2 ? w[q].z : w[q].x;
        mma_m16n8k16<1>(part[q], BITS == 4 ? dequantize<BITS>(word, 0) : dequantize<BITS>(w[q].x, w[q].y), b[q / ACROSS].first);
      }
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        u32 const word = i % 2 ? w[q].w : w[q].y;
        mma_m16n8k16<1>(part[q], BITS == 4 ? dequantize<BITS>(word, 0) : dequantize<BITS>(w[q].z, w[q].w), b[q / ACROSS].second);
      }
    }
    float total[DEEP][2];
#pragma unroll
    for (u32 deep = 0; deep < DEEP; ++deep) {
      for (u32 e = 0; e < 2; ++e) {
        total[deep][e] = totals[min(lane % 4 * 2 + e, rows - 1) * stride_of_totals + deep * GROUPS + g];
      }
    }
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
      uint2 const words = load_shared_8(tile(q) + 1024 + g * 64 + lane / 4 * 8);
#pragma unroll
      for (u32 half = 0; half < 2; ++half) {
        GroupTerms const terms = group_terms(half ? words.y : words.x, is_minimum);
        float const offset = fmaf(-dequantize_bias<BITS>(half), terms.scale, terms.second);
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
          float& to = sum[q % ACROSS][half * 2 + e];
          to = fmaf(terms.scale, part[q][half * 2 + e], fmaf(offset, total[q / ACROSS][e], to));
        }
      }
    }
  }
}
