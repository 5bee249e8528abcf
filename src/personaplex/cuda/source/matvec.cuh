// Linear maps of a few rows, x [N_ROWS, N_IN] by weight [N_OUT, N_IN], with what stands before and after them.
//
// Such a product takes as long as its weights take to arrive. Every warp streams ROWS rows of the weight, 16 bytes per
// lane and load, UNROLL loads of each row on their way at any time: the next one is asked for as soon as one is used,
// and the first before the block looks at x.
//
// Packed weights are MLX's: BITS per value, the first in the lowest bits of a word, and one scale and bias per GROUP of
// a row. A lane's 16 bytes lie within one group, so its sum of q * x is scaled once; the bias needs only the sum of x.

// Packed values are set into the fraction of a float that counts in ones there: nothing is converted, and each comes
// out larger by what the exponent says. That is taken off the sum, which costs a few of a float's last bits.
template <int BITS>
constexpr int LIFT = BITS == 4 ? 128 : 256;

// Values first ... first + N - 1 of packed words, each LIFT too large.
template <int BITS, int N>
__device__ inline void lifted(const uint32_t (&words)[4], int first, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    int value = first + i;
    if constexpr (BITS == 8) {
      uint32_t word = words[value / 4];
      int left = 15 - value % 4 * 8;  // from where it lies to bit 15
      uint32_t moved = left >= 0 ? word << (left & 31) : word >> (-left & 31);
      x[i] = __uint_as_float((moved & 0x007f8000u) | 0x43800000u);
    } else {
      uint32_t word = words[value / 8];
      int left = 16 - value % 8 * 4;
      uint32_t moved = left >= 0 ? word << (left & 31) : word >> (-left & 31);
      x[i] = __uint_as_float((moved & 0x000f0000u) | 0x43000000u);
    }
  }
}

// Where x lies for a warp that reads a chunk for each lane: a lane's neighbour in the warp is its neighbour in memory.
template <typename T, int BITS, int N_IN>
struct StripedLayout {
  static constexpr int WIDE = BITS ? 128 / BITS : PIECE<T>, PIECES = WIDE / PIECE<T>, CHUNK = BITS ? WIDE : 0;
  static constexpr int N_TILES = (N_IN / WIDE + WARP - 1) / WARP;  // a tile is a chunk for each lane
  static constexpr int ROW = N_TILES * WARP * PIECES;
  __device__ static int place(int piece) {
    int chunk = piece / PIECES;
    return (chunk / WARP * PIECES + piece % PIECES) * WARP + chunk % WARP;
  }
  __device__ static constexpr int value(int i) { return i; }
};

// A warp's own rows, multiplied in float32.
template <typename T, int BITS, int GROUP, int NORM, int END, int N_ROWS, int N_IN, int N_OUT, int ROWS, int UNROLL,
          int THREADS>
struct Matvec {
  using Layout = StripedLayout<T, BITS, N_IN>;
  static constexpr int N = PIECE<T>, CHUNK = Layout::WIDE, PIECES = Layout::PIECES, N_CHUNKS = N_IN / CHUNK;
  static constexpr int N_BATCHES = (Layout::N_TILES + UNROLL - 1) / UNROLL;
  static constexpr bool EVEN = N_CHUNKS % (WARP * UNROLL) == 0;
  static constexpr int WARPS = THREADS / WARP;
  static constexpr int OUTS = END == GATE ? ROWS / 2 : ROWS;
  static constexpr int N_TASKS = N_OUT / ROWS;
  static constexpr int WIDTH = END == GATE ? N_OUT / 2 : N_OUT;
  static_assert(N_IN % CHUNK == 0 && N_OUT % ROWS == 0 && (END != GATE || ROWS % 2 == 0), "see fits() in matvec.py");
  static_assert(!BITS || GROUP % CHUNK == 0, "a chunk lies within one group");
  static_assert(OUTS * N_ROWS <= WARP, "a lane for each result");

  Rows<T, NORM, N_ROWS, N_IN, THREADS, Layout> rows;

  struct Loaded {
    uint4 chunk[ROWS];
    T scale[BITS ? ROWS : 1], bias[BITS ? ROWS : 1];
  };

  __device__ static void load(Loaded& into, int task, int chunk, const uint4* weight, const T* scales, const T* biases) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      size_t row = row_of<END, WIDTH>(task, ROWS, r);
      into.chunk[r] = __ldcs(weight + row * N_CHUNKS + chunk);
      if constexpr (BITS != 0) {
        size_t group = row * (N_IN / GROUP) + chunk * CHUNK / GROUP;
        into.scale[r] = scales[group];
        into.bias[r] = biases[group];
      }
    }
  }

  __device__ void multiply(const Loaded& by, int chunk, float (&total)[ROWS][N_ROWS]) const {
        float part[ROWS][N_ROWS];
    uint32_t words[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      take(by.chunk[r], words[r]);
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) part[r][n] = 0;
    }
#pragma unroll
    for (int p = 0; p < PIECES; ++p) {
      float weights[ROWS][N];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if constexpr (BITS != 0) {
          lifted<BITS>(words[r], p * N, weights[r]);
        } else {
          unpack(words[r], weights[r], T());
        }
      }
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        float values[N];
        read<T>(rows.at(n, chunk * PIECES + p), values);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
          for (int j = 0; j < N; ++j) part[r][n] += weights[r][j] * values[j];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        if constexpr (BITS != 0) {
          float scale = number(by.scale[r]), rest = number(by.bias[r]) - LIFT<BITS> * scale;
          total[r][n] += scale * part[r][n] + rest * rows.sums[n * N_CHUNKS + chunk];
        } else {
          total[r][n] += part[r][n];
        }
      }
    }
  }

  __device__ void run(const uint4* from, const uint4* norm_gain, const uint4* norm_shift, const uint4* weight,
                      const T* scales, const T* biases, const T* residual, const T* gain, T* out) {
    int lane = threadIdx.x % WARP, stride = gridDim.x * WARPS;
    int first = blockIdx.x * WARPS + threadIdx.x / WARP;
    Loaded ahead[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      int chunk = u * WARP + lane;
      if (first < N_TASKS && (EVEN || chunk < N_CHUNKS)) load(ahead[u], first, chunk, weight, scales, biases);
    }
    rows.bring(from, norm_gain, norm_shift);
    for (int task = first; task < N_TASKS; task += stride) {
      float total[ROWS][N_ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) total[r][n] = 0;
#pragma unroll 1
      for (int batch = 0; batch < N_BATCHES; ++batch) {
        bool last = batch == N_BATCHES - 1;
        int next_task = last ? task + stride : task, next_batch = last ? 0 : batch + 1;
#pragma unroll
        for (int u = 0; u < UNROLL; ++u) {
          int chunk = (batch * UNROLL + u) * WARP + lane, next = (next_batch * UNROLL + u) * WARP + lane;
          if (EVEN || chunk < N_CHUNKS) multiply(ahead[u], chunk, total);
          if (next_task < N_TASKS && (EVEN || next < N_CHUNKS))
            load(ahead[u], next_task, next, weight, scales, biases);
        }
      }
      float mine = 0, gate = 0;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) {
          float sum = warp_sum(total[r][n]);
          if constexpr (END == GATE) {
            if (lane == r / 2 * N_ROWS + n) (r % 2 ? mine : gate) = sum;
          } else {
            if (lane == r * N_ROWS + n) mine = sum;
          }
        }
      }
      if (lane < OUTS * N_ROWS) {
        int at = lane % N_ROWS * WIDTH + task * OUTS + lane / N_ROWS;
        put(out + at, finished<T, END>(mine, gate, at, WIDTH, residual, gain));
      }
    }
  }
};
