// out = residual + RMSNorm(x): Gemma's norms after attention and MLP.

template <u32 KIND>
__device__ __forceinline__ void norm_add(PhaseContext const& c) {
  RmsScales& scales = *(RmsScales*)c.work;
  StripSquares& squares = *(StripSquares*)(c.work + sizeof(RmsScales));
  PhaseDescriptor const& p = c.p;
  u32 constexpr width = NORM_ADD_STRIP_N;
  if (blockIdx.x >= p.strips) {
    return;
  }
  wait_for_phase_before(c);
  rms_scales<KIND>(c, p.outputs, scales);
  for (u32 strip = blockIdx.x; strip < p.strips; strip += gridDim.x) {
    for (u32 i = threadIdx.x; i < c.rows * width; i += COMPUTE_THREADS) {
      u32 const row = i / width, n = strip * width + i % width;
      u64 const at = (u64)row * p.outputs + n;
      float value = 0.0f;
      if (n < p.outputs) {
        float const x = widen<KIND>(load_cg_2(p.x + at)), residual = widen<KIND>(load_cg_2(p.residual + at));
        value = round_to<KIND>(round_to<KIND>(x * scales.of[row] * p.norm_weight[n]) + residual);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      float const part = warp_sum(value * value);
      if (threadIdx.x % 32 == 0) {
        squares[row][i % width / 32] = part;
      }
    }
    store_squares(c, strip, width, squares);
    complete_part(c);
  }
}
