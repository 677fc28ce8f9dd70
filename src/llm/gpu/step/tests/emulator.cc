
// What the test calls: one block, until all its threads have ended.
static Step step_of_all;
static u32 kind_of_all;
static void thread_entry() {
  if (kind_of_all == 2) {
    step_bf16(step_of_all);
  } else {
    step_f16(step_of_all);
  }
  running->done = true;
  yield();
}
extern "C" void run_block(Step const* step, u32 kind, u32 block, u32 blocks) {
  step_of_all = *step;
  kind_of_all = kind;
  this_block = block;
  blocks_in_all = blocks;
  threads_in_all = THREADS + FETCHERS;
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
