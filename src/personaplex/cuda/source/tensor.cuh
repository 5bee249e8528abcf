// The same maps on tensor cores, for bfloat16: weights go from memory into the products as they lie.
//
// A product is of 16 rows of A, which is made of x, and 8 rows of the weight, added up in float32. A task is 8 rows of
// the weight; the warps of a block share its columns, and add up in shared memory. In a warp 4 lanes read 64 bytes of
// each row at once: a lane's 16 bytes are a chunk, 4 chunks a tile. A product has its own order of the columns in those
// lanes; since x is given in the order that the chunks have, it does not matter which column is which.
//
// Packed weights are scaled per group of a row, so the 4 chunks of a tile are kept apart: chunk j of x row n stands in
// row 4 n + j of A, where all other chunks are zeros; that is enough for two rows of x at a time.

// c += A * B; see "Matrix Fragments for mma.m16n8k16" in the PTX manual. Lane 4 g + t holds of A rows g and g + 8,
// of B column g, of c columns 2 t and 2 t + 1.
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef EMULATED
  emulated_mma(c, a[0], a[1], a[2], a[3], b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// x & mask | bits, which the compiler makes two instructions of.
__device__ inline uint32_t masked_with(uint32_t x, uint32_t mask, uint32_t bits) {
#ifdef EMULATED
  return (x & mask) | bits;
#else
  uint32_t found;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(found) : "r"(x), "r"(mask), "r"(bits));
  return found;
#endif
}

// Where x lies for tensor cores: in rows that begin in different banks, the pieces of a chunk turned so that the lanes
// of a tile do not meet in one; a piece's values in the order in which packed ones come apart.
template <int BITS, int N_IN>
struct TiledLayout {
  static constexpr int WIDE = BITS ? 128 / BITS : 8, PIECES = WIDE / 8, CHUNK = BITS ? WIDE : 0;
  static constexpr int ROW = N_IN / 8 + (PIECES == 2 ? 2 : 4);
  __device__ static int place(int piece) {
    int chunk = piece / PIECES;
    return chunk * PIECES + (piece % PIECES ^ chunk % PIECES);
  }
  __device__ static constexpr int value(int i) {
    if (BITS == 4) return i / 2 + i % 2 * 4;              // 0 4 1 5 2 6 3 7
    if (BITS == 8) return i / 4 * 4 + i % 4 / 2 + i % 2 * 2;  // 0 2 1 3 4 6 5 7
    return i;
  }
};

// Packed values, two at a time, set into the fraction of a bfloat16: each larger by 128, and the upper half of 8 bits by
// 2048, where it counts in sixteens.
template <int BITS>
constexpr int RAISED = BITS == 4 ? 128 : 128 + 2048;

template <int BITS, int GROUP, int NORM, int END, int N_ROWS, int N_IN, int N_OUT, int UNROLL, int THREADS>
struct TensorMatvec {
  using T = __nv_bfloat16;
  using Layout = TiledLayout<BITS, N_IN>;
  static constexpr int TASK = 8, LANES = 4;
  static constexpr int CHUNK = Layout::WIDE, PIECES = Layout::PIECES, N_CHUNKS = N_IN / CHUNK;
  static constexpr int N_GROUPS = BITS ? N_IN / GROUP : 1;
  static constexpr int WARPS = THREADS / WARP, STRIDE = LANES * WARPS;
  static constexpr int N_BATCHES = (N_CHUNKS + STRIDE * UNROLL - 1) / (STRIDE * UNROLL);
  static constexpr bool WHOLE = N_CHUNKS % LANES == 0, EVEN = N_CHUNKS % (STRIDE * UNROLL) == 0;
  static constexpr int WIDTH = END == GATE ? N_OUT / 2 : N_OUT, OUTS = END == GATE ? TASK / 2 : TASK;
  static constexpr int N_TASKS = N_OUT / TASK;
  static constexpr int TURNS = BITS ? (N_ROWS + 1) / 2 : 1;  // of packed weights, A is about two rows of x at a time
  static_assert(N_ROWS <= (BITS ? 4 : 8), "see fits() in matvec.py");
  static_assert(N_IN % CHUNK == 0 && N_OUT % TASK == 0 && (!BITS || GROUP % CHUNK == 0), "see fits() in matvec.py");
  static_assert(size_t(N_OUT) * N_CHUNKS < 1u << 31, "counted in int");

  Rows<T, NORM, N_ROWS, N_IN, THREADS, Layout> rows;
  float* partials;  // [2, WARPS, N_ROWS, TASK]
  uint4* nothing;   // [PIECES] of zeros
  int warp, g, t;
  int about;  // of packed weights, the chunk of a tile that A's row g is about

  struct Loaded {
    uint4 chunk;
    T scale[BITS ? 2 : 1], bias[BITS ? 2 : 1];  // of weight rows 2 t and 2 t + 1, for the chunk that row g is about
  };

  __device__ TensorMatvec() {
    nothing = reinterpret_cast<uint4*>(rows.after);
    partials = rows.after + 4 * PIECES;
    warp = threadIdx.x / WARP, g = threadIdx.x % WARP / LANES, t = threadIdx.x % LANES;
    about = g % LANES;
    if (threadIdx.x < PIECES) nothing[threadIdx.x] = uint4{0, 0, 0, 0};
  }

  // The first chunk of this warp's tile.
  __device__ int tile(int step) const { return step * STRIDE + warp * LANES; }

  __device__ void load(Loaded& into, int task, int step, const uint4* weight, const T* scales, const T* biases) const {
    int first = tile(step);
    if (!EVEN && first >= N_CHUNKS) return;
    into.chunk = uint4{0, 0, 0, 0};
    if (WHOLE || first + t < N_CHUNKS)
      into.chunk = __ldcs(weight + (row_of<END, WIDTH>(task, TASK, g) * N_CHUNKS + first + t));
    if constexpr (BITS != 0) {
      int group = row_of<END, WIDTH>(task, TASK, 2 * t) * N_GROUPS + (first + about) * CHUNK / GROUP;
      constexpr int NEXT = row_of<END, WIDTH>(0, TASK, 1) * N_GROUPS;
      if (WHOLE || first + about < N_CHUNKS) {
        into.scale[0] = scales[group], into.scale[1] = scales[group + NEXT];
        into.bias[0] = biases[group], into.bias[1] = biases[group + NEXT];
      }
    }
  }

  // The x row that A's row g is of: any, where there is none, for nobody looks at what comes of it.
  __device__ int n_of(int turn) const { return min(BITS ? 2 * turn + g / LANES : g, N_ROWS - 1); }

  // A lane's piece of x is four words. As A it makes rows g of words 0 and 2, and rows g + 8 of words 1 and 3; so a
  // product with the weights that belong to the former is right in rows g, one with the others in rows g + 8, and what
  // else comes of them is left alone. So nothing is moved from where it was loaded to.
  __device__ void multiply(const Loaded& by, int step, float (&even)[TURNS][4], float (&odd)[TURNS][4]) const {
    int first = tile(step);
    if (!EVEN && first >= N_CHUNKS) return;  // the whole warp
    uint32_t words[4];
    take(by.chunk, words);
    // Of packed weights, A's row g is about one chunk of the tile, and all else in it is zeros.
    bool mine = (WHOLE || first + t < N_CHUNKS) && (BITS == 0 || about == t);
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const uint4* x = mine ? rows.x + (n_of(turn) * Layout::ROW + (first + t) * PIECES) : nothing;
      float part[4] = {0, 0, 0, 0}, rest[4] = {0, 0, 0, 0};
#pragma unroll
      for (int p = 0; p < PIECES; ++p) {
        uint32_t a[4];
        take(x[p ^ t % PIECES], a);
        if constexpr (BITS == 4) {
          mma(part, a, nibbles(words[p]), nibbles(words[p] >> 8));
          mma(rest, a, nibbles(words[p] >> 4), nibbles(words[p] >> 12));
        } else if constexpr (BITS == 8) {
          uint32_t one = words[2 * p], two = words[2 * p + 1];
          mma(part, a, nibbles(one), nibbles(two));
          mma(part, a, sixteens(one >> 4), sixteens(two >> 4));
          mma(rest, a, nibbles(one >> 8), nibbles(two >> 8));
          mma(rest, a, sixteens(one >> 12), sixteens(two >> 12));
        } else {
          mma(even[turn], a, words[0], words[2]);
          mma(odd[turn], a, words[1], words[3]);
        }
      }
      if constexpr (BITS != 0) {
        if (WHOLE || first + about < N_CHUNKS) {
          float sum = rows.sums[n_of(turn) * N_CHUNKS + first + about];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float scale = number(by.scale[i]);
            even[turn][i] += scale * (part[i] + rest[2 + i] - RAISED<BITS> * sum) + number(by.bias[i]) * sum;
          }
        }
      }
    }
  }

  // Two of a word's values, as they lie in its halves, raised.
  __device__ static uint32_t nibbles(uint32_t word) { return masked_with(word, 0x000f000fu, 0x43004300u); }
  __device__ static uint32_t sixteens(uint32_t word) { return masked_with(word, 0x000f000fu, 0x45004500u); }

  // This warp's share of each x row by each weight row.
  __device__ void leave(const float (&even)[TURNS][4], const float (&odd)[TURNS][4], float* mine) const {
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      int n = BITS ? 2 * turn + g / LANES : g;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float total = even[turn][i];
        if constexpr (BITS != 0) {
          total += __shfl_xor_sync(ALL, total, LANES);
          total += __shfl_xor_sync(ALL, total, 2 * LANES);
        } else {
          total += odd[turn][2 + i];
        }
        if (n < N_ROWS && (BITS == 0 || about == 0)) mine[n * TASK + 2 * t + i] = total;
      }
    }
  }

  __device__ void run(const uint4* from, const uint4* norm_gain, const uint4* norm_shift, const uint4* weight,
                      const T* scales, const T* biases, const T* residual, const T* gain, T* out) {
    constexpr int ONE = N_ROWS * TASK;
    Loaded ahead[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u)
      if (blockIdx.x < N_TASKS) load(ahead[u], blockIdx.x, u, weight, scales, biases);
    rows.bring(from, norm_gain, norm_shift);
    int turn = 0;
    for (int task = blockIdx.x; task < N_TASKS; task += gridDim.x, turn ^= 1) {
      float even[TURNS][4] = {}, odd[TURNS][4] = {};
#pragma unroll 1
      for (int batch = 0; batch < N_BATCHES; ++batch) {
        bool last = batch == N_BATCHES - 1;
        int next_task = last ? task + gridDim.x : task, next_batch = last ? 0 : batch + 1;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          multiply(ahead[u], batch * UNROLL + u, even, odd);
          if (next_task < N_TASKS) load(ahead[u], next_task, next_batch * UNROLL + u, weight, scales, biases);
        }
      }
      // Two places in turn: who is a task ahead does not write where others still read.
      float* sums = partials + turn * WARPS * ONE;
      leave(even, odd, sums + warp * ONE);
      __syncthreads();
      for (int i = threadIdx.x; i < N_ROWS * OUTS; i += THREADS) {
        int n = i / OUTS, r = i % OUTS, from_row = n * TASK + (END == GATE ? 2 * r : r);
        float sum = 0, value = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
          sum += sums[w * ONE + from_row];
          if constexpr (END == GATE) value += sums[w * ONE + from_row + 1];
        }
        int at = n * WIDTH + task * OUTS + r;
        put(out + at, finished<T, END>(END == GATE ? value : sum, sum, at, WIDTH, residual, gain));
      }
    }
  }
};

template <bool TENSOR, typename T, int BITS, int GROUP, int NORM, int END, int N_ROWS, int N_IN, int N_OUT, int ROWS,
          int UNROLL, int THREADS, typename Weight>
__device__ void matvec(const T* x, const T* norm_gain, const T* norm_shift, const Weight* weight, const T* scales,
                       const T* biases, const T* residual, const T* gain, T* out) {
  auto go = [&](auto& map) {
    map.run(reinterpret_cast<const uint4*>(x), reinterpret_cast<const uint4*>(norm_gain),
            reinterpret_cast<const uint4*>(norm_shift), reinterpret_cast<const uint4*>(weight), scales, biases,
            residual, gain, out);
  };
  if constexpr (TENSOR) {
    TensorMatvec<BITS, GROUP, NORM, END, N_ROWS, N_IN, N_OUT, UNROLL, THREADS> map;
    go(map);
  } else {
    Matvec<T, BITS, GROUP, NORM, END, N_ROWS, N_IN, N_OUT, ROWS, UNROLL, THREADS> map;
    go(map);
  }
}
