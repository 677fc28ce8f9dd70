// Inputs of many rows on their way to wide strips: as InputStager has them in shared memory, but with threads over all
// rows at once, since a chunk has few inputs of each. A thread has the same eight inputs of every so many rows, so it
// reads their norm's weights once.

struct RowsStager {
  InputStager of;  // the chunk
  u32 shift;       // 2^shift is as many times eight as chunks have at most, COMPUTE_THREADS or fewer

  // Bytes of a chunk of so many inputs, with rows as far apart as InputStager has them.
  static __device__ __forceinline__ u32 bytes(u32 inputs, u32 rows) { return rows * (inputs * 2 + 64); }

  __device__ __forceinline__ u32 eight() const { return threadIdx.x & ((1u << shift) - 1); }
  __device__ __forceinline__ u32 first_row() const { return threadIdx.x >> shift; }
  __device__ __forceinline__ u32 next_rows() const { return COMPUTE_THREADS >> shift; }

  // Begins to copy.
  __device__ __forceinline__ void copy(PhaseContext const& c, u8* inputs) const {
    PhaseDescriptor const& p = c.p;
    u32 const stride = of.stride(), k = of.first + eight() * 8;
    u8* const to = inputs + eight() * 16;
    if (eight() < of.eights) {
#pragma unroll 4
      for (u32 row = first_row(); row < c.rows; row += next_rows()) {
        u16 const* const x = p.x + (u64)source_row(c.s, p, row) * p.x_stride;
        if (p.input_order) {
          *(uint4*)(to + row * stride) = k < p.inputs ? gather8(p, x, k) : make_uint4(0, 0, 0, 0);
        } else {
          cp_async_16(shared_address(to) + row * stride, k < p.inputs ? x + k : p.x, k < p.inputs ? 16 : 0);
        }
      }
    }
    cp_async_commit();
  }

  // Waits for what this thread has copied, and norms it.
  template <u32 KIND>
  __device__ __forceinline__ void norm(PhaseContext const& c, RmsScales const& scales, u8* inputs) const {
    PhaseDescriptor const& p = c.p;
    u32 const stride = of.stride(), k = of.first + eight() * 8;
    bool const is_normed = p.norm_weight && eight() < of.eights && k < p.inputs;
    NormWeights const weights = is_normed ? load_norm_weights(p, k) : NormWeights{};
    cp_async_wait_all();
    if (is_normed) {
#pragma unroll 4
      for (u32 row = first_row(); row < c.rows; row += next_rows()) {
        uint4* const at = (uint4*)(inputs + eight() * 16 + row * stride);
        *at = apply_norm<KIND>(*at, weights, scales.of[row]);
      }
    }
  }

  // The same, of all threads.
  template <u32 KIND>
  __device__ __forceinline__ void finish(PhaseContext const& c, RmsScales const& scales, u8* inputs) const {
    norm<KIND>(c, scales, inputs);
    sync_compute_warps();
  }
};
