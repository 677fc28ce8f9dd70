// What attention of a table's rows computes with, on its way to shared memory: new keys and values, which are appended
// to the cache first, the queries of a chunk, spans. attention_rows.cu explains it.

u32 constexpr QUERY_ROWS = 16 * (QUERY_BLOCKS);
static_assert(2 * (SPAN + QUERY_ROWS) * (MAX_HEAD_DIM + 8) <= WORK_BYTES,
              "the largest heads, of which a span has half as many positions, have no room");
static_assert(2 * MOST_SPLITS * QUERY_ROWS * sizeof(float) <= WORK_BYTES, "to merge splits there is no room");

// In 8 bits the scales of the spans in shared memory.
struct SpanScales {
  float key[2][SPAN_SCALES], value[2][SPAN_SCALES];
};

// Where things lie in shared memory: two spans by turns if they have room, so that one is written while warps still
// multiply the other.
struct RowsMemory {
  u16* queries;  // [QUERY_ROWS, stride]
  u16* spans;    // keys [span, stride], values [span, stride]; as a whole once or twice
  bool by_turns;
};

// A split of a chunk and a key head.
struct ChunkSplit {
  AttentionSplit spans;  // `row` is the chunk's number, `position` the end of what it sees
  u32 queries;           // of the chunk and key head
  u32 first_row;
  u32 old;             // positions that were cached before this launch
  u32 first_position;  // of the first row
};

// What its code works with.
struct RowsContext {
  PhaseContext const& c;
  AttentionSizes z;
  RowsMemory m;
  SpanScales& scales;
};

// Which part of each span a thread brings: the positions in it, and times sixteen bytes of their rows. Dividing is
// done once.
struct SpanPart {
  u32 at[KV_CHUNKS], column[KV_CHUNKS];
};

__device__ __forceinline__ SpanPart span_part_of(AttentionSizes const& z) {
  SpanPart part;
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const i = threadIdx.x + j * COMPUTE_THREADS;
    part.at[j] = i / z.row_chunks;
    part.column[j] = i - part.at[j] * z.row_chunks;
  }
  return part;
}

__device__ __forceinline__ RowsMemory rows_memory_of(AttentionSizes const& z, u8* work) {
  u16* const queries = (u16*)work;
  return {queries, queries + QUERY_ROWS * z.stride, (QUERY_ROWS + 4 * z.span) * z.stride * sizeof(u16) <= WORK_BYTES};
}

// The first position that a row at `position` sees.
__device__ __forceinline__ u32 first_seen(u32 position, u32 window) {
  return window && position + 1 > window ? position + 1 - window : 0;
}

__device__ __forceinline__ ChunkSplit chunk_split_of(PhaseContext const& c, AttentionSizes const& z, u32 unit) {
  DecodeParams const& s = c.s;
  RowTable const& table = *s.table;
  u32 const splits = table.kv_splits, number = unit % splits, pair = unit / splits, kv_head = pair % s.kv_heads;
  QueryChunk const chunk = table.chunk[pair / s.kv_heads];
  u32 const from = first_seen(table.position[chunk.first], c.p.window);
  u32 const end = min(table.position[chunk.first] + chunk.count, s.capacity);
  u32 const first = from / z.span, spans = (end + z.span - 1) / z.span - first, active = min(splits, spans);
  u64 const base = ((u64)table.slot[chunk.first] * s.kv_heads + kv_head) * s.capacity;
  AttentionSplit const split = {pair / s.kv_heads,
                                kv_head,
                                number,
                                active,
                                end,
                                from,
                                first + number * spans / active,
                                first + (number + 1) * spans / active,
                                false,
                                true,
                                base};
  return {split, chunk.count * z.group, chunk.first, table.position[chunk.run], table.position[chunk.first]};
}

// A new key or value, and where it goes. What does not depend on the phase before is read while that is waited for.
struct AppendTask {
  u32 number, row, kv_head, is_value, position;
  u64 at;
};

__device__ __forceinline__ AppendTask append_task_of(PhaseContext const& c, u32 number) {
  DecodeParams const& s = c.s;
  RowTable const& table = *s.table;
  u32 const pair = number / 2, row = min(pair / s.kv_heads, c.rows - 1), kv_head = pair % s.kv_heads;
  u32 const position = table.position[row];
  u64 const at = ((u64)table.slot[row] * s.kv_heads + kv_head) * s.capacity + position;
  return {number, row, kv_head, number % 2, position, at};
}

// Appends the new key (or value) of a row and key head to the cache. One warp; `scratch` has room for a head.
template <u32 KIND>
__device__ __forceinline__ void append_row(PhaseContext const& c, AppendTask const& t, u16* scratch) {
  DecodeParams const& s = c.s;
  u32 const dim = s.head_dim;
  u16 const* const x =
      c.p.x + ((u64)t.row * (s.heads + 2 * s.kv_heads) + s.heads + t.is_value * s.kv_heads + t.kv_head) * dim;
  u8* const rows = t.is_value ? c.p.values : c.p.keys;
  u16* const to = KV_BITS == 16 ? (u16*)rows + t.at * dim : scratch;
  if (t.is_value) {
#pragma unroll 1
    for (u32 i = threadIdx.x % 32 * 8; i < dim; i += 256) {
      *(uint4*)(to + i) = load_cg_16(x + i);
    }
  } else {
    RopeAngles const angles = load_angles(s, c.p, t.position);
    HeadInput const key = {x, c.p.key_norm_weight, 1.0f};
    norm_and_rotate<KIND>(c, key, angles, [&](u32 i, u16 value) { to[i] = value; });
  }
  if (KV_BITS == 8) {
    quantize_row<KIND>(scratch, dim, rows + t.at * dim, (t.is_value ? c.p.value_scales : c.p.key_scales) + t.at);
    __syncwarp();
  }
}

// This block's part of what is appended. In 8 bits it passes through where spans come later.
template <u32 KIND>
__device__ __forceinline__ void append_rows(RowsContext const& b, AppendTask t) {
  PhaseContext const& c = b.c;
  u32 const tasks = c.rows * c.s.kv_heads * 2;
#pragma unroll 1
  while (t.number < tasks) {
    if (t.position < c.s.capacity) {
      append_row<KIND>(c, t, b.m.spans + threadIdx.x / 32 * b.z.stride);
    }
    t = append_task_of(c, t.number + gridDim.x * COMPUTE_WARPS);
  }
  signal_phase(c.s.counters + c.p.first_counter);
}

// Blocks that append.
__device__ __forceinline__ u32 appending_blocks(PhaseContext const& c) {
  return min(gridDim.x, (c.rows * c.s.kv_heads * 2 + COMPUTE_WARPS - 1) / COMPUTE_WARPS);
}

// Begins to read a span. Positions that the chunk does not see are zeros.
__device__ __forceinline__ void load_rows_span(RowsContext const& b, SpanPart const& part, ChunkSplit const& t,
                                               u32 span, KvChunks& kv) {
  PhaseDescriptor const& p = b.c.p;
  AttentionSizes const& z = b.z;
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const at = span * z.span + part.at[j];
    kv.keys[j] = kv.values[j] = make_uint4(0, 0, 0, 0);
    kv.key_scales[j] = kv.value_scales[j] = 0.0f;
    if (part.at[j] < z.span && at >= t.spans.from && at < t.spans.position) {
      u64 const row = t.spans.base + at, where = (row * z.row_chunks + part.column[j]) * 16;
      kv.keys[j] = load_cg_16(p.keys + where);
      kv.values[j] = load_cg_16(p.values + where);
      if (KV_BITS == 8) {
        kv.key_scales[j] = __ldcg(p.key_scales + row);
        kv.value_scales[j] = __ldcg(p.value_scales + row);
      }
    }
  }
}

// A span to shared memory, the first (0) or the second (1).
template <u32 KIND>
__device__ __forceinline__ void store_rows_span(RowsContext const& b, SpanPart const& part, u32 turn,
                                                KvChunks const& kv) {
  AttentionSizes const& z = b.z;
  u16 *const keys = b.m.spans + turn * 2 * z.span * z.stride, *const values = keys + z.span * z.stride;
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const at = part.at[j], column = part.column[j] * CHUNK_ELEMENTS;
    if (at < z.span) {
      store_elements<KIND>(kv.keys[j], keys + at * z.stride + column);
      store_elements<KIND>(kv.values[j], values + at * z.stride + column);
      if (KV_BITS == 8 && column == 0) {
        b.scales.key[turn][at] = kv.key_scales[j];
        b.scales.value[turn][at] = kv.value_scales[j] * PROBABILITY_SCALE;
      }
    }
  }
  if (z.padded != z.dim && threadIdx.x < z.span) {
    *(uint4*)(keys + threadIdx.x * z.stride + z.dim) = make_uint4(0, 0, 0, 0);
  }
}

// A warp's queries: consecutive ones, so that few rows' angles are needed.
struct QueryPart {
  u32 first, last;  // up to `last`
  u32 row, head;    // of the first: its row, and its number among the heads that share the key head
};

__device__ __forceinline__ QueryPart query_part_of(RowsContext const& b, ChunkSplit const& t) {
  u32 const each = (t.queries + COMPUTE_WARPS - 1) / COMPUTE_WARPS, first = min(threadIdx.x / 32 * each, t.queries);
  u32 const row = first / b.z.group;
  return {first, min(first + each, t.queries), t.first_row + row, first - row * b.z.group};
}

// Begins to copy this warp's queries to shared memory, as the product wrote them.
__device__ __forceinline__ void copy_queries(RowsContext const& b, ChunkSplit const& t, QueryPart part) {
  DecodeParams const& s = b.c.s;
  u32 const lane = threadIdx.x % 32, dim = b.z.dim;
#pragma unroll 1
  for (u32 query = part.first; query < part.last; ++query) {
    u32 const head = t.spans.kv_head * b.z.group + part.head;
    u16 const* const x = b.c.p.x + ((u64)part.row * (s.heads + 2 * s.kv_heads) + head) * dim;
    if (lane * 8 < dim) {
      cp_async_16(shared_address(b.m.queries + query * b.z.stride + lane * 8), x + lane * 8, 16);
    }
    part.row += ++part.head == b.z.group;
    part.head = part.head == b.z.group ? 0 : part.head;
  }
}

// Norms and rotates a query where it lies, as norm_and_rotate does.
template <u32 KIND>
__device__ __forceinline__ void turn_query(PhaseContext const& c, u16* x, RopeAngles const& angles) {
  DecodeParams const& s = c.s;
  u32 const rotary_dim = c.p.rotary_dim, half = rotary_dim / 2, lane = threadIdx.x % 32;
  float const* const weight = c.p.norm_weight;
  float read[2][ROPE_PAIRS], square = 0.0f, factor = 1.0f;
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    read[0][j] = i < half ? widen<KIND>(x[i]) : 0.0f;
    read[1][j] = i < half ? widen<KIND>(x[half + i]) : 0.0f;
    square = fmaf(read[0][j], read[0][j], fmaf(read[1][j], read[1][j], square));
  }
  if (weight) {
    for (u32 i = rotary_dim + lane; i < s.head_dim; i += 32) {
      float const value = widen<KIND>(x[i]);
      square = fmaf(value, value, square);
    }
    factor = rsqrtf(warp_sum(square) / s.head_dim + s.norm_eps);
  }
  auto const normed = [&](float value, u32 i) { return weight ? round_to<KIND>(value * factor * weight[i]) : value; };
#pragma unroll
  for (u32 j = 0; j < ROPE_PAIRS; ++j) {
    u32 const i = lane + 32 * j;
    if (i < half) {
      float const low = normed(read[0][j], i), high = normed(read[1][j], half + i);
      RotatedPair const rotated = rotate_pair<KIND>(angles, j, low, high);
      x[i] = narrow<KIND>(rotated.low * s.attention_scale);
      x[half + i] = narrow<KIND>(rotated.high * s.attention_scale);
    }
  }
  for (u32 i = rotary_dim + lane; i < s.head_dim; i += 32) {
    x[i] = narrow<KIND>(normed(widen<KIND>(x[i]), i) * s.attention_scale);
  }
}

// Norms and rotates this warp's queries once they are there; what pads a row becomes zeros. `angles` are the first's.
template <u32 KIND>
__device__ __forceinline__ void turn_queries(RowsContext const& b, QueryPart part, RopeAngles angles) {
  AttentionSizes const& z = b.z;
  u32 const lane = threadIdx.x % 32;
  cp_async_wait_all();
  __syncwarp();
#pragma unroll 1
  for (u32 query = part.first; query < part.last; ++query) {
    u16* const x = b.m.queries + query * z.stride;
    if (part.head == z.group) {
      part.head = 0;
      angles = load_angles(b.c.s, b.c.p, b.c.s.table->position[++part.row]);
    }
    turn_query<KIND>(b.c, x, angles);
    if (z.padded != z.dim && lane < 8) {
      x[z.dim + lane] = 0;
    }
    ++part.head;
  }
}
