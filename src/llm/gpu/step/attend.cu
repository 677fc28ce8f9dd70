// Attention of one new token a row over what is cached and itself: queries and keys are normed and turned, new keys and
// values put where they belong, and the positions are cut into spans, which blocks share out and whoever comes last adds
// up. The softmax is carried from span to span (Milakov & Gimelshein 2018).

u32 constexpr SPAN = 32;   // positions at a time; half as many where heads are larger than 128
u32 constexpr CHUNKS = 2;  // sixteen bytes of keys, and of values, a thread of a span

// A head of `dim`, normed and turned, element i.
template <u32 KIND>
__device__ __forceinline__ float turned(Step const& s, Phase const& p, u16 const* x, float const* norm, float factor, u32 position, u32 i) {
  auto const at = [&](u32 j) {
    float const value = widen<KIND>(read2(x + j));
    return norm ? rounded<KIND>(value * factor * norm[j]) : value;
  };
  if (i >= p.rotary) {
    return at(i);
  }
  u32 const half = p.rotary / 2;
  float const other = i < half ? -at(i + half) : at(i - half);
  u64 const angle = (u64)min(position, s.positions - 1) * p.rotary + i;
  return at(i) * widen<KIND>(p.cos[angle]) + other * widen<KIND>(p.sin[angle]);
}

// RMSNorm's factor of a head, for a warp.
template <u32 KIND>
__device__ __forceinline__ float head_factor(Step const& s, u16 const* x, float const* norm) {
  if (!norm) {
    return 1.0f;
  }
  float square = 0.0f;
  for (u32 i = threadIdx.x % 32; i < s.dim; i += 32) {
    float const value = widen<KIND>(read2(x + i));
    square = fmaf(value, value, square);
  }
  return rsqrtf(warp_sum(square) / s.dim + s.eps);
}

// Keys and values of a span on their way to shared memory.
struct Loaded {
  uint4 keys[CHUNKS], values[CHUNKS];
};

template <u32 KIND>
__device__ __forceinline__ void attend(Step const& s, Phase const& p, u32 index, u8* work) {
  __shared__ float high[GROUP], total[GROUP], factor[GROUP];
  u32 const thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 const dim = s.dim, padded = (dim + 15) / 16 * 16, stride = padded + 8, eights = dim / 8;
  u32 const span = dim <= 128 ? SPAN : SPAN / 2, group = s.heads / s.kv_heads, width = s.heads + 2 * s.kv_heads;
  u16* const keys = (u16*)work;             // [span, stride]
  u16* const values = keys + span * stride;  // [span, stride]
  u16* const query = values + span * stride; // [GROUP, stride]
  u16* const weight = query + GROUP * stride; // [GROUP, span + 8]
  float* const score = (float*)(weight + GROUP * (span + 8)); // [GROUP, span]
  u32 const pairs = s.rows * s.kv_heads;
  for (u32 unit = blockIdx.x; unit < pairs * s.splits; unit += gridDim.x) {
    u32 const split = unit % s.splits, kv = unit / s.splits % s.kv_heads, row = unit / s.splits / s.kv_heads;
    u32 const position = min(s.cached[row], s.capacity - 1), length = position + 1;
    u32 const from = p.window && length > p.window ? length - p.window : 0;
    u32 const first_span = from / span, spans = (length + span - 1) / span - first_span;
    u32 const active = min(s.splits, spans);
    if (split >= active) {
      continue;
    }
    u32 const first = first_span + split * spans / active, last = first_span + (split + 1) * spans / active;
    u64 const base = ((u64)(s.slot + row) * s.kv_heads + kv) * s.capacity * dim;
    Loaded loaded;
    auto const load = [&](u32 number) {
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * THREADS, at = number * span + i / eights;
        loaded.keys[j] = loaded.values[j] = make_uint4(0, 0, 0, 0);
        if (i < span * eights && at >= from && at < position) {
          u64 const where = base + (u64)at * dim + i % eights * 8;
          loaded.keys[j] = read16(p.keys + where);
          loaded.values[j] = read16(p.values + where);
        }
      }
    };
    load(first);  // before it is known that the queries are there
    await(s.counters + index - 1, parts_of(s, index - 1));
    u16 const* const heads = p.x + (u64)row * width * dim;
    for (u32 head = warp; head < GROUP; head += WARPS) {
      u16 const* const x = heads + (u64)(kv * group + head) * dim;
      float const own = head < group ? head_factor<KIND>(s, x, p.norm) : 0.0f;
      for (u32 i = lane; i < padded; i += 32) {
        bool const there = head < group && i < dim;
        query[head * stride + i] = there ? narrow<KIND>(turned<KIND>(s, p, x, p.norm, own, position, i) * s.scale) : (u16)0;
      }
      if (lane == 0) {
        high[head] = -3.4e38f;
        total[head] = 0.0f;
      }
    }
    float out[4][4] = {};  // [GROUP, dim]: eight columns of each eighth of them
    for (u32 number = first; number < last; ++number) {
      u32 const begin = number * span;
      meet();  // the span before is read
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * THREADS, at = i / eights;
        if (i < span * eights && begin + at != position) {
          *(uint4*)(keys + at * stride + i % eights * 8) = loaded.keys[j];
          *(uint4*)(values + at * stride + i % eights * 8) = loaded.values[j];
        }
      }
      if (padded != dim && thread < span) {
        *(uint4*)(keys + thread * stride + dim) = make_uint4(0, 0, 0, 0);
      }
      if (begin <= position && position < begin + span && warp < 2) {
        // The new one: its key by one warp, its value by another.
        u16 const* const x = heads + (u64)(s.heads + warp * s.kv_heads + kv) * dim;
        u16* const to = (warp == 0 ? keys : values) + (position - begin) * stride;
        u16* const kept = (warp == 0 ? p.keys : p.values) + base + (u64)position * dim;
        float const own = warp == 0 ? head_factor<KIND>(s, x, p.key_norm) : 1.0f;
        for (u32 i = lane; i < dim; i += 32) {
          u16 const value = warp == 0 ? narrow<KIND>(turned<KIND>(s, p, x, p.key_norm, own, position, i)) : read2(x + i);
          to[i] = value;
          if (s.present[row]) {
            kept[i] = value;
          }
        }
      }
      meet();
      if (number + 1 < last) {
        load(number + 1);
      }
      if (warp < span / 8) {
        float c[4] = {};
        for (u32 d = 0; d < padded; d += 16) {
          uint4 const a = matrices4(shared_address(query + lane % 16 * stride + d + lane / 16 * 8));
          uint2 const b = matrices2(shared_address(keys + (warp * 8 + lane % 8) * stride + d + lane / 8 % 2 * 8));
          multiply<KIND>(c, a, b);
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          u32 const column = warp * 8 + lane % 4 * 2 + i % 2;
          bool const seen = begin + column >= from && begin + column < length;
          score[(lane / 4 + i / 2 * 8) * span + column] = seen ? bounded(c[i], s.cap) : -3.4e38f;
        }
      }
      meet();
      for (u32 head = warp; head < GROUP; head += WARPS) {
        u16* const to = weight + head * (span + 8);
        if (head >= group) {
          for (u32 i = lane; i < span; i += 32) {
            to[i] = 0;
          }
          if (lane == 0) {
            factor[head] = 1.0f;
          }
          continue;
        }
        float const own = lane < span ? score[head * span + lane] : -3.4e38f;
        float const before = high[head], now = fmaxf(before, warp_max(own));
        u16 const counts = narrow<KIND>(own > -3.0e38f ? __expf(own - now) : 0.0f);
        if (lane < span) {
          to[lane] = counts;
        }
        float const sum = warp_sum(widen<KIND>(counts)), scale = __expf(before - now);
        __syncwarp();
        if (lane == 0) {
          high[head] = now;
          total[head] = total[head] * scale + sum;
          factor[head] = scale;
        }
      }
      meet();
      float const low_scale = factor[lane / 4], high_scale = factor[lane / 4 + 8];
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * WARPS) * 8;
        if (column < dim) {
          out[j][0] *= low_scale;
          out[j][1] *= low_scale;
          out[j][2] *= high_scale;
          out[j][3] *= high_scale;
          for (u32 k = 0; k < span; k += 16) {
            uint4 const a = matrices4(shared_address(weight + lane % 16 * (span + 8) + k + lane / 16 * 8));
            uint2 const b = turned2(shared_address(values + (k + lane % 16) * stride + column));
            multiply<KIND>(out[j], a, b);
          }
        }
      }
    }
    u64 const place = (u64)unit * GROUP;
    float* const stats = s.attention + (u64)pairs * s.splits * GROUP * dim;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
#pragma unroll
      for (u32 i = 0; i < 4; ++i) {
        u32 const head = lane / 4 + i / 2 * 8, column = (warp + j * WARPS) * 8 + lane % 4 * 2 + i % 2;
        if (head < group && column < dim) {
          if (active == 1) {
            ((u16*)p.out)[((u64)row * s.heads + kv * group + head) * dim + column] = narrow<KIND>(out[j][i] / total[head]);
          } else {
            __stcg(s.attention + (place + head) * dim + column, out[j][i]);
          }
        }
      }
    }
    if (active > 1) {
      if (thread < group) {
        __stcg(stats + (place + thread) * 2, high[thread]);
        __stcg(stats + (place + thread) * 2 + 1, total[thread]);
      }
      if (!comes_last(s.counters + p.counters + row * s.kv_heads + kv, active)) {
        continue;
      }
      float* const share = (float*)work;  // [GROUP, splits]: what each part counts
      u64 const parts = (u64)(row * s.kv_heads + kv) * s.splits;
      for (u32 head = warp; head < group; head += WARPS) {
        float largest = -3.4e38f, sum = 0.0f;
        for (u32 part = lane; part < active; part += 32) {
          largest = fmaxf(largest, __ldcg(stats + ((parts + part) * GROUP + head) * 2));
        }
        largest = warp_max(largest);
        for (u32 part = lane; part < active; part += 32) {
          float const* const one = stats + ((parts + part) * GROUP + head) * 2;
          float const scale = __expf(__ldcg(one) - largest);
          share[head * s.splits + part] = scale;
          sum += scale * __ldcg(one + 1);
        }
        sum = warp_sum(sum);
        __syncwarp();
        for (u32 part = lane; part < active; part += 32) {
          share[head * s.splits + part] /= sum;
        }
      }
      meet();
      for (u32 i = thread; i < group * dim; i += THREADS) {
        u32 const head = i / dim;
        float sum = 0.0f;
#pragma unroll 8
        for (u32 part = 0; part < active; ++part) {
          sum = fmaf(share[head * s.splits + part], __ldcg(s.attention + (parts + part) * GROUP * dim + i), sum);
        }
        ((u16*)p.out)[((u64)row * s.heads + kv * group) * dim + i] = narrow<KIND>(sum);
      }
    }
    publish(s.counters + index);
  }
}
