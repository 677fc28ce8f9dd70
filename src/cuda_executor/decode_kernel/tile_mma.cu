// A warp multiplies its tiles of weights by activations: sum [n, rows] += weights [n, k] * x [k, rows], so weights are
// mma's first operand (a) and the sequences its eight columns (b).
//
// Which k is which is free, if both operands agree. Here, of 32 inputs, lane t = lane % 4 has the eight from 8 t on, as
// they lie in memory: the first four are k = 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of one mma, the last four of the next. So a
// lane reads its activations of 32 inputs in one load of 16 bytes.

// The sixteen bytes c (of eight) of row k of a plain tile lie at c ^ swizzle(k): the eight rows that one ldmatrix reads
// are then in different banks.
__device__ __forceinline__ u32 swizzle(u32 row) { return row / 8 % 4 * 2 + row % 2; }

// Activations of 32 inputs: the second operands of two mma, [16 inputs, MAX_ROWS] each.
struct BFragments {
  uint2 first, second;
};

__device__ __forceinline__ BFragments load_b_fragments(StagedInputs const& x, u32 offset) {
  u32 const row = threadIdx.x % 32 / 4, at = x.address + offset + row * x.stride + threadIdx.x % 4 * 16;
  uint4 const v = row < x.rows ? load_shared_16(at) : make_uint4(0, 0, 0, 0);
  return {make_uint2(v.x, v.y), make_uint2(v.z, v.w)};
}

// Adds a plain tile, 32 inputs by 64 outputs, to the sums of its outputs: four times 16. Its inputs are `offset` bytes
// on.
template <u32 KIND>
__device__ __forceinline__ void mma_plain_tile(float (&sum)[4][4], u32 slot, StagedInputs const& x, u32 offset) {
  u32 const lane = threadIdx.x % 32;
  BFragments const b = load_b_fragments(x, offset);
  uint4 a[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 const r = lane % 8, k = r / 2 * 8 + i / 4 * 4 + lane / 16 * 2 + r % 2, c = i % 4 * 2 + lane / 8 % 2;
    a[i] = ldmatrix_x4_trans(slot + k * 128 + ((c ^ swizzle(k)) * 16));
  }
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    mma_m16n8k16<KIND>(sum[i % 4], a[i], i < 4 ? b.first : b.second);
  }
}

// A packed tile is 16 outputs by 128 (INT4) or 64 (INT8) inputs: 1024 bytes of integers, then for each group of inputs
// and each pair of outputs g and g + 8 two float16 each, scale and offset. The integers lie as the lanes want them: for
// each 64 (INT4) or 32 (INT8) inputs and each lane sixteen bytes, of which one word (INT4) or two (INT8) are mma's
// first operand for 16 inputs. packed_tiles.rs writes them; README.md has a drawing. The tiles of a strip lie one
// behind the other.
//
// Integers become float16 by putting their bits below a set exponent (as in Kim et al. 2022, "Who Says Elephants Can't
// Run"; Marlin and AWQ's kernels do the same). Of INT4 a half word has the bits of four integers so that two of them
// are where they are wanted, as 2^4 + q and 2^8 + q, and the other two once bytes are swapped: one lop3 for each pair
// of integers. From bit 2 on a half word has the integers of operands y, x, w and z, the last split: its two high bits
// are the half word's first. What is so added to each integer, `dequantize_bias`, is taken off the group's sum.
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

// What `dequantize` adds to integers of outputs g, or (high) g + 8.
template <u32 BITS>
__device__ __forceinline__ float dequantize_bias(bool is_high) {
  return BITS == 8 ? 1024.0f : is_high ? 256.0f : 16.0f;
}

// `dequantize_bias` twice, in float16.
template <u32 BITS>
__device__ __forceinline__ u32 excess_pair(bool is_high) {
  return BITS == 8 ? 0x64006400 : is_high ? 0x5c005c00 : 0x4c004c00;
}

// A group's terms: value = scale * integer + offset.
struct GroupTerms {
  float scale, offset;
};

__device__ __forceinline__ GroupTerms group_terms(u32 word, bool is_minimum) {
  float const scale = widen<FLOAT16>((u16)word), last = widen<FLOAT16>((u16)(word >> 16));
  return {scale, last * (is_minimum ? 1.0f : -scale)};
}

// Adds 32 inputs of each row to the row's sum of inputs, a product with ones: tensor cores have time. A lane's first
// two sums are then of its own two rows; in shared memory they would have to be made by shuffles before, and read with
// bank conflicts.
__device__ __forceinline__ void add_inputs(float (&total)[4], BFragments const& x) {
  u32 constexpr ONES = 0x3c003c00;
  uint4 const ones = make_uint4(ONES, ONES, ONES, ONES);
  mma_m16n8k16<FLOAT16>(total, ones, x.first);
  mma_m16n8k16<FLOAT16>(total, ones, x.second);
}

// Adds a group's share of sixteen outputs to their sums: `part` is what mma made of it, `total` the inputs' sums.
template <u32 BITS>
__device__ __forceinline__ void add_group(float (&sum)[4], float const (&part)[4], float const (&total)[2], uint2 words,
                                          bool is_minimum) {
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    GroupTerms const terms = group_terms(half ? words.y : words.x, is_minimum);
    float const offset = fmaf(-dequantize_bias<BITS>(half), terms.scale, terms.offset);
#pragma unroll
    for (u32 e = 0; e < 2; ++e) {
      float& to = sum[half * 2 + e];
      to = fmaf(terms.scale, part[half * 2 + e], fmaf(offset, total[e], to));
    }
  }
}

// Adds a warp's four packed tiles, ACROSS side by side, to the sums of its ACROSS times 16 outputs; `tile` is the first
// of them along the staged inputs. With value = scale * q + offset and d = q + bias, which is what mma multiplies, sum
// value x = scale * sum d x + (offset - scale * bias) * sum x: float32 sums are scaled, once for each of a tile's
// GROUPS groups.
template <u32 BITS, u32 GROUPS, u32 ACROSS>
__device__ __forceinline__ void mma_packed_tiles(float (&sum)[2][4], u32 slot, StagedInputs const& x, u32 tile,
                                                 bool is_minimum) {
  u32 constexpr TILE_BYTES = PACKED_TILE_QUANT_BYTES + GROUP_TERM_BYTES * GROUPS;
  u32 constexpr TILE_K = 512 / BITS, BLOCKS = 16 / BITS,
                DEEP = 4 / ACROSS;  // BLOCKS of 32 inputs, DEEP tiles along the inputs
  u32 const lane = threadIdx.x % 32;
  auto const tile_at = [&](u32 q) { return slot + (q % ACROSS * 8 / ACROSS + q / ACROSS) * TILE_BYTES; };
#pragma unroll
  for (u32 g = 0; g < GROUPS; ++g) {
    float part[4][4] = {}, total[DEEP][4] = {};
    uint4 w[4];
#pragma unroll
    for (u32 i = g * BLOCKS / GROUPS; i < (g + 1) * BLOCKS / GROUPS; ++i) {
      if (BITS == 8 || i % 2 == 0 || GROUPS == 4) {
#pragma unroll
        for (u32 q = 0; q < 4; ++q) {
          w[q] = load_shared_16(tile_at(q) + i * BITS / 8 * 512 + lane * 16);
        }
      }
      BFragments b[DEEP];
#pragma unroll
      for (u32 deep = 0; deep < DEEP; ++deep) {
        b[deep] = load_b_fragments(x, tile * TILE_K * 2 + (deep * BLOCKS + i) * 64);
        add_inputs(total[deep], b[deep]);
      }
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        u32 const word = i % 2 ? w[q].z : w[q].x;
        mma_m16n8k16<FLOAT16>(part[q], BITS == 4 ? dequantize<BITS>(word, 0) : dequantize<BITS>(w[q].x, w[q].y),
                              b[q / ACROSS].first);
      }
#pragma unroll
      for (u32 q = 0; q < 4; ++q) {
        u32 const word = i % 2 ? w[q].w : w[q].y;
        mma_m16n8k16<FLOAT16>(part[q], BITS == 4 ? dequantize<BITS>(word, 0) : dequantize<BITS>(w[q].z, w[q].w),
                              b[q / ACROSS].second);
      }
    }
#pragma unroll
    for (u32 q = 0; q < 4; ++q) {
      uint2 const words = load_shared_8(tile_at(q) + PACKED_TILE_QUANT_BYTES + g * GROUP_TERM_BYTES + lane / 4 * 8);
      float const(&inputs)[4] = total[q / ACROSS], inputs_of_rows[2] = {inputs[0], inputs[1]};
      add_group<BITS>(sum[q % ACROSS], part[q], inputs_of_rows, words, is_minimum);
    }
  }
}
