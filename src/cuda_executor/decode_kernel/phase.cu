// What the code of each phase works with, and how phases wait for each other: not at a barrier of all blocks, but for
// outputs, whose parts are counted as they become final. A block that waits keeps its multiprocessor, so each of the
// others must get one meanwhile (README.md, "What must hold"). Everywhere s are the launch's parameters, p is the
// phase's description, and c has both.

struct PhaseContext {
  DecodeParams const& s;
  PhaseDescriptor const& p;
  u32 index;   // of the phase
  u32 worker;  // whose share of the work this block does
  u8* work;    // shared memory for activations
};

// How often it is signalled that a part of a phase's outputs is final.
__device__ __forceinline__ u32 completions_of(DecodeParams const& s, u32 index) {
  return s.phases[index].kind == ATTENTION ? s.rows * s.kv_heads : s.phases[index].completions;
}

// Waits until all outputs of the phase before are final.
__device__ __forceinline__ void wait_for_phase_before(PhaseContext const& c) {
  wait_phase(c.s.counters + c.index - 1, completions_of(c.s, c.index - 1));
}

// Says that a part of the phase's outputs, which all compute warps wrote, is final.
__device__ __forceinline__ void complete_part(PhaseContext const& c) { signal_phase(c.s.counters + c.index); }
