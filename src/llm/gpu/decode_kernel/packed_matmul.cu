// Products of packed weights. Strips are narrow, and a block's alone.

__device__ __forceinline__ void swap(float (&a)[2][4], float (&b)[2][4]) {
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    float const kept = a[i / 4][i % 4];
    a[i / 4][i % 4] = b[i / 4][i % 4];
    b[i / 4][i % 4] = kept;
  }
}

// A block's strips of packed weights: in shared memory all warps' sums of two strips, [2, COMPUTE_WARPS, rows, columns + 1], then
// inputs and their sums.
template <u32 BITS, u32 GROUPS, u32 ACROSS>
__device__ __forceinline__ void packed_strips(DecodeParams const& s, PhaseDescriptor const& p, u32 index, Ring& ring, u32 begin, u32 end, KSteps const& pairs,
                                              RmsScales const& factors, u8* work) {
  u32 constexpr OWN = 4 / ACROSS, DEEP = 512 / BITS, WIDE = ACROSS * PACKED_STRIP + 1;  // a warp's tiles along the inputs, inputs of one
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32, side = warp % 2, rows = s.rows;
  u32 const made = p.gated ? PACKED_STRIP : ACROSS * PACKED_STRIP, shift = made == PACKED_STRIP ? 4 : 5;
  u8* const inputs = work + partial_sum_bytes(ACROSS, rows);
  bool const is_minimum = p.offset_kind == MINIMUM;
  StripWalk walk = {pairs.all, pairs.chunk, end, begin, 0, pairs.chunk, begin};
  u32 over = warp / 2, staged = 0;  // how far behind the next chunk's begin this pair's next tiles are
  float sum[2][4] = {}, other[2][4] = {};
#pragma unroll 1
  for (; walk.strip < end; walk.next()) {
    u32 at = walk.from + over;
    InputStager const stage = {walk.from * pairs.deep, (walk.to - walk.from) * pairs.deep / 8, DEEP / GROUPS};
    if (walk.from != staged) {
      sync_compute_warps();  // those before were used
      stage.load<1>(p, rows, factors, inputs);
      staged = walk.from;
    }
    u32 const x = shared_address(inputs), stride = stage.stride();
    float const* const totals = (float const*)(inputs + rows * stride);
#pragma unroll 1
    for (; at < walk.to; at += WARP_PAIRS) {
      u32 const place = ring.next() + side * OWN * (1024 + 64 * GROUPS), tile = ((at - walk.from) * 2 + side) * OWN;
      mma_packed_tiles<BITS, GROUPS, ACROSS>(sum, is_minimum, place, x + tile * DEEP * 2, stride, rows, totals + tile * GROUPS, stage.sums());
      ring.release();
    }
    over = at - walk.to;
    if (walk.to < pairs.all) {
      if (walk.first + 1 < end) {
        swap(sum, other);  // the other strip's turn
      }
      continue;
    }
    MARK(3);
    u32 const strip = walk.strip;
    float* const mine = (float*)work + strip % 2 * COMPUTE_WARPS * rows * WIDE;
#pragma unroll
    for (u32 i = 0; i < 4 * ACROSS; ++i) {
      u32 const row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        mine[(warp * rows + row) * WIDE + i / 4 * PACKED_STRIP + i / 2 % 2 * 8 + lane / 4] = sum[i / 4][i % 4];
      }
      sum[i / 4][i % 4] = 0.0f;
    }
    swap(sum, other);
    sync_compute_warps();
    MARK(4);
    // Some warps finish the strip, other ones each time, while the rest go on.
#pragma unroll 1
    for (u32 i = (thread + strip * 32) % COMPUTE_THREADS; i < (rows * made + 31) / 32 * 32; i += COMPUTE_THREADS) {
      bool const there = i < rows * made;
      u32 const row = min(i >> shift, rows - 1), column = i & (made - 1), n = strip * made + column;
      float const residual = load_residual<1>(p, row, n);
      float const* const from = mine + row * WIDE + column;
      float value = 0.0f, gate = 0.0f;
#pragma unroll
      for (u32 w = 0; w < COMPUTE_WARPS; ++w) {
        value += from[w * rows * WIDE + (p.gated ? PACKED_STRIP : 0)];
        gate += from[w * rows * WIDE];
      }
      float square = there ? store_output<1>(s, p, row, n, value, gate, residual) : 0.0f;
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
}

__device__ __forceinline__ void packed_matmul(DecodeParams const& s, PhaseDescriptor const& p, u32 index, u32 me, Ring& ring, u8* work) {
  __shared__ RmsScales factors;
  u32 const rows = s.rows, begin = p.first_units[me] >> 16, end = p.first_units[me + 1] >> 16;
  if (begin == end) {
    return;
  }
  KSteps const pairs = k_steps_of(p, rows);
  u8* const inputs = work + partial_sum_bytes(p.tiles_across, rows);
  InputStager const first = {0, pairs.chunk * pairs.deep / 8, p.group_size};
  first.open<1>(s, p, index, factors, inputs);
  switch ((p.weight_kind * 8 + (p.tile_bytes - 1024) / 64) * 2 + p.tiles_across / 2) {
#define CASE(number, kind, bits, groups)                                                   \
  case (kind * 8 + groups) * 2:                                                            \
    if (TILE_KINDS >> number & 1) {                                                            \
      packed_strips<bits, groups, 1>(s, p, index, ring, begin, end, pairs, factors, work); \
    }                                                                                      \
    break;                                                                                 \
  case (kind * 8 + groups) * 2 + 1:                                                        \
    if (TILE_KINDS >> number & 1) {                                                            \
      packed_strips<bits, groups, 2>(s, p, index, ring, begin, end, pairs, factors, work); \
    }                                                                                      \
    break;
    CASE(0, INT4, 4, 1)
    CASE(1, INT4, 4, 2)
    CASE(2, INT4, 4, 4)
    CASE(3, INT8, 8, 1)
    CASE(4, INT8, 8, 2)
#undef CASE
  }
  signal_phase(s.counters + index);
  MARK(5);
}
