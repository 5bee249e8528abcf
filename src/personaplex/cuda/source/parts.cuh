// One linear map as a part of a launch in which all blocks work on one vector after another: each block takes its share
// of the map's tiles, what it needs of the vector lies in its shared memory, and all meet before the next part.

// What another block of this launch may have written: not from this multiprocessor's own cache.
__device__ inline __nv_bfloat16 fresh_one(const __nv_bfloat16* at) {
#ifdef EMULATED
  return *at;
#else
  // Of a bfloat16, CUDA's own __ldcg is an asm that is not volatile: the compiler took it out of a loop, past the meeting.
  uint16_t bits;
  asm volatile("ld.global.cg.b16 %0, [%1];" : "=h"(bits) : "l"(at) : "memory");
  return __ushort_as_bfloat16(bits);
#endif
}
__device__ inline Eight fresh(const __nv_bfloat16* at) {
  const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(at));
  return *reinterpret_cast<const Eight*>(&bits);
}

template <int WARPS, int BLOCKS>
struct Parts {
  static constexpr int THREADS = WARPS * WARP;

  // How a map is cut up. Gated, a tile is 8 rows of the gate and the same 8 of the values.
  template <int BITS, typename S, int N_IN_, int N_OUT, int AFTER_>
  struct Map {
    using Of = UnitOf<BITS, S>;
    static constexpr int N_IN = N_IN_, AFTER = AFTER_, ROW_UNITS = N_IN / Of::COLUMNS, N_CHUNKS = N_IN / CHUNK;
    static constexpr int N_TILES = (AFTER == GATE ? 2 : 1) * N_OUT / TILE, MOST_TILES = (N_TILES + BLOCKS - 1) / BLOCKS;
    static constexpr int APART = AFTER == GATE ? 8 : TILE, OTHER = AFTER == GATE ? N_OUT : 8;
    // Shared memory: x, its chunks' sums, numbers for sums over the block, each warp's sums of the tiles.
    static constexpr int SUMS = N_IN * 2, SCRATCH = SUMS + N_CHUNKS * 4, PARTIAL = SCRATCH + WARP * 4;
    static constexpr int SIZE = MOST_TILES * TILE, BYTES = PARTIAL + WARPS * SIZE * 4;
    static_assert(N_IN % Of::COLUMNS == 0 && N_IN % (8 * WARP) == 0 && N_OUT % TILE == 0, "whole units");

    __device__ static inline int first_tile() { return N_TILES * blockIdx.x / BLOCKS; }
    __device__ static inline int n_tiles() { return N_TILES * (blockIdx.x + 1) / BLOCKS - first_tile(); }

    template <typename F>
    __device__ static inline void turn(F& flow, const void* w, const S* scales, const S* biases) {
      flow.template turn_to<BITS, S>(w, scales, biases, N_IN, first_tile(), n_tiles(), APART, OTHER);
    }
  };

  // Of a map that is prepared: where x's sums lie and where the warps' sums go, how many tiles and units of a row.
  struct Job {
    float *x_sums, *partial;
    int size, n_tiles, row_units;
  };

  // x, normalised by `gain` if there is one, into shared memory. `gain` is read before the meeting; after it `ready()`
  // is called by all threads, then `given(k)` gives eight numbers from k. Ends with a barrier.
  template <typename M, int BITS, int BEFORE, typename Ready, typename Given>
  __device__ __forceinline__ static Job prepare(char* memory, Grid& grid, const __nv_bfloat16* gain, Ready ready,
                                                Given given) {
    auto* x = reinterpret_cast<__nv_bfloat16*>(memory);
    auto* x_sums = reinterpret_cast<float*>(memory + M::SUMS);
    constexpr int N_IN = M::N_IN, TURNS = (N_IN + 8 * THREADS - 1) / (8 * THREADS);
    Eight mine[TURNS], gains[BEFORE == RMS ? TURNS : 1];
    if constexpr (BEFORE == RMS) {
#pragma unroll
      for (int turn = 0; turn < TURNS; ++turn) {
        const int k = 8 * (threadIdx.x + turn * THREADS);
        if (k < N_IN) gains[turn] = *reinterpret_cast<const Eight*>(gain + k);
      }
    }
    grid.wait();
    ready();
    float squares = 0;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int k = 8 * (threadIdx.x + turn * THREADS);
      if (k >= N_IN) break;
      mine[turn] = given(k);
      if constexpr (BEFORE == RMS) {
#pragma unroll
        for (int i = 0; i < 8; ++i) squares += number(mine[turn].of[i]) * number(mine[turn].of[i]);
      }
    }
    float scale = 1;
    if constexpr (BEFORE == RMS)
      scale = rsqrtf(block_sum(squares, reinterpret_cast<float*>(memory + M::SCRATCH)) / N_IN + 1e-8f);
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int k = 8 * (threadIdx.x + turn * THREADS);
      if (k >= N_IN) break;
      if constexpr (BEFORE == RMS) {
#pragma unroll
        for (int i = 0; i < 8; ++i)
          put(&mine[turn].of[i], number(mine[turn].of[i]) * scale * number(gains[turn].of[i]));
      }
      lay<BITS>(mine[turn], x + k / CHUNK * CHUNK, k % CHUNK);
      if constexpr (BITS < 16) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += number(mine[turn].of[i]);
        note_sum(sum, x_sums, k);
      }
    }
    __syncthreads();
    return {x_sums, reinterpret_cast<float*>(memory + M::PARTIAL), M::SIZE, M::n_tiles(), M::ROW_UNITS};
  }

  // This warp's units of the block's tiles; a tile's sums stay in the warp's own place. Ends with a barrier.
  template <int BITS, typename S, typename F, typename Plan>
  __device__ __forceinline__ static void multiply_all(const Job& job, F& flow, Plan& plan, const __nv_bfloat16* x) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    constexpr int CHUNKS = UnitOf<BITS, S>::CHUNKS;
    float* mine = job.partial + flow.warp * job.size;
    float sum[4] = {0, 0, 0, 0};
    int in_tile = flow.warp;
#pragma unroll 1
    for (int to_do = flow.share(job.n_tiles * job.row_units); to_do > 0; --to_do) {
      while (in_tile >= job.row_units) in_tile -= job.row_units, mine += TILE;
      multiply_unit<BITS, S>(sum, flow.take(plan), x, job.x_sums, in_tile * CHUNKS);
      in_tile += WARPS;
      if (in_tile < job.row_units) continue;
      if (t == 0) mine[g] = sum[0], mine[g + 8] = sum[2];
      sum[0] = sum[1] = sum[2] = sum[3] = 0;
    }
    __syncthreads();
  }

  // What the warps have of each row, added up, and out: rounded where the stock operations store. `residual(row, i)` is
  // asked where one is added; `i` counts the block's rows.
  template <typename M, typename Residual>
  __device__ __forceinline__ static void finish(const float* partial, Residual residual, __nv_bfloat16* out) {
    for (int i = threadIdx.x; i < M::n_tiles() * M::APART; i += THREADS) {
      const int tile = i / M::APART;
      const float* at = partial + tile * TILE + i % M::APART;
      float total = 0, value = 0;
      // A row of few units is the work of as many warps.
      constexpr int OF = M::ROW_UNITS < WARPS ? M::ROW_UNITS : WARPS;
#pragma unroll
      for (int j = 0; j < OF; ++j) {
        const int from = OF == WARPS ? j : (tile * OF + j) % WARPS;
        total += at[from * M::SIZE];
        if constexpr (M::AFTER == GATE) value += at[from * M::SIZE + 8];
      }
      const int row = M::first_tile() * M::APART + i;
      total = rounded<__nv_bfloat16>(total);
      if constexpr (M::AFTER == GATE) {
        const float open = rounded<__nv_bfloat16>(1 / (1 + expf(-total)));
        put(out + row, rounded<__nv_bfloat16>(total * open) * rounded<__nv_bfloat16>(value));
      } else if constexpr (M::AFTER == ADD) {
        put(out + row, number(residual(row, i)) + total);
      } else {
        put(out + row, total);
      }
    }
  }
};
