// In which order a block's tiles come. Producer and compute warps walk through them apart from each other and must
// agree.

// Columns of a plain tile, from `first` on; those from `end` on are not there. Gated, a strip's first tiles are gates
// and its last the products that they gate, so that one block has both.
struct TileColumns {
  u32 first, end;
};

__device__ __forceinline__ TileColumns tile_columns(u32 strip, u32 column, u32 across, u32 outputs, u32 gated) {
  u32 const half = across / 2, inner = outputs / 2;
  if (gated && column >= half) {
    return {min(inner + (strip * half + column - half) * PLAIN_TILE_N, outputs), outputs};
  }
  return gated ? TileColumns{(strip * half + column) * PLAIN_TILE_N, inner}
               : TileColumns{(strip * across + column) * PLAIN_TILE_N, outputs};
}

// A strip's tiles along the inputs, in steps: what a pair of warps multiplies at a time. PLAIN, a step is a tile;
// packed, eight tiles (four for each warp), `inputs` long.
struct KSteps {
  u32 count;                 // of a strip
  u32 inputs;                // of a step
  u32 chunk;                 // steps whose inputs fit into a buffer of shared memory
  u32 buffers, sum_buffers;  // packed: of inputs, and of the warps' sums of a strip, one or two each
};

// Floats from row to row of a warp's sums of a packed strip: a store's lanes, of four rows two apart and eight columns
// side by side, are then in different banks.
__device__ __forceinline__ u32 warp_sums_stride(u32 across) { return across * PACKED_TILE_N + 4; }

// Bytes of the warps' sums of a packed strip.
__device__ __forceinline__ u32 warp_sums_bytes(u32 across, u32 rows) {
  return COMPUTE_WARPS * rows * warp_sums_stride(across) * 4;
}

// Bytes of a buffer of inputs: from row to row 64 more than inputs, as InputStager::stride has it.
__device__ __forceinline__ u32 packed_inputs_bytes(KSteps const& steps, u32 rows) {
  return rows * (steps.chunk * steps.inputs * 2 + 64);
}

// All inputs at once are best, even beside one buffer of sums, which costs a barrier a strip: eight rows of 4096 inputs
// fit into 80 KB. Else they come in chunks, and if two fit, one is copied while the other is multiplied. A chunk has
// two steps at least, so that two strips' keep all pairs of warps busy between two barriers.
__device__ __forceinline__ KSteps packed_steps(PhaseDescriptor const& p, u32 rows) {
  u32 const count = (p.k_tiles * p.tiles_across + 7) / 8, inputs = 8 / p.tiles_across * p.tile_k;
  u32 const sums = warp_sums_bytes(p.tiles_across, rows);
  auto const fitting = [&](u32 room) { return (room / rows - 64) / (inputs * 2); };
  if (fitting(WORK_BYTES - 2 * sums) >= count) {
    return {count, inputs, count, 1, 2};
  }
  u32 const all = fitting(WORK_BYTES - sums), half = fitting((WORK_BYTES - sums) / 2);
  return all < count && half >= 2 ? KSteps{count, inputs, half, 2, 1} : KSteps{count, inputs, min(count, all), 1, 1};
}

// Units of a wide strip along the inputs.
__device__ __forceinline__ u32 wide_units(PhaseDescriptor const& p) {
  return (p.k_tiles + WIDE_TILES_DEEP - 1) / WIDE_TILES_DEEP;
}

// Steps from `from` to before `to`.
struct StepRange {
  u32 from, to;
};

// A block's way through its strips. Where the inputs do not fit at once they are staged in chunks, and two strips take
// turns with each chunk, so that it is staged half as often.
struct StripWalk {
  u32 steps, chunk, end;  // steps of a strip, steps of a chunk, the strip after the last
  u32 strip, from, to;    // the strip, and the steps of the chunk
  u32 first;              // the first of the two strips

  // The chunk that is staged after this one; an empty one after the last.
  __device__ __forceinline__ StepRange next_chunk() const {
    bool const is_over = to >= steps;
    if (is_over && first + 2 >= end) {
      return {0, 0};
    }
    return is_over ? StepRange{0, chunk} : StepRange{to, min(steps, to + chunk)};
  }

  __device__ __forceinline__ void next() {
    if (chunk >= steps || (strip == first && first + 1 < end)) {
      ++strip;
      return;
    }
    bool const is_over = to >= steps;
    first += is_over ? 2 : 0;
    from = is_over ? 0 : to;
    to = is_over ? chunk : min(steps, to + chunk);
    strip = first;
  }
};

__device__ __forceinline__ StripWalk walk_of(KSteps const& steps, u32 begin, u32 end) {
  return {steps.count, steps.chunk, end, begin, 0, steps.chunk, begin};
}
