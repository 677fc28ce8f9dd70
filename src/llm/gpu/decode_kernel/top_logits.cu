// The likeliest tokens of rows of logits, and what all of a row weigh, so that the host need not read them all. A warp sorts
// 64 at a time (Batcher 1968) and keeps the best 64; blocks share a row, and who comes last to it adds up their parts.

u32 constexpr TOP_LOGITS = 64;     // tokens that are found, two a lane: the best 32, the next
u32 constexpr LOGITS_PER_BLOCK = 2048;  // logits of a block

// A row's likeliest, best first, and sums of exp(logit - best) and of exp((logit - best) / temperature).
struct TopLogits {
  u64 best[TOP_LOGITS];
  float total, warm;
};

// A number that is larger the likelier the token is, of equals the first; 0 is no token.
__device__ __forceinline__ u64 sort_key(float logit, u32 token) {
  u32 const bits = __float_as_uint(logit + 0.0f);
  u32 const order = logit != logit ? 0 : bits >> 31 ? ~bits : bits | 0x80000000u;
  return (u64)order << 32 | (0xffffffffu - token);
}

// 64 keys of a warp: a lane's first is in place `lane`, its second 32 further.
struct WarpKeys {
  u64 first, second;

  __device__ __forceinline__ void exchange(u32 step, bool first_falls, bool second_falls) {
    bool const lower = (threadIdx.x & step) == 0;
    u64 const a = __shfl_xor_sync(0xffffffffu, first, step), b = __shfl_xor_sync(0xffffffffu, second, step);
    first = (first > a) == (lower == first_falls) ? first : a;
    second = (second > b) == (lower == second_falls) ? second : b;
  }

  // Sorts what rises and then falls.
  __device__ __forceinline__ void settle() {
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
    settle();
  }

  // The best of both, which are sorted.
  __device__ __forceinline__ void join(WarpKeys const& other) {
    u64 const a = __shfl_xor_sync(0xffffffffu, other.second, 31), b = __shfl_xor_sync(0xffffffffu, other.first, 31);
    first = first > a ? first : a;
    second = second > b ? second : b;
    settle();
  }
};

// A part of a row: its largest logit, and sums relative to that.
struct ExpSums {
  float peak, total, warm;

  __device__ __forceinline__ void add(ExpSums const& other, float inverse) {
    float const now = fmaxf(peak, other.peak), mine = peak - now, theirs = other.peak - now;
    total = total * __expf(mine) + other.total * __expf(theirs);
    warm = warm * __expf(mine * inverse) + other.warm * __expf(theirs * inverse);
    peak = now;
  }
};

// Puts parts together: lists of keys and masses, every `step`th from the first on.
struct TopCandidates {
  WarpKeys keys;
  ExpSums mass;

  __device__ __forceinline__ void add(u64 const* lists, ExpSums const* masses, u32 first, u32 count, u32 step, float inverse) {
    u32 const lane = threadIdx.x % 32;
    for (u32 part = first; part < count; part += step) {
      u64 const* const list = lists + (u64)part * TOP_LOGITS;
      keys.join({list[lane], list[lane + 32]});
      mass.add(masses[part], inverse);
    }
  }

  __device__ __forceinline__ void put(u64* list, ExpSums* mass_at) const {
    u32 const lane = threadIdx.x % 32;
    list[lane] = keys.first;
    list[lane + 32] = keys.second;
    if (lane == 0) {
      *mass_at = mass;
    }
  }
};

// logits [rows, vocabulary], inverses [rows]: 1 / temperature; for lists [rows, shares, TOP_LOGITS], masses [rows, shares] and
// counters [rows], which are 0 and will be. Grid (shares, rows).
extern "C" __global__ void __launch_bounds__(COMPUTE_THREADS) rank(float const* logits, u32 vocabulary, float const* inverses, u64* lists,
                                                           ExpSums* masses, u32* counters, TopLogits* out) {
  __shared__ u64 shared_lists[COMPUTE_WARPS * TOP_LOGITS];
  __shared__ ExpSums shared_masses[COMPUTE_WARPS];
  u32 const lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.y, shares = gridDim.x;
  float const inverse = inverses[row];
  TopCandidates const nothing = {{0, 0}, {-3.0e38f, 0.0f, 0.0f}};
  TopCandidates found = nothing;
  auto const take = [&](u32 token) -> u64 {
    if (token >= vocabulary) {
      return 0;
    }
    float const logit = logits[(u64)row * vocabulary + token];
    found.mass.add({logit, 1.0f, 1.0f}, inverse);
    return sort_key(logit, token);
  };
  for (u32 i = warp; i < LOGITS_PER_BLOCK / 64; i += COMPUTE_WARPS) {
    u32 const at = blockIdx.x * LOGITS_PER_BLOCK + i * 64 + lane;
    WarpKeys keys = {take(at), take(at + 32)};
    keys.sort();
    found.keys.join(keys);
  }
  for (u32 step = 16; step > 0; step /= 2) {
    ExpSums const& mine = found.mass;
    ExpSums const other = {__shfl_xor_sync(0xffffffffu, mine.peak, step), __shfl_xor_sync(0xffffffffu, mine.total, step),
                        __shfl_xor_sync(0xffffffffu, mine.warm, step)};
    found.mass.add(other, inverse);
  }
  // The block's warps, then the row's blocks.
  auto const gather = [&](u64* list, ExpSums* mass) {
    found.put(shared_lists + warp * TOP_LOGITS, shared_masses + warp);
    sync_compute_warps();
    if (warp == 0) {
      found.add(shared_lists, shared_masses, 1, COMPUTE_WARPS, 1, inverse);
      found.put(list, mass);
    }
  };
  u64 const first = (u64)row * shares;
  gather(lists + (first + blockIdx.x) * TOP_LOGITS, masses + first + blockIdx.x);
  if (!is_last_arrival(counters + row, shares)) {
    return;
  }
  found = nothing;
  found.add(lists + first * TOP_LOGITS, masses + first, warp, shares, COMPUTE_WARPS, inverse);
  gather(out[row].best, masses + first);
  if (threadIdx.x == 0) {
    counters[row] = 0;
    out[row].total = found.mass.total;
    out[row].warm = found.mass.warm;
  }
}
