// Attention of one new token a row over its cached positions and itself, with grouped queries: the query heads that
// share a key head are rows of one product. Queries and keys are normed and rotated here, and the new key and value
// appended to the cache.
//
// The positions of a row are cut into spans, and those dealt out to splits, so that all blocks have work, as in
// FlashDecoding (Dao et al. 2023). A block goes through a split's spans with an online softmax (Milakov & Gimelshein
// 2018; FlashAttention, Dao et al. 2022); the last block to arrive at a pair of row and key head merges its splits.

// scores [MAX_GROUP, span] = queries * keys: eight positions a warp.
template <u32 KIND>
__device__ __forceinline__ void compute_scores(AttentionContext const& b, AttentionSplit const& t, u32 begin) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp >= z.span / 8) {
    return;
  }
  float sum[4] = {};
  for (u32 d = 0; d < z.padded; d += 16) {
    uint4 const q = ldmatrix_x4(shared_address(m.queries + lane % 16 * z.stride + d + lane / 16 * 8));
    uint2 const k = ldmatrix_x2(shared_address(m.keys + (warp * 8 + lane % 8) * z.stride + d + lane / 8 % 2 * 8));
    mma_m16n8k16<KIND>(sum, q, k);
  }
#pragma unroll
  for (u32 i = 0; i < 4; ++i) {
    u32 const column = warp * 8 + lane % 4 * 2 + i % 2;
    bool const seen = begin + column >= t.from && begin + column <= t.position;
    float const score = KV_BITS == 8 ? sum[i] * b.softmax.key_scale[column] : sum[i];
    m.scores[(lane / 4 + i / 2 * 8) * z.span + column] = seen ? soft_cap(score, b.c.s.attention_softcap) : NEVER;
  }
}

// Scores to probabilities, relative to the largest score so far, and by how much what is older is to be rescaled. A
// warp a head.
template <u32 KIND>
__device__ __forceinline__ void update_softmax(AttentionContext const& b) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  SoftmaxState& softmax = b.softmax;
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
      to[lane] =
          narrow<KIND>(KV_BITS == 8 ? probability * (softmax.value_scale[lane] * PROBABILITY_SCALE) : probability);
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
__device__ __forceinline__ void accumulate_values(AttentionContext const& b, HeadSums& out) {
  AttentionSizes const& z = b.z;
  AttentionMemory const& m = b.m;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float const low_rescale = b.softmax.rescale[lane / 4], high_rescale = b.softmax.rescale[lane / 4 + 8];
#pragma unroll
  for (u32 j = 0; j < 4; ++j) {
    u32 const column = (warp + j * COMPUTE_WARPS) * 8;
    if (column < z.dim) {
      out[j][0] *= low_rescale;
      out[j][1] *= low_rescale;
      out[j][2] *= high_rescale;
      out[j][3] *= high_rescale;
      for (u32 k = 0; k < z.span; k += 16) {
        uint4 const p = ldmatrix_x4(shared_address(m.probabilities + lane % 16 * (z.span + 8) + k + lane / 16 * 8));
        uint2 const v = ldmatrix_x2_trans(shared_address(m.values + (k + lane % 16) * z.stride + column));
        mma_m16n8k16<KIND>(out[j], p, v);
      }
    }
  }
}

// Where a split's maxima and sums are among the partials: [splits of all pairs, MAX_GROUP, 2], behind their outputs.
__device__ __forceinline__ float* partial_softmax(DecodeParams const& s, u64 split, u32 head) {
  return s.attention_partials + (u64)s.rows * s.kv_heads * s.kv_splits * MAX_GROUP * s.head_dim +
         (split * MAX_GROUP + head) * 2;
}

// Writes what the spans came to: the outputs if there is one split, else its part of them.
template <u32 KIND>
__device__ __forceinline__ void store_split(AttentionContext const& b, AttentionSplit const& t, HeadSums const& out) {
  AttentionSizes const& z = b.z;
  SoftmaxState const& softmax = b.softmax;
  DecodeParams const& s = b.c.s;
  u32 const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  u64 const split = (u64)(t.row * s.kv_heads + t.kv_head) * s.kv_splits + t.number;
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    u32 const head = lane / 4 + half * 8;
    if (head < z.group) {
      float const scale =
          t.active == 1 ? __fdividef(1.0f / PROBABILITY_SCALE, softmax.sum[head]) : 1.0f / PROBABILITY_SCALE;
      u64 const row = (u64)t.row * s.heads + t.kv_head * z.group + head;
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        u32 const column = (warp + j * COMPUTE_WARPS) * 8 + lane % 4 * 2;
        float const low = out[j][half * 2] * scale, high = out[j][half * 2 + 1] * scale;
        if (column < z.dim && t.active == 1) {
          *(u32*)((u16*)b.c.p.out + row * z.dim + column) = pack2<KIND>(low, high);
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
__device__ __forceinline__ void merge_splits(AttentionContext const& b, AttentionSplit const& t) {
  AttentionSizes const& z = b.z;
  DecodeParams const& s = b.c.s;
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
    ((u16*)b.c.p.out)[((u64)t.row * s.heads + t.kv_head * z.group) * z.dim + i] = narrow<KIND>(sum / count);
  }
}

template <u32 KIND>
__device__ __forceinline__ void attention(PhaseContext const& c) {
  __shared__ SoftmaxState softmax;
  DecodeParams const& s = c.s;
  AttentionSizes const z = sizes_of(s);
  AttentionContext const b = {c, z, memory_of(z, c.work), softmax};
  for (u32 unit = blockIdx.x; unit < s.rows * s.kv_heads * s.kv_splits; unit += gridDim.x) {
    AttentionSplit const t = split_of(s, c.p.window, z.span, unit);
    if (t.number >= t.active) {
      continue;
    }
    // What does not depend on the phase before is on its way while that is waited for.
    KvChunks kv;
    load_span(c.p, z, t, t.first, kv);
    RopeAngles const angles = load_angles(s, c.p, t.position);
    clear_queries(b);
    wait_for_phase_before(c);
    MARK(1);
    load_heads<KIND>(b, t, angles);
    MARK(2);
    HeadSums out = {};
    for (u32 span = t.first; span < t.last; ++span) {
      sync_compute_warps();  // the span before is used, what is new is there
      store_span<KIND>(b, t.position - span * z.span, kv);
      sync_compute_warps();
      if (span + 1 < t.last) {
        load_span(c.p, z, t, span + 1, kv);
      }
      compute_scores<KIND>(b, t, span * z.span);
      sync_compute_warps();
      update_softmax<KIND>(b);
      sync_compute_warps();
      accumulate_values<KIND>(b, out);
    }
    MARK(3);
    store_split<KIND>(b, t, out);
    if (t.active > 1) {
      if (!is_last_arrival(s.counters + c.p.first_counter + t.row * s.kv_heads + t.kv_head, t.active)) {
        continue;
      }
      MARK(4);
      merge_splits<KIND>(b, t);
    }
    complete_part(c);
    MARK(5);
  }
}
