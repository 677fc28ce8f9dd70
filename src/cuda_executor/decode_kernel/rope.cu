// RMSNorm and rotary position embedding (Su et al. 2021) of one head, by one warp. Element i is rotated with element i
// + half the rotary dimension, as transformers has it.

u32 constexpr ROPE_PAIRS = MAX_HEAD_DIM / 64;  // pairs of elements that a lane rotates at most

// A position's angles, as a lane needs them: for elements lane + 32 j, and for those half the rotary dimension on.
struct RopeAngles {
  u16 cos[2][ROPE_PAIRS], sin[2][ROPE_PAIRS];
};

__device__ __forceinline__ RopeAngles load_angles(DecodeParams const& s, PhaseDescriptor const& p, u32 position) {
  u32 const half = p.rotary_dim / 2, lane = threadIdx.x % 32;
  u64 const first = (u64)min(position, s.rope_positions - 1) * p.rotary_dim;
  RopeAngles angles;
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
#pragma unroll
    for (u32 side = 0; side < 2; ++side) {
      u32 const i = lane + 32 * j;
      angles.cos[side][j] = i < half ? p.cos[first + side * half + i] : (u16)0;
      angles.sin[side][j] = i < half ? p.sin[first + side * half + i] : (u16)0;
    }
  }
  return angles;
}

// Two elements that are rotated together, by a lane's angles `j`.
struct RotatedPair {
  float low, high;
};

template <u32 KIND>
__device__ __forceinline__ RotatedPair rotate_pair(RopeAngles const& angles, u32 j, float low, float high) {
  return {low * widen<KIND>(angles.cos[0][j]) - high * widen<KIND>(angles.sin[0][j]),
          high * widen<KIND>(angles.cos[1][j]) + low * widen<KIND>(angles.sin[1][j])};
}

// A head as the product wrote it, its norm's weights if it has one, and what the rotated elements are multiplied with.
struct HeadInput {
  u16 const* x;
  float const* norm_weight;
  float scale;
};

// What the norm multiplies the head with: 1 / sqrt(mean of squares + eps). `read` has the elements that are rotated.
template <u32 KIND>
__device__ __forceinline__ float head_scale(DecodeParams const& s, u32 rotary_dim, u16 const* x,
                                            u16 const (&read)[2][ROPE_PAIRS]) {
  float square = 0.0f;
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    float const low = widen<KIND>(read[0][j]), high = widen<KIND>(read[1][j]);
    square = fmaf(low, low, fmaf(high, high, square));
  }
  for (u32 i = rotary_dim + threadIdx.x % 32; i < s.head_dim; i += 32) {
    float const value = widen<KIND>(load_cg_2(x + i));
    square = fmaf(value, value, square);
  }
  return rsqrtf(warp_sum(square) / s.head_dim + s.norm_eps);
}

// Norms and rotates a head, and hands each element to `store`. All elements are read before any is used.
template <u32 KIND, typename Store>
__device__ __forceinline__ void norm_and_rotate(PhaseContext const& c, HeadInput head, RopeAngles const& angles,
                                                Store store) {
  u32 const rotary_dim = c.p.rotary_dim, half = rotary_dim / 2, lane = threadIdx.x % 32;
  u16 read[2][ROPE_PAIRS];
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    read[0][j] = i < half ? load_cg_2(head.x + i) : (u16)0;
    read[1][j] = i < half ? load_cg_2(head.x + half + i) : (u16)0;
  }
  float const factor = head.norm_weight ? head_scale<KIND>(c.s, rotary_dim, head.x, read) : 1.0f;
  auto const normed = [&](u16 bits, u32 i) {
    float const value = widen<KIND>(bits);
    return head.norm_weight ? round_to<KIND>(value * factor * head.norm_weight[i]) : value;
  };
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    if (i < half) {
      float const low = normed(read[0][j], i), high = normed(read[1][j], half + i);
      RotatedPair const rotated = rotate_pair<KIND>(angles, j, low, high);
      store(i, narrow<KIND>(rotated.low * head.scale));
      store(half + i, narrow<KIND>(rotated.high * head.scale));
    }
  }
  for (u32 i = rotary_dim + lane; i < c.s.head_dim; i += 32) {
    store(i, narrow<KIND>(normed(load_cg_2(head.x + i), i) * head.scale));
  }
}
