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
  u32 count;   // of a strip
  u32 inputs;  // of a step
  u32 chunk;   // steps whose inputs fit into shared memory at once
};

// Bytes of the warps' sums of two packed strips, which lie before the inputs.
__device__ __forceinline__ u32 warp_sums_bytes(u32 across, u32 rows) {
  return (2 * COMPUTE_WARPS * rows * (across * PACKED_TILE_N + 1) * 4 + 127) / 128 * 128;
}

__device__ __forceinline__ KSteps packed_steps(PhaseDescriptor const& p, u32 rows) {
  u32 const count = (p.k_tiles * p.tiles_across + 7) / 8, inputs = 8 / p.tiles_across * p.tile_k;
  u32 const room = (WORK_BYTES - warp_sums_bytes(p.tiles_across, rows)) / rows - 192;
  return {count, inputs, min(count, room / (inputs * 2))};
}

// Units of a wide strip along the inputs.
__device__ __forceinline__ u32 wide_units(PhaseDescriptor const& p) {
  return (p.k_tiles + WIDE_TILES_DEEP - 1) / WIDE_TILES_DEEP;
}

// A block's way through its strips. Where the inputs do not fit at once they are staged in chunks, and two strips take
// turns with each chunk, so that it is staged half as often.
struct StripWalk {
  u32 steps, chunk, end;  // steps of a strip, steps of a chunk, the strip after the last
  u32 strip, from, to;    // the strip, and the steps of the chunk
  u32 first;              // the first of the two strips

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
