// Attention of one new token a row over what is cached and itself: queries and keys are normed and turned, new keys and
// values put where they belong, and the positions are cut into spans, which blocks share out and whoever comes last adds
// up. The softmax is carried from span to span (Milakov & Gimelshein 2018).

u32 constexpr SPAN = 32;                   // positions at a time; half as many where heads are larger than 128
u32 constexpr CHUNKS = SPAN * KEPT / 256;  // sixteen bytes of keys, and of values, a thread of a span
u32 constexpr ELEMENTS = 128 / KEPT;       // of sixteen bytes
u32 constexpr SPLITS = 8;                  // parts that are read at once

u32 constexpr PAIRS_OF_LANE = 4;  // elements a lane turns with those half a rotation on: of 256 at most

// A position's angles, as a lane needs them: for elements lane + 32 j, and for those half a rotation on.
struct Angles {
  u16 cos[2][PAIRS_OF_LANE], sin[2][PAIRS_OF_LANE];
};

__device__ __forceinline__ Angles angles_at(Step const& s, Phase const& p, u32 position) {
  u32 const half = p.rotary / 2, lane = threadIdx.x % 32;
  u64 const first = (u64)min(position, s.positions - 1) * p.rotary;
  Angles angles;
#pragma unroll
  for (u32 j = 0; j < PAIRS_OF_LANE; ++j) {
#pragma unroll
    for (u32 side = 0; side < 2; ++side) {
      u32 const i = lane + 32 * j;
      angles.cos[side][j] = i < half ? p.cos[first + side * half + i] : (u16)0;
      angles.sin[side][j] = i < half ? p.sin[first + side * half + i] : (u16)0;
    }
  }
  return angles;
}

// A warp norms and turns a head, and hands each element, times `scale`, to `keep`. All of it is read before any is used.
template <u32 KIND, typename Keep>
__device__ __forceinline__ void turn(Step const& s, Phase const& p, u16 const* x, float const* norm, Angles const& angles, float scale, Keep keep) {
  u32 const half = p.rotary / 2, lane = threadIdx.x % 32;
  u16 read[2][PAIRS_OF_LANE];
#pragma unroll
  for (u32 j = 0; j < PAIRS_OF_LANE; ++j) {
    u32 const i = lane + 32 * j;
    read[0][j] = i < half ? read2(x + i) : (u16)0;
    read[1][j] = i < half ? read2(x + half + i) : (u16)0;
  }
  float factor = 1.0f;
  if (norm) {
    float square = 0.0f;
#pragma unroll
    for (u32 j = 0; j < PAIRS_OF_LANE; ++j) {
      float const low = widen<KIND>(read[0][j]), high = widen<KIND>(read[1][j]);
      square = fmaf(low, low, fmaf(high, high, square));
    }
    for (u32 i = p.rotary + lane; i < s.dim; i += 32) {
      float const value = widen<KIND>(read2(x + i));
      square = fmaf(value, value, square);
    }
    factor = rsqrtf(warp_sum(square) / s.dim + s.eps);
  }
  auto const normed = [&](u16 bits, u32 i) {
    float const value = widen<KIND>(bits);
    return norm ? rounded<KIND>(value * factor * norm[i]) : value;
  };
#pragma unroll
  for (u32 j = 0; j < PAIRS_OF_LANE; ++j) {
    u32 const i = lane + 32 * j;
    if (i < half) {
      float const low = normed(read[0][j], i), high = normed(read[1][j], half + i);
      float const turned_low = low * widen<KIND>(angles.cos[0][j]) - high * widen<KIND>(angles.sin[0][j]);
      float const turned_high = high * widen<KIND>(angles.cos[1][j]) + low * widen<KIND>(angles.sin[1][j]);
      keep(i, narrow<KIND>(turned_low * scale));
      keep(half + i, narrow<KIND>(turned_high * scale));
    }
  }
  for (u32 i = p.rotary + lane; i < s.dim; i += 32) {
    keep(i, narrow<KIND>(normed(read2(x + i), i) * scale));
  }
}

// Keys and values of a span on their way to shared memory.
struct Loaded {
  uint4 keys[CHUNKS], values[CHUNKS];
  float key_scales[CHUNKS], value_scales[CHUNKS];  // in 8 bits
};

// What rows in 8 bits are multiplied with is not multiplied with them: scores are with a key's, weights with a value's, and with
// so much that float16 holds them, which is taken off at last.
float constexpr RAISE = KEPT == 8 ? 256.0f : 1.0f;

// Sixteen bytes of a cached row to where the products want them.
template <u32 KIND>
__device__ __forceinline__ void lay_down(uint4 bytes, u16* to) {
  if (KEPT == 16) {
    *(uint4*)to = bytes;
    return;
  }
  u32 const words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  u32 pairs[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    if (KIND == 1) {
      // 1024 + byte, whose last bits count ones, less 1152.
      pairs[i] = less(__byte_perm(words[i / 2], 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);
    } else {
      u32 const word = words[i / 2] >> (i % 2 * 16);
      // 2^23 + byte.
      float const low = __uint_as_float(select(word, 255, 0x4b000000u)) - 8388736.0f;
      pairs[i] = pair<KIND>(low, __uint_as_float(select(word >> 8, 255, 0x4b000000u)) - 8388736.0f);
    }
  }
  ((uint4*)to)[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  ((uint4*)to)[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

template <u32 KIND>
__device__ __forceinline__ float4 four_of(uint2 packed) {
  return {widen<KIND>((u16)packed.x), widen<KIND>((u16)(packed.x >> 16)), widen<KIND>((u16)packed.y), widen<KIND>((u16)(packed.y >> 16))};
}

// A float by being added to 1.5 * 2^23 is rounded to an integer, which its last bits count.
__device__ __forceinline__ float to_nearest(float value) { return value + 12582912.0f; }

// A warp rounds a row in shared memory to 8 bits, by its largest element, and puts it where it is kept, if anywhere. Returns
// what its integers are multiplied with. One copy for keys and values: what runs once a phase is paid by its length.
template <u32 KIND>
__device__ __attribute__((noinline)) float round_row(u16* row, u32 dim, u8* kept, float* scale_at) {
  u32 const lane = threadIdx.x % 32;
  __syncwarp();
  float largest = 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = four_of<KIND>(*(uint2*)(row + i));
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  }
  largest = warp_max(largest);
  float const scale = largest * (1.0f / 127.0f), inverse = largest > 0.0f ? __fdividef(127.0f, largest) : 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = four_of<KIND>(*(uint2*)(row + i));
    float q[4] = {to_nearest(v.x * inverse), to_nearest(v.y * inverse), to_nearest(v.z * inverse), to_nearest(v.w * inverse)};
    u32 bytes = 0;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      bytes |= (__float_as_uint(q[j]) + 128 & 255) << (8 * j);
      q[j] -= to_nearest(0.0f);
    }
    *(uint2*)(row + i) = make_uint2(pair<KIND>(q[0], q[1]), pair<KIND>(q[2], q[3]));
    if (kept) {
      *(u32*)(kept + i) = bytes;
    }
  }
  if (kept && lane == 0) {
    *scale_at = scale;
  }
  return scale;
}

template <u32 KIND>
__device__ __forceinline__ void attend(Step const& s, Phase const& p, u32 index, u8* work) {
  __shared__ float high[GROUP], total[GROUP], factor[GROUP];
  __shared__ float key_scale[SPAN], value_scale[SPAN], fresh_scale[2];  // in 8 bits
  u32 const thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 const dim = s.dim, padded = (dim + 15) / 16 * 16, stride = padded + 8, chunks = dim / ELEMENTS;
  u32 const span = dim <= 128 ? SPAN : SPAN / 2, group = s.heads / s.kv_heads, width = s.heads + 2 * s.kv_heads;
  u16* const keys = (u16*)work;             // [span, stride]
  u16* const values = keys + span * stride;  // [span, stride]
  u16* const query = values + span * stride; // [GROUP, stride]
  u16* const weight = query + GROUP * stride; // [GROUP, span + 8]
  float* const score = (float*)(weight + GROUP * (span + 8)); // [GROUP, span]
  u16* const fresh = (u16*)(score + GROUP * span);            // [2, stride]: the new key and value
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
    u64 const base = ((u64)(s.slot + row) * s.kv_heads + kv) * s.capacity;  // of the head's rows
    Loaded loaded;
    auto const load = [&](u32 number) {
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * THREADS, at = number * span + i / chunks;
        loaded.keys[j] = loaded.values[j] = make_uint4(0, 0, 0, 0);
        loaded.key_scales[j] = loaded.value_scales[j] = 0.0f;
        if (i < span * chunks && at >= from && at < position) {
          u64 const where = (base + at) * dim * KEPT / 8 + i % chunks * 16;
          loaded.keys[j] = read16(p.keys + where);
          loaded.values[j] = read16(p.values + where);
          if (KEPT == 8) {
            loaded.key_scales[j] = __ldcg(p.key_scales + base + at);
            loaded.value_scales[j] = __ldcg(p.value_scales + base + at);
          }
        }
      }
    };
    // On their way before it is known that the queries are there.
    load(first);
    Angles const angles = angles_at(s, p, position);
    // Queries nobody has are 0, and so is what fills up a row.
    for (u32 i = thread; i < GROUP * padded; i += THREADS) {
      u32 const head = i / padded, column = i % padded;
      if (head >= group || column >= dim) {
        query[head * stride + column] = 0;
      }
    }
    if (thread < GROUP) {
      high[thread] = -3.4e38f;
      total[thread] = 0.0f;
    }
    bool const has_new = last == first_span + spans, present = s.present[row];
    await(s.counters + index - 1, parts_of(s, index - 1));
    MARK(1);
    u16 const* const heads = p.x + (u64)row * width * dim;
    // A warp for each query, the new key and the new value.
    for (u32 head = warp; head < group + 2; head += WARPS) {
      if (head < group) {
        u16* const to = query + head * stride;
        turn<KIND>(s, p, heads + (u64)(kv * group + head) * dim, p.norm, angles, s.scale, [&](u32 i, u16 value) { to[i] = value; });
      } else if (head == group && has_new) {
        u8* const kept = p.keys + (base + position) * dim * KEPT / 8;
        turn<KIND>(s, p, heads + (u64)(s.heads + kv) * dim, p.key_norm, angles, 1.0f, [&](u32 i, u16 value) {
          fresh[i] = value;
          if (KEPT == 16 && present) {
            ((u16*)kept)[i] = value;
          }
        });
        if (KEPT == 8) {
          fresh_scale[0] = round_row<KIND>(fresh, dim, present ? kept : nullptr, p.key_scales + base + position);
        }
      } else if (has_new) {
        u16 const* const x = heads + (u64)(s.heads + s.kv_heads + kv) * dim;
        u8* const kept = p.values + (base + position) * dim * KEPT / 8;
        for (u32 i = lane * 8; i < dim; i += 256) {
          uint4 const value = read16(x + i);
          *(uint4*)(fresh + stride + i) = value;
          if (KEPT == 16 && present) {
            *(uint4*)((u16*)kept + i) = value;
          }
        }
        if (KEPT == 8) {
          fresh_scale[1] = round_row<KIND>(fresh + stride, dim, present ? kept : nullptr, p.value_scales + base + position);
        }
      }
    }
    MARK(2);
    float out[4][4] = {};  // [GROUP, dim]: eight columns of each eighth of them
    for (u32 number = first; number < last; ++number) {
      u32 const begin = number * span;
      meet();  // the span before is read, what is new is there
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * THREADS, at = i / chunks, c = i % chunks * ELEMENTS;
        if (i < span * chunks && begin + at != position) {
          lay_down<KIND>(loaded.keys[j], keys + at * stride + c);
          lay_down<KIND>(loaded.values[j], values + at * stride + c);
          if (KEPT == 8 && c == 0) {
            key_scale[at] = loaded.key_scales[j];
            value_scale[at] = loaded.value_scales[j];
          }
        }
      }
      if (position - begin < span && thread < dim / 8) {
        *(uint4*)(keys + (position - begin) * stride + thread * 8) = *(uint4 const*)(fresh + thread * 8);
        *(uint4*)(values + (position - begin) * stride + thread * 8) = *(uint4 const*)(fresh + stride + thread * 8);
        if (KEPT == 8 && thread == 0) {
          key_scale[position - begin] = fresh_scale[0];
          value_scale[position - begin] = fresh_scale[1];
        }
      }
      if (padded != dim && thread < span) {
        *(uint4*)(keys + thread * stride + dim) = make_uint4(0, 0, 0, 0);
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
          float const value = KEPT == 8 ? c[i] * key_scale[column] : c[i];
          score[(lane / 4 + i / 2 * 8) * span + column] = seen ? bounded(value, s.cap) : -3.4e38f;
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
        float counts = own > -3.0e38f ? __expf(own - now) : 0.0f;
        if (KEPT == 16) {
          counts = rounded<KIND>(counts);
        }
        if (lane < span) {
          to[lane] = narrow<KIND>(KEPT == 8 ? counts * (value_scale[lane] * RAISE) : counts);
        }
        float const sum = warp_sum(counts), scale = __expf(before - now);
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
    MARK(3);
    u64 const place = (u64)unit * GROUP;
    float* const stats = s.attention + (u64)pairs * s.splits * GROUP * dim;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 const head = lane / 4 + half * 8;
      if (head < group) {
        float const share = active == 1 ? __fdividef(1.0f / RAISE, total[head]) : 1.0f / RAISE;
        u64 const row_of = (u64)row * s.heads + kv * group + head;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          u32 const column = (warp + j * WARPS) * 8 + lane % 4 * 2;
          float const low = out[j][half * 2], next = out[j][half * 2 + 1];
          if (column < dim && active == 1) {
            *(u32*)((u16*)p.out + row_of * dim + column) = pair<KIND>(low * share, next * share);
          } else if (column < dim) {
            __stcg((float2*)(s.attention + (place + head) * dim + column), make_float2(low * share, next * share));
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
      MARK(4);
      // Each thread scales and adds an element of all parts, so many of them at a time.
      u64 const parts = (u64)(row * s.kv_heads + kv) * s.splits;
      for (u32 i = thread; i < group * dim; i += THREADS) {
        u32 const head = i / dim;
        float largest = -3.4e38f, sum = 0.0f, count = 0.0f;
        for (u32 begin = 0; begin < active; begin += SPLITS) {
          float value[SPLITS], peak[SPLITS], counted[SPLITS], now = largest;
#pragma unroll
          for (u32 j = 0; j < SPLITS; ++j) {
            u64 const part = parts + min(begin + j, active - 1);
            value[j] = __ldcg(s.attention + part * GROUP * dim + i);
            peak[j] = __ldcg(stats + (part * GROUP + head) * 2);
            counted[j] = __ldcg(stats + (part * GROUP + head) * 2 + 1);
          }
#pragma unroll
          for (u32 j = 0; j < SPLITS; ++j) {
            now = fmaxf(now, peak[j]);
          }
          float const scale = __expf(largest - now);
          sum *= scale;
          count *= scale;
#pragma unroll
          for (u32 j = 0; j < SPLITS; ++j) {
            float const share = begin + j < active ? __expf(peak[j] - now) : 0.0f;
            sum = fmaf(share, value[j], sum);
            count = fmaf(share, counted[j], count);
          }
          largest = now;
        }
        ((u16*)p.out)[((u64)row * s.heads + kv * group) * dim + i] = narrow<KIND>(sum / count);
      }
    }
    publish(s.counters + index);
    MARK(5);
  }
}
