// Attention of one new token a row over its cached positions and itself, with grouped queries: the query heads that share a key
// head are rows of one product. Queries and keys are normed and rotated here, and the new key and value appended to the cache.
//
// The positions of a row are cut into spans, and those dealt out to splits, so that all blocks have work, as in FlashDecoding
// (Dao et al. 2023). A block goes through a split's spans with an online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao
// et al. 2022); the last block to arrive at a pair of row and key head merges its splits.

u32 constexpr SPAN = 32;                       // positions of a span; half as many where heads are larger than 128
u32 constexpr KV_CHUNKS = SPAN * KV_BITS / 256;  // times sixteen bytes that a thread reads of a span's keys, and of its values
u32 constexpr CHUNK_ELEMENTS = 128 / KV_BITS;    // of sixteen bytes
u32 constexpr MERGED_AT_ONCE = 8;              // splits that are read at once when they are merged
u32 constexpr SPAN_SCALES = KV_BITS == 8 ? SPAN : 1;
float constexpr NEVER = -3.4e38f;              // score of a position that is not seen

// Sizes, the same for all of a phase.
struct AttentionSizes {
  u32 dim, padded, stride;  // of a head; to a multiple of 16; elements from row to row in shared memory
  u32 row_chunks;           // times sixteen bytes of a cached row
  u32 span, group;          // positions of a span; query heads of a key head
};

// Where things lie in shared memory.
struct AttentionMemory {
  u16 *keys, *values;   // [span, stride]
  u16* queries;         // [MAX_GROUP, stride]
  u16* probabilities;   // [MAX_GROUP, span + 8]
  float* scores;        // [MAX_GROUP, span]
  u16* fresh;           // [2, stride]: the new key and value
};

// The state of the online softmax for each query head, and the span's scales in 8 bits; in shared memory.
struct SoftmaxState {
  float max[MAX_GROUP], sum[MAX_GROUP], rescale[MAX_GROUP];
  float key_scale[SPAN_SCALES], value_scale[SPAN_SCALES], fresh_scale[2];
};

// A split of a pair of row and key head.
struct AttentionSplit {
  u32 row, kv_head, number;  // its number among the splits, of which only `active` have spans
  u32 active;
  u32 position, from;        // of the new token; the first position that it sees
  u32 first, last;           // its spans, up to `last`
  bool has_new;              // the new token is in its last span
  bool occupied;             // there is a sequence in the row
  u64 base;                  // the pair's first row in the cache
};

// A thread's part of a span's keys and values, on its way from the cache to shared memory.
struct KvChunks {
  uint4 keys[KV_CHUNKS], values[KV_CHUNKS];
  float key_scales[KV_CHUNKS], value_scales[KV_CHUNKS];  // in 8 bits
};

// This warp's columns of the outputs, [MAX_GROUP, dim]: eight of each COMPUTE_WARPS times eight, as mma leaves them.
typedef float HeadSums[4][4];

__device__ __forceinline__ AttentionSizes sizes_of(DecodeParams const& s) {
  u32 const dim = s.head_dim, padded = (dim + 15) / 16 * 16;
  return {dim, padded, padded + 8, dim / CHUNK_ELEMENTS, dim <= 128 ? SPAN : SPAN / 2, s.heads / s.kv_heads};
}

__device__ __forceinline__ AttentionMemory memory_of(AttentionSizes const& z, u8* work) {
  u16 *const keys = (u16*)work, *const values = keys + z.span * z.stride, *const queries = values + z.span * z.stride;
  u16* const probabilities = queries + MAX_GROUP * z.stride;
  float* const scores = (float*)(probabilities + MAX_GROUP * (z.span + 8));
  return {keys, values, queries, probabilities, scores, (u16*)(scores + MAX_GROUP * z.span)};
}

__device__ __forceinline__ AttentionSplit split_of(DecodeParams const& s, u32 window, u32 span, u32 unit) {
  u32 const number = unit % s.kv_splits, kv_head = unit / s.kv_splits % s.kv_heads, row = unit / s.kv_splits / s.kv_heads;
  u32 const position = min(s.cached[row], s.capacity - 1), length = position + 1;
  u32 const from = window && length > window ? length - window : 0;
  u32 const first = from / span, spans = (length + span - 1) / span - first, active = min(s.kv_splits, spans);
  u32 const last = first + (number + 1) * spans / active;
  u64 const base = ((u64)(s.first_slot + row) * s.kv_heads + kv_head) * s.capacity;
  return {row, kv_head, number, active, position, from, first + number * spans / active, last, last == first + spans,
          s.occupied[row] != 0, base};
}

// Begins to read a span of the cache. The new token is not read from there.
__device__ __forceinline__ void load_span(PhaseDescriptor const& p, AttentionSizes const& z, AttentionSplit const& t, u32 span, KvChunks& kv) {
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const i = threadIdx.x + j * COMPUTE_THREADS, at = span * z.span + i / z.row_chunks;
    kv.keys[j] = kv.values[j] = make_uint4(0, 0, 0, 0);
    kv.key_scales[j] = kv.value_scales[j] = 0.0f;
    if (i < z.span * z.row_chunks && at >= t.from && at < t.position) {
      u64 const where = (t.base + at) * z.dim * KV_BITS / 8 + i % z.row_chunks * 16;
      kv.keys[j] = load_cg_16(p.keys + where);
      kv.values[j] = load_cg_16(p.values + where);
      if (KV_BITS == 8) {
        kv.key_scales[j] = __ldcg(p.key_scales + t.base + at);
        kv.value_scales[j] = __ldcg(p.value_scales + t.base + at);
      }
    }
  }
}

// Before the queries are there: those nobody has are 0, and so is what pads a row.
__device__ __forceinline__ void clear_queries(AttentionSizes const& z, AttentionMemory const& m, SoftmaxState& softmax) {
  for (u32 i = threadIdx.x; i < MAX_GROUP * z.padded; i += COMPUTE_THREADS) {
    u32 const head = i / z.padded, column = i % z.padded;
    if (head >= z.group || column >= z.dim) {
      m.queries[head * z.stride + column] = 0;
    }
  }
  if (threadIdx.x < MAX_GROUP) {
    softmax.max[threadIdx.x] = NEVER;
    softmax.sum[threadIdx.x] = 0.0f;
  }
}

// The new value to shared memory and, in 16 bits, to the cache where a sequence is in the row. One warp.
template <u32 KIND>
__device__ __forceinline__ void append_value(PhaseContext const& c, AttentionSplit const& t, u16 const* x, u16* to) {
  u32 const dim = c.s.head_dim;
  u16* const cached = (u16*)c.p.values + (t.base + t.position) * dim;
#pragma unroll 1
  for (u32 i = threadIdx.x % 32 * 8; i < dim; i += 256) {
    uint4 const value = load_cg_16(x + i);
    *(uint4*)(to + i) = value;
    if (KV_BITS == 16 && t.occupied) {
      *(uint4*)(cached + i) = value;
    }
  }
}

// The new key, normed and rotated, likewise.
template <u32 KIND>
__device__ __forceinline__ void append_key(PhaseContext const& c, AttentionSplit const& t, HeadInput head, RopeAngles const& angles, u16* to) {
  u16* const cached = (u16*)c.p.keys + (t.base + t.position) * c.s.head_dim;
  norm_and_rotate<KIND>(c, head, angles, [&](u32 i, u16 value) {
    to[i] = value;
    if (KV_BITS == 16 && t.occupied) {
      cached[i] = value;
    }
  });
}

// In 8 bits: rounds the new key or value, which is in shared memory, and appends it. Returns its scale.
template <u32 KIND>
__device__ __forceinline__ float append_quantized(PhaseContext const& c, AttentionSplit const& t, bool is_value, u16* row) {
  u64 const at = t.base + t.position;
  u32 const dim = c.s.head_dim;
  u8* const cached = (is_value ? c.p.values : c.p.keys) + at * dim;
  return quantize_row<KIND>(row, dim, t.occupied ? cached : nullptr, (is_value ? c.p.value_scales : c.p.key_scales) + at);
}

// Queries, the new key and the new value to shared memory: a warp for each of them.
template <u32 KIND>
__device__ __forceinline__ void load_heads(PhaseContext const& c, AttentionSizes const& z, AttentionSplit const& t, AttentionMemory const& m,
                                           SoftmaxState& softmax, RopeAngles const& angles) {
  DecodeParams const& s = c.s;
  u16 const* const heads = c.p.x + (u64)t.row * (s.heads + 2 * s.kv_heads) * z.dim;
  for (u32 head = threadIdx.x / 32; head < z.group + 2; head += COMPUTE_WARPS) {
    if (head < z.group) {
      u16* const to = m.queries + head * z.stride;
      HeadInput const query = {heads + (u64)(t.kv_head * z.group + head) * z.dim, c.p.norm_weight, s.attention_scale};
      norm_and_rotate<KIND>(c, query, angles, [&](u32 i, u16 value) { to[i] = value; });
    } else if (head == z.group && t.has_new) {
      HeadInput const key = {heads + (u64)(s.heads + t.kv_head) * z.dim, c.p.key_norm_weight, 1.0f};
      append_key<KIND>(c, t, key, angles, m.fresh);
    } else if (t.has_new) {
      append_value<KIND>(c, t, heads + (u64)(s.heads + s.kv_heads + t.kv_head) * z.dim, m.fresh + z.stride);
    }
    if (KV_BITS == 8 && head >= z.group && t.has_new) {
      u32 const is_value = head - z.group;
      softmax.fresh_scale[is_value] = append_quantized<KIND>(c, t, is_value, m.fresh + is_value * z.stride);
    }
  }
}

// A span's keys and values to shared memory, the new token's among them where it is in the span.
template <u32 KIND>
__device__ __forceinline__ void store_span(AttentionSizes const& z, AttentionMemory const& m, u32 position_in_span, KvChunks const& kv,
                                           SoftmaxState& softmax) {
  u32 const thread = threadIdx.x;
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const i = thread + j * COMPUTE_THREADS, at = i / z.row_chunks, column = i % z.row_chunks * CHUNK_ELEMENTS;
    if (i < z.span * z.row_chunks && at != position_in_span) {
      store_elements<KIND>(kv.keys[j], m.keys + at * z.stride + column);
      store_elements<KIND>(kv.values[j], m.values + at * z.stride + column);
      if (KV_BITS == 8 && column == 0) {
        softmax.key_scale[at] = kv.key_scales[j];
        softmax.value_scale[at] = kv.value_scales[j];
      }
    }
  }
  if (position_in_span < z.span && thread < z.dim / 8) {
    *(uint4*)(m.keys + position_in_span * z.stride + thread * 8) = *(uint4 const*)(m.fresh + thread * 8);
    *(uint4*)(m.values + position_in_span * z.stride + thread * 8) = *(uint4 const*)(m.fresh + z.stride + thread * 8);
    if (KV_BITS == 8 && thread == 0) {
      softmax.key_scale[position_in_span] = softmax.fresh_scale[0];
      softmax.value_scale[position_in_span] = softmax.fresh_scale[1];
    }
  }
  if (z.padded != z.dim && thread < z.span) {
    *(uint4*)(m.keys + thread * z.stride + z.dim) = make_uint4(0, 0, 0, 0);
  }
}

// scores [MAX_GROUP, span] = queries * keys: eight positions a warp.
template <u32 KIND>
__device__ __forceinline__ void compute_scores(PhaseContext const& c, AttentionSizes const& z, AttentionSplit const& t, AttentionMemory const& m,
                                               SoftmaxState const& softmax, u32 begin) {
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= z.span / 8) {
    return;
  }
  float sum[4] = {};
  for (u32 d = 0; d < z.padded; d += 16) {
    uint4 const a = ldmatrix_x4(shared_address(m.queries + lane % 16 * z.stride + d + lane / 16 * 8));
    uint2 const b = ldmatrix_x2(shared_address(m.keys + (warp * 8 + lane % 8) * z.stride + d + lane / 8 % 2 * 8));
    mma_m16n8k16<KIND>(sum, a, b);
  }
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    u32 const column = warp * 8 + lane % 4 * 2 + i % 2;
    bool const seen = begin + column >= t.from && begin + column <= t.position;
    float const score = KV_BITS == 8 ? sum[i] * softmax.key_scale[column] : sum[i];
    m.scores[(lane / 4 + i / 2 * 8) * z.span + column] = seen ? soft_cap(score, c.s.attention_softcap) : NEVER;
  }
}

// Scores to probabilities, relative to the largest score so far, and by how much what is older is to be rescaled. A warp a head.
template <u32 KIND>
__device__ __forceinline__ void update_softmax(AttentionSizes const& z, AttentionMemory const& m, SoftmaxState& softmax) {
  u32 const lane = threadIdx.x % 32;
  for (u32 head = threadIdx.x / 32; head < MAX_GROUP; head += COMPUTE_WARPS) {
    u16* const to = m.probabilities + head * (z.span + 8);
    if (head >= z.group) {
      for (u32 i = lane; i < z.span; i += 32) {
        to[i] = 0;
      }
      if (lane == 0) {
        softmax.rescale[head] = 1.0f;
      }
      continue;
    }
    float const score = lane < z.span ? m.scores[head * z.span + lane] : NEVER;
    float const before = softmax.max[head], now = fmaxf(before, warp_max(score));
    float probability = score > -3.0e38f ? __expf(score - now) : 0.0f;
    if (KV_BITS == 16) {
      probability = round_to<KIND>(probability);
    }
    if (lane < z.span) {
      to[lane] = narrow<KIND>(KV_BITS == 8 ? probability * (softmax.value_scale[lane] * PROBABILITY_SCALE) : probability);
    }
    float const sum = warp_sum(probability), rescale = __expf(before - now);
    if (lane == 0) {
      softmax.max[head] = now;
      softmax.sum[head] = softmax.sum[head] * rescale + sum;
      softmax.rescale[head] = rescale;
    }
  }
}

// out = out * rescale + probabilities * values.
template <u32 KIND>
__device__ __forceinline__ void accumulate_values(AttentionSizes const& z, AttentionMemory const& m, SoftmaxState const& softmax, HeadSums& out) {
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float const low_rescale = softmax.rescale[lane / 4], high_rescale = softmax.rescale[lane / 4 + 8];
#pragma unroll
  for (u32 j = 0; j < 4; ++j) {
    u32 const column = (warp + j * COMPUTE_WARPS) * 8;
    if (column < z.dim) {
      out[j][0] *= low_rescale;
      out[j][1] *= low_rescale;
      out[j][2] *= high_rescale;
      out[j][3] *= high_rescale;
      for (u32 k = 0; k < z.span; k += 16) {
        uint4 const a = ldmatrix_x4(shared_address(m.probabilities + lane % 16 * (z.span + 8) + k + lane / 16 * 8));
        uint2 const b = ldmatrix_x2_trans(shared_address(m.values + (k + lane % 16) * z.stride + column));
        mma_m16n8k16<KIND>(out[j], a, b);
      }
    }
  }
}

// Where a split's maxima and sums are among the partials: [splits of all pairs, MAX_GROUP, 2], behind their outputs.
__device__ __forceinline__ float* partial_softmax(DecodeParams const& s, u64 split, u32 head) {
  return s.attention_partials + (u64)s.rows * s.kv_heads * s.kv_splits * MAX_GROUP * s.head_dim + (split * MAX_GROUP + head) * 2;
}

// Writes what the spans came to: the outputs if there is one split, else its part of them.
template <u32 KIND>
__device__ __forceinline__ void store_split(PhaseContext const& c, AttentionSizes const& z, AttentionSplit const& t, SoftmaxState const& softmax,
                                            HeadSums const& out) {
  DecodeParams const& s = c.s;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u64 const split = (u64)(t.row * s.kv_heads + t.kv_head) * s.kv_splits + t.number;
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    u32 const head = lane / 4 + half * 8;
    if (head < z.group) {
      float const scale = t.active == 1 ? __fdividef(1.0f / PROBABILITY_SCALE, softmax.sum[head]) : 1.0f / PROBABILITY_SCALE;
      u64 const row = (u64)t.row * s.heads + t.kv_head * z.group + head;
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * COMPUTE_WARPS) * 8 + lane % 4 * 2;
        float const low = out[j][half * 2] * scale, high = out[j][half * 2 + 1] * scale;
        if (column < z.dim && t.active == 1) {
          *(u32*)((u16*)c.p.out + row * z.dim + column) = pack2<KIND>(low, high);
        } else if (column < z.dim) {
          __stcg((float2*)(s.attention_partials + (split * MAX_GROUP + head) * z.dim + column), make_float2(low, high));
        }
      }
    }
  }
  if (t.active > 1 && threadIdx.x < z.group) {
    __stcg(partial_softmax(s, split, threadIdx.x), softmax.max[threadIdx.x]);
    __stcg(partial_softmax(s, split, threadIdx.x) + 1, softmax.sum[threadIdx.x]);
  }
}

// Merges the splits of a pair: a thread for each element, MERGED_AT_ONCE splits at a time.
template <u32 KIND>
__device__ __forceinline__ void merge_splits(PhaseContext const& c, AttentionSizes const& z, AttentionSplit const& t) {
  DecodeParams const& s = c.s;
  u64 const splits = (u64)(t.row * s.kv_heads + t.kv_head) * s.kv_splits;
  for (u32 i = threadIdx.x; i < z.group * z.dim; i += COMPUTE_THREADS) {
    u32 const head = i / z.dim;
    float max = NEVER, sum = 0.0f, count = 0.0f;
    for (u32 begin = 0; begin < t.active; begin += MERGED_AT_ONCE) {
      float value[MERGED_AT_ONCE], peak[MERGED_AT_ONCE], counted[MERGED_AT_ONCE], now = max;
#pragma unroll
      for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
        u64 const split = splits + min(begin + j, t.active - 1);
        value[j] = __ldcg(s.attention_partials + split * MAX_GROUP * z.dim + i);
        peak[j] = __ldcg(partial_softmax(s, split, head));
        counted[j] = __ldcg(partial_softmax(s, split, head) + 1);
      }
#pragma unroll
      for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
        now = fmaxf(now, peak[j]);
      }
      float const rescale = __expf(max - now);
      sum *= rescale;
      count *= rescale;
#pragma unroll
      for (u32 j = 0; j < MERGED_AT_ONCE; ++j) {
        float const scale = begin + j < t.active ? __expf(peak[j] - now) : 0.0f;
        sum = fmaf(scale, value[j], sum);
        count = fmaf(scale, counted[j], count);
      }
      max = now;
    }
    ((u16*)c.p.out)[((u64)t.row * s.heads + t.kv_head * z.group) * z.dim + i] = narrow<KIND>(sum / count);
  }
}

template <u32 KIND>
__device__ __forceinline__ void attention(PhaseContext const& c) {
  __shared__ SoftmaxState softmax;
  DecodeParams const& s = c.s;
  AttentionSizes const z = sizes_of(s);
  AttentionMemory const m = memory_of(z, c.work);
  for (u32 unit = blockIdx.x; unit < s.rows * s.kv_heads * s.kv_splits; unit += gridDim.x) {
    AttentionSplit const t = split_of(s, c.p.window, z.span, unit);
    if (t.number >= t.active) {
      continue;
    }
    // What does not depend on the phase before is on its way while that is waited for.
    KvChunks kv;
    load_span(c.p, z, t, t.first, kv);
    RopeAngles const angles = load_angles(s, c.p, t.position);
    clear_queries(z, m, softmax);
    wait_for_phase_before(c);
    MARK(1);
    load_heads<KIND>(c, z, t, m, softmax, angles);
    MARK(2);
    HeadSums out = {};
    for (u32 span = t.first; span < t.last; ++span) {
      sync_compute_warps();  // the span before is used, what is new is there
      store_span<KIND>(z, m, t.position - span * z.span, kv, softmax);
      sync_compute_warps();
      if (span + 1 < t.last) {
        load_span(c.p, z, t, span + 1, kv);
      }
      compute_scores<KIND>(c, z, t, m, softmax, span * z.span);
      sync_compute_warps();
      update_softmax<KIND>(z, m, softmax);
      sync_compute_warps();
      accumulate_values<KIND>(z, m, softmax, out);
    }
    MARK(3);
    store_split<KIND>(c, z, t, softmax, out);
    if (t.active > 1) {
      if (!is_last_arrival(s.counters + c.p.first_counter + t.row * s.kv_heads + t.kv_head, t.active)) {
        continue;
      }
      MARK(4);
      merge_splits<KIND>(c, z, t);
    }
    complete_part(c);
    MARK(5);
  }
}
