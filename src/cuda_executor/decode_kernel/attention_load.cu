// What attention computes with, on its way to shared memory: spans of the cache, the queries, the new key and value.
// In this file and the next z are a phase's sizes, m the shared memory, t a split, b all that a block works with.

u32 constexpr SPAN = 32;  // positions of a span; half as many where heads are larger than 128
u32 constexpr KV_CHUNKS =
    SPAN * KV_BITS / 256;  // times sixteen bytes that a thread reads of a span's keys, and of its values
u32 constexpr CHUNK_ELEMENTS = 128 / KV_BITS;  // of sixteen bytes
enum : u32 { MERGED_AT_ONCE = 8 };             // splits that are read at once when they are merged
u32 constexpr SPAN_SCALES = KV_BITS == 8 ? SPAN : 1;
float constexpr NEVER = -3.4e38f;  // score of a position that is not seen

// Sizes, the same for all of a phase.
struct AttentionSizes {
  u32 dim, padded, stride;  // of a head; to a multiple of 16; elements from row to row in shared memory
  u32 row_chunks;           // times sixteen bytes of a cached row
  u32 span, group;          // positions of a span; query heads of a key head
};

// Where things lie in shared memory.
struct AttentionMemory {
  u16 *keys, *values;  // [span, stride]
  u16* queries;        // [MAX_GROUP, stride]
  u16* probabilities;  // [MAX_GROUP, span + 8]
  float* scores;       // [MAX_GROUP, span]
  u16* fresh;          // [2, stride]: the new key and value
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
  u32 position, from;  // of the new token; the first position that it sees
  u32 first, last;     // its spans, up to `last`
  bool has_new;        // the new token is in its last span
  bool occupied;       // there is a sequence in the row
  u64 base;            // the pair's first row in the cache
};

// A thread's part of a span's keys and values, on its way from the cache to shared memory.
struct KvChunks {
  uint4 keys[KV_CHUNKS], values[KV_CHUNKS];
  float key_scales[KV_CHUNKS], value_scales[KV_CHUNKS];  // in 8 bits
};

// What attention's code works with.
struct AttentionContext {
  PhaseContext const& c;
  AttentionSizes z;
  AttentionMemory m;
  SoftmaxState& softmax;
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
  u32 const number = unit % s.kv_splits, kv_head = unit / s.kv_splits % s.kv_heads,
            row = unit / s.kv_splits / s.kv_heads;
  u32 const position = min(s.cached[row], s.capacity - 1), length = position + 1;
  u32 const from = window && length > window ? length - window : 0;
  u32 const first = from / span, spans = (length + span - 1) / span - first, active = min(s.kv_splits, spans);
  u32 const last = first + (number + 1) * spans / active;
  u64 const base = ((u64)(s.first_slot + row) * s.kv_heads + kv_head) * s.capacity;
  return {row,
          kv_head,
          number,
          active,
          position,
          from,
          first + number * spans / active,
          last,
          last == first + spans,
          s.occupied[row] != 0,
          base};
}

// Begins to read a span of the cache. The new token is not read from there.
__device__ __forceinline__ void load_span(PhaseDescriptor const& p, AttentionSizes const& z, AttentionSplit const& t,
                                          u32 span, KvChunks& kv) {
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
__device__ __forceinline__ void clear_queries(AttentionContext const& b) {
  AttentionSizes const& z = b.z;
  for (u32 i = threadIdx.x; i < MAX_GROUP * z.padded; i += COMPUTE_THREADS) {
    u32 const head = i / z.padded, column = i % z.padded;
    if (head >= z.group || column >= z.dim) {
      b.m.queries[head * z.stride + column] = 0;
    }
  }
  if (threadIdx.x < MAX_GROUP) {
    b.softmax.max[threadIdx.x] = NEVER;
    b.softmax.sum[threadIdx.x] = 0.0f;
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
__device__ __forceinline__ void append_key(PhaseContext const& c, AttentionSplit const& t, HeadInput head,
                                           RopeAngles const& angles, u16* to) {
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
__device__ __forceinline__ float append_quantized(PhaseContext const& c, AttentionSplit const& t, bool is_value,
                                                  u16* row) {
  u64 const at = t.base + t.position;
  u32 const dim = c.s.head_dim;
  u8* const cached = (is_value ? c.p.values : c.p.keys) + at * dim;
  return quantize_row<KIND>(row, dim, t.occupied ? cached : nullptr,
                            (is_value ? c.p.value_scales : c.p.key_scales) + at);
}

// Queries, the new key and the new value to shared memory: a warp for each of them.
template <u32 KIND>
__device__ __forceinline__ void load_heads(AttentionContext const& b, AttentionSplit const& t,
                                           RopeAngles const& angles) {
  PhaseContext const& c = b.c;
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
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
      b.softmax.fresh_scale[is_value] = append_quantized<KIND>(c, t, is_value, m.fresh + is_value * z.stride);
    }
  }
}

// A span's keys and values to shared memory, the new token's among them where it is in the span.
template <u32 KIND>
__device__ __forceinline__ void store_span(AttentionContext const& b, u32 position_in_span, KvChunks const& kv) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  SoftmaxState& softmax = b.softmax;
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
