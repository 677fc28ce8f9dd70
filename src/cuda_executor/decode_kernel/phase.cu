// What the code of each phase works with, and how phases wait for each other: not at a barrier of all blocks, but for
// outputs, whose parts are counted as they become final. A block that waits keeps its multiprocessor, so each of the
// others must get one meanwhile (README.md, "What must hold"). Everywhere s are the launch's parameters, p is the
// phase's description, and c has both.

struct PhaseContext {
  DecodeParams const& s;
  PhaseDescriptor const& p;
  u32 index;   // of the phase
  u32 rows;    // that it computes
  u32 worker;  // whose share of the work this block does
  u8* work;    // shared memory for activations
};

// The rows that a phase computes: all, or, of the LM head, those whose logits are wanted.
__device__ __forceinline__ u32 rows_of(DecodeParams const& s, PhaseDescriptor const& p) {
  if (!SHARED_SLOTS) {
    return s.rows;
  }
  return p.out_is_float32 ? s.table->wanted : s.table->rows;
}

// The row of x that is a phase's row.
__device__ __forceinline__ u32 source_row(DecodeParams const& s, PhaseDescriptor const& p, u32 row) {
  return SHARED_SLOTS && p.out_is_float32 ? s.table->wanted_rows[row] : row;
}

// The phases of a launch: without the LM head, the last, where nobody wants logits.
__device__ __forceinline__ u32 phase_count_of(DecodeParams const& s) {
  return SHARED_SLOTS && s.table->wanted == 0 ? s.phase_count - 1 : s.phase_count;
}

// How often it is signalled that a part of a phase's outputs is final.
__device__ __forceinline__ u32 completions_of(DecodeParams const& s, u32 index) {
  if (s.phases[index].kind != ATTENTION) {
    return s.phases[index].completions;
  }
  return (SHARED_SLOTS ? s.table->chunks : s.rows) * s.kv_heads;
}

// Waits until all outputs of the phase before are final.
__device__ __forceinline__ void wait_for_phase_before(PhaseContext const& c) {
  wait_phase(c.s.counters + c.index - 1, completions_of(c.s, c.index - 1));
}

// Says that a part of the phase's outputs, which all compute warps wrote, is final.
__device__ __forceinline__ void complete_part(PhaseContext const& c) { signal_phase(c.s.counters + c.index); }
