// Inputs of many rows on their way to wide strips: as InputStager has them in shared memory, but with threads over all
// rows at once, since a chunk has few inputs of each.

struct RowsStager {
  InputStager of;  // the chunk

  // Bytes of a chunk of so many inputs.
  static __device__ __forceinline__ u32 bytes(u32 inputs, u32 group, u32 rows) {
    InputStager const of = {0, inputs / 8, group};
    return rows * (of.stride() + (group ? of.groups() * 4 : 0));
  }

  // Begins to copy.
  __device__ __forceinline__ void copy(PhaseContext const& c, u8* inputs) const {
    PhaseDescriptor const& p = c.p;
    u32 const to = shared_address(inputs), there = p.inputs - of.first, stride = of.stride();
#pragma unroll 4
    for (u32 i = threadIdx.x; i < c.rows * of.eights; i += COMPUTE_THREADS) {
      u32 const row = i / of.eights, eight = i % of.eights;
      u16 const* const x = p.x + (u64)source_row(c.s, p, row) * p.x_stride;
      if (p.input_order) {
        uint4* const at = (uint4*)(inputs + row * stride + eight * 16);
        *at = eight * 8 < there ? gather8(p, x, of.first + eight * 8) : make_uint4(0, 0, 0, 0);
      } else {
        bool const is_there = eight * 8 < there;
        cp_async_16(to + row * stride + eight * 16, is_there ? x + of.first + eight * 8 : p.x, is_there ? 16 : 0);
      }
    }
    cp_async_commit();
  }

  // Norms each input once it is there, and adds up groups. Lanes of a warp take inputs side by side, of which a group
  // is an aligned part.
  template <u32 KIND>
  __device__ __forceinline__ void finish(PhaseContext const& c, RmsScales const& scales, u8* inputs) const {
    PhaseDescriptor const& p = c.p;
    cp_async_wait_all();
    u32 const stride = of.stride(), count = c.rows * of.eights;
    float* const sums = (float*)(inputs + c.rows * stride);
    if (p.norm_weight || of.group) {
#pragma unroll 2
      for (u32 i = threadIdx.x; i < (count + 31) / 32 * 32; i += COMPUTE_THREADS) {
        u32 const row = min(i, count - 1) / of.eights, eight = min(i, count - 1) % of.eights;
        u32 const k = of.first + eight * 8;
        uint4* const at = (uint4*)(inputs + row * stride + eight * 16);
        uint4 x = *at;
        if (p.norm_weight && k < p.inputs) {
          x = apply_norm<KIND>(x, load_norm_weights(p, k), scales.of[row]);
          if (i < count) {
            *at = x;
          }
        }
        if (of.group) {
          float const sum = group_sum<KIND>(x, of.group);
          if (i < count && (eight & (of.group / 8 - 1)) == 0) {
            sums[row * of.groups() + (eight >> of.group_shift())] = sum;
          }
        }
      }
    }
    sync_compute_warps();
  }
};
