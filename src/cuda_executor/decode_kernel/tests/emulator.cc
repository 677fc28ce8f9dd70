// What the tests call: a block, until all its threads have ended.
static void (*entry)();
static void thread_entry() {
  entry();
  running->done = true;
  yield();
}
static void run_threads(u32 threads) {
  threads_in_all = threads;
  block_gate = compute_gate = Gate();
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
static DecodeParams decode_params;
extern "C" void run_block(DecodeParams const* params, u32 kind, u32 block, u32 blocks) {
  decode_params = *params;
  this_block = block;
  blocks_in_all = blocks;
  entry = kind == BFLOAT16 ? [] { decode_bf16(decode_params); } : [] { decode_f16(decode_params); };
  run_threads(BLOCK_THREADS);
}

// All blocks of a grid, one after the other.
static void run_grid(u32 blocks, u32 columns, u32 threads) {
  blocks_in_all = blocks;
  columns_in_all = columns;
  for (this_column = 0; this_column < columns; ++this_column) {
    for (this_block = 0; this_block < blocks; ++this_block) {
      run_threads(threads);
    }
  }
  this_column = 0;
  columns_in_all = 1;
}

// The ranking of rows of logits.
static TopLogitsParams top_logits_params;
extern "C" void run_top_logits(TopLogitsParams const* params, u32 blocks, u32 rows) {
  top_logits_params = *params;
  entry = [] { top_logits(top_logits_params); };
  run_grid(blocks, rows, COMPUTE_THREADS);
}

// A packed matrix to float16.
static DequantizeParams dequantize_params;
extern "C" void run_dequantize(DequantizeParams const* params, u32 bits, u32 columns, u32 tiles, u32 threads) {
  dequantize_params = *params;
  entry = bits == 4 ? [] { dequantize_int4(dequantize_params); } : [] { dequantize_int8(dequantize_params); };
  run_grid(columns, tiles, threads);
}
