// What becomes of a product's sums: bias, activation and gate, residual, soft cap, and squares for the next norm.

// The sum of an output, of its gate where it has one, and what is added to it last.
struct OutputSum {
  float value, gate, residual;
};

template <u32 KIND>
__device__ __forceinline__ float load_residual(PhaseDescriptor const& p, u32 row, u32 n) {
  return p.residual && n < p.outputs ? widen<KIND>(load_cg_2(p.residual + (u64)row * p.outputs + n)) : 0.0f;
}

// Writes an output; returns it as it was rounded, 0 where there is none.
template <u32 KIND>
__device__ __forceinline__ float store_output(DecodeParams const& s, PhaseDescriptor const& p, u32 row, u32 n,
                                              OutputSum sum) {
  u32 const outputs = p.gated ? p.outputs / 2 : p.outputs;
  u64 const at = (u64)row * outputs + n;
  float value = sum.value;
  if (n >= outputs) {
    return 0.0f;
  }
  if (p.out_is_float32) {
    ((float*)p.out)[at] = soft_cap(value, p.logit_softcap);
    return 0.0f;
  }
  if (p.bias) {
    value = round_to<KIND>(value) + widen<KIND>(p.bias[p.gated ? outputs + n : n]);
  }
  if (p.gated) {
    float const gate = p.bias ? round_to<KIND>(sum.gate) + widen<KIND>(p.bias[n]) : sum.gate;
    value = activate(round_to<KIND>(gate), s.gelu) * round_to<KIND>(value);
  }
  if (p.residual) {
    value = round_to<KIND>(value) + sum.residual;
  }
  value = round_to<KIND>(value);
  ((u16*)p.out)[at] = narrow<KIND>(value);
  return value;
}

// As store_output, of eight outputs side by side (sizes are multiples of eight), whose residuals were read before.
// Returns the sum of the squares of what was written.
template <u32 KIND>
__device__ __forceinline__ float store_outputs(DecodeParams const& s, PhaseDescriptor const& p, u32 row, u32 n,
                                               float (&value)[8], float const (&gate)[8], uint4 residuals) {
  u32 const outputs = p.gated ? p.outputs / 2 : p.outputs;
  u64 const at = (u64)row * outputs + n;
  if (p.out_is_float32) {
    float4* const to = (float4*)((float*)p.out + at);
    float const cap = p.logit_softcap;
#pragma unroll
    for (u32 i = 0; i < 8; i += 4) {
      to[i / 4] = {soft_cap(value[i], cap), soft_cap(value[i + 1], cap), soft_cap(value[i + 2], cap),
                   soft_cap(value[i + 3], cap)};
    }
    return 0.0f;
  }
  u16 const* const bias = p.bias;
  bool const gated = p.gated, gelu = s.gelu, has_residual = p.residual;
  float of[8] = {}, of_gate[8] = {}, residual[8];
  if (bias) {
    unpack8<KIND>(*(uint4 const*)(bias + (gated ? outputs + n : n)), of);
    unpack8<KIND>(*(uint4 const*)(bias + n), of_gate);
  }
  unpack8<KIND>(residuals, residual);
  float squares = 0.0f;
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    float v = bias ? round_to<KIND>(value[i]) + of[i] : value[i];
    if (gated) {
      float const g = bias ? round_to<KIND>(gate[i]) + of_gate[i] : gate[i];
      v = activate(round_to<KIND>(g), gelu) * round_to<KIND>(v);
    }
    if (has_residual) {
      v = round_to<KIND>(v) + residual[i];
    }
    value[i] = round_to<KIND>(v);
    squares = fmaf(value[i], value[i], squares);
  }
  *(uint4*)((u16*)p.out + at) = make_uint4(pack2<KIND>(value[0], value[1]), pack2<KIND>(value[2], value[3]),
                                           pack2<KIND>(value[4], value[5]), pack2<KIND>(value[6], value[7]));
  return squares;
}

// Sums of the squares of 32 outputs each, of a strip's rows.
typedef float StripSquares[MAX_ROWS][(ROW_BLOCKS > 1 ? NORM_ADD_STRIP_N : MAX_STRIP_N) / 32];

// Adds up each row's squares of a strip of so many outputs.
__device__ __forceinline__ void store_squares(PhaseContext const& c, u32 strip, u32 outputs,
                                              StripSquares const& squares) {
  if (c.p.out_squares == nullptr) {
    return;
  }
  sync_compute_warps();
  if (threadIdx.x < c.rows) {
    float all = 0.0f;
    for (u32 part = 0; part < outputs / 32; ++part) {
      all += squares[threadIdx.x][part];
    }
    c.p.out_squares[threadIdx.x * c.p.strips + strip] = all;
  }
}
