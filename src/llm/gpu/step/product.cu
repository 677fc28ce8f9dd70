// Products of activations and weights. Work is cut into strips of 128 outputs and these into tiles along the inputs; all
// tiles in a row are dealt out evenly, so a block has one stretch of them, which may begin and end within a strip. Who
// comes last to a strip adds the parts, always in the same order.

__device__ __forceinline__ u32 first_tile(u32 block, u32 tiles) { return block * tiles / gridDim.x; }
// The block whose stretch has this tile.
__device__ __forceinline__ u32 owner(u32 tile, u32 tiles) { return ((tile + 1) * gridDim.x - 1) / tiles; }

// Where a warp's fetching is.
struct Fetch {
  u8 const* weights;
  u32 phase, tile, end, tiles, inputs, outputs, weight_kind, tile_bytes;
};

// Goes on to the next phase in which this warp has a tile, if the present one's are fetched.
__device__ __forceinline__ void settle(Fetch& at, Step const& s, u32 along) {
  while (at.tile >= at.end) {
    if (++at.phase >= s.count) {
      at.tile = 0;
      at.end = ~0u;
      return;
    }
    Phase const* const p = s.phases + at.phase;
    if (p->kind != PRODUCT) {
      continue;
    }
    u32 const all = p->strips * p->tiles;
    at.tile = first_tile(blockIdx.x, all) + along;
    at.end = first_tile(blockIdx.x + 1, all);
    at.weights = p->weights;
    at.tiles = p->tiles;
    at.inputs = p->inputs;
    at.outputs = p->outputs;
    at.weight_kind = p->weight_kind;
    at.tile_bytes = p->tile_bytes;
  }
}

// Begins to fetch the next tile into a place of the warp's ring.
__device__ __forceinline__ void fetch(Fetch& at, Step const& s, u32 place) {
  if (at.phase < s.count) {
    u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 const columns = at.tile / at.tiles * ACROSS + warp % ACROSS, t = at.tile % at.tiles;
    if (at.weight_kind == PLAIN) {
      // 32 inputs of 64 outputs; sixteen bytes are swapped about so that ldmatrix meets each bank once.
      u32 const c = lane % 8, k = lane / 8, column = columns * TILE + c * 8;
      u8 const* const from = at.weights + ((u64)(t * 32 + k) * at.outputs + column) * 2;
#pragma unroll
      for (u32 j = 0; j < 8; ++j) {
        u32 const row = k + 4 * j;
        bool const there = t * 32 + row < at.inputs && column < at.outputs;
        fetch16(place + row * 128 + ((c ^ (row % 8)) * 16), there ? from + (u64)(4 * j) * at.outputs * 2 : at.weights, there ? 16 : 0);
      }
    } else {
      u8 const* const from = at.weights + ((u64)columns * at.tiles + t) * at.tile_bytes + lane * 16;
#pragma unroll
      for (u32 j = 0; j < 8; ++j) {
        fetch16(place + j * 512 + lane * 16, from + j * 512, 16);
      }
      for (u32 j = 4096; j + lane * 16 < at.tile_bytes; j += 512) {
        fetch16(place + j + lane * 16, from + j, 16);
      }
    }
    at.tile += ALONG;
    settle(at, s, warp / ACROSS);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Activations of 16 inputs: [inputs, tokens].
__device__ __forceinline__ uint2 inputs_of(u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32, at = x + lane / 4 * stride + lane % 4 * 4;
  return lane / 4 < rows ? make_uint2(shared4(at), shared4(at + 16)) : make_uint2(0, 0);
}

template <u32 KIND>
__device__ __forceinline__ void plain_tile(float (&sum)[4][4], u32 place, u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32;
#pragma unroll
  for (u32 step = 0; step < 2; ++step) {
    uint2 const b = inputs_of(x + step * 32, stride, rows);
    u32 const k = step * 16 + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (u32 m = 0; m < 4; ++m) {
      u32 const c = m * 2 + lane / 8 % 2;
      multiply<KIND>(sum[m], turned4(place + k * 128 + ((c ^ (k % 8)) * 16)), b);
    }
  }
}

// Two halves minus a third, twice.
__device__ __forceinline__ u32 minus(u32 a, u32 b) {
  u32 v;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
// (a & mask) | bits
__device__ __forceinline__ u32 select(u32 a, u32 mask, u32 bits) {
  u32 v;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(v) : "r"(a), "r"(mask), "r"(bits));
  return v;
}

// Integers as they are in float16, less the middle of their range. A tile of INT4 is 128 inputs of 64 outputs: for each 16
// inputs and each lane sixteen bytes, a word for each 16 outputs, whose nibbles 0 and 4, 1 and 5, 2 and 6, 3 and 7 are the
// pairs of `multiply`'s first operand. INT8: 64 inputs, for each 16 of them twice sixteen bytes a lane, two words for each 16
// outputs. Then for each group of inputs, and in the order of `sixteen_of`, two float16 an output: scale and second.
template <u32 BITS>
__device__ __forceinline__ uint4 integers(u32 low, u32 high) {
  u32 constexpr base = 0x64006400;                            // 1024: the integers are the last bits
  u32 constexpr middle = BITS == 4 ? 0x64086408 : 0x64806480;  // 1024 + 8, 1024 + 128
  uint4 a;
  if (BITS == 4) {
    a.x = minus(select(low, 0x000f000f, base), middle);
    a.y = minus(select(low >> 4, 0x000f000f, base), middle);
    a.z = minus(select(low >> 8, 0x000f000f, base), middle);
    a.w = minus(select(low >> 12, 0x000f000f, base), middle);
  } else {
    a.x = minus(__byte_perm(low, base, 0x5150), middle);
    a.y = minus(__byte_perm(low, base, 0x5352), middle);
    a.z = minus(__byte_perm(high, base, 0x5150), middle);
    a.w = minus(__byte_perm(high, base, 0x5352), middle);
  }
  return a;
}

template <u32 BITS>
__device__ __forceinline__ void packed_tile(float (&sum)[4][4], Phase const& p, u32 place, u32 x, u32 stride, u32 rows) {
  u32 constexpr STEPS = BITS == 4 ? 8 : 4;
  float constexpr MIDDLE = BITS == 4 ? 8.0f : 128.0f;
  u32 const lane = threadIdx.x % 32;
  u32 const steps = min(STEPS, p.group / 16);
  uint4 const ones = make_uint4(0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00);
  for (u32 begin = 0; begin < STEPS; begin += steps) {
    float part[4][4] = {}, all[4] = {};
    for (u32 step = begin; step < begin + steps; ++step) {
      uint2 const b = inputs_of(x + step * 32, stride, rows);
      if (BITS == 4) {
        uint4 const w = shared16(place + step * 512 + lane * 16);
        multiply<1>(part[0], integers<4>(w.x, 0), b);
        multiply<1>(part[1], integers<4>(w.y, 0), b);
        multiply<1>(part[2], integers<4>(w.z, 0), b);
        multiply<1>(part[3], integers<4>(w.w, 0), b);
      } else {
        uint4 const v = shared16(place + step * 1024 + lane * 16), w = shared16(place + step * 1024 + 512 + lane * 16);
        multiply<1>(part[0], integers<8>(v.x, v.y), b);
        multiply<1>(part[1], integers<8>(v.z, v.w), b);
        multiply<1>(part[2], integers<8>(w.x, w.y), b);
        multiply<1>(part[3], integers<8>(w.z, w.w), b);
      }
      if (p.second != NONE) {
        multiply<1>(all, ones, b);  // the inputs' sum
      }
    }
    u32 const terms = place + 4096 + begin / steps * 256 + lane / 4 * 32;
    uint4 const low = shared16(terms), high = shared16(terms + 16);
    u32 const words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      float const scale = widen<1>((u16)words[i]), second = widen<1>((u16)(words[i] >> 16));
      float const offset = p.second == ZERO ? scale * (MIDDLE - second) : p.second == MINIMUM ? fmaf(scale, MIDDLE, second) : 0.0f;
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        float& to = sum[i / 2][i % 2 * 2 + e];
        to = fmaf(scale, part[i / 2][i % 2 * 2 + e], to);
        to = fmaf(offset, all[e], to);
      }
    }
  }
}

// Eight inputs of a row, as the weights want them.
template <u32 KIND>
__device__ __forceinline__ void activations(Step const& s, Phase const& p, u32 row, u32 k, float factor, float* value) {
  u16 const* const from = p.x + (u64)row * p.stride;
  if (p.order) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      u32 const at = p.order[k + i];
      float one = widen<KIND>(read2(from + at));
      if (p.gated) {
        one = activate(one, s.gelu) * widen<KIND>(read2(from + p.inputs + at));
      }
      value[i] = p.norm ? one * factor * p.norm[at] : one;
    }
    return;
  }
  unpack<KIND>(read16(from + k), value);
  if (p.gated) {
    float through[8];
    unpack<KIND>(read16(from + p.inputs + k), through);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      value[i] = activate(value[i], s.gelu) * through[i];
    }
  }
  if (p.norm) {
    float4 const low = *(float4 const*)(p.norm + k), high = *(float4 const*)(p.norm + k + 4);
    float const weight[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      value[i] *= factor * weight[i];
    }
  }
}

// What RMSNorm multiplies each row with: 1 / sqrt(mean of squares + eps).
template <u32 KIND>
__device__ __forceinline__ void norm_factors(Step const& s, Phase const& p, u32 size, float* factors) {
  u32 const lane = threadIdx.x % 32, row = threadIdx.x / 32;
  if (row < s.rows) {
    float square = 0.0f;
    if (p.squares) {
      for (u32 i = lane; i < p.square_count; i += 32) {
        square += __ldcg(p.squares + row * p.square_count + i);
      }
    } else {
      for (u32 k = lane * 8; k < size; k += 256) {
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
      factors[row] = rsqrtf(square / size + s.eps);
    }
  }
  __syncthreads();
}

// Adds up each row's squares, of which every thread brings some of one row: 128 outputs of a strip.
__device__ __forceinline__ void keep_squares(Step const& s, Phase const& p, u32 strip, float (*squares)[STRIP / 32]) {
  if (p.out_squares == nullptr) {
    return;
  }
  __syncthreads();
  if (threadIdx.x < s.rows) {
    float all = 0.0f;
    for (u32 part = 0; part < STRIP / 32; ++part) {
      all += squares[threadIdx.x][part];
    }
    p.out_squares[threadIdx.x * p.strips + strip] = all;
  }
}

template <u32 KIND>
__device__ __forceinline__ void product(Step const& s, Phase const& p, u32 index, Fetch& fetching, u32& turn, u32 ring, u8* work) {
  __shared__ float factors[ROWS];
  __shared__ float squares[ROWS][STRIP / 32];
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  u32 const across = warp % ACROSS, along = warp / ACROSS, rows = s.rows;
  u32 const all = p.strips * p.tiles, begin = first_tile(blockIdx.x, all), end = first_tile(blockIdx.x + 1, all);
  if (begin == end) {
    return;
  }
  if (index > 0) {
    await(s.counters + index - 1, parts_of(s, index - 1));
  }
  if (p.norm) {
    norm_factors<KIND>(s, p, p.inputs, factors);
  }
  // Inputs that fit at a time, in tiles.
  u32 const most = (WORK / 2 / rows - 8) / p.tile_k;
  u32 tile = begin + along;
  for (u32 strip = begin / p.tiles; strip * p.tiles < end; ++strip) {
    u32 const strip_end = min(end, (strip + 1) * p.tiles);
    float sum[4][4] = {};
    for (u32 from = max(begin, strip * p.tiles); from < strip_end; from += most) {
      u32 const to = min(strip_end, from + most);
      u32 const k0 = (from - strip * p.tiles) * p.tile_k, count = (to - from) * p.tile_k, eights = count / 8;
      u32 const stride = count * 2 + 16;
      for (u32 i = thread; i < rows * eights; i += THREADS) {
        u32 const row = i / eights, k = i % eights * 8;
        float value[8] = {};
        if (k0 + k < p.inputs) {
          activations<KIND>(s, p, row, k0 + k, p.norm ? factors[row] : 1.0f, value);
        }
        *(uint4*)(work + row * stride + k * 2) = make_uint4(pair<KIND>(value[0], value[1]), pair<KIND>(value[2], value[3]),
                                                            pair<KIND>(value[4], value[5]), pair<KIND>(value[6], value[7]));
      }
      __syncthreads();
      for (; tile < to; tile += ALONG) {
        u32 const place = ring + turn * SLOT;
        u32 const x = shared_address(work) + (tile - from) * p.tile_k * 2;
        asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
        __syncwarp();
        if (KIND == 2 || p.weight_kind == PLAIN) {
          plain_tile<KIND>(sum, place, x, stride, rows);
        } else if (p.weight_kind == INT4) {
          packed_tile<4>(sum, p, place, x, stride, rows);
        } else {
          packed_tile<8>(sum, p, place, x, stride, rows);
        }
        __syncwarp();
        fetch(fetching, s, place);
        turn = turn + 1 == DEPTH ? 0 : turn + 1;
      }
      __syncthreads();
    }
    // The block's part of the strip.
    u32 constexpr WIDE = STRIP + 8;
    float* const parts = (float*)work;
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
      u32 const m = i / 4, half = i / 2 % 2, row = lane % 4 * 2 + i % 2;
      if (row < rows) {
        parts[(along * rows + row) * WIDE + across * TILE + m * 16 + half * 8 + lane / 4] = sum[m][i % 4];
      }
    }
    __syncthreads();
    u32 const first = owner(strip * p.tiles, all), last = owner(strip * p.tiles + p.tiles - 1, all);
    bool const alone = first == last;
    if (!alone) {
      u32 const slot = 2 * blockIdx.x + (strip == begin / p.tiles ? 0 : 1);
      for (u32 i = thread; i < rows * STRIP; i += THREADS) {
        float value = 0.0f;
        for (u32 part = 0; part < ALONG; ++part) {
          value += parts[(part * rows + i / STRIP) * WIDE + i % STRIP];
        }
        __stcg(s.partial + (u64)slot * ROWS * STRIP + i, value);
      }
      if (!comes_last(s.counters + p.counters + strip, last - first + 1)) {
        continue;
      }
    }
    for (u32 i = thread; i < rows * STRIP; i += THREADS) {
      u32 const row = i / STRIP, n = strip * STRIP + i % STRIP;
      float value = 0.0f;
      if (alone) {
        for (u32 part = 0; part < ALONG; ++part) {
          value += parts[(part * rows + row) * WIDE + i % STRIP];
        }
      } else {
#pragma unroll 4
        for (u32 block = first; block <= last; ++block) {
          u32 const slot = 2 * block + (strip == first_tile(block, all) / p.tiles ? 0 : 1);
          value += __ldcg(s.partial + (u64)slot * ROWS * STRIP + i);
        }
      }
      u64 const at = (u64)row * p.outputs + n;
      if (n >= p.outputs) {
        value = 0.0f;
      } else if (p.wide) {
        ((float*)p.out)[at] = bounded(value, p.cap);
      } else {
        if (p.bias) {
          value = rounded<KIND>(value) + widen<KIND>(p.bias[n]);
        }
        if (p.residual) {
          value = rounded<KIND>(value) + widen<KIND>(read2(p.residual + at));
        }
        value = rounded<KIND>(value);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      if (p.out_squares) {
        float const part = warp_sum(value * value);
        if (lane == 0) {
          squares[row][i % STRIP / 32] = part;
        }
      }
    }
    keep_squares(s, p, strip, squares);
    publish(s.counters + index);
  }
}

// out = residual + norm(x): Gemma's norms after attention and MLP.
template <u32 KIND>
__device__ __forceinline__ void add(Step const& s, Phase const& p, u32 index) {
  __shared__ float factors[ROWS];
  __shared__ float squares[ROWS][STRIP / 32];
  if (blockIdx.x >= p.strips) {
    return;
  }
  await(s.counters + index - 1, parts_of(s, index - 1));
  norm_factors<KIND>(s, p, p.outputs, factors);
  for (u32 strip = blockIdx.x; strip < p.strips; strip += gridDim.x) {
    for (u32 i = threadIdx.x; i < s.rows * STRIP; i += THREADS) {
      u32 const row = i / STRIP, n = strip * STRIP + i % STRIP;
      u64 const at = (u64)row * p.outputs + n;
      float value = 0.0f;
      if (n < p.outputs) {
        value = rounded<KIND>(widen<KIND>(read2(p.x + at)) * factors[row] * p.norm[n]) + widen<KIND>(read2(p.residual + at));
        value = rounded<KIND>(value);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      float const part = warp_sum(value * value);
      if (threadIdx.x % 32 == 0) {
        squares[row][i % STRIP / 32] = part;
      }
    }
    keep_squares(s, p, strip, squares);
    publish(s.counters + index);
  }
}
