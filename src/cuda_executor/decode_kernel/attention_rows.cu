// Attention of the rows of a table (SHARED_SLOTS), of which several may be new tokens of one sequence, causal among
// themselves. The queries of consecutive rows of a slot and a key head, row by row the heads that share it, are the
// rows of one product: a chunk of at most QUERY_ROWS, which shares the spans that it reads.
//
// All new keys and values are appended first, a warp for each; the blocks count themselves in when they have done so.
// Only who comes to a span with new positions waits for that count, and then reads them from the cache like older ones.
//
// A chunk is blocks of sixteen queries, each of which some warps share: each of them computes the scores of all
// positions of a span, keeps them and the online softmax in registers, where they are mma's first operand for the
// values (as in FlashAttention-2, Dao 2023), and has some columns of the outputs. That is more multiplications than if
// warps shared the scores, but they wait for each other once a span, and exchange nothing.

// A warp's part: a block of sixteen queries, of which a lane has two (lane / 4 and eight on), and columns of their
// outputs.
struct RowsWarp {
  u32 block, part, parts;  // of its columns, sixteen at a time: part, part + parts, ...
  bool has_queries;
  u32 first[2], seen[2];  // the first position that a query sees, and how many more after that
  float max[2], sum[2];   // of this lane's columns of scores alone, until they are stored
};

// This warp's columns of the outputs, as mma leaves them.
typedef float RowsSums[2 * QUERY_BLOCKS][2][4];

__device__ __forceinline__ RowsWarp rows_warp_of(RowsContext const& b, ChunkSplit const& t) {
  u32 const warp = threadIdx.x / 32, blocks = (t.queries + 15) / 16, shift = blocks > 2 ? 2 : blocks - 1;
  RowsWarp w;
  w.block = warp & ((1u << shift) - 1);
  w.part = warp >> shift;
  w.parts = COMPUTE_WARPS >> shift;
  w.has_queries = w.block < blocks;
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    u32 const query = w.block * 16 + threadIdx.x % 32 / 4 + i * 8;
    u32 const position = t.first_position + min(query, t.queries - 1) / b.z.group;
    w.first[i] = first_seen(position, b.c.p.window);
    w.seen[i] = position - w.first[i];
    w.max[i] = NEVER;
    w.sum[i] = 0.0f;
  }
  return w;
}

// tanh by one exponential: its error, of 1, is far below that of a rounded score.
__device__ __forceinline__ float soft_cap_fast(float value, float cap) {
  return cap - __fdividef(2.0f * cap, 1.0f + __expf(__fdividef(2.0f * value, cap)));
}

// scores [16, span] = queries * keys, four times eight positions, of which small spans have half.
template <u32 KIND>
__device__ __forceinline__ void compute_rows_scores(RowsContext const& b, RowsWarp const& w, u16 const* keys,
                                                    float (&score)[4][4]) {
  AttentionSizes const& z = b.z;
  u32 const lane = threadIdx.x % 32, sixteen = 16 * z.stride * sizeof(u16);
  u32 query = shared_address(b.m.queries + (w.block * 16 + lane % 16) * z.stride + lane / 16 * 8);
  u32 key = shared_address(keys + (lane / 16 * 8 + lane % 8) * z.stride + lane / 8 % 2 * 8);
#pragma unroll 4
  for (u32 d = 0; d < z.padded; d += 16) {
    uint4 const q = ldmatrix_x4(query + d * sizeof(u16)), k = ldmatrix_x4(key + d * sizeof(u16));
    mma_m16n8k16<KIND>(score[0], q, make_uint2(k.x, k.y));
    mma_m16n8k16<KIND>(score[1], q, make_uint2(k.z, k.w));
    if (z.span == SPAN) {
      uint4 const more = ldmatrix_x4(key + sixteen + d * sizeof(u16));
      mma_m16n8k16<KIND>(score[2], q, make_uint2(more.x, more.y));
      mma_m16n8k16<KIND>(score[3], q, make_uint2(more.z, more.w));
    }
  }
}

// Scales and caps scores, and takes out those of positions that are not seen; returns each query's largest so far.
__device__ __forceinline__ void mask_rows_scores(RowsContext const& b, RowsWarp const& w, u32 begin, u32 turn,
                                                 float (&score)[4][4], float (&max)[2]) {
  float const cap = b.c.s.attention_softcap;
  u32 const column = threadIdx.x % 4 * 2;
#pragma unroll
  for (u32 n = 0; n < 4; ++n) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      u32 const at = n * 8 + column + i % 2;
      if (KV_BITS == 8) {
        score[n][i] *= b.scales.key[turn][at % SPAN_SCALES];
      }
      if (cap > 0.0f) {
        score[n][i] = soft_cap_fast(score[n][i], cap);
      }
      bool const seen = at < b.z.span && begin + at - w.first[i / 2] <= w.seen[i / 2];
      score[n][i] = seen ? score[n][i] : NEVER;
      max[i / 2] = fmaxf(max[i / 2], score[n][i]);
    }
  }
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 1));
    max[i] = fmaxf(max[i], __shfl_xor_sync(0xffffffffu, max[i], 2));
  }
}

// Scores to probabilities, relative to the largest score so far. A query may see nothing of a span.
template <u32 KIND>
__device__ __forceinline__ void update_rows_softmax(RowsContext const& b, RowsWarp& w, u32 turn, float (&score)[4][4],
                                                    float const (&max)[2], uint4 (&probabilities)[2],
                                                    float (&rescale)[2]) {
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    rescale[i] = __expf(w.max[i] - max[i]);
    w.max[i] = max[i];
    w.sum[i] *= rescale[i];
  }
#pragma unroll
  for (u32 n = 0; n < 4; ++n) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      float const probability = score[n][i] > -3.0e38f ? __expf(score[n][i] - max[i / 2]) : 0.0f;
      score[n][i] = KV_BITS == 16 ? round_to<KIND>(probability) : probability;
      w.sum[i / 2] += score[n][i];
      if (KV_BITS == 8) {
        u32 const at = n * 8 + threadIdx.x % 4 * 2 + i % 2;
        score[n][i] *= at < b.z.span ? b.scales.value[turn][at % SPAN_SCALES] : 0.0f;
      }
    }
  }
#pragma unroll
  for (u32 k = 0; k < 2; ++k) {
    probabilities[k] = make_uint4(
        pack2<KIND>(score[2 * k][0], score[2 * k][1]), pack2<KIND>(score[2 * k][2], score[2 * k][3]),
        pack2<KIND>(score[2 * k + 1][0], score[2 * k + 1][1]), pack2<KIND>(score[2 * k + 1][2], score[2 * k + 1][3]));
  }
}

// out = out * rescale + probabilities * values.
template <u32 KIND>
__device__ __forceinline__ void accumulate_rows_values(RowsContext const& b, RowsWarp const& w, u16 const* values,
                                                       uint4 const (&probabilities)[2], float const (&rescale)[2],
                                                       RowsSums& out) {
  AttentionSizes const& z = b.z;
  u32 const lane = threadIdx.x % 32, sixteen = 16 * z.stride * sizeof(u16);
  u32 const value = shared_address(values + lane % 16 * z.stride + lane / 16 * 8);
#pragma unroll
  for (u32 j = 0; j < 2 * QUERY_BLOCKS; ++j) {
    u32 const column = (w.part + j * w.parts) * 16;
    if (column < z.dim) {
      uint4 const v = ldmatrix_x4_trans(value + column * sizeof(u16));
#pragma unroll
      for (u32 i = 0; i < 8; ++i) {
        out[j][i / 4][i % 4] *= rescale[i % 4 / 2];
      }
      mma_m16n8k16<KIND>(out[j][0], probabilities[0], make_uint2(v.x, v.y));
      mma_m16n8k16<KIND>(out[j][1], probabilities[0], make_uint2(v.z, v.w));
      if (z.span == SPAN) {
        uint4 const more = ldmatrix_x4_trans(value + sixteen + column * sizeof(u16));
        mma_m16n8k16<KIND>(out[j][0], probabilities[1], make_uint2(more.x, more.y));
        mma_m16n8k16<KIND>(out[j][1], probabilities[1], make_uint2(more.z, more.w));
      }
    }
  }
}

// A span that is in shared memory.
template <u32 KIND>
__device__ __forceinline__ void attend_span(RowsContext const& b, RowsWarp& w, u32 begin, u32 turn, RowsSums& out) {
  AttentionSizes const& z = b.z;
  u16 const *const keys = b.m.spans + turn * 2 * z.span * z.stride, *const values = keys + z.span * z.stride;
  float score[4][4] = {}, max[2] = {w.max[0], w.max[1]}, rescale[2];
  uint4 probabilities[2];
  compute_rows_scores<KIND>(b, w, keys, score);
  mask_rows_scores(b, w, begin, turn, score, max);
  update_rows_softmax<KIND>(b, w, turn, score, max, probabilities, rescale);
  accumulate_rows_values<KIND>(b, w, values, probabilities, rescale, out);
}

// Where a query's output begins.
__device__ __forceinline__ u64 output_of(RowsContext const& b, ChunkSplit const& t, u32 query) {
  u32 const group = b.z.group, row = t.first_row + query / group;
  return ((u64)row * b.c.s.heads + t.spans.kv_head * group + query % group) * b.z.dim;
}

// Partials of a split: [QUERY_ROWS, dim], and behind those of all splits its [QUERY_ROWS, 2] maxima and sums.
__device__ __forceinline__ u64 split_number(RowsContext const& b, ChunkSplit const& t, u32 number) {
  DecodeParams const& s = b.c.s;
  return (u64)(t.spans.row * s.kv_heads + t.spans.kv_head) * s.table->kv_splits + number;
}

__device__ __forceinline__ float* rows_partial_softmax(DecodeParams const& s, u64 split, u32 query) {
  u64 const splits = (u64)s.table->chunks * s.kv_heads * s.table->kv_splits;
  return s.attention_partials + splits * QUERY_ROWS * s.head_dim + (split * QUERY_ROWS + query) * 2;
}

// As store_split.
template <u32 KIND>
__device__ __forceinline__ void store_rows_split(RowsContext const& b, ChunkSplit const& t, RowsWarp const& w,
                                                 RowsSums const& out) {
  DecodeParams const& s = b.c.s;
  u32 const lane = threadIdx.x % 32;
  u64 const split = split_number(b, t, t.spans.number);
  bool const alone = t.spans.active == 1;
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    u32 const query = w.block * 16 + lane / 4 + i * 8;
    float sum = w.sum[i] + __shfl_xor_sync(0xffffffffu, w.sum[i], 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (query < t.queries) {
      float const scale = alone ? __fdividef(1.0f / PROBABILITY_SCALE, sum) : 1.0f / PROBABILITY_SCALE;
      u16* const to = (u16*)b.c.p.out + output_of(b, t, query);
      float* const partial = s.attention_partials + (split * QUERY_ROWS + query) * b.z.dim;
#pragma unroll
      for (u32 j = 0; j < 4 * QUERY_BLOCKS; ++j) {
        u32 const column = (w.part + j / 2 * w.parts) * 16 + j % 2 * 8 + lane % 4 * 2;
        float const low = out[j / 2][j % 2][i * 2] * scale, high = out[j / 2][j % 2][i * 2 + 1] * scale;
        if (column < b.z.dim && alone) {
          *(u32*)(to + column) = pack2<KIND>(low, high);
        } else if (column < b.z.dim) {
          __stcg((float2*)(partial + column), make_float2(low, high));
        }
      }
      if (!alone && w.part == 0 && lane % 4 == 0) {
        __stcg((float2*)rows_partial_softmax(s, split, query), make_float2(w.max[i], sum));
      }
    }
  }
}

// What each split's outputs are multiplied by when splits are merged, [active, QUERY_ROWS], in the work memory, which
// is free by then; and behind them the splits' sums, of which the first split's become the inverse of the sum of all.
struct MergeWeights {
  float *of, *sums;
};

// A split of which a query sees nothing has a sum of 0.
__device__ __forceinline__ MergeWeights merge_weights(RowsContext const& b, ChunkSplit const& t) {
  DecodeParams const& s = b.c.s;
  u32 const active = t.spans.active, query = threadIdx.x;
  u64 const splits = split_number(b, t, 0);
  MergeWeights const m = {(float*)b.c.work, (float*)b.c.work + active * QUERY_ROWS};
  for (u32 i = threadIdx.x; i < active * QUERY_ROWS; i += COMPUTE_THREADS) {
    float2 const part = __ldcg((float2 const*)rows_partial_softmax(s, splits + i / QUERY_ROWS, i % QUERY_ROWS));
    m.of[i] = part.x;
    m.sums[i] = part.y;
  }
  sync_compute_warps();
  if (query < t.queries) {
    float max = NEVER, sum = 0.0f;
    for (u32 i = query; i < active * QUERY_ROWS; i += QUERY_ROWS) {
      max = fmaxf(max, m.of[i]);
    }
    for (u32 i = query; i < active * QUERY_ROWS; i += QUERY_ROWS) {
      float const weight = __expf(m.of[i] - max);
      m.of[i] = weight;
      sum = fmaf(weight, m.sums[i], sum);
    }
    m.sums[query] = __fdividef(1.0f, sum);
  }
  sync_compute_warps();
  return m;
}

// Merges the splits of a chunk and key head: a thread for each four elements, MERGED_PIECES times at once, since what
// takes the time is to wait for them.
template <u32 KIND>
__device__ __forceinline__ void merge_rows_splits(RowsContext const& b, ChunkSplit const& t) {
  u32 constexpr MERGED_PIECES = 4, step = COMPUTE_THREADS * 4;
  u32 const dim = b.z.dim, last = t.queries * dim - 4;
  MergeWeights const m = merge_weights(b, t);
  float const* const partials = b.c.s.attention_partials + split_number(b, t, 0) * QUERY_ROWS * dim;
#pragma unroll 1
  for (u32 first = threadIdx.x * 4; first <= last; first += MERGED_PIECES * step) {
    float4 sum[MERGED_PIECES] = {};
    u32 at[MERGED_PIECES], query[MERGED_PIECES];
#pragma unroll
    for (u32 j = 0; j < MERGED_PIECES; ++j) {
      at[j] = min(first + j * step, last);
      query[j] = at[j] / dim;
    }
#pragma unroll 2
    for (u32 split = 0; split < t.spans.active; ++split) {
      float const* const from = partials + (u64)split * QUERY_ROWS * dim;
#pragma unroll
      for (u32 j = 0; j < MERGED_PIECES; ++j) {
        float4 const value = __ldcg((float4 const*)(from + at[j]));
        float const weight = m.of[split * QUERY_ROWS + query[j]];
        sum[j].x = fmaf(weight, value.x, sum[j].x);
        sum[j].y = fmaf(weight, value.y, sum[j].y);
        sum[j].z = fmaf(weight, value.z, sum[j].z);
        sum[j].w = fmaf(weight, value.w, sum[j].w);
      }
    }
#pragma unroll
    for (u32 j = 0; j < MERGED_PIECES; ++j) {
      if (first + j * step <= last) {
        float const inverse = m.sums[query[j]];
        *(uint2*)((u16*)b.c.p.out + output_of(b, t, query[j]) + at[j] - query[j] * dim) = make_uint2(
            pack2<KIND>(sum[j].x * inverse, sum[j].y * inverse), pack2<KIND>(sum[j].z * inverse, sum[j].w * inverse));
      }
    }
  }
}

// What a block does of a split, once queries are there; `kv` has the first span if it is `early` on its way.
template <u32 KIND>
__device__ __forceinline__ void attend(RowsContext const& b, ChunkSplit const& t, SpanPart const& part, bool early,
                                       bool& appended, KvChunks& kv) {
  PhaseContext const& c = b.c;
  RowsWarp w = rows_warp_of(b, t);
  RowsSums out = {};
  u32 turn = 0;
#pragma unroll 1
  for (u32 span = t.spans.first + early; span <= t.spans.last; ++span) {
    bool const any = span > t.spans.first;  // the one before is in `kv`
    if (any) {
      turn = b.m.by_turns ? turn ^ 1 : 0;
      if (!b.m.by_turns) {
        sync_compute_warps();  // the one before that is used
      }
      store_rows_span<KIND>(b, part, turn, kv);
    }
    if (span < t.spans.last) {
      if (!appended && (span + 1) * b.z.span > t.old) {
        wait_phase(c.s.counters + c.p.first_counter, appending_blocks(c));
        appended = true;
      }
      load_rows_span(b, part, t, span, kv);
    }
    if (any) {
      sync_compute_warps();
      if (w.has_queries) {
        attend_span<KIND>(b, w, (span - 1) * b.z.span, turn, out);
      }
    }
  }
  MARK(3);
  if (w.has_queries) {
    store_rows_split<KIND>(b, t, w, out);
  }
}

template <u32 KIND>
__device__ __forceinline__ void attention_rows(PhaseContext const& c) {
  __shared__ SpanScales scales;
  DecodeParams const& s = c.s;
  AttentionSizes const z = sizes_of(s);
  RowsContext const b = {c, z, rows_memory_of(z, c.work), scales};
  SpanPart const part = span_part_of(z);
  u32 const units = s.table->chunks * s.kv_heads * s.table->kv_splits;
  bool const appends = blockIdx.x < appending_blocks(c);
  bool waited = false, appended = false;
  for (u32 unit = blockIdx.x; unit < units || (appends && !waited); unit += gridDim.x) {
    ChunkSplit const t = chunk_split_of(c, z, min(unit, units - 1));
    bool const there = unit < units && t.spans.number < t.spans.active, first = !waited;
    if (!there && !(first && appends)) {
      continue;
    }
    // What this launch does not append is on its way while the phase before is waited for.
    KvChunks kv;
    bool const early = there && (appended || (t.spans.first + 1) * z.span <= t.old);
    if (early) {
      load_rows_span(b, part, t, t.spans.first, kv);
    }
    QueryPart const queries = query_part_of(b, t);
    RopeAngles const angles = load_angles(s, c.p, s.table->position[min(queries.row, c.rows - 1)]);
    AppendTask const task = append_task_of(c, first ? blockIdx.x * COMPUTE_WARPS + threadIdx.x / 32 : 0);
    if (first) {
      waited = true;
      wait_for_phase_before(c);
      MARK(1);
    }
    if (there) {
      copy_queries(b, t, queries);
    }
    if (first && appends) {
      append_rows<KIND>(b, task);
    }
    if (!there) {
      continue;
    }
    turn_queries<KIND>(b, queries, angles);
    MARK(2);
    attend<KIND>(b, t, part, early, appended, kv);
    if (t.spans.active > 1) {
      u32* const counter = s.counters + c.p.first_counter + 1 + t.spans.row * s.kv_heads + t.spans.kv_head;
      if (!is_last_arrival(counter, t.spans.active)) {
        continue;
      }
      MARK(4);
      merge_rows_splits<KIND>(b, t);
    }
    complete_part(c);
    MARK(5);
  }
}
