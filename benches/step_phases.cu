// Where the time of a decode step goes: the decode kernel alone on a model of Mistral-7B's shape with random weights,
// and for each kind of phase the bytes it reads, what they would take at the copy bandwidth, what it takes, and between
// which points of its blocks that passes. Times of the points are medians over blocks and layers.
//
//   python3 scripts/nvrtc.py source --out target/decode_kernel.cu
//   nvcc -O3 -std=c++17 -arch=native -Itarget OPTIONS benches/step_phases.cu -o step_phases
//   ./step_phases [BITS [ROWS [CONTEXT [LAYERS]]]]
//
// BITS: 16, 8 or 4. OPTIONS, as the host has them on an H100: for float16 -DRING_DEPTH=6 -DSLOT_BYTES=4096
// -DTILE_KINDS=0, for 4 bits -DRING_DEPTH=4 -DSLOT_BYTES=4352 -DWORK_BYTES=81920 -DTILE_KINDS=1 (8 bits:
// -DTILE_KINDS=8); for a cache in 8 bits -DKV_BITS=8. With -DNO_MARKS only the step's time is taken, which marking
// lengthens. Results are not checked: the unit tests do that. ROWS are sequences; with -DSHARED_SLOTS=1
// -DQUERY_BLOCKS=2 and -DROW_BLOCKS=1, 4 or 8 they are the last tokens of one sequence, up to 8, 32 or 64 (for 64 in
// float16 -DRING_DEPTH=5 -DWORK_BYTES=65536), of which the last one's logits are wanted.
#include <cstdio>
#include <cstdlib>
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

__device__ unsigned long long* trace;  // [phases, blocks, POINTS, 2]: nanoseconds, clocks
constexpr unsigned POINTS = 6;
#ifndef SLOTS_IN_FLIGHT
#define SLOTS_IN_FLIGHT 2
#endif
#ifndef PREFETCH_TILES
#define PREFETCH_TILES 4
#endif
#ifndef PLAIN_ACROSS
#define PLAIN_ACROSS 4
#endif
#ifndef NO_MARKS
#define MARK(point) mark(c.index, point)
static __device__ __forceinline__ void mark(unsigned index, unsigned point) {
  if (threadIdx.x == 0) {
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    unsigned long long* const to = trace + (((unsigned long long)index * gridDim.x + blockIdx.x) * POINTS + point) * 2;
    to[0] = now;
    to[1] = clock64();
  }
}
#endif

#include "decode_kernel.cu"

#define CHECK(call)                                                                    \
  do {                                                                                 \
    cudaError_t const e_ = (call);                                                     \
    if (e_ != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_)); \
      std::exit(1);                                                                    \
    }                                                                                  \
  } while (0)

// Small random float16 values, or random integers and scales: any bits but those of infinities.
__global__ void fill(u16* to, u64 count, u32 mask) {
  for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x) {
    u32 x = (u32)i * 2654435761u + (u32)(i >> 32) * 40503u;
    x ^= x >> 15;
    to[i] = (u16)(x * 2246822519u >> 16) & (u16)mask;
  }
}

static void* memory(u64 bytes, u32 mask) {
  void* at;
  CHECK(cudaMalloc(&at, bytes));
  fill<<<1024, 256>>>((u16*)at, bytes / 2, mask);
  return at;
}

static double bandwidth() {
  u64 const bytes = 1ull << 30;
  void *a = memory(bytes, 0xffff), *b = memory(bytes, 0xffff);
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 10; ++i) {
    CHECK(cudaEventRecord(begin));
    CHECK(cudaMemcpyAsync(a, b, bytes, cudaMemcpyDeviceToDevice));
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  CHECK(cudaFree(a));
  CHECK(cudaFree(b));
  return 2.0 * bytes / (times[5] * 1e-3);
}

template <typename T>
static T median(std::vector<T> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Parts tiles of plain weights, or strips of packed ones, evenly among the blocks, as decode_kernel/partition.rs does.
static void partition(std::vector<PhaseDescriptor>& phases, u32 blocks) {
  std::vector<u32> words;
  std::vector<std::pair<u32, u32>> places;
  for (PhaseDescriptor& p : phases) {
    if (p.kind == MATMUL) {
      bool const wide = ROW_BLOCKS > 1, plain = p.weight_kind == PLAIN || wide;
      u32 const deep = (p.k_tiles + WIDE_TILES_DEEP - 1) / WIDE_TILES_DEEP, whole = plain ? p.k_tiles : 1;
      u32 const tiles = wide ? deep : whole, units = p.strips * tiles, used = std::min(blocks, units),
                start = (u32)words.size();
      for (u32 b = 0; b <= blocks; ++b) {
        u32 const first = (u32)((u64)std::min(b, used) * units / used);
        words.push_back(first / tiles << 16 | first % tiles);
      }
      u32 const owners = (u32)words.size();
      auto const owner = [&](u32 tile) { return (u32)(((u64)(tile + 1) * used - 1) / units); };
      p.completions = plain ? 0 : used;
      for (u32 strip = 0; plain && strip < p.strips; ++strip) {
        u32 const first = owner(strip * tiles), last = owner(strip * tiles + tiles - 1);
        words.push_back(first | last << 16);
        p.completions += wide ? std::min(last - first + 1, HALF_BLOCKS) : 1;
      }
      places.push_back({start, owners});
    } else {
      places.push_back({0, 0});
    }
  }
  u32* table;
  CHECK(cudaMalloc(&table, words.size() * 4));
  CHECK(cudaMemcpy(table, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
  for (size_t i = 0; i < phases.size(); ++i) {
    phases[i].first_units = table + places[i].first;
    phases[i].strip_owners = table + places[i].second;
  }
}

// Rows of a query chunk, and splits, of a run, as decode_kernel/rows.rs has them (AttentionPlan).
static u32 plan_attention(u32 rows, u32 context, u32 blocks, u32 group, u32 kv_heads, u32& splits) {
  auto const up = [](u32 a, u32 b) { return (a + b - 1) / b; };
  u32 best = ~0u, together = 1, some = std::max(1u, 16 * QUERY_BLOCKS / group);
  for (bool more = true; more; some = up(some, 2)) {
    more = some > 1;
    u32 const pairs = up(rows, some) * kv_heads, queries = up(std::min(some, rows) * group, 16);
    for (u32 count = 1; count <= std::min(std::max(1u, blocks / pairs), (u32)MOST_SPLITS); ++count) {
      u32 const split = 1000 + 300 * queries + up(up(context, 32), count) * (500 + 90 * queries);
      u32 const takes = up(pairs, blocks) * split + (count > 1 ? 4000 + 150 * queries * count : 0);
      together = takes < best ? some : together;
      splits = takes < best ? count : splits;
      best = std::min(best, takes);
    }
  }
  return together;
}

int main(int argc, char** argv) {
  auto const argument = [&](int i, u32 otherwise) { return argc > i ? (u32)std::atoi(argv[i]) : otherwise; };
  u32 const bits = argument(1, 16), rows = argument(2, 1), context = argument(3, 128), layers = argument(4, 32);
  u32 const hidden = 4096, inner = 14336, heads = 32, kv_heads = 8, dim = 128, vocabulary = 32000, capacity = 2560;
  u32 const qkv = (heads + 2 * kv_heads) * dim;
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  u32 const blocks = device.multiProcessorCount;
  int clocks;
  CHECK(cudaDeviceGetAttribute(&clocks, cudaDevAttrClockRate, 0));
  double const copied = bandwidth();

  std::vector<PhaseDescriptor> phases;
  std::vector<char const*> names;
  std::vector<u64> moved;
  u32 counters = 0;
  auto const push = [&](char const* name, PhaseDescriptor p, u32 count, u64 bytes) {
    p.first_counter = counters;
    counters += count;
    phases.push_back(p);
    names.push_back(name);
    moved.push_back(bytes);
  };
  auto const activations = [&](u32 width) { return (u16*)memory((u64)MAX_ROWS * width * 2, 0xa7ff); };
  auto const floats = [&](u32 count) {
    float* at;
    std::vector<float> ones(count, 1.0f);
    CHECK(cudaMalloc(&at, count * 4));
    CHECK(cudaMemcpy(at, ones.data(), count * 4, cudaMemcpyHostToDevice));
    return at;
  };
  u16 *const states[2] = {activations(hidden), activations(hidden)}, *const joined = activations(qkv),
             *const attended = activations(hidden), *const middle = activations(hidden),
             *const gates = activations(inner);
  float *const norm = floats(hidden), *const squares[2] = {floats(MAX_ROWS * hidden / PACKED_TILE_N),
                                                           floats(MAX_ROWS * hidden / PACKED_TILE_N)};
  u16 *const cos = (u16*)memory((u64)capacity * dim * 2, 0xa7ff), *const sin =
                                                                      (u16*)memory((u64)capacity * dim * 2, 0xa7ff);
  u32 counted = 0;
  auto const product = [&](char const* name, PhaseDescriptor p, u32 inputs, u32 outputs, u32 kind_bits) {
    p.kind = MATMUL;
    p.inputs = inputs;
    p.outputs = outputs;
    bool const plain = kind_bits == 16;
    p.tiles_across = plain ? (rows == 1 ? PLAIN_ACROSS : 2) : p.gated || outputs > 16 * 4 * blocks ? 2 : 1;
    p.tiles_across = ROW_BLOCKS > 1 ? WIDE_COLUMNS : p.tiles_across;
    u32 const across = p.tiles_across * (ROW_BLOCKS > 1 ? WIDE_COLUMN_N : plain ? PLAIN_TILE_N : PACKED_TILE_N);
    p.strips = (outputs + across - 1) / across;
    p.tile_k = plain ? 32 : 512 / kind_bits;
    p.k_tiles = (inputs + p.tile_k - 1) / p.tile_k;
    p.weight_kind = plain ? PLAIN : kind_bits == 8 ? INT8 : INT4;
    p.tile_bytes = plain ? 4096 : 1024 + 64;
    p.group_size = p.tile_k;
    p.offset_kind = ZERO_POINT;
    u64 const bytes = plain ? (u64)inputs * outputs * 2 : (u64)outputs / 16 * p.k_tiles * p.tile_bytes;
    p.weights = (u8 const*)memory(bytes, 0xa7ff);
    push(name, p, p.strips, bytes);
    return p.strips;
  };
  for (u32 layer = 0; layer < layers; ++layer) {
    PhaseDescriptor p = {};
    p.x = states[layer % 2];
    p.x_squares = layer ? squares[1] : nullptr;
    p.x_square_parts = counted;
    p.norm_weight = norm;
    p.x_stride = hidden;
    p.out = joined;
    product("query, key, value", p, hidden, qkv, bits);
    p = {};
    p.kind = ATTENTION;
    p.x = joined;
    p.out = attended;
    u64 const kept = (u64)rows * kv_heads * capacity;
    p.keys = (u8*)memory(kept * dim * KV_BITS / 8, 0xa7ff);
    p.values = (u8*)memory(kept * dim * KV_BITS / 8, 0xa7ff);
    p.key_scales = (float*)memory(kept * 4, 0x37ff);
    p.value_scales = (float*)memory(kept * 4, 0x37ff);
    p.cos = cos;
    p.sin = sin;
    p.rotary_dim = dim;
    push("attention", p, 1 + rows * kv_heads,
         (u64)(SHARED_SLOTS ? 1 : rows) * kv_heads * context * (KV_BITS == 8 ? 2 * dim + 8 : 4 * dim));
    p = {};
    p.x = attended;
    p.x_stride = hidden;
    p.residual = states[layer % 2];
    p.out = middle;
    p.out_squares = squares[0];
    counted = product("output", p, hidden, hidden, bits);
    p = {};
    p.x = middle;
    p.x_squares = squares[0];
    p.x_square_parts = counted;
    p.norm_weight = norm;
    p.x_stride = hidden;
    p.out = gates;
    p.gated = 1;
    product("gate and up", p, hidden, 2 * inner, bits);
    p = {};
    p.x = gates;
    p.x_stride = inner;
    p.residual = middle;
    p.out = states[(layer + 1) % 2];
    p.out_squares = squares[1];
    counted = product("down", p, inner, hidden, bits);
  }
  PhaseDescriptor p = {};
  p.x = states[layers % 2];
  p.x_squares = squares[1];
  p.x_square_parts = counted;
  p.norm_weight = norm;
  p.x_stride = hidden;
  p.out = memory((u64)MAX_ROWS * vocabulary * 4, 0);
  p.out_is_float32 = 1;
  product("head", p, hidden, vocabulary, 16);

  u32 const count = (u32)phases.size();
  for (PhaseDescriptor& phase : phases) {
    phase.first_counter += count;
  }
  PhaseDescriptor* listed;
  CHECK(cudaMalloc(&listed, count * sizeof(PhaseDescriptor)));
  partition(phases, blocks);
  CHECK(cudaMemcpy(listed, phases.data(), count * sizeof(PhaseDescriptor), cudaMemcpyHostToDevice));
  std::vector<u32> cached(8, context - 1), present(8, 1);
  u32 *places, *counts;
  CHECK(cudaMalloc(&places, 64));
  CHECK(cudaMemcpy(places, cached.data(), 32, cudaMemcpyHostToDevice));
  CHECK(cudaMemcpy(places + 8, present.data(), 32, cudaMemcpyHostToDevice));
  RowTable table = {};
  table.rows = rows;
  table.wanted = 1;
  table.wanted_rows[0] = rows - 1;
  table.kv_splits = 1;
  u32 const together = plan_attention(rows, context, blocks, heads / kv_heads, kv_heads, table.kv_splits);
  for (u32 row = 0; SHARED_SLOTS && row < rows; ++row) {
    table.position[row] = context - rows + row;
    if (row % together == 0) {
      table.chunk[table.chunks++] = {row, std::min(together, rows - row), 0, 0};
    }
  }
  RowTable* placed;
  CHECK(cudaMalloc(&placed, sizeof table));
  CHECK(cudaMemcpy(placed, &table, sizeof table, cudaMemcpyHostToDevice));
  u64 const counter_bytes = (count + counters) * 4;
  CHECK(cudaMalloc(&counts, counter_bytes));
  unsigned long long* points;
  u64 const trace_count = (u64)count * blocks * POINTS * 2;
  CHECK(cudaMalloc(&points, trace_count * 8));
  CHECK(cudaMemset(points, 0, trace_count * 8));
  CHECK(cudaMemcpyToSymbol(trace, &points, sizeof points));
  DecodeParams s = {};
  s.phases = listed;
  s.counters = counts;
  s.table = placed;
  s.partial_sums = floats(2 * blocks * MAX_ROWS * MAX_STRIP_N);
  s.kv_splits = std::max(1u, blocks / (rows * kv_heads));
  s.attention_partials = floats(std::max(blocks, rows * kv_heads) * MAX_GROUP * QUERY_BLOCKS * (dim + 2));
  s.cached = places;
  s.occupied = places + 8;
  s.phase_count = count;
  s.rows = rows;
  s.capacity = s.rope_positions = capacity;
  s.heads = heads;
  s.kv_heads = kv_heads;
  s.head_dim = dim;
  s.norm_eps = 1e-5f;
  s.attention_scale = 0.088f;
  s.slots_in_flight = SLOTS_IN_FLIGHT;
  s.prefetch_tiles = PREFETCH_TILES;
  s.prefetch_clocks = 2500;
  u32 const shared = WORK_BYTES + COMPUTE_WARPS * RING_DEPTH * SLOT_BYTES;
  CHECK(cudaFuncSetAttribute(decode_f16, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 40; ++i) {
    CHECK(cudaMemset(points, 0, trace_count * 8));
    CHECK(cudaEventRecord(begin));
    CHECK(cudaMemsetAsync(counts, 0, counter_bytes));
    decode_f16<<<blocks, BLOCK_THREADS, shared>>>(s);
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 10) {
      times.push_back(ms);
    }
  }
  u64 bytes = 0;
  for (u64 part : moved) {
    bytes += part;
  }
  double const ms = median(times);
  std::printf(
      "%s, copies move %.0f GB/s; %u bits, %u rows, context %u, %u layers: %.3f ms a step, %.1f %% of it "
      "memory's\n",
      device.name, copied * 1e-9, bits, rows, context, layers, ms, bytes / copied / (ms * 1e-3) * 100);
#ifndef NO_MARKS
  std::vector<unsigned long long> host(trace_count);
  CHECK(cudaMemcpy(host.data(), points, trace_count * 8, cudaMemcpyDeviceToHost));
  auto const at = [&](u32 phase, u32 block, u32 point, u32 what) {
    return host[(((u64)phase * blocks + block) * POINTS + point) * 2 + what];
  };
  std::printf("%-18s %8s %8s %8s | %8s %8s | %8s %8s %8s %8s %8s us\n", "phase", "MB", "at limit", "takes", "first",
              "last", "wait", "inputs", "work", "parts", "final");
  for (u32 kind = 0; kind < 6; ++kind) {
    std::vector<double> takes, segments[POINTS - 1], first, last;
    u32 const start = kind == 5 ? count - 1 : kind, stride = kind == 5 ? count : 5;
    for (u32 phase = start; phase < count - (kind < 5); phase += stride) {
      unsigned long long finished = 0, before = 0, soonest = ~0ull, latest = 0;
      for (u32 block = 0; block < blocks; ++block) {
        for (u32 point = 0; point < POINTS; ++point) {
          finished = std::max(finished, at(phase, block, point, 0));
          if (phase) {
            before = std::max(before, at(phase - 1, block, point, 0));
          }
        }
        // When a block's own work is done.
        if (at(phase, block, 3, 0)) {
          soonest = std::min(soonest, at(phase, block, 3, 0));
          latest = std::max(latest, at(phase, block, 3, 0));
        }
        for (u32 point = 0; point + 1 < POINTS; ++point) {
          if (at(phase, block, point + 1, 1) > at(phase, block, point, 1) && at(phase, block, point, 1)) {
            segments[point].push_back((at(phase, block, point + 1, 1) - at(phase, block, point, 1)) / (clocks * 1e-3));
          }
        }
      }
      if (phase) {
        takes.push_back((finished - before) * 1e-3);
        first.push_back(((double)soonest - (double)before) * 1e-3);
        last.push_back(((double)latest - (double)before) * 1e-3);
      }
    }
    std::printf("%-18s %8.1f %8.1f %8.1f | %8.1f %8.1f |", names[start], moved[start] * 1e-6,
                moved[start] / copied * 1e6, median(takes), median(first), median(last));
    for (auto& segment : segments) {
      std::printf(" %8.1f", segment.empty() ? 0.0 : median(segment));
    }
    std::printf("\n");
  }
#endif
}
