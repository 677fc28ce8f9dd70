// The likeliest tokens of rows of logits, and what all tokens of a row add up to, so that the host need not read the
// row. A warp sorts 64 logits at a time by a bitonic network (Batcher 1968) and keeps the 64 best; several blocks share
// a row, and the last of them to arrive merges what they found.

// A number that is larger the likelier the token is, of equals the first; 0 is no token.
__device__ __forceinline__ u64 sort_key(float logit, u32 token) {
  u32 const bits = __float_as_uint(logit + 0.0f);
  u32 const order = logit != logit ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (u64)order << 32 | (0xffffffffu - token);
}

// 64 keys of a warp: a lane's first is in place `lane`, its second 32 places further.
struct WarpKeys {
  u64 first, second;

  // Compares and exchanges with the lanes `step` away: where a half falls, the lower lane keeps the larger key.
  __device__ __forceinline__ void exchange(u32 step, bool first_falls, bool second_falls) {
    bool const lower = (threadIdx.x & step) == 0;
    u64 const a = __shfl_xor_sync(0xffffffffu, first, step), b = __shfl_xor_sync(0xffffffffu, second, step);
    first = (first > a) == (lower == first_falls) ? first : a;
    second = (second > b) == (lower == second_falls) ? second : b;
  }

  // Sorts a bitonic sequence, largest first.
  __device__ __forceinline__ void merge_bitonic() {
    u64 const high = first > second ? first : second;
    second = first > second ? second : first;
    first = high;
    for (u32 step = 16; step > 0; step /= 2) {
      exchange(step, true, true);
    }
  }

  __device__ __forceinline__ void sort() {
    u32 const lane = threadIdx.x % 32;
    for (u32 size = 2; size <= 32; size *= 2) {
      bool const falls = (lane & size) == 0;
      for (u32 step = size / 2; step > 0; step /= 2) {
        exchange(step, falls, falls && size < 32);
      }
    }
    merge_bitonic();
  }

  // The 64 best of both, which are sorted.
  __device__ __forceinline__ void keep_best(WarpKeys const& other) {
    u64 const a = __shfl_xor_sync(0xffffffffu, other.second, 31), b = __shfl_xor_sync(0xffffffffu, other.first, 31);
    first = first > a ? first : a;
    second = second > b ? second : b;
    merge_bitonic();
  }
};

// Sums over a part of a row, relative to its largest logit: of exp(logit - max) and of exp((logit - max) /
// temperature).
struct ExpSums {
  float max, sum, at_temperature;

  __device__ __forceinline__ void add(ExpSums const& other, float inverse_temperature) {
    float const now = fmaxf(max, other.max), mine = max - now, theirs = other.max - now;
    sum = sum * __expf(mine) + other.sum * __expf(theirs);
    at_temperature = at_temperature * __expf(mine * inverse_temperature) +
                     other.at_temperature * __expf(theirs * inverse_temperature);
    max = now;
  }
};
static_assert(sizeof(ExpSums) == EXP_SUMS_BYTES, "as TopLogitsParams has them");

// What several warps or blocks found: a list of keys and sums of each.
struct PartialResults {
  u64* keys;
  ExpSums* sums;
};

// The best keys and the sums so far; a warp's.
struct TopCandidates {
  WarpKeys keys;
  ExpSums sums;

  // Merges every `step`th of `count` results, from `first` on.
  __device__ __forceinline__ void merge(PartialResults from, u32 first, u32 count, u32 step,
                                        float inverse_temperature) {
    u32 const lane = threadIdx.x % 32;
    for (u32 part = first; part < count; part += step) {
      u64 const* const list = from.keys + (u64)part * TOP_LOGITS;
      keys.keep_best({list[lane], list[lane + 32]});
      sums.add(from.sums[part], inverse_temperature);
    }
  }

  __device__ __forceinline__ void store(u64* list, ExpSums* sums_at) const {
    u32 const lane = threadIdx.x % 32;
    list[lane] = keys.first;
    list[lane + 32] = keys.second;
    if (lane == 0) {
      *sums_at = sums;
    }
  }

  // Merges what the block's warps found, into the first warp's, and stores that.
  __device__ __forceinline__ void store_block(PartialResults shared, u64* list, ExpSums* sums_at,
                                              float inverse_temperature) {
    u32 const warp = threadIdx.x / 32;
    store(shared.keys + warp * TOP_LOGITS, shared.sums + warp);
    sync_compute_warps();
    if (warp == 0) {
      merge(shared, 1, COMPUTE_WARPS, 1, inverse_temperature);
      store(list, sums_at);
    }
  }
};

// What this warp finds in its part of the block's logits of a row.
__device__ __forceinline__ TopCandidates rank_part(float const* logits, u32 vocabulary, TopCandidates found,
                                                   float inverse_temperature) {
  u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto const take = [&](u32 token) -> u64 {
    if (token >= vocabulary) {
      return 0;
    }
    float const logit = logits[token];
    found.sums.add({logit, 1.0f, 1.0f}, inverse_temperature);
    return sort_key(logit, token);
  };
  for (u32 i = warp; i < LOGITS_PER_BLOCK / 64; i += COMPUTE_WARPS) {
    u32 const at = blockIdx.x * LOGITS_PER_BLOCK + i * 64 + lane;
    WarpKeys keys = {take(at), take(at + 32)};
    keys.sort();
    found.keys.keep_best(keys);
  }
  for (u32 step = 16; step > 0; step /= 2) {
    ExpSums const& mine = found.sums;
    ExpSums const other = {__shfl_xor_sync(0xffffffffu, mine.max, step), __shfl_xor_sync(0xffffffffu, mine.sum, step),
                           __shfl_xor_sync(0xffffffffu, mine.at_temperature, step)};
    found.sums.add(other, inverse_temperature);
  }
  return found;
}

// Grid (blocks of a row, rows).
extern "C" __global__ void __launch_bounds__(COMPUTE_THREADS) top_logits(TopLogitsParams p) {
  __shared__ u64 shared_keys[COMPUTE_WARPS * TOP_LOGITS];
  __shared__ ExpSums shared_sums[COMPUTE_WARPS];
  u32 const row = blockIdx.y, blocks = gridDim.x;
  float const inverse_temperature = p.inverse_temperatures[row];
  PartialResults const shared = {shared_keys, shared_sums};
  PartialResults const of_row = {p.lists + (u64)row * blocks * TOP_LOGITS, (ExpSums*)p.sums + (u64)row * blocks};
  TopCandidates const none = {{0, 0}, {-3.0e38f, 0.0f, 0.0f}};
  TopCandidates found = rank_part(p.logits + (u64)row * p.vocabulary, p.vocabulary, none, inverse_temperature);
  found.store_block(shared, of_row.keys + blockIdx.x * TOP_LOGITS, of_row.sums + blockIdx.x, inverse_temperature);
  if (!is_last_arrival(p.counters + row, blocks)) {
    return;
  }
  found = none;
  found.merge(of_row, threadIdx.x / 32, blocks, COMPUTE_WARPS, inverse_temperature);
  found.store_block(shared, p.out[row].keys, of_row.sums, inverse_temperature);
  if (threadIdx.x == 0) {
    p.counters[row] = 0;
    p.out[row].sum_exp = found.sums.sum;
    p.out[row].sum_exp_at_temperature = found.sums.at_temperature;
  }
}
