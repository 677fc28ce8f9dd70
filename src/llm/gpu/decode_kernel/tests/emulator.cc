// What the tests call: a block, until all its threads have ended.
static void (*entry)();
static void thread_entry() {
  entry();
  running->done = true;
  yield();
}
static void run_threads(u32 threads) {
  threads_in_all = threads;
  block_gate = meet_gate = Gate();
  for (Gate& gate : warp_gates) {
    gate = Gate();
  }
  static std::vector<Fiber> fibers;
  fibers.clear();
  fibers.resize(threads_in_all);
  for (u32 thread = 0; thread < threads_in_all; ++thread) {
    Fiber& fiber = fibers[thread];
    fiber.thread = thread;
    fiber.done = false;
    fiber.stack.resize(1 << 16);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, thread_entry, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (Fiber& fiber : fibers) {
      if (!fiber.done) {
        any = true;
        running = &fiber;
        swapcontext(&scheduler, &fiber.context);
      }
    }
    sched_yield();  // other blocks' turn
  }
}

// A block of a step.
static DecodeParams step_of_all;
extern "C" void run_block(DecodeParams const* step, u32 kind, u32 block, u32 blocks) {
  step_of_all = *step;
  this_block = block;
  blocks_in_all = blocks;
  entry = kind == 2 ? [] { decode_bf16(step_of_all); } : [] { decode_f16(step_of_all); };
  run_threads(COMPUTE_THREADS + PRODUCER_THREADS);
}

// All blocks that rank rows of logits.
struct Ranks {
  float const* logits;
  float const* inverses;
  u64* lists;
  ExpSums* masses;
  u32* counters;
  TopLogits* out;
};
static Ranks ranks;
static u32 ranked_vocabulary;
extern "C" void run_rank(Ranks const* what, u32 vocabulary, u32 shares, u32 rows) {
  ranks = *what;
  ranked_vocabulary = vocabulary;
  blocks_in_all = shares;
  entry = [] { rank(ranks.logits, ranked_vocabulary, ranks.inverses, ranks.lists, ranks.masses, ranks.counters, ranks.out); };
  for (this_column = 0; this_column < rows; ++this_column) {
    for (this_block = 0; this_block < shares; ++this_block) {
      run_threads(COMPUTE_THREADS);
    }
  }
  this_column = 0;
}

// All blocks of a matrix that is unpacked.
struct Unpacked {
  u8 const* weights;
  u16* out;
  u32 const* order;
  u32 bits, inputs, outputs, tile_bytes, group, second;
};
static Unpacked unpacked;
extern "C" void run_expand(Unpacked const* what, u32 tiles, u32 columns, u32 threads) {
  unpacked = *what;
  blocks_in_all = tiles;
  columns_in_all = columns;
  entry = [] {
    Unpacked const& u = unpacked;
    (u.bits == 4 ? dequantize_int4 : dequantize_int8)(u.weights, u.out, u.order, u.inputs, u.outputs, u.tile_bytes, u.group, u.second);
  };
  for (this_column = 0; this_column < columns; ++this_column) {
    for (this_block = 0; this_block < tiles; ++this_block) {
      run_threads(threads);
    }
  }
}
