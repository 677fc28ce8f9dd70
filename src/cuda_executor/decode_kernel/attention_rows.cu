// Attention of the rows of a table (SHARED_SLOTS), of which several may be new tokens of one sequence, causal among
// themselves. The queries of consecutive rows of a slot and a key head, row by row the heads that share it, are the
// rows of one product: a chunk of at most QUERY_ROWS, which shares the spans that it reads.
//
// All new keys and values are appended first, a warp for each; the blocks count themselves in when they have done so.
// Only who comes to a span with new positions waits for that count, and then reads them from the cache like older ones.
// Else it is as in attention.cu: spans, splits, an online softmax, the last split to arrive merges.

// scores [QUERY_ROWS, span] = queries * keys: eight positions of sixteen queries at a time to each warp.
template <u32 KIND>
__device__ __forceinline__ void compute_rows_scores(RowsContext const& b, ChunkSplit const& t, u32 begin) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  u32 const lane = threadIdx.x % 32, columns = z.span / 8, part = threadIdx.x / 32 % columns;
#pragma unroll 1
  for (u32 block = threadIdx.x / 32 / columns; block * 16 < t.queries; block += COMPUTE_WARPS / columns) {
    float sum[4] = {};
    for (u32 d = 0; d < z.padded; d += 16) {
      uint4 const q = ldmatrix_x4(shared_address(m.queries + (block * 16 + lane % 16) * z.stride + d + lane / 16 * 8));
      uint2 const k = ldmatrix_x2(shared_address(m.keys + (part * 8 + lane % 8) * z.stride + d + lane / 8 % 2 * 8));
      mma_m16n8k16<KIND>(sum, q, k);
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      u32 const column = part * 8 + lane % 4 * 2 + i % 2, query = block * 16 + lane / 4 + i / 2 * 8;
      bool const seen = begin + column >= b.state.first[query] && begin + column <= b.state.last[query];
      float const score = KV_BITS == 8 ? sum[i] * b.state.key_scale[column] : sum[i];
      m.scores[query * z.span + column] = seen ? soft_cap(score, b.c.s.attention_softcap) : NEVER;
    }
  }
}

// As update_softmax; a query may see nothing of a span.
template <u32 KIND>
__device__ __forceinline__ void update_rows_softmax(RowsContext const& b, ChunkSplit const& t) {
  AttentionSizes const& z = b.z;
  QueryState& state = b.state;
  u32 const lane = threadIdx.x % 32;
#pragma unroll 1
  for (u32 query = threadIdx.x / 32; query < t.queries; query += COMPUTE_WARPS) {
    float const score = lane < z.span ? b.m.scores[query * z.span + lane] : NEVER;
    float const before = state.max[query], now = fmaxf(before, warp_max(score));
    float probability = score > -3.0e38f ? __expf(score - now) : 0.0f;
    if (KV_BITS == 16) {
      probability = round_to<KIND>(probability);
    }
    if (lane < z.span) {
      b.m.probabilities[query * (z.span + 8) + lane] =
          narrow<KIND>(KV_BITS == 8 ? probability * (state.value_scale[lane] * PROBABILITY_SCALE) : probability);
    }
    float const sum = warp_sum(probability), rescale = __expf(before - now);
    if (lane == 0) {
      state.max[query] = now;
      state.sum[query] = state.sum[query] * rescale + sum;
      state.rescale[query] = rescale;
    }
  }
}

// out = out * rescale + probabilities * values, for blocks of sixteen queries that there are.
template <u32 KIND>
__device__ __forceinline__ void accumulate_rows_values(RowsContext const& b, ChunkSplit const& t, ChunkSums& out) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (u32 block = 0; block < QUERY_BLOCKS; ++block) {
    if (block * 16 < t.queries) {
      u32 const query = block * 16 + lane / 4;
      float const low = b.state.rescale[query], high = b.state.rescale[query + 8];
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * COMPUTE_WARPS) * 8;
        if (column < z.dim) {
          out[block][j][0] *= low;
          out[block][j][1] *= low;
          out[block][j][2] *= high;
          out[block][j][3] *= high;
          for (u32 k = 0; k < z.span; k += 16) {
            uint4 const p = ldmatrix_x4(
                shared_address(m.probabilities + (block * 16 + lane % 16) * (z.span + 8) + k + lane / 16 * 8));
            uint2 const v = ldmatrix_x2_trans(shared_address(m.values + (k + lane % 16) * z.stride + column));
            mma_m16n8k16<KIND>(out[block][j], p, v);
          }
        }
      }
    }
  }
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
__device__ __forceinline__ void store_rows_split(RowsContext const& b, ChunkSplit const& t, ChunkSums const& out) {
  DecodeParams const& s = b.c.s;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u64 const split = split_number(b, t, t.spans.number);
  bool const alone = t.spans.active == 1;
#pragma unroll
  for (u32 i = 0; i < 2 * QUERY_BLOCKS; ++i) {
    u32 const query = lane / 4 + i * 8;
    if (query < t.queries) {
      float const scale = alone ? __fdividef(1.0f / PROBABILITY_SCALE, b.state.sum[query]) : 1.0f / PROBABILITY_SCALE;
      u64 const to = output_of(b, t, query);
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * COMPUTE_WARPS) * 8 + lane % 4 * 2;
        float const low = out[i / 2][j][i % 2 * 2] * scale, high = out[i / 2][j][i % 2 * 2 + 1] * scale;
        if (column < b.z.dim && alone) {
          *(u32*)((u16*)b.c.p.out + to + column) = pack2<KIND>(low, high);
        } else if (column < b.z.dim) {
          __stcg((float2*)(s.attention_partials + (split * QUERY_ROWS + query) * b.z.dim + column),
                 make_float2(low, high));
        }
      }
    }
  }
  if (!alone && threadIdx.x < t.queries) {
    __stcg(rows_partial_softmax(s, split, threadIdx.x), b.state.max[threadIdx.x]);
    __stcg(rows_partial_softmax(s, split, threadIdx.x) + 1, b.state.sum[threadIdx.x]);
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
    float const* const from = rows_partial_softmax(s, splits + i / QUERY_ROWS, i % QUERY_ROWS);
    m.of[i] = __ldcg(from);
    m.sums[i] = __ldcg(from + 1);
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

// Merges the splits of a chunk and key head: a thread for each four elements.
template <u32 KIND>
__device__ __forceinline__ void merge_rows_splits(RowsContext const& b, ChunkSplit const& t) {
  u32 const dim = b.z.dim;
  MergeWeights const m = merge_weights(b, t);
  float const* const partials = b.c.s.attention_partials + split_number(b, t, 0) * QUERY_ROWS * dim;
#pragma unroll 2
  for (u32 i = threadIdx.x * 4; i < t.queries * dim; i += COMPUTE_THREADS * 4) {
    u32 const query = i / dim;
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (u32 split = 0; split < t.spans.active; ++split) {
      float4 const value = __ldcg((float4 const*)(partials + (u64)split * QUERY_ROWS * dim + i));
      float const weight = m.of[split * QUERY_ROWS + query];
      sum.x = fmaf(weight, value.x, sum.x);
      sum.y = fmaf(weight, value.y, sum.y);
      sum.z = fmaf(weight, value.z, sum.z);
      sum.w = fmaf(weight, value.w, sum.w);
    }
    float const inverse = m.sums[query];
    *(uint2*)((u16*)b.c.p.out + output_of(b, t, query) + i % dim) =
        make_uint2(pack2<KIND>(sum.x * inverse, sum.y * inverse), pack2<KIND>(sum.z * inverse, sum.w * inverse));
  }
}

// What a block does of a split, once its first span is on its way and queries are there.
template <u32 KIND>
__device__ __forceinline__ void attend(RowsContext const& b, ChunkSplit const& t, bool& appended, KvChunks& kv) {
  [[maybe_unused]] PhaseContext const& c = b.c;  // of MARK
  AttentionSizes const& z = b.z;
  load_queries<KIND>(b, t);
  MARK(2);
  ChunkSums out = {};
#pragma unroll 1
  for (u32 span = t.spans.first; span < t.spans.last; ++span) {
    sync_compute_warps();  // the span before is used, the queries are there
    store_rows_span<KIND>(b, kv);
    sync_compute_warps();
    if (span + 1 < t.spans.last) {
      load_span_in_turn(b.c, z, t, span + 1, appended, kv);
    }
    compute_rows_scores<KIND>(b, t, span * z.span);
    sync_compute_warps();
    update_rows_softmax<KIND>(b, t);
    sync_compute_warps();
    accumulate_rows_values<KIND>(b, t, out);
  }
  MARK(3);
  store_rows_split<KIND>(b, t, out);
}

template <u32 KIND>
__device__ __forceinline__ void attention_rows(PhaseContext const& c) {
  __shared__ QueryState state;
  DecodeParams const& s = c.s;
  AttentionSizes const z = sizes_of(s);
  RowsContext const b = {c, z, rows_memory_of(z, c.work), state};
  u32 const units = s.table->chunks * s.kv_heads * s.table->kv_splits;
  bool const appends = blockIdx.x < appending_blocks(c);
  bool waited = false, appended = false;
  for (u32 unit = blockIdx.x; unit < units || (appends && !waited); unit += gridDim.x) {
    ChunkSplit const t = chunk_split_of(c, z, min(unit, units - 1));
    bool const there = unit < units && t.spans.number < t.spans.active;
    if (!there && (waited || !appends)) {
      continue;
    }
    // What this launch does not append is on its way while the phase before is waited for.
    KvChunks kv;
    bool const early = !waited && there && (t.spans.first + 1) * z.span <= t.old;
    if (early) {
      load_span(c.p, z, t.spans, t.spans.first, kv);
    }
    if (!waited) {
      waited = true;
      wait_for_phase_before(c);
      MARK(1);
      if (appends) {
        append_rows<KIND>(b);
      }
    }
    if (!there) {
      continue;
    }
    if (!early) {
      load_span_in_turn(c, z, t, t.spans.first, appended, kv);
    }
    attend<KIND>(b, t, appended, kv);
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
