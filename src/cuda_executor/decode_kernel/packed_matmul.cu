// Products of packed weights. Their tiles lie one behind the other, so narrow strips read as fast as wide ones: a strip
// is one or two tiles wide, there are enough to go round, and each is one block's alone. All eight warps share a strip
// along the inputs.
//
// Shared memory has the warps' sums of two strips, [2, COMPUTE_WARPS, rows, warp_sums_stride], so that warps may go on
// to the next strip while some still finish the last, or, where there is no room, of one; then the inputs, in one
// buffer or two.

__device__ __forceinline__ void swap(float (&a)[2][4], float (&b)[2][4]) {
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    float const kept = a[i / 4][i % 4];
    a[i / 4][i % 4] = b[i / 4][i % 4];
    b[i / 4][i % 4] = kept;
  }
}

// A block's strips, ACROSS tiles wide, of tiles with BITS for each integer and GROUPS groups of inputs.
template <u32 BITS, u32 GROUPS, u32 ACROSS>
struct PackedMatmul {
  static u32 constexpr TILES = 4 / ACROSS;  // of a warp along the inputs in one step
  static u32 constexpr TILE_BYTES = PACKED_TILE_QUANT_BYTES + GROUP_TERM_BYTES * GROUPS;

  PhaseContext const& c;
  TileRing& ring;
  KSteps const& steps;
  u8* inputs;
  u32 made;  // outputs of a strip

  __device__ __forceinline__ InputStager stager(StepRange chunk) const {
    return {chunk.from * steps.inputs, (chunk.to - chunk.from) * steps.inputs / 8};
  }

  // Where the inputs of a chunk are, of which so many were staged before.
  __device__ __forceinline__ u8* buffer(u32 number) const {
    return inputs + number % 2 * (steps.buffers - 1) * packed_inputs_bytes(steps, c.rows);
  }

  // Begins to copy the chunk after this one, if it has a buffer of its own; all warps are done with what is there.
  __device__ __forceinline__ void copy_ahead(StripWalk const& walk, u32 number) const {
    StepRange const next = walk.next_chunk();
    if (steps.buffers == 2 && next.to > 0) {
      stager(next).copy(c, buffer(number + 1));
    }
  }

  // Stages a chunk; where it was copied ahead, what is left to do.
  __device__ __forceinline__ void stage(StripWalk const& walk, RmsScales const& scales, u32 number) const {
    InputStager const chunk = stager({walk.from, walk.to});
    if (steps.buffers == 1) {
      sync_compute_warps();  // the chunk before was used
      chunk.copy(c, inputs);
    }
    chunk.template finish<FLOAT16>(c.p, c.rows, scales, chunk.early_norm_weights(c.p), buffer(number));
  }

  // Adds this warp's tiles of a strip in chunk `number`, from step `k` on, to its sums. Returns the step it would come
  // to next.
  __device__ __forceinline__ u32 multiply(StripWalk const& walk, u32 number, u32 k, float (&sum)[2][4]) {
    u32 const side = threadIdx.x / 32 % 2;
    StagedInputs const staged = {shared_address(buffer(number)), stager({walk.from, walk.to}).stride(), c.rows};
    bool const is_minimum = c.p.offset_kind == MINIMUM;
#pragma unroll 1
    for (; k < walk.to; k += PRODUCER_WARPS) {
      u32 const slot = ring.acquire() + side * TILES * TILE_BYTES, tile = ((k - walk.from) * 2 + side) * TILES;
      mma_packed_tiles<BITS, GROUPS, ACROSS>(sum, slot, staged, tile, is_minimum);
      ring.release();
    }
    return k;
  }

  __device__ __forceinline__ float* sums_of(u32 strip) const {
    return (float*)c.work + strip % 2 * (steps.sum_buffers - 1) * warp_sums_bytes(ACROSS, c.rows) / 4;
  }

  // This warp's sums of a strip to shared memory; they are zero then.
  __device__ __forceinline__ void store_warp_sums(u32 strip, float (&sum)[2][4]) const {
    u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32, rows = c.rows, stride = warp_sums_stride(ACROSS);
    float* const sums = sums_of(strip);
    if (steps.sum_buffers == 1) {
      sync_compute_warps();  // the strip before is finished
    }
#pragma unroll
    for (u32 i = 0; i < 4 * ACROSS; ++i) {
      u32 const row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        sums[(warp * rows + row) * stride + i / 4 * PACKED_TILE_N + i / 2 % 2 * 8 + lane / 4] = sum[i / 4][i % 4];
      }
      sum[i / 4][i % 4] = 0.0f;
    }
  }

  // Writes a strip's outputs. Some warps do, other ones each time, while the rest go on to the next strip.
  __device__ __forceinline__ void finish(u32 strip) const {
    PhaseDescriptor const& p = c.p;
    u32 const rows = c.rows, stride = warp_sums_stride(ACROSS), shift = made == PACKED_TILE_N ? 4 : 5;
#pragma unroll 1
    for (u32 i = (threadIdx.x + strip * 32) % COMPUTE_THREADS; i < (rows * made + 31) / 32 * 32; i += COMPUTE_THREADS) {
      bool const there = i < rows * made;
      u32 const row = min(i >> shift, rows - 1), column = i & (made - 1), n = strip * made + column;
      OutputSum sum = {0.0f, 0.0f, load_residual<FLOAT16>(p, row, n)};
      float const* const from = sums_of(strip) + row * stride + column;
#pragma unroll
      for (u32 w = 0; w < COMPUTE_WARPS; ++w) {
        sum.value += from[w * rows * stride + (p.gated ? PACKED_TILE_N : 0)];
        sum.gate += from[w * rows * stride];
      }
      float square = there ? store_output<FLOAT16>(c.s, p, row, n, sum) : 0.0f;
      if (p.out_squares) {
        square *= square;
        for (u32 step = made / 2; step > 0; step /= 2) {
          square += __shfl_xor_sync(0xffffffffu, square, step);
        }
        if (there && column == 0) {
          p.out_squares[row * p.strips + strip] = square;
        }
      }
    }
  }

  // All strips from `begin` to `end`. The first chunk of inputs is staged already.
  __device__ __forceinline__ void run(u32 begin, u32 end, RmsScales const& scales) {
    StripWalk walk = walk_of(steps, begin, end);
    u32 over = threadIdx.x / 64;  // how far this pair's next step is behind the begin of the next chunk
    u32 staged = 0, chunks = 0;   // the first step of the staged chunk; chunks up to it
    float sum[2][4] = {}, other[2][4] = {};
#pragma unroll 1
    for (; walk.strip < end; walk.next()) {
      if (chunks == 0 || walk.from != staged) {
        if (chunks > 0) {
          stage(walk, scales, chunks);
        }
        copy_ahead(walk, chunks);
        staged = walk.from;
        ++chunks;
      }
      over = multiply(walk, chunks - 1, walk.from + over, sum) - walk.to;
      if (walk.to < steps.count) {
        if (walk.first + 1 < end) {
          swap(sum, other);  // the other strip's turn
        }
        continue;
      }
      MARK(3);
      store_warp_sums(walk.strip, sum);
      swap(sum, other);
      sync_compute_warps();
      MARK(4);
      finish(walk.strip);
    }
  }
};

// Bit of TILE_KINDS, weight kind, bits of an integer, groups of a tile; as KINDS in packed_tiles.rs.
#define FOR_EACH_TILE_KIND(CASES) \
  CASES(0, INT4, 4, 1) CASES(1, INT4, 4, 2) CASES(2, INT4, 4, 4) CASES(3, INT8, 8, 1) CASES(4, INT8, 8, 2)

__device__ __forceinline__ void packed_matmul(PhaseContext const& c, TileRing& ring) {
  __shared__ RmsScales scales;
  PhaseDescriptor const& p = c.p;
  u32 const begin = p.first_units[c.worker] >> 16, end = p.first_units[c.worker + 1] >> 16, across = p.tiles_across;
  if (begin == end) {
    return;
  }
  KSteps const steps = packed_steps(p, c.rows);
  u8* const inputs = c.work + steps.sum_buffers * warp_sums_bytes(across, c.rows);
  InputStager const first = {0, steps.chunk * steps.inputs / 8};
  first.load_first<FLOAT16>(c, scales, inputs);
  u32 const made = p.gated ? PACKED_TILE_N : across * PACKED_TILE_N;
  switch ((p.weight_kind * 8 + (p.tile_bytes - PACKED_TILE_QUANT_BYTES) / GROUP_TERM_BYTES) * 2 + across / 2) {
#define CASES(bit, kind, bits, groups)                                                     \
  case (kind * 8 + groups) * 2:                                                            \
    if (TILE_KINDS >> bit & 1) {                                                           \
      PackedMatmul<bits, groups, 1>{c, ring, steps, inputs, made}.run(begin, end, scales); \
    }                                                                                      \
    break;                                                                                 \
  case (kind * 8 + groups) * 2 + 1:                                                        \
    if (TILE_KINDS >> bit & 1) {                                                           \
      PackedMatmul<bits, groups, 2>{c, ring, steps, inputs, made}.run(begin, end, scales); \
    }                                                                                      \
    break;
    FOR_EACH_TILE_KIND(CASES)
#undef CASES
  }
  complete_part(c);
  MARK(5);
}
