// What a warp multiplies of a wide strip: tiles of plain weights for half of the rows, or of packed weights for half of
// the outputs.

u32 constexpr HALF_BLOCKS = ROW_BLOCKS > 1 ? ROW_BLOCKS / 2 : 1;  // of eight rows: a warp's
enum : u32 { WIDE_SUM_STRIDE = WIDE_STRIP_N + 8 };                // floats from row to row of sums

// A warp's sums. Of plain weights: 64 outputs, four times 16, and the blocks of its half of the rows. Of packed weights
// [half of the rows, two times 16 outputs].
typedef float WideSums[4][HALF_BLOCKS][4];

// Inputs of a unit.
__device__ __forceinline__ u32 unit_inputs(PhaseDescriptor const& p) { return WIDE_TILES_DEEP * p.tile_k; }

// Second operands of a warp's rows for 32 inputs.
__device__ __forceinline__ void load_half_fragments(StagedInputs const& x, u32 offset, BFragments (&b)[HALF_BLOCKS]) {
  u32 const half = threadIdx.x / 32 % 2, lane = threadIdx.x % 32;
#pragma unroll
  for (u32 n = 0; n < HALF_BLOCKS; ++n) {
    u32 const row = (half * HALF_BLOCKS + n) * 8 + lane / 4;
    uint4 const v =
        row < x.rows ? load_shared_16(x.address + offset + row * x.stride + lane % 4 * 16) : make_uint4(0, 0, 0, 0);
    b[n] = {make_uint2(v.x, v.y), make_uint2(v.z, v.w)};
  }
}

// As mma_plain_tile, for a warp's rows.
template <u32 KIND>
__device__ __forceinline__ void mma_wide_plain_tile(WideSums& sum, u32 slot, StagedInputs const& x, u32 offset) {
  u32 const lane = threadIdx.x % 32, r = lane % 8;
  BFragments b[HALF_BLOCKS];
  load_half_fragments(x, offset, b);
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 const k = r / 2 * 8 + i / 4 * 4 + lane / 16 * 2 + r % 2, c = i % 4 * 2 + lane / 8 % 2;
    uint4 const a = ldmatrix_x4_trans(slot + k * 128 + ((c ^ swizzle(k)) * 16));
#pragma unroll
    for (u32 n = 0; n < HALF_BLOCKS; ++n) {
      mma_m16n8k16<KIND>(sum[i % 4][n], a, i < 4 ? b[n].first : b[n].second);
    }
  }
}

// What makes packed integers weights: (integer - zero) scale + minimum, in pairs of float16 of the same output. Scale,
// zero point and minimum are those of outputs g and g + 8 of a tile.
struct WideTerms {
  u32 scale[2], zero[2], minimum[2];
};

__device__ __forceinline__ WideTerms wide_terms(uint2 words, bool is_minimum) {
  WideTerms t;
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    u32 const word = half ? words.y : words.x, last = __byte_perm(word, 0, 0x3232);
    t.scale[half] = __byte_perm(word, 0, 0x1010);
    t.zero[half] = is_minimum ? 0 : last;
    t.minimum[half] = is_minimum ? last : 0;
  }
  return t;
}

// mma's first operand of 16 inputs from a lane's words. What `dequantize` adds is taken off first, then the zero point,
// both exactly; so weights are rounded once, as where they are unpacked for the engines.
template <u32 BITS>
__device__ __forceinline__ uint4 wide_weights(u32 low, u32 high, WideTerms const& t) {
  uint4 const d = dequantize<BITS>(low, high);
  auto const weight = [&](u32 pair, u32 half) {
    u32 const q = sub_f16x2(pair, excess_pair<BITS>(half));
    return fma_f16x2(sub_f16x2(q, t.zero[half]), t.scale[half], t.minimum[half]);
  };
  return make_uint4(weight(d.x, 0), weight(d.y, 1), weight(d.z, 0), weight(d.w, 1));
}

// Addresses of a lane's part of the second operands, by block of rows. Blocks beyond the last row read it again: what
// comes of that is not used.
typedef u32 RowAddresses[ROW_BLOCKS];

// This warp's two of the four tiles side by side, WIDE_TILES_DEEP tiles apart; `tile` is their place along the staged
// inputs.
template <u32 BITS, u32 GROUPS>
__device__ __forceinline__ void mma_wide_packed_tiles(WideSums& sum, u32 slot, RowAddresses const& rows, u32 tile,
                                                      bool is_minimum) {
  u32 constexpr TILE_BYTES = PACKED_TILE_QUANT_BYTES + GROUP_TERM_BYTES * GROUPS;
  u32 constexpr TILE_K = 512 / BITS, BLOCKS = 16 / BITS, TOGETHER = 4;  // of 32 inputs; of eight rows
  u32 const lane = threadIdx.x % 32;
  slot += threadIdx.x / 32 % 2 * 2 * WIDE_TILES_DEEP * TILE_BYTES;
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g) {
    WideTerms terms[2];
#pragma unroll
    for (u32 q = 0; q < 2; ++q) {
      terms[q] = wide_terms(load_shared_8(slot + q * WIDE_TILES_DEEP * TILE_BYTES + PACKED_TILE_QUANT_BYTES +
                                          g * GROUP_TERM_BYTES + lane / 4 * 8),
                            is_minimum);
    }
    uint4 w[2];
#pragma unroll
    for (u32 i = g * BLOCKS / GROUPS; i < (g + 1) * BLOCKS / GROUPS; ++i) {
      if (BITS == 8 || i % 2 == 0 || GROUPS == 4) {
#pragma unroll
        for (u32 q = 0; q < 2; ++q) {
          w[q] = load_shared_16(slot + q * WIDE_TILES_DEEP * TILE_BYTES + i * BITS / 8 * 512 + lane * 16);
        }
      }
      uint4 first[2], second[2];
#pragma unroll
      for (u32 q = 0; q < 2; ++q) {
        bool const is_odd = BITS == 4 && i % 2;
        first[q] = wide_weights<BITS>(is_odd ? w[q].z : w[q].x, w[q].y, terms[q]);
        second[q] = wide_weights<BITS>(BITS == 8 ? w[q].z : is_odd ? w[q].w : w[q].y, w[q].w, terms[q]);
      }
#pragma unroll
      for (u32 block = 0; block < ROW_BLOCKS; block += TOGETHER) {
        BFragments b[TOGETHER];
#pragma unroll
        for (u32 n = 0; n < TOGETHER; ++n) {
          uint4 const v = load_shared_16(rows[(block + n) % ROW_BLOCKS] + tile * TILE_K * 2 + i * 64);
          b[n] = {make_uint2(v.x, v.y), make_uint2(v.z, v.w)};
        }
#pragma unroll
        for (u32 step = 0; step < 2; ++step) {
#pragma unroll
          for (u32 q = 0; q < 2; ++q) {
#pragma unroll
            for (u32 n = 0; n < TOGETHER; ++n) {
              float (&to)[4] = sum[(block + n) / HALF_BLOCKS * 2 % 4 + q][(block + n) % HALF_BLOCKS];
              mma_m16n8k16<FLOAT16>(to, step ? second[q] : first[q], step ? b[n].second : b[n].first);
            }
          }
        }
      }
    }
  }
}
