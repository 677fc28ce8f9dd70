// Attention of one new token a row over what is cached and itself: queries and keys are normed and turned, new keys and
// values put where they belong, and the positions are cut into spans, which blocks share out and whoever comes last adds
// up. The softmax is carried from span to span (Milakov & Gimelshein 2018).

u32 constexpr SPAN = 32;                   // positions at a time; half as many where heads are larger than 128
u32 constexpr CHUNKS = SPAN * KV_BITS / 256;  // sixteen bytes of keys, and of values, a thread of a span
u32 constexpr ELEMENTS = 128 / KV_BITS;       // of sixteen bytes
u32 constexpr MERGED_AT_ONCE = 8;                  // parts that are read at once

u32 constexpr ROPE_PAIRS = 4;  // elements a lane turns with those half a rotation on: of 256 at most

// A position's angles, as a lane needs them: for elements lane + 32 j, and for those half a rotation on.
struct RopeAngles {
  u16 cos[2][ROPE_PAIRS], sin[2][ROPE_PAIRS];
};

__device__ __forceinline__ RopeAngles load_angles(DecodeParams const& s, PhaseDescriptor const& p, u32 position) {
  u32 const half = p.rotary_dim / 2, lane = threadIdx.x % 32;
  u64 const first = (u64)min(position, s.rope_positions - 1) * p.rotary_dim;
  RopeAngles angles;
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
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
__device__ __forceinline__ void apply_rope(DecodeParams const& s, PhaseDescriptor const& p, u16 const* x, float const* norm, RopeAngles const& angles, float scale, Keep keep) {
  u32 const half = p.rotary_dim / 2, lane = threadIdx.x % 32;
  u16 read[2][ROPE_PAIRS];
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    read[0][j] = i < half ? load_cg_2(x + i) : (u16)0;
    read[1][j] = i < half ? load_cg_2(x + half + i) : (u16)0;
  }
  float factor = 1.0f;
  if (norm) {
    float square = 0.0f;
#pragma unroll
    for (u32 j = 0; j < ROPE_PAIRS; ++j) {
      float const low = widen<KIND>(read[0][j]), high = widen<KIND>(read[1][j]);
      square = fmaf(low, low, fmaf(high, high, square));
    }
    for (u32 i = p.rotary_dim + lane; i < s.head_dim; i += 32) {
      float const value = widen<KIND>(load_cg_2(x + i));
      square = fmaf(value, value, square);
    }
    factor = rsqrtf(warp_sum(square) / s.head_dim + s.norm_eps);
  }
  auto const normed = [&](u16 bits, u32 i) {
    float const value = widen<KIND>(bits);
    return norm ? round_to<KIND>(value * factor * norm[i]) : value;
  };
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    if (i < half) {
      float const low = normed(read[0][j], i), high = normed(read[1][j], half + i);
      float const turned_low = low * widen<KIND>(angles.cos[0][j]) - high * widen<KIND>(angles.sin[0][j]);
      float const turned_high = high * widen<KIND>(angles.cos[1][j]) + low * widen<KIND>(angles.sin[1][j]);
      keep(i, narrow<KIND>(turned_low * scale));
      keep(half + i, narrow<KIND>(turned_high * scale));
    }
  }
  for (u32 i = p.rotary_dim + lane; i < s.head_dim; i += 32) {
    keep(i, narrow<KIND>(normed(load_cg_2(x + i), i) * scale));
  }
}

// WarpKeys and values of a span on their way to shared memory.
struct KvChunk {
  uint4 keys[CHUNKS], values[CHUNKS];
  float key_scales[CHUNKS], value_scales[CHUNKS];  // in 8 bits
};

// What rows in 8 bits are multiplied with is not multiplied with them: scores are with a key's, weights with a value's, and with
// so much that float16 holds them, which is taken off at last.
float constexpr PROBABILITY_SCALE = KV_BITS == 8 ? 256.0f : 1.0f;

// Sixteen bytes of a cached row to where the products want them.
template <u32 KIND>
__device__ __forceinline__ void store_kv(uint4 bytes, u16* to) {
  if (KV_BITS == 16) {
    *(uint4*)to = bytes;
    return;
  }
  u32 const words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
  u32 pairs[8];
#pragma unroll
  for (u32 i = 0; i < 8; ++i) {
    if (KIND == 1) {
      // 1024 + byte, whose last bits count ones, less 1152.
      pairs[i] = sub_f16x2(__byte_perm(words[i / 2], 0x64646464u, i % 2 ? 0x4342 : 0x4140), 0x64806480u);
    } else {
      u32 const word = words[i / 2] >> (i % 2 * 16);
      // 2^23 + byte.
      float const low = __uint_as_float(lop3_and_or(word, 255, 0x4b000000u)) - 8388736.0f;
      pairs[i] = pack2<KIND>(low, __uint_as_float(lop3_and_or(word >> 8, 255, 0x4b000000u)) - 8388736.0f);
    }
  }
  ((uint4*)to)[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  ((uint4*)to)[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
}

template <u32 KIND>
__device__ __forceinline__ float4 unpack4(uint2 packed) {
  return {widen<KIND>((u16)packed.x), widen<KIND>((u16)(packed.x >> 16)), widen<KIND>((u16)packed.y), widen<KIND>((u16)(packed.y >> 16))};
}

// A float by being added to 1.5 * 2^23 is rounded to an integer, which its last bits count.
__device__ __forceinline__ float round_by_adding(float value) { return value + 12582912.0f; }

// A warp rounds a row in shared memory to 8 bits, by its largest element, and puts it where it is kept, if anywhere. Returns
// what its integers are multiplied with. One copy for keys and values: what runs once a phase is paid by its length.
template <u32 KIND>
__device__ __attribute__((noinline)) float quantize_row(u16* row, u32 dim, u8* kept, float* scale_at) {
  u32 const lane = threadIdx.x % 32;
  __syncwarp();
  float largest = 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = unpack4<KIND>(*(uint2*)(row + i));
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
  }
  largest = warp_max(largest);
  float const scale = largest * (1.0f / 127.0f), inverse = largest > 0.0f ? __fdividef(127.0f, largest) : 0.0f;
#pragma unroll 1
  for (u32 i = lane * 4; i < dim; i += 128) {
    float4 const v = unpack4<KIND>(*(uint2*)(row + i));
    float q[4] = {round_by_adding(v.x * inverse), round_by_adding(v.y * inverse), round_by_adding(v.z * inverse), round_by_adding(v.w * inverse)};
    u32 bytes = 0;
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      bytes |= (__float_as_uint(q[j]) + 128 & 255) << (8 * j);
      q[j] -= round_by_adding(0.0f);
    }
    *(uint2*)(row + i) = make_uint2(pack2<KIND>(q[0], q[1]), pack2<KIND>(q[2], q[3]));
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
__device__ __forceinline__ void attend(DecodeParams const& s, PhaseDescriptor const& p, u32 index, u8* work) {
  __shared__ float high[MAX_GROUP], total[MAX_GROUP], factor[MAX_GROUP];
  __shared__ float key_scale[SPAN], value_scale[SPAN], fresh_scale[2];  // in 8 bits
  u32 const thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  u32 const dim = s.head_dim, padded = (dim + 15) / 16 * 16, stride = padded + 8, chunks = dim / ELEMENTS;
  u32 const span = dim <= 128 ? SPAN : SPAN / 2, group = s.heads / s.kv_heads, width = s.heads + 2 * s.kv_heads;
  u16* const keys = (u16*)work;             // [span, stride]
  u16* const values = keys + span * stride;  // [span, stride]
  u16* const query = values + span * stride; // [MAX_GROUP, stride]
  u16* const weight = query + MAX_GROUP * stride; // [MAX_GROUP, span + 8]
  float* const score = (float*)(weight + MAX_GROUP * (span + 8)); // [MAX_GROUP, span]
  u16* const fresh = (u16*)(score + MAX_GROUP * span);            // [2, stride]: the new key and value
  u32 const pairs = s.rows * s.kv_heads;
  for (u32 unit = blockIdx.x; unit < pairs * s.kv_splits; unit += gridDim.x) {
    u32 const split = unit % s.kv_splits, kv = unit / s.kv_splits % s.kv_heads, row = unit / s.kv_splits / s.kv_heads;
    u32 const position = min(s.cached[row], s.capacity - 1), length = position + 1;
    u32 const from = p.window && length > p.window ? length - p.window : 0;
    u32 const first_span = from / span, spans = (length + span - 1) / span - first_span;
    u32 const active = min(s.kv_splits, spans);
    if (split >= active) {
      continue;
    }
    u32 const first = first_span + split * spans / active, last = first_span + (split + 1) * spans / active;
    u64 const base = ((u64)(s.first_slot + row) * s.kv_heads + kv) * s.capacity;  // of the head's rows
    KvChunk loaded;
    auto const load = [&](u32 number) {
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * COMPUTE_THREADS, at = number * span + i / chunks;
        loaded.keys[j] = loaded.values[j] = make_uint4(0, 0, 0, 0);
        loaded.key_scales[j] = loaded.value_scales[j] = 0.0f;
        if (i < span * chunks && at >= from && at < position) {
          u64 const where = (base + at) * dim * KV_BITS / 8 + i % chunks * 16;
          loaded.keys[j] = load_cg_16(p.keys + where);
          loaded.values[j] = load_cg_16(p.values + where);
          if (KV_BITS == 8) {
            loaded.key_scales[j] = __ldcg(p.key_scales + base + at);
            loaded.value_scales[j] = __ldcg(p.value_scales + base + at);
          }
        }
      }
    };
    // On their way before it is known that the queries are there.
    load(first);
    RopeAngles const angles = load_angles(s, p, position);
    // Queries nobody has are 0, and so is what fills up a row.
    for (u32 i = thread; i < MAX_GROUP * padded; i += COMPUTE_THREADS) {
      u32 const head = i / padded, column = i % padded;
      if (head >= group || column >= dim) {
        query[head * stride + column] = 0;
      }
    }
    if (thread < MAX_GROUP) {
      high[thread] = -3.4e38f;
      total[thread] = 0.0f;
    }
    bool const has_new = last == first_span + spans, present = s.occupied[row];
    wait_phase(s.counters + index - 1, completions_of(s, index - 1));
    MARK(1);
    u16 const* const heads = p.x + (u64)row * width * dim;
    // A warp for each query, the new key and the new value.
    for (u32 head = warp; head < group + 2; head += COMPUTE_WARPS) {
      if (head < group) {
        u16* const to = query + head * stride;
        apply_rope<KIND>(s, p, heads + (u64)(kv * group + head) * dim, p.norm_weight, angles, s.attention_scale, [&](u32 i, u16 value) { to[i] = value; });
      } else if (head == group && has_new) {
        u8* const kept = p.keys + (base + position) * dim * KV_BITS / 8;
        apply_rope<KIND>(s, p, heads + (u64)(s.heads + kv) * dim, p.key_norm_weight, angles, 1.0f, [&](u32 i, u16 value) {
          fresh[i] = value;
          if (KV_BITS == 16 && present) {
            ((u16*)kept)[i] = value;
          }
        });
        if (KV_BITS == 8) {
          fresh_scale[0] = quantize_row<KIND>(fresh, dim, present ? kept : nullptr, p.key_scales + base + position);
        }
      } else if (has_new) {
        u16 const* const x = heads + (u64)(s.heads + s.kv_heads + kv) * dim;
        u8* const kept = p.values + (base + position) * dim * KV_BITS / 8;
        for (u32 i = lane * 8; i < dim; i += 256) {
          uint4 const value = load_cg_16(x + i);
          *(uint4*)(fresh + stride + i) = value;
          if (KV_BITS == 16 && present) {
            *(uint4*)((u16*)kept + i) = value;
          }
        }
        if (KV_BITS == 8) {
          fresh_scale[1] = quantize_row<KIND>(fresh + stride, dim, present ? kept : nullptr, p.value_scales + base + position);
        }
      }
    }
    MARK(2);
    float out[4][4] = {};  // [MAX_GROUP, dim]: eight columns of each eighth of them
    for (u32 number = first; number < last; ++number) {
      u32 const begin = number * span;
      sync_compute_warps();  // the span before is read, what is new is there
#pragma unroll
      for (u32 j = 0; j < CHUNKS; ++j) {
        u32 const i = thread + j * COMPUTE_THREADS, at = i / chunks, c = i % chunks * ELEMENTS;
        if (i < span * chunks && begin + at != position) {
          store_kv<KIND>(loaded.keys[j], keys + at * stride + c);
          store_kv<KIND>(loaded.values[j], values + at * stride + c);
          if (KV_BITS == 8 && c == 0) {
            key_scale[at] = loaded.key_scales[j];
            value_scale[at] = loaded.value_scales[j];
          }
        }
      }
      if (position - begin < span && thread < dim / 8) {
        *(uint4*)(keys + (position - begin) * stride + thread * 8) = *(uint4 const*)(fresh + thread * 8);
        *(uint4*)(values + (position - begin) * stride + thread * 8) = *(uint4 const*)(fresh + stride + thread * 8);
        if (KV_BITS == 8 && thread == 0) {
          key_scale[position - begin] = fresh_scale[0];
          value_scale[position - begin] = fresh_scale[1];
        }
      }
      if (padded != dim && thread < span) {
        *(uint4*)(keys + thread * stride + dim) = make_uint4(0, 0, 0, 0);
      }
      sync_compute_warps();
      if (number + 1 < last) {
        load(number + 1);
      }
      if (warp < span / 8) {
        float c[4] = {};
        for (u32 d = 0; d < padded; d += 16) {
          uint4 const a = ldmatrix_x4(shared_address(query + lane % 16 * stride + d + lane / 16 * 8));
          uint2 const b = ldmatrix_x2(shared_address(keys + (warp * 8 + lane % 8) * stride + d + lane / 8 % 2 * 8));
          mma_m16n8k16<KIND>(c, a, b);
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          u32 const column = warp * 8 + lane % 4 * 2 + i % 2;
          bool const seen = begin + column >= from && begin + column < length;
          float const value = KV_BITS == 8 ? c[i] * key_scale[column] : c[i];
          score[(lane / 4 + i / 2 * 8) * span + column] = seen ? soft_cap(value, s.attention_softcap) : -3.4e38f;
        }
      }
      sync_compute_warps();
      for (u32 head = warp; head < MAX_GROUP; head += COMPUTE_WARPS) {
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
        if (KV_BITS == 16) {
          counts = round_to<KIND>(counts);
        }
        if (lane < span) {
          to[lane] = narrow<KIND>(KV_BITS == 8 ? counts * (value_scale[lane] * PROBABILITY_SCALE) : counts);
        }
        float const sum = warp_sum(counts), scale = __expf(before - now);
        if (lane == 0) {
          high[head] = now;
          total[head] = total[head] * scale + sum;
          factor[head] = scale;
        }
      }
      sync_compute_warps();
      float const low_scale = factor[lane / 4], high_scale = factor[lane / 4 + 8];
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * COMPUTE_WARPS) * 8;
        if (column < dim) {
          out[j][0] *= low_scale;
          out[j][1] *= low_scale;
          out[j][2] *= high_scale;
          out[j][3] *= high_scale;
          for (u32 k = 0; k < span; k += 16) {
            uint4 const a = ldmatrix_x4(shared_address(weight + lane % 16 * (span + 8) + k + lane / 16 * 8));
            uint2 const b = ldmatrix_x2_trans(shared_address(values + (k + lane % 16) * stride + column));
            mma_m16n8k16<KIND>(out[j], a, b);
          }
        }
      }
    }
    MARK(3);
    u64 const place = (u64)unit * MAX_GROUP;
    float* const stats = s.attention_partials + (u64)pairs * s.kv_splits * MAX_GROUP * dim;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      u32 const head = lane / 4 + half * 8;
      if (head < group) {
        float const share = active == 1 ? __fdividef(1.0f / PROBABILITY_SCALE, total[head]) : 1.0f / PROBABILITY_SCALE;
        u64 const row_of = (u64)row * s.heads + kv * group + head;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
          u32 const column = (warp + j * COMPUTE_WARPS) * 8 + lane % 4 * 2;
          float const low = out[j][half * 2], next = out[j][half * 2 + 1];
          if (column < dim && active == 1) {
            *(u32*)((u16*)p.out + row_of * dim + column) = pack2<KIND>(low * share, next * share);
          } else if (column < dim) {
            __stcg((float2*)(s.attention_partials + (place + head) * dim + column), make_float2(low * share, next * share));
          }
        }
      }
    }
    if (active > 1) {
      if (thread < group) {
        __stcg(stats + (place + thread) * 2, high[thread]);
        __stcg(stats + (place + thread) * 2 + 1, total[thread]);
      }
      if (!is_last_arrival(s.counters + p.first_counter + row * s.kv_heads + kv, active)) {
        continue;
      }
      MARK(4);
      // Each thread scales and adds an element of all parts, so many of them at a time.
      u64 const parts = (u64)(row * s.kv_heads + kv) * s.kv_splits;
      for (u32 i = thread; i < group * dim; i += COMPUTE_THREADS) {
        u32 const head = i / dim;
        float largest = -3.4e38f, sum = 0.0f, count = 0.0f;
        for (u32 begin = 0; begin < active; begin += MERGED_AT_ONCE) {
          float value[MERGED_AT_ONCE], peak[MERGED_AT_ONCE], counted[MERGED_AT_ONCE], now = largest;
#pragma unroll
          for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
            u64 const part = parts + min(begin + j, active - 1);
            value[j] = __ldcg(s.attention_partials + part * MAX_GROUP * dim + i);
            peak[j] = __ldcg(stats + (part * MAX_GROUP + head) * 2);
            counted[j] = __ldcg(stats + (part * MAX_GROUP + head) * 2 + 1);
          }
#pragma unroll
          for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
            now = fmaxf(now, peak[j]);
          }
          float const scale = __expf(largest - now);
          sum *= scale;
          count *= scale;
#pragma unroll
          for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
            float const share = begin + j < active ? __expf(peak[j] - now) : 0.0f;
            sum = fmaf(share, value[j], sum);
            count = fmaf(share, counted[j], count);
          }
          largest = now;
        }
        ((u16*)p.out)[((u64)row * s.heads + kv * group) * dim + i] = narrow<KIND>(sum / count);
      }
    }
    signal_phase(s.counters + index);
    MARK(5);
  }
}
