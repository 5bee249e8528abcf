// All blocks of a launch meet. They wait for each other, so all of them must run at once: at most as many blocks as the
// card holds together. Who launches sees to that; where it fails all the same, the launch ends as an error after
// seconds, and the card does not hang.

constexpr uint32_t SPINS = 1u << 22;  // about 2 seconds of reading the counter

// `counters` [64] are zero when the kernel starts and zero again when it ends, so they serve the next launch too.
// There are more of them than are used, because MLX keeps arrays of 8 bytes and less where the host can reach them, and
// there a meeting takes half a millisecond.
constexpr int ARRIVED = 0, GONE = 32;

struct Grid {
  uint32_t* counters;
  uint32_t due = 0;  // arrivals that the present meeting waits for

  __device__ explicit Grid(uint32_t* counters) : counters(counters) {}

  // What the block wrote so far may be read by all after `wait`. Other work may be done in between.
  __device__ void arrive() {
    due += gridDim.x;
    __syncthreads();  // all threads have written
    if (threadIdx.x) return;
#ifdef EMULATED
    atomicAdd(counters + ARRIVED, 1u);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counters + ARRIVED) : "memory");
#endif
  }

  __device__ void wait() {
    if (threadIdx.x == 0) {
      for (uint32_t spins = 0; arrived() < due; ++spins)
        if (spins == SPINS) __trap();
    }
    __syncthreads();  // nobody reads what others wrote before thread 0 has seen them arrive
  }

  __device__ void meet() {
    arrive();
    wait();
  }

  // The end: no meeting may follow. The last block to go leaves the counters as they were.
  __device__ void leave() {
    if (threadIdx.x) return;
    __threadfence();
    if (atomicAdd(counters + GONE, 1u) != gridDim.x - 1) return;
    // All others are gone: nobody looks at the counters any more.
    __threadfence();
    counters[ARRIVED] = counters[GONE] = 0;
  }

 private:
  __device__ uint32_t arrived() {
    uint32_t n;
#ifdef EMULATED
    __nanosleep(20);  // where the emulator lets others run
    n = *(volatile uint32_t*)(counters + ARRIVED);
#else
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counters + ARRIVED) : "memory");
#endif
    return n;
  }
};
