// What attention of a table's rows computes with, on its way to shared memory: new keys and values, which are appended
// to the cache first, the queries of a chunk, spans. attention_rows.cu explains it.

u32 constexpr QUERY_ROWS = 16 * (QUERY_BLOCKS);
static_assert(2 * ((SPAN + QUERY_ROWS) * (MAX_HEAD_DIM + 8) + QUERY_ROWS * (3 * SPAN / 2 + 8)) <= WORK_BYTES,
              "the largest heads, of which a span has half as many positions, have no room");
static_assert(2 * MOST_SPLITS * QUERY_ROWS * sizeof(float) <= WORK_BYTES, "to merge splits there is no room");

// Of each query: its softmax's state, and which positions it sees.
struct QueryState {
  float max[QUERY_ROWS], sum[QUERY_ROWS], rescale[QUERY_ROWS];
  u32 first[QUERY_ROWS], last[QUERY_ROWS];
  float key_scale[SPAN_SCALES], value_scale[SPAN_SCALES];
};

// A split of a chunk and a key head.
struct ChunkSplit {
  AttentionSplit spans;  // as load_span takes it: `row` is the chunk's number, `position` the end of what it sees
  u32 queries;           // of the chunk and key head
  u32 first_row;
  u32 old;  // positions that were cached before this launch
};

// What its code works with.
struct RowsContext {
  PhaseContext const& c;
  AttentionSizes z;
  AttentionMemory m;
  QueryState& state;
};

// This warp's columns of the outputs, [QUERY_ROWS, dim].
typedef float ChunkSums[QUERY_BLOCKS][4][4];

__device__ __forceinline__ AttentionMemory rows_memory_of(AttentionSizes const& z, u8* work) {
  u16 *const keys = (u16*)work, *const values = keys + z.span * z.stride, *const queries = values + z.span * z.stride;
  u16* const probabilities = queries + QUERY_ROWS * z.stride;
  return {keys, values, queries, probabilities, (float*)(probabilities + QUERY_ROWS * (z.span + 8)), nullptr};
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
  return {split, chunk.count * z.group, chunk.first, table.position[chunk.run]};
}

// Appends the new key (or value) of a row and key head to the cache. One warp; `scratch` has room for a head.
template <u32 KIND>
__device__ __forceinline__ void append_row(PhaseContext const& c, u32 row, u32 kv_head, u32 is_value, u16* scratch) {
  DecodeParams const& s = c.s;
  RowTable const& table = *s.table;
  u32 const dim = s.head_dim, position = table.position[row];
  u16 const* const x =
      c.p.x + ((u64)row * (s.heads + 2 * s.kv_heads) + s.heads + is_value * s.kv_heads + kv_head) * dim;
  u64 const at = ((u64)table.slot[row] * s.kv_heads + kv_head) * s.capacity + position;
  u8* const rows = is_value ? c.p.values : c.p.keys;
  u16* const to = KV_BITS == 16 ? (u16*)rows + at * dim : scratch;
  if (is_value) {
#pragma unroll 1
    for (u32 i = threadIdx.x % 32 * 8; i < dim; i += 256) {
      *(uint4*)(to + i) = load_cg_16(x + i);
    }
  } else {
    RopeAngles const angles = load_angles(s, c.p, position);
    norm_and_rotate<KIND>(c, HeadInput{x, c.p.key_norm_weight, 1.0f}, angles, [&](u32 i, u16 value) { to[i] = value; });
  }
  if (KV_BITS == 8) {
    quantize_row<KIND>(scratch, dim, rows + at * dim, (is_value ? c.p.value_scales : c.p.key_scales) + at);
    __syncwarp();
  }
}

// This block's part of what is appended.
template <u32 KIND>
__device__ __forceinline__ void append_rows(RowsContext const& b) {
  PhaseContext const& c = b.c;
  u32 const warp = threadIdx.x / 32, tasks = c.rows * c.s.kv_heads * 2;
#pragma unroll 1
  for (u32 task = blockIdx.x * COMPUTE_WARPS + warp; task < tasks; task += gridDim.x * COMPUTE_WARPS) {
    u32 const row = task / 2 / c.s.kv_heads, kv_head = task / 2 % c.s.kv_heads;
    if (c.s.table->position[row] < c.s.capacity) {
      append_row<KIND>(c, row, kv_head, task % 2, b.m.queries + warp * b.z.stride);
    }
  }
  signal_phase(c.s.counters + c.p.first_counter);
}

// Blocks that append.
__device__ __forceinline__ u32 appending_blocks(PhaseContext const& c) {
  return min(gridDim.x, (c.rows * c.s.kv_heads * 2 + COMPUTE_WARPS - 1) / COMPUTE_WARPS);
}

// Begins to read a span, once it is in the cache.
__device__ __forceinline__ void load_span_in_turn(PhaseContext const& c, AttentionSizes const& z, ChunkSplit const& t,
                                                  u32 span, bool& appended, KvChunks& kv) {
  if (!appended && (span + 1) * z.span > t.old) {
    wait_phase(c.s.counters + c.p.first_counter, appending_blocks(c));
    appended = true;
  }
  load_span(c.p, z, t.spans, span, kv);
}

// Queries to shared memory, normed and rotated, a warp each; what each sees, and zeros where there is none.
template <u32 KIND>
__device__ __forceinline__ void load_queries(RowsContext const& b, ChunkSplit const& t) {
  PhaseContext const& c = b.c;
  AttentionSizes const& z = b.z;
  DecodeParams const& s = c.s;
  for (u32 i = threadIdx.x; i < QUERY_ROWS * z.padded; i += COMPUTE_THREADS) {
    u32 const query = i / z.padded, column = i % z.padded;
    if (query >= t.queries || column >= z.dim) {
      b.m.queries[query * z.stride + column] = 0;
    }
  }
  for (u32 i = threadIdx.x; i < QUERY_ROWS * (z.span + 8); i += COMPUTE_THREADS) {
    b.m.probabilities[i] = 0;
  }
  if (threadIdx.x < QUERY_ROWS) {
    u32 const query = threadIdx.x, position = s.table->position[t.first_row] + query / z.group;
    b.state.max[query] = NEVER;
    b.state.sum[query] = 0.0f;
    b.state.rescale[query] = 1.0f;
    b.state.first[query] = first_seen(position, c.p.window);
    b.state.last[query] = position;
  }
#pragma unroll 1
  for (u32 query = threadIdx.x / 32; query < t.queries; query += COMPUTE_WARPS) {
    u32 const row = t.first_row + query / z.group, head = t.spans.kv_head * z.group + query % z.group;
    u16* const to = b.m.queries + query * z.stride;
    u16 const* const x = c.p.x + ((u64)row * (s.heads + 2 * s.kv_heads) + head) * z.dim;
    RopeAngles const angles = load_angles(s, c.p, s.table->position[row]);
    norm_and_rotate<KIND>(c, HeadInput{x, c.p.norm_weight, s.attention_scale}, angles,
                          [&](u32 i, u16 value) { to[i] = value; });
  }
}

// A span to shared memory.
template <u32 KIND>
__device__ __forceinline__ void store_rows_span(RowsContext const& b, KvChunks const& kv) {
  AttentionSizes const& z = b.z;
#pragma unroll
  for (u32 j = 0; j < KV_CHUNKS; ++j) {
    u32 const i = threadIdx.x + j * COMPUTE_THREADS, at = i / z.row_chunks, column = i % z.row_chunks * CHUNK_ELEMENTS;
    if (i < z.span * z.row_chunks) {
      store_elements<KIND>(kv.keys[j], b.m.keys + at * z.stride + column);
      store_elements<KIND>(kv.values[j], b.m.values + at * z.stride + column);
      if (KV_BITS == 8 && column == 0) {
        b.state.key_scale[at] = kv.key_scales[j];
        b.state.value_scale[at] = kv.value_scales[j];
      }
    }
  }
  if (z.padded != z.dim && threadIdx.x < z.span) {
    *(uint4*)(b.m.keys + threadIdx.x * z.stride + z.dim) = make_uint4(0, 0, 0, 0);
  }
}
