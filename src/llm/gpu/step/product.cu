// Products of activations and weights, strip of outputs by strip. Plain weights are read in wide strips, for memory likes long
// rows: a block's stretch of tiles may begin and end within a strip, and who comes last to a strip adds the parts, always in
// the same order. Strips of packed weights are narrow, and a block's alone.

// Eight inputs of a row that are not in their place.
__device__ __forceinline__ uint4 gathered(Phase const& p, u32 row, u32 k) {
  u16 const* const from = p.x + (u64)row * p.stride;
  u32 x[4] = {};
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    x[i / 2] |= (u32)read2(from + p.order[k + i]) << (i % 2 * 16);
  }
  return make_uint4(x[0], x[1], x[2], x[3]);
}

// RMSNorm's weights of eight inputs.
struct Weights {
  float4 low, high;
};

__device__ __forceinline__ Weights norms_of(Phase const& p, u32 k) {
  if (p.order) {
    u32 const* const at = p.order + k;
    float const* const n = p.norm;
    return {{n[at[0]], n[at[1]], n[at[2]], n[at[3]]}, {n[at[4]], n[at[5]], n[at[6]], n[at[7]]}};
  }
  return {*(float4 const*)(p.norm + k), *(float4 const*)(p.norm + k + 4)};
}

// Eight inputs, normed with the row's factor.
template <u32 KIND>
__device__ __forceinline__ uint4 normed(uint4 x, Weights const& norm, float factor) {
  float v[8];
  unpack<KIND>(x, v);
  return make_uint4(pair<KIND>(v[0] * (factor * norm.low.x), v[1] * (factor * norm.low.y)),
                    pair<KIND>(v[2] * (factor * norm.low.z), v[3] * (factor * norm.low.w)),
                    pair<KIND>(v[4] * (factor * norm.high.x), v[5] * (factor * norm.high.y)),
                    pair<KIND>(v[6] * (factor * norm.high.z), v[7] * (factor * norm.high.w)));
}

// What RMSNorm multiplies each row with: 1 / sqrt(mean of squares + eps). As many warps as there can be for each row.
struct Factors {
  float parts[ROWS][WARPS], of[ROWS];
};

template <u32 KIND>
__device__ __forceinline__ void norm_factors(Step const& s, Phase const& p, u32 size, Factors& factors) {
  u32 const rows = s.rows, warps = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  u32 const lane = threadIdx.x % 32, row = threadIdx.x / 32 / warps, part = threadIdx.x / 32 % warps;
  if (row < rows) {
    float square = 0.0f;
    if (p.squares) {
#pragma unroll 1
      for (u32 i = part * 32 + lane; i < p.square_count; i += warps * 32) {
        square += __ldcg(p.squares + row * p.square_count + i);
      }
    } else {
#pragma unroll 1
      for (u32 k = (part * 32 + lane) * 8; k < size; k += warps * 256) {
        float value[8];
        unpack<KIND>(read16(p.x + (u64)row * p.stride + k), value);
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
          square = fmaf(value[i], value[i], square);
        }
      }
    }
    square = warp_sum(square);
    if (lane == 0) {
      factors.parts[row][part] = square;
    }
  }
  meet();
  if (threadIdx.x < rows) {
    float square = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < warps; ++i) {
      square += factors.parts[threadIdx.x][i];
    }
    factors.of[threadIdx.x] = rsqrtf(__fdividef(square, (float)size) + s.eps);
  }
  meet();
}

// The norm's weights of a thread's first two times eight inputs, read before the inputs are there.
struct Early {
  Weights first, second;
};

// Brings inputs of all rows to shared memory, as the weights want them. A thread takes every THREADSth eight of each row.
struct Stager {
  u32 first, eights;  // the first input, and how many times eight there are of a row
  u32 group;          // inputs that are summed up, a power of 2, if any

  // Bytes from row to row: rows two apart meet other banks. Sums of a row come after all rows.
  __device__ __forceinline__ u32 stride() const { return (eights * 16 + 127) / 128 * 128 + 64; }
  __device__ __forceinline__ u32 shift() const { return 28 - __clz(group); }
  __device__ __forceinline__ u32 sums() const { return eights >> shift(); }

  // The norm's weights of the thread's first inputs.
  __device__ __forceinline__ Early early(Phase const& p) const {
    auto const of = [&](u32 eight) {
      return p.norm && eight < eights && first + eight * 8 < p.inputs ? norms_of(p, first + eight * 8) : Weights{};
    };
    return {of(threadIdx.x), of(threadIdx.x + THREADS)};
  }

  // Begins to read them.
  __device__ __forceinline__ void begin(Phase const& p, u32 rows, u8* work) const {
#pragma unroll 1
    for (u32 row = 0; row < rows; ++row) {
      u16 const* const from = p.x + (u64)row * p.stride + first;
      u32 const to = shared_address(work) + row * stride(), there = p.inputs - first;
#pragma unroll 1
      for (u32 eight = threadIdx.x; eight < eights; eight += THREADS) {
        if (p.order) {
          *(uint4*)(work + row * stride() + eight * 16) = eight * 8 < there ? gathered(p, row, first + eight * 8) : make_uint4(0, 0, 0, 0);
        } else {
          fetch16(to + eight * 16, eight * 8 < there ? from + eight * 8 : p.x, eight * 8 < there ? 16 : 0);
        }
      }
    }
    commit();
  }

  // Norms each once it is there, and adds up groups.
  template <u32 KIND>
  __device__ __forceinline__ void finish(Phase const& p, u32 rows, Factors const& factors, Early const& early, u8* work) const {
    wait_for_all();
    float* const totals = (float*)(work + rows * stride());
    if (p.norm || group) {
#pragma unroll 2
      for (u32 eight = threadIdx.x; eight < eights; eight += THREADS) {
        u32 const k = first + eight * 8;
        bool const is_normed = p.norm && k < p.inputs;
        Weights norm = eight == threadIdx.x ? early.first : early.second;
        if (is_normed && eight > threadIdx.x + THREADS) {
          norm = norms_of(p, k);
        }
#pragma unroll 1
        for (u32 row = 0; row < rows; ++row) {
          uint4* const at = (uint4*)(work + row * stride() + eight * 16);
          uint4 x = *at;
          if (is_normed) {
            x = normed<KIND>(x, norm, factors.of[row]);
            *at = x;
          }
          if (group) {
            float v[8];
            unpack<KIND>(x, v);
            float sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            if (group > 32) {
              sum += __shfl_xor_sync(0xffffffffu, sum, 4);
            }
            if (group > 64) {
              sum += __shfl_xor_sync(0xffffffffu, sum, 8);
            }
            if ((eight & (group / 8 - 1)) == 0) {
              totals[row * sums() + (eight >> shift())] = sum;
            }
          }
        }
      }
    }
    meet();
  }
};

// An output as it is written: value and what comes to it. `gate` is what it is multiplied with once activated.
template <u32 KIND>
__device__ __forceinline__ float put(Step const& s, Phase const& p, u32 row, u32 n, float value, float gate, float residual) {
  u32 const outputs = p.gated ? p.outputs / 2 : p.outputs;
  u64 const at = (u64)row * outputs + n;
  if (n >= outputs) {
    return 0.0f;
  }
  if (p.wide) {
    ((float*)p.out)[at] = bounded(value, p.cap);
    return 0.0f;
  }
  if (p.bias) {
    value = rounded<KIND>(value) + widen<KIND>(p.bias[p.gated ? outputs + n : n]);
  }
  if (p.gated) {
    gate = p.bias ? rounded<KIND>(gate) + widen<KIND>(p.bias[n]) : gate;
    value = activate(rounded<KIND>(gate), s.gelu) * rounded<KIND>(value);
  }
  if (p.residual) {
    value = rounded<KIND>(value) + residual;
  }
  value = rounded<KIND>(value);
  ((u16*)p.out)[at] = narrow<KIND>(value);
  return value;
}

template <u32 KIND>
__device__ __forceinline__ float residual_of(Phase const& p, u32 row, u32 n) {
  return p.residual && n < p.outputs ? widen<KIND>(read2(p.residual + (u64)row * p.outputs + n)) : 0.0f;
}

// Adds up each row's squares, of which warps bring 32 outputs each.
__device__ __forceinline__ void keep_squares(Step const& s, Phase const& p, u32 strip, u32 width, float (*squares)[WIDEST / 32]) {
  if (p.out_squares == nullptr) {
    return;
  }
  meet();
  if (threadIdx.x < s.rows) {
    float all = 0.0f;
    for (u32 part = 0; part < width / 32; ++part) {
      all += squares[threadIdx.x][part];
    }
    p.out_squares[threadIdx.x * p.strips + strip] = all;
  }
}

// Where a warp takes its tiles from: how many it has used, of places in `ring`.
struct Ring {
  Places& places;
  u32 ring, used;

  // Waits for the pair's next tiles; returns where they are.
  __device__ __forceinline__ u32 next() const {
    u32 const couple = threadIdx.x / 64, barrier = shared_address(places.landed[couple]) + used % DEPTH * 8;
    while (!has_passed(barrier, used / DEPTH % 2)) {
    }
    __syncwarp();
    return ring + (couple * DEPTH + used % DEPTH) * 2 * SLOT;
  }

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      arrive(shared_address(places.used[threadIdx.x / 64]) + used % DEPTH * 8);
    }
    ++used;
  }
};

template <u32 KIND>
__device__ __forceinline__ void plain_product(Step const& s, Phase const& p, u32 index, u32 me, Ring& ring, u8* work) {
  __shared__ Factors factors;
  __shared__ float squares[ROWS][WIDEST / 32];
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  u32 const across = warp % p.across, along = warp / p.across, turns = WARPS / p.across, rows = s.rows;
  // Columns of a strip and outputs it makes: powers of 2.
  u32 const width = p.across * TILE, made = p.gated ? width / 2 : width, made_shift = 31 - __clz(made);
  u32 const begin = p.dealt[me], end = p.dealt[me + 1], first_strip = begin >> 16, first_tile = begin % 65536;
  if (begin == end) {
    return;
  }
  u32 const end_strip = end >> 16, end_tile = end % 65536;
  // Inputs that fit at a time, in tiles.
  u32 const most = (WORK / rows - 192) / 64;
  auto const tiles_of = [&](u32 strip) { return strip == end_strip ? end_tile : p.tiles; };
  auto const stager = [&](u32 from, u32 to) { return Stager{from * p.tile_k, (to - from) * p.tile_k / 8, 0}; };
  Stager const first = stager(first_tile, min(tiles_of(first_strip), first_tile + most));
  Early const early = first.early(p);
  if (index > 0) {
    await(s.counters + index - 1, parts_of(s, index - 1));
  }
  MARK(1);
  first.begin(p, rows, work);
  if (p.norm) {
    norm_factors<KIND>(s, p, p.inputs, factors);
  }
  first.finish<KIND>(p, rows, factors, early, work);
  MARK(2);
  u32 tile = first_tile + along;
  for (u32 strip = first_strip; strip < end_strip || (strip == end_strip && end_tile > 0); ++strip) {
    u32 const strip_begin = strip == first_strip ? first_tile : 0, strip_end = tiles_of(strip);
    float sum[4][4] = {};
    for (u32 from = strip_begin; from < strip_end; from += most) {
      u32 const to = min(strip_end, from + most);
      Stager const stage = stager(from, to);
      if (strip > first_strip || from > strip_begin) {
        stage.begin(p, rows, work);
        stage.finish<KIND>(p, rows, factors, stage.early(p), work);
      }
      u32 const stride = stage.stride();
      for (; tile < to; tile += turns) {
        u32 const place = ring.next() + warp % 2 * SLOT;
        plain_tile<KIND>(sum, place, shared_address(work) + (tile - from) * 64, stride, rows);
        ring.release();
      }
      meet();
    }
    tile -= p.tiles;
    MARK(3);
    // The block's part of the strip.
    u32 const wide = width + 8;
    float* const parts = (float*)work;
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      u32 const m = i / 4, half = i / 2 % 2, row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        parts[(along * rows + row) * wide + across * TILE + m * 16 + half * 8 + lane / 4] = sum[m][i % 4];
      }
    }
    meet();
    u32 const owners = p.owners[strip], first_owner = owners % 65536, last_owner = owners / 65536;
    bool const alone = first_owner == last_owner;
    auto const own = [&](u32 row, u32 column) {
      float value = 0.0f;
      for (u32 part = 0; part < turns; ++part) {
        value += parts[(part * rows + row) * wide + column];
      }
      return value;
    };
    // Of blocks that share a strip all but the first begin in it.
    if (!alone) {
      u32 const slot = 2 * me + (strip == first_strip ? 0 : 1);
      u32 const shift = 31 - __clz(width);
      for (u32 i = thread; i < rows * width; i += THREADS) {
        __stcg(s.partial + (u64)slot * ROWS * WIDEST + i, own(i >> shift, i & (width - 1)));
      }
      if (!comes_last(s.counters + p.counters + strip, last_owner - first_owner + 1)) {
        continue;
      }
    }
    MARK(4);
    u32 const slot = 2 * first_owner + (p.dealt[first_owner] >> 16 < strip ? 1 : 0);
    auto const value_of = [&](u32 row, u32 column) {
      if (alone) {
        return own(row, column);
      }
      u32 const at = row * width + column;
      float value = __ldcg(s.partial + (u64)slot * ROWS * WIDEST + at);
      float const* other = s.partial + (u64)(2 * first_owner + 2) * ROWS * WIDEST + at;
#pragma unroll 8
      for (u32 block = first_owner; block < last_owner; ++block, other += 2 * ROWS * WIDEST) {
        value += __ldcg(other);
      }
      return value;
    };
    for (u32 i = thread; i < rows * made; i += THREADS) {
      u32 const row = i >> made_shift, column = i & (made - 1), n = strip * made + column;
      float const residual = residual_of<KIND>(p, row, n);
      // Last what is written, before it, if any, its gate.
      float value = 0.0f, gate = 0.0f;
#pragma unroll 1
      for (u32 side = column; side < width; side += made) {
        gate = value;
        value = value_of(row, side);
      }
      float const written = put<KIND>(s, p, row, n, value, gate, residual);
      if (p.out_squares) {
        float const part = warp_sum(written * written);
        if (lane == 0) {
          squares[row][column / 32] = part;
        }
      }
    }
    keep_squares(s, p, strip, made, squares);
    publish(s.counters + index);
    MARK(5);
  }
}

__device__ __forceinline__ void swap(float (&a)[2][4], float (&b)[2][4]) {
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    float const kept = a[i / 4][i % 4];
    a[i / 4][i % 4] = b[i / 4][i % 4];
    b[i / 4][i % 4] = kept;
  }
}

// A block's strips of packed weights: in shared memory all warps' sums of two strips, [2, WARPS, rows, columns + 1], then
// inputs and their sums.
template <u32 BITS, u32 GROUPS, u32 ACROSS>
__device__ __forceinline__ void packed_strips(Step const& s, Phase const& p, u32 index, Ring& ring, u32 begin, u32 end, Pairs const& pairs,
                                              Factors const& factors, u8* work) {
  u32 constexpr OWN = 4 / ACROSS, DEEP = 512 / BITS, WIDE = ACROSS * STRIP + 1;  // a warp's tiles along the inputs, inputs of one
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32, side = warp % 2, rows = s.rows;
  u32 const made = p.gated ? STRIP : ACROSS * STRIP, shift = made == STRIP ? 4 : 5;
  u8* const inputs = work + sums_of(ACROSS, rows);
  bool const is_minimum = p.second == MINIMUM;
  Walk walk = {pairs.all, pairs.chunk, end, begin, 0, pairs.chunk, begin};
  u32 at = warp / 2, staged = 0;  // of the strip's pairs, this one's next
  float sum[2][4] = {}, other[2][4] = {};
#pragma unroll 1
  for (u32 over = at; walk.strip < end; walk.next()) {
    at = walk.from + over;
    Stager const stage = {walk.from * pairs.deep, (walk.to - walk.from) * pairs.deep / 8, DEEP / GROUPS};
    if (walk.from != staged) {
      meet();  // those before were used
      stage.begin(p, rows, inputs);
      stage.finish<1>(p, rows, factors, stage.early(p), inputs);
      staged = walk.from;
    }
    u32 const x = shared_address(inputs), stride = stage.stride();
    float const* const totals = (float const*)(inputs + rows * stride);
#pragma unroll 1
    for (; at < walk.to; at += PAIRS) {
      u32 const place = ring.next() + side * OWN * (1024 + 64 * GROUPS), tile = ((at - walk.from) * 2 + side) * OWN;
      packed_tiles<BITS, GROUPS, ACROSS>(sum, is_minimum, place, x + tile * DEEP * 2, stride, rows, totals + tile * GROUPS, stage.sums());
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
    float* const mine = (float*)work + strip % 2 * WARPS * rows * WIDE;
#pragma unroll
    for (u32 i = 0; i < 4 * ACROSS; ++i) {
      u32 const row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        mine[(warp * rows + row) * WIDE + i / 4 * STRIP + i / 2 % 2 * 8 + lane / 4] = sum[i / 4][i % 4];
      }
      sum[i / 4][i % 4] = 0.0f;
    }
    swap(sum, other);
    meet();
    MARK(4);
    // Some warps finish the strip, other ones each time, while the rest go on.
#pragma unroll 1
    for (u32 i = (thread + strip * 32) % THREADS; i < (rows * made + 31) / 32 * 32; i += THREADS) {
      bool const there = i < rows * made;
      u32 const row = min(i >> shift, rows - 1), column = i & (made - 1), n = strip * made + column;
      float const residual = residual_of<1>(p, row, n);
      float const* const from = mine + row * WIDE + column;
      float value = 0.0f, gate = 0.0f;
#pragma unroll
      for (u32 w = 0; w < WARPS; ++w) {
        value += from[w * rows * WIDE + (p.gated ? STRIP : 0)];
        gate += from[w * rows * WIDE];
      }
      float square = there ? put<1>(s, p, row, n, value, gate, residual) : 0.0f;
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

__device__ __forceinline__ void packed_product(Step const& s, Phase const& p, u32 index, u32 me, Ring& ring, u8* work) {
  __shared__ Factors factors;
  u32 const rows = s.rows, begin = p.dealt[me] >> 16, end = p.dealt[me + 1] >> 16;
  if (begin == end) {
    return;
  }
  Pairs const pairs = pairs_of(p, rows);
  u8* const inputs = work + sums_of(p.across, rows);
  Stager const first = {0, pairs.chunk * pairs.deep / 8, p.group};
  Early const early = first.early(p);
  if (index > 0) {
    await(s.counters + index - 1, parts_of(s, index - 1));
  }
  MARK(1);
  first.begin(p, rows, inputs);
  if (p.norm) {
    norm_factors<1>(s, p, p.inputs, factors);
  }
  first.finish<1>(p, rows, factors, early, inputs);
  MARK(2);
  switch ((p.weight_kind * 8 + (p.tile_bytes - 1024) / 64) * 2 + p.across / 2) {
#define CASE(number, kind, bits, groups)                                                                   \
  case (kind * 8 + groups) * 2:                                                                            \
    if (PACKED >> number & 1) {                                                                            \
      packed_strips<bits, groups, 1>(s, p, index, ring, begin, end, pairs, factors, work); \
    }                                                                                                      \
    break;                                                                                                 \
  case (kind * 8 + groups) * 2 + 1:                                                                        \
    if (PACKED >> number & 1) {                                                                            \
      packed_strips<bits, groups, 2>(s, p, index, ring, begin, end, pairs, factors, work); \
    }                                                                                                      \
    break;
    CASE(0, INT4, 4, 1)
    CASE(1, INT4, 4, 2)
    CASE(2, INT4, 4, 4)
    CASE(3, INT8, 8, 1)
    CASE(4, INT8, 8, 2)
#undef CASE
  }
  publish(s.counters + index);
  MARK(5);
}

template <u32 KIND>
__device__ __forceinline__ void product(Step const& s, Phase const& p, u32 index, u32 me, Ring& ring, u8* work) {
  if (KIND == 1 && PACKED && p.weight_kind != PLAIN) {
    packed_product(s, p, index, me, ring, work);
  } else {
    plain_product<KIND>(s, p, index, me, ring, work);
  }
}

// out = residual + norm(x): Gemma's norms after attention and MLP.
template <u32 KIND>
__device__ __forceinline__ void add(Step const& s, Phase const& p, u32 index) {
  __shared__ Factors factors;
  __shared__ float squares[ROWS][WIDEST / 32];
  u32 constexpr width = 128;  // of a strip
  if (blockIdx.x >= p.strips) {
    return;
  }
  await(s.counters + index - 1, parts_of(s, index - 1));
  norm_factors<KIND>(s, p, p.outputs, factors);
  for (u32 strip = blockIdx.x; strip < p.strips; strip += gridDim.x) {
    for (u32 i = threadIdx.x; i < s.rows * width; i += THREADS) {
      u32 const row = i / width, n = strip * width + i % width;
      u64 const at = (u64)row * p.outputs + n;
      float value = 0.0f;
      if (n < p.outputs) {
        value = rounded<KIND>(widen<KIND>(read2(p.x + at)) * factors.of[row] * p.norm[n]) + widen<KIND>(read2(p.residual + at));
        value = rounded<KIND>(value);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      float const part = warp_sum(value * value);
      if (threadIdx.x % 32 == 0) {
        squares[row][i % width / 32] = part;
      }
    }
    keep_squares(s, p, strip, width, squares);
    publish(s.counters + index);
  }
}
