// Products of activations and weights. Work is cut into strips of outputs, `across` warps wide, and these into tiles along
// the inputs, which as many warps as are left take in turn; all tiles in a row are dealt out evenly, so a block has one
// stretch of them, which may begin and end within a strip. Who comes last to a strip adds the parts, always in the same
// order. Plain weights are read in wide strips, for memory likes long rows.

__device__ __forceinline__ u32 first_tile(u32 block, u32 tiles) {
  u32 const blocks = min(gridDim.x, tiles);
  return min(block, blocks) * tiles / blocks;
}
// The block whose stretch has this tile.
__device__ __forceinline__ u32 owner(u32 tile, u32 tiles) { return ((tile + 1) * min(gridDim.x, tiles) - 1) / tiles; }

// Barriers of each pair's places for tiles: that one has landed, that both warps have used it.
struct Places {
  u64 landed[PAIRS][DEPTH];
  u64 used[PAIRS][DEPTH];
};

// A tile of a pair of warps: where a fetching warp is in all phases' tiles.
struct Cursor {
  u8 const* weights;
  u32 phase, tile, end, tiles, across, inputs, outputs, weight_kind, tile_bytes;
};

// Goes on to the next phase in which the pair has a tile, if it is at the end of one's.
__device__ __forceinline__ void settle(Cursor& at, Step const& s, u32 couple) {
  while (at.tile >= at.end) {
    if (++at.phase >= s.count) {
      return;
    }
    Phase const* const p = s.phases + at.phase;
    if (p->kind == PRODUCT) {
      u32 const all = p->strips * p->tiles;
      at.across = p->across;
      at.tile = first_tile(blockIdx.x, all) + 2 * couple / at.across;
      at.end = first_tile(blockIdx.x + 1, all);
      at.weights = p->weights;
      at.tiles = p->tiles;
      at.inputs = p->inputs;
      at.outputs = p->outputs;
      at.weight_kind = p->weight_kind;
      at.tile_bytes = p->tile_bytes;
    }
  }
}

__device__ __forceinline__ void advance(Cursor& at, Step const& s, u32 couple) {
  at.tile += WARPS / at.across;
  settle(at, s, couple);
}

// Begins to fetch a tile, for both warps of the pair.
__device__ __forceinline__ void fetch(Cursor const& at, u32 couple, u32 place) {
  u32 const lane = threadIdx.x % 32, columns = at.tile / at.tiles * at.across + 2 * couple % at.across, t = at.tile % at.tiles;
  if (at.weight_kind == PLAIN) {
    // 32 inputs of 2 x 64 outputs; sixteen bytes are swapped about so that ldmatrix meets each bank once.
    u32 const c = lane % 8, side = lane / 8 % 2, k = lane / 16, column = (columns + side) * TILE + c * 8;
    u8 const* const from = at.weights + ((u64)(t * 32 + k) * at.outputs + column) * 2;
#pragma unroll
    for (u32 j = 0; j < 16; ++j) {
      u32 const row = k + 2 * j;
      bool const there = t * 32 + row < at.inputs && column < at.outputs;
      fetch16(place + side * SLOT + row * 128 + ((c ^ (row % 8)) * 16), there ? from + (u64)(2 * j) * at.outputs * 2 : at.weights, there ? 16 : 0);
    }
  } else {
#pragma unroll
    for (u32 side = 0; side < 2; ++side) {
      u8 const* const from = at.weights + ((u64)(columns + side) * at.tiles + t) * at.tile_bytes + lane * 16;
      u32 const to = place + side * SLOT + lane * 16;
#pragma unroll
      for (u32 j = 0; j < 8; ++j) {
        fetch16(to + j * 512, from + j * 512, 16);
      }
      for (u32 j = 4096; j + lane * 16 < at.tile_bytes; j += 512) {
        fetch16(to + j, from + j, 16);
      }
    }
  }
  commit();
}

// Brings a tile of plain weights into the L2 cache.
__device__ __forceinline__ void bring_tile(Cursor const& at, u32 couple) {
  u32 const column = (at.tile / at.tiles * at.across + 2 * couple % at.across) * TILE;
  u32 const k = at.tile % at.tiles * 32 + threadIdx.x % 32;
  u8 const* const from = at.weights + ((u64)k * at.outputs + column) * 2;
  if (k < at.inputs && column < at.outputs) {
    bring(from);
    if (column + TILE < at.outputs) {
      bring(from + 2 * TILE);
    }
  }
}

// Fetches a pair of warps' tiles of all phases.
__device__ __forceinline__ void fetch_all(Step const& s, Places& places, u32 couple, u32 ring) {
  u32 const lane = threadIdx.x % 32, landed = shared_address(places.landed[couple]), used = shared_address(places.used[couple]);
  Cursor at = {nullptr, ~0u, 0, 0, 1, 2, 0, 0, 0, 0};
  settle(at, s, couple);
  Cursor ahead = at;
  u32 fetched = 0, told = 0, lead = 0;
  // Says that all but the last `flying` tiles have landed, once each lane has seen its own part do so.
  auto const tell = [&](u32 flying) {
    __syncwarp();
    for (; told + flying < fetched; ++told) {
      if (lane == 0) {
        arrive(landed + told % DEPTH * 8);
      }
    }
  };
  while (at.phase < s.count) {
    u32 const place = fetched % DEPTH, round = fetched / DEPTH;
    if (round > 0 && !has_passed(used + place * 8, (round + 1) % 2)) {
      // What is on its way arrives before a place is free. Meanwhile memory goes on, as fast as it can, into the L2 cache.
      wait_for_all();
      tell(0);
      u32 since = (u32)clock();
      while (!has_passed(used + place * 8, (round + 1) % 2)) {
        if (lead < AHEAD && ahead.phase < s.count && ahead.weight_kind == PLAIN && (u32)clock() - since > PACE) {
          bring_tile(ahead, couple);
          advance(ahead, s, couple);
          ++lead;
          since += PACE;
        }
      }
      __syncwarp();
    }
    fetch(at, couple, ring + (couple * DEPTH + place) * 2 * SLOT);
    advance(at, s, couple);
    if (lead > 0) {
      --lead;
    } else {
      ahead = at;
    }
    ++fetched;
    wait_for_all_but<FLIGHT - 1>();
    tell(FLIGHT - 1);
  }
  wait_for_all();
  tell(0);
}

// Activations of 16 inputs: [inputs, tokens].
__device__ __forceinline__ uint2 inputs_of(u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32, at = x + lane / 4 * stride + lane % 4 * 4;
  return lane / 4 < rows ? make_uint2(shared4(at), shared4(at + 16)) : make_uint2(0, 0);
}

template <u32 KIND>
__device__ __forceinline__ void plain_tile(float (&sum)[4][4], u32 place, u32 x, u32 stride, u32 rows) {
  u32 const lane = threadIdx.x % 32;
  uint2 const b[2] = {inputs_of(x, stride, rows), inputs_of(x + 32, stride, rows)};
  uint4 a[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 const k = i / 4 * 16 + lane / 16 * 8 + lane % 8, c = i % 4 * 2 + lane / 8 % 2;
    a[i] = turned4(place + k * 128 + ((c ^ (k % 8)) * 16));
  }
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    multiply<KIND>(sum[i % 4], a[i], b[i / 4]);
  }
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
__device__ __forceinline__ void packed_tile(float (&sum)[4][4], u32 group, u32 second, u32 place, u32 x, u32 stride, u32 rows) {
  u32 constexpr STEPS = BITS == 4 ? 8 : 4;
  float constexpr MIDDLE = BITS == 4 ? 8.0f : 128.0f;
  u32 const lane = threadIdx.x % 32;
  u32 const steps = min(STEPS, group / 16);
  uint4 const ones = make_uint4(0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00);
  for (u32 begin = 0; begin < STEPS; begin += steps) {
    float part[4][4] = {}, all[4] = {};
    for (u32 step = begin; step < begin + steps; step += 2) {
      uint2 const b[2] = {inputs_of(x + step * 32, stride, rows), inputs_of(x + step * 32 + 32, stride, rows)};
      uint4 w[BITS == 4 ? 2 : 4];
#pragma unroll
      for (u32 i = 0; i < sizeof(w) / 16; ++i) {
        w[i] = shared16(place + (step * BITS / 4 + i) * 512 + lane * 16);
      }
#pragma unroll
      for (u32 i = 0; i < 2; ++i) {
        if (BITS == 4) {
          multiply<1>(part[0], integers<4>(w[i].x, 0), b[i]);
          multiply<1>(part[1], integers<4>(w[i].y, 0), b[i]);
          multiply<1>(part[2], integers<4>(w[i].z, 0), b[i]);
          multiply<1>(part[3], integers<4>(w[i].w, 0), b[i]);
        } else {
          multiply<1>(part[0], integers<8>(w[2 * i].x, w[2 * i].y), b[i]);
          multiply<1>(part[1], integers<8>(w[2 * i].z, w[2 * i].w), b[i]);
          multiply<1>(part[2], integers<8>(w[2 * i + 1].x, w[2 * i + 1].y), b[i]);
          multiply<1>(part[3], integers<8>(w[2 * i + 1].z, w[2 * i + 1].w), b[i]);
        }
        if (second != NONE) {
          multiply<1>(all, ones, b[i]);  // the inputs' sum
        }
      }
    }
    u32 const terms = place + 4096 + begin / steps * 256 + lane / 4 * 32;
    uint4 const low = shared16(terms), high = shared16(terms + 16);
    u32 const words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      float const scale = widen<1>((u16)words[i]), last = widen<1>((u16)(words[i] >> 16));
      float const offset = second == ZERO ? scale * (MIDDLE - last) : fmaf(scale, MIDDLE, last);
#pragma unroll
      for (u32 e = 0; e < 2; ++e) {
        float& to = sum[i / 2][i % 2 * 2 + e];
        to = fmaf(scale, part[i / 2][i % 2 * 2 + e], to);
        if (second != NONE) {
          to = fmaf(offset, all[e], to);
        }
      }
    }
  }
}

// Eight inputs of a row as they lie in memory: x, and what its gate lets through.
struct Inputs {
  uint4 x, through;
};

__device__ __forceinline__ Inputs read_inputs(Phase const& p, u32 row, u32 k) {
  u16 const* const from = p.x + (u64)row * p.stride + k;
  return {read16(from), p.gated ? read16(from + p.inputs) : make_uint4(0, 0, 0, 0)};
}

// Those that are not in their place.
__device__ __forceinline__ Inputs gather_inputs(Phase const& p, u32 row, u32 k) {
  u16 const* const from = p.x + (u64)row * p.stride;
  u32 x[4] = {}, through[4] = {};
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    u32 const at = p.order[k + i];
    x[i / 2] |= (u32)read2(from + at) << (i % 2 * 16);
    through[i / 2] |= p.gated ? (u32)read2(from + p.inputs + at) << (i % 2 * 16) : 0;
  }
  return {make_uint4(x[0], x[1], x[2], x[3]), make_uint4(through[0], through[1], through[2], through[3])};
}

// Eight inputs as the weights want them: gated, or normed with the row's factor.
template <u32 KIND>
__device__ __forceinline__ uint4 activations(Step const& s, Phase const& p, Inputs const& inputs, u32 k, float factor) {
  float value[8];
  unpack<KIND>(inputs.x, value);
  if (p.gated) {
    float through[8];
    unpack<KIND>(inputs.through, through);
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      value[i] = activate(value[i], s.gelu) * through[i];
    }
  }
  if (p.norm) {
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
      value[i] *= factor * p.norm[p.order ? p.order[k + i] : k + i];
    }
  }
  return make_uint4(pair<KIND>(value[0], value[1]), pair<KIND>(value[2], value[3]), pair<KIND>(value[4], value[5]),
                    pair<KIND>(value[6], value[7]));
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
  meet();
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

template <u32 KIND>
__device__ __forceinline__ void product(Step const& s, Phase const& p, u32 index, Places& places, u32& used, u32 ring, u8* work) {
  __shared__ float factors[ROWS];
  __shared__ float squares[ROWS][WIDEST / 32];
  u32 const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  u32 const across = warp % p.across, along = warp / p.across, turns = WARPS / p.across, rows = s.rows;
  u32 const width = p.across * TILE;  // of a strip
  u32 const tile_k = p.tile_k, weight_kind = p.weight_kind, group = p.group, second = p.second;
  u32 const all = p.strips * p.tiles, begin = first_tile(blockIdx.x, all), end = first_tile(blockIdx.x + 1, all);
  if (begin == end) {
    return;
  }
  // Inputs that fit at a time, in tiles.
  u32 const most = (WORK / 2 / rows - 8) / p.tile_k;
  // The first eight of this thread are on their way before all is known that they are multiplied with.
  u32 const k_first = begin % p.tiles * p.tile_k;
  u32 const eights_first = min(min(end - begin, p.tiles - begin % p.tiles), most) * p.tile_k / 8;
  u32 const row_first = thread / eights_first, k_early = k_first + thread % eights_first * 8;
  bool const early = row_first < rows && k_early < p.inputs && p.order == nullptr;
  if (early && p.norm) {
    bring(p.norm + k_early);
  }
  if (index > 0) {
    await(s.counters + index - 1, parts_of(s, index - 1));
  }
  Inputs first_inputs = {};
  if (early) {
    first_inputs = read_inputs(p, row_first, k_early);
  }
  if (p.norm) {
    norm_factors<KIND>(s, p, p.inputs, factors);
  }
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
        uint4 staged = make_uint4(0, 0, 0, 0);
        if (k0 + k < p.inputs) {
          bool const is_first = early && i == thread && from == begin;
          Inputs const inputs = is_first ? first_inputs : p.order ? gather_inputs(p, row, k0 + k) : read_inputs(p, row, k0 + k);
          staged = activations<KIND>(s, p, inputs, k0 + k, p.norm ? factors[row] : 1.0f);
        }
        *(uint4*)(work + row * stride + k * 2) = staged;
      }
      meet();
      for (; tile < to; tile += turns) {
        u32 const place = ring + ((warp / 2 * DEPTH + used % DEPTH) * 2 + warp % 2) * SLOT;
        u32 const x = shared_address(work) + (tile - from) * tile_k * 2;
        u32 const barriers = shared_address(places.landed[warp / 2]) + used % DEPTH * 8;
        while (!has_passed(barriers, used / DEPTH % 2)) {
        }
        __syncwarp();
        if (KIND == 2 || weight_kind == PLAIN) {
          plain_tile<KIND>(sum, place, x, stride, rows);
        } else if (weight_kind == INT4) {
          packed_tile<4>(sum, group, second, place, x, stride, rows);
        } else {
          packed_tile<8>(sum, group, second, place, x, stride, rows);
        }
        __syncwarp();
        ++used;
        if (lane == 0) {
          arrive(barriers + sizeof(places.landed));
        }
      }
      meet();
    }
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
    u32 const first = owner(strip * p.tiles, all), last = owner(strip * p.tiles + p.tiles - 1, all);
    bool const alone = first == last;
    if (!alone) {
      u32 const slot = 2 * blockIdx.x + (strip == begin / p.tiles ? 0 : 1);
      for (u32 i = thread; i < rows * width; i += THREADS) {
        float value = 0.0f;
        for (u32 part = 0; part < turns; ++part) {
          value += parts[(part * rows + i / width) * wide + i % width];
        }
        __stcg(s.partial + (u64)slot * ROWS * WIDEST + i, value);
      }
      if (!comes_last(s.counters + p.counters + strip, last - first + 1)) {
        continue;
      }
    }
    // Of blocks that share a strip all but the first begin in it.
    u32 const slot = 2 * first + (first_tile(first, all) < strip * p.tiles ? 1 : 0);
    float const* const partial = s.partial + (u64)slot * ROWS * WIDEST;
    for (u32 i = thread; i < rows * width; i += THREADS) {
      u32 const row = i / width, n = strip * width + i % width;
      u64 const at = (u64)row * p.outputs + n;
      bool const added = p.residual && n < p.outputs;
      float const residual = added ? widen<KIND>(read2(p.residual + at)) : 0.0f;
      float value = 0.0f;
      if (alone) {
        for (u32 part = 0; part < turns; ++part) {
          value += parts[(part * rows + row) * wide + i % width];
        }
      } else {
        value = __ldcg(partial + i);
        float const* other = s.partial + (u64)(2 * first + 2) * ROWS * WIDEST + i;
#pragma unroll 8
        for (u32 block = first; block < last; ++block, other += 2 * ROWS * WIDEST) {
          value += __ldcg(other);
        }
      }
      if (n >= p.outputs) {
        value = 0.0f;
      } else if (p.wide) {
        ((float*)p.out)[at] = bounded(value, p.cap);
      } else {
        if (p.bias) {
          value = rounded<KIND>(value) + widen<KIND>(p.bias[n]);
        }
        if (p.residual) {
          value = rounded<KIND>(value) + residual;
        }
        value = rounded<KIND>(value);
        ((u16*)p.out)[at] = narrow<KIND>(value);
      }
      if (p.out_squares) {
        float const part = warp_sum(value * value);
        if (lane == 0) {
          squares[row][i % width / 32] = part;
        }
      }
    }
    keep_squares(s, p, strip, width, squares);
    publish(s.counters + index);
  }
}

// out = residual + norm(x): Gemma's norms after attention and MLP.
template <u32 KIND>
__device__ __forceinline__ void add(Step const& s, Phase const& p, u32 index) {
  __shared__ float factors[ROWS];
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
        value = rounded<KIND>(widen<KIND>(read2(p.x + at)) * factors[row] * p.norm[n]) + widen<KIND>(read2(p.residual + at));
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
