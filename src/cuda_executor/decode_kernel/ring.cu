// The ring of tiles in shared memory that a producer warp fills for its pair of compute warps: RING_DEPTH slots, each
// with the tiles that both warps multiply next. Barriers say when a slot is full and when it is empty again, as in
// CUTLASS's pipelines.

struct RingBarriers {
  u64 full[PRODUCER_WARPS][RING_DEPTH];   // the producer warp arrives
  u64 empty[PRODUCER_WARPS][RING_DEPTH];  // both compute warps arrive
};

// The compute warps' end of it.
struct TileRing {
  RingBarriers& barriers;
  u32 slots;  // address of the first pair's first slot
  u32 used;   // slots that this warp has used

  // Waits until the next slot is full; returns its address.
  __device__ __forceinline__ u32 acquire() const {
    u32 const pair = threadIdx.x / 64, full = shared_address(barriers.full[pair]) + used % RING_DEPTH * 8;
    while (!mbarrier_test_wait(full, used / RING_DEPTH % 2)) {
    }
    __syncwarp();
    return slots + (pair * RING_DEPTH + used % RING_DEPTH) * 2 * SLOT_BYTES;
  }

  // Gives it back.
  __device__ __forceinline__ void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive(shared_address(barriers.empty[threadIdx.x / 64]) + used % RING_DEPTH * 8);
    }
    ++used;
  }
};
