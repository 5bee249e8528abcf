// Linear maps of a few rows, x [N_ROWS, N_IN] by weight [N_OUT, N_IN], with what stands before and after them.
//
// Such a product takes as long as its weights take to arrive. Every warp streams ROWS rows of the weight, 16 bytes per
// lane and load, UNROLL loads of each row on their way at any time: the next one is asked for as soon as one is used,
// and the first before the block looks at x. All of x lies in shared memory; each block normalises it for itself.
//
// Packed weights are MLX's: BITS per value, the first in the lowest bits of a word, and one scale and bias per GROUP of
// a row. A lane's 16 bytes lie within one group, so its sum of q * x is scaled once; the bias needs only the sum of x.

constexpr int PLAIN = 0, RMS = 1, LAYER = 2;                      // before
constexpr int STORE = 0, ADD = 1, GATE = 2, GELU = 3, SCALE = 4;  // after

#ifndef EMULATED
__device__ inline void* dynamic_shared() {
  extern __shared__ uint4 dynamic_bytes[];
  return dynamic_bytes;
}
#endif

// The numbers of a few bytes, as floats.
__device__ inline void unpack(const uint32_t (&words)[4], float (&x)[4], float) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(words[i]);
}
__device__ inline void unpack(const uint32_t (&words)[4], float (&x)[8], __nv_bfloat16) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}
__device__ inline void unpack(const uint32_t (&words)[4], float (&x)[8], __half) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __half* two = reinterpret_cast<const __half*>(&words[i]);
    x[2 * i] = number(two[0]);
    x[2 * i + 1] = number(two[1]);
  }
}

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

template <int N>
__device__ inline void take(const uint4& from, uint32_t (&words)[N]) {
  words[0] = from.x, words[1] = from.y, words[2] = from.z, words[3] = from.w;
}

template <typename T, int BITS, int GROUP, int NORM, int END, int N_ROWS, int N_IN, int N_OUT, int ROWS, int UNROLL,
          int THREADS>
struct Matvec {
  static constexpr int PIECE = 16 / sizeof(T);                // values of x in 16 bytes
  static constexpr int CHUNK = BITS ? 128 / BITS : PIECE;     // weights in 16 bytes
  static constexpr int PIECES = CHUNK / PIECE;                // pieces of x that a chunk of weights meets
  static constexpr int N_PIECES = N_IN / PIECE, N_CHUNKS = N_IN / CHUNK;
  static constexpr int N_TILES = (N_CHUNKS + WARP - 1) / WARP;  // a tile is a chunk for each lane
  static constexpr int N_BATCHES = (N_TILES + UNROLL - 1) / UNROLL;
  static constexpr bool EVEN = N_CHUNKS % (WARP * UNROLL) == 0;
  static constexpr int WARPS = THREADS / WARP;
  static constexpr int EACH = (N_PIECES + THREADS - 1) / THREADS;
  static constexpr int ROW = N_TILES * WARP * PIECES;  // pieces of a row of x in shared memory
  static constexpr int OUTS = END == GATE ? ROWS / 2 : ROWS;
  static constexpr int N_TASKS = N_OUT / ROWS;
  static constexpr int WIDTH = END == GATE ? N_OUT / 2 : N_OUT;
  static_assert(N_IN % CHUNK == 0 && N_OUT % ROWS == 0 && (END != GATE || ROWS % 2 == 0), "see fits() in matvec.py");
  static_assert(!BITS || GROUP % CHUNK == 0, "a chunk lies within one group");
  static_assert(OUTS * N_ROWS <= WARP, "a lane for each result");

  uint4* x;       // [N_ROWS, ROW]: a lane's neighbour in the warp is its neighbour in memory
  float* sums;    // [N_ROWS, N_CHUNKS]: of the values that a chunk of packed weights meets
  float* scratch; // [2, N_ROWS, WARPS]

  __device__ Matvec() {
    x = static_cast<uint4*>(dynamic_shared());
    scratch = reinterpret_cast<float*>(x + N_ROWS * ROW);
    sums = scratch + 2 * N_ROWS * WARPS;
  }

  // Where a piece of x lies in its row.
  __device__ static int place(int piece) {
    int chunk = piece / PIECES;
    return (chunk / WARP * PIECES + piece % PIECES) * WARP + chunk % WARP;
  }

  __device__ static void read(const uint4& piece, float (&values)[PIECE]) {
    uint32_t words[4];
    take(piece, words);
    unpack(words, values, T());
  }

  __device__ static uint4 packed(const float (&values)[PIECE]) {
    uint4 piece;
#pragma unroll
    for (int i = 0; i < PIECE; ++i) put(reinterpret_cast<T*>(&piece) + i, values[i]);
    return piece;
  }

  // The block's sums of each row's `part`, in every thread.
  __device__ void sum_rows(float (&part)[N_ROWS], float* between) {
#pragma unroll
    for (int n = 0; n < N_ROWS; ++n) {
      float sum = warp_sum(part[n]);
      if (threadIdx.x % WARP == 0) between[n * WARPS + threadIdx.x / WARP] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N_ROWS; ++n) {
      part[n] = 0;
      for (int warp = 0; warp < WARPS; ++warp) part[n] += between[n * WARPS + warp];
    }
  }

  // Bring x into shared memory, normalised. A thread sees only its own pieces until the last barrier.
  __device__ void prepare(const uint4* from, const uint4* gain, const uint4* shift) {
    uint4 gains[EACH], shifts[EACH];
    float part[N_ROWS];
#pragma unroll
    for (int n = 0; n < N_ROWS; ++n) part[n] = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int piece = i * THREADS + threadIdx.x;
      if (piece >= N_PIECES) continue;
      if constexpr (NORM != PLAIN) gains[i] = gain[piece];
      if constexpr (NORM == LAYER) shifts[i] = shift[piece];
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        uint4 raw = from[n * N_PIECES + piece];
        x[n * ROW + place(piece)] = raw;
        if constexpr (NORM != PLAIN) {
          float values[PIECE];
          read(raw, values);
#pragma unroll
          for (int j = 0; j < PIECE; ++j) part[n] += NORM == RMS ? values[j] * values[j] : values[j];
        }
      }
    }
    if constexpr (NORM != PLAIN) {
      float mean[N_ROWS];
      sum_rows(part, scratch);
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) mean[n] = 0;
      if constexpr (NORM == LAYER) {
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) mean[n] = part[n] / N_IN, part[n] = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          int piece = i * THREADS + threadIdx.x;
          if (piece >= N_PIECES) continue;
#pragma unroll
          for (int n = 0; n < N_ROWS; ++n) {
            float values[PIECE];
            read(x[n * ROW + place(piece)], values);
#pragma unroll
            for (int j = 0; j < PIECE; ++j) part[n] += (values[j] - mean[n]) * (values[j] - mean[n]);
          }
        }
        sum_rows(part, scratch + N_ROWS * WARPS);
      }
      constexpr float EPS = NORM == RMS ? 1e-8f : 1e-5f;
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) part[n] = rsqrtf(part[n] / N_IN + EPS);
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        int piece = i * THREADS + threadIdx.x;
        if (piece >= N_PIECES) continue;
        float by[PIECE], plus[PIECE];
        read(gains[i], by);
        if constexpr (NORM == LAYER) read(shifts[i], plus);
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) {
          float values[PIECE];
          uint4& at = x[n * ROW + place(piece)];
          read(at, values);
#pragma unroll
          for (int j = 0; j < PIECE; ++j) {
            values[j] = rounded<T>((values[j] - mean[n]) * part[n]) * by[j];
            if constexpr (NORM == LAYER) values[j] = rounded<T>(values[j]) + plus[j];
          }
          at = packed(values);
        }
      }
    }
    __syncthreads();
    if constexpr (BITS != 0) {
      for (int i = threadIdx.x; i < N_ROWS * N_CHUNKS; i += THREADS) {
        int n = i / N_CHUNKS, chunk = i % N_CHUNKS;
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
          float values[PIECE];
          read(x[n * ROW + place(chunk * PIECES + p)], values);
#pragma unroll
          for (int j = 0; j < PIECE; ++j) sum += values[j];
        }
        sums[i] = sum;
      }
      __syncthreads();
    }
  }

  // The rows of the weight that a task is made of: a gate and its value go together.
  __device__ static int row_of(int task, int r) {
    return END == GATE ? r % 2 * WIDTH + task * OUTS + r / 2 : task * ROWS + r;
  }

  struct Loaded {
    uint4 chunk[ROWS];
    T scale[BITS ? ROWS : 1], bias[BITS ? ROWS : 1];
  };

  __device__ static void load(Loaded& into, int task, int chunk, const uint4* weight, const T* scales, const T* biases) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      size_t row = row_of(task, r);
      into.chunk[r] = __ldcs(weight + row * N_CHUNKS + chunk);
      if constexpr (BITS != 0) {
        size_t group = row * (N_IN / GROUP) + chunk * CHUNK / GROUP;
        into.scale[r] = scales[group];
        into.bias[r] = biases[group];
      }
    }
  }

  __device__ void multiply(const Loaded& by, int chunk, float (&total)[ROWS][N_ROWS]) const {
    const uint4* meets = x + chunk / WARP * PIECES * WARP + chunk % WARP;
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
      float weights[ROWS][PIECE];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        if constexpr (BITS != 0) {
          lifted<BITS>(words[r], p * PIECE, weights[r]);
        } else {
          unpack(words[r], weights[r], T());
        }
      }
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        float values[PIECE];
        read(meets[n * ROW + p * WARP], values);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
          for (int j = 0; j < PIECE; ++j) part[r][n] += weights[r][j] * values[j];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        if constexpr (BITS != 0) {
          float scale = number(by.scale[r]), rest = number(by.bias[r]) - LIFT<BITS> * scale;
          total[r][n] += scale * part[r][n] + rest * sums[n * N_CHUNKS + chunk];
        } else {
          total[r][n] += part[r][n];
        }
      }
    }
  }

  // What becomes of a sum, for the output at `at`; rounded where the stock operations store.
  __device__ static float finished(float sum, float gate, int at, const T* residual, const T* gain) {
    float y = rounded<T>(sum);
    if constexpr (END == ADD) return number(residual[at]) + y;
    if constexpr (END == SCALE) return number(residual[at]) + rounded<T>(y * number(gain[at % N_OUT]));
    if constexpr (END == GELU) return y * (1 + erff(y * 0.70710678f)) / 2;
    if constexpr (END == GATE) {
      gate = rounded<T>(gate);
      return rounded<T>(gate * rounded<T>(1 / (1 + expf(-gate)))) * y;
    }
    return y;
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
    prepare(from, norm_gain, norm_shift);
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
        put(out + at, finished(mine, gate, at, residual, gain));
      }
    }
  }
};

template <typename T, int BITS, int GROUP, int NORM, int END, int N_ROWS, int N_IN, int N_OUT, int ROWS, int UNROLL,
          int THREADS, typename Weight>
__device__ void matvec(const T* x, const T* norm_gain, const T* norm_shift, const Weight* weight, const T* scales,
                       const T* biases, const T* residual, const T* gain, T* out) {
  Matvec<T, BITS, GROUP, NORM, END, N_ROWS, N_IN, N_OUT, ROWS, UNROLL, THREADS> map;
  map.run(reinterpret_cast<const uint4*>(x), reinterpret_cast<const uint4*>(norm_gain),
          reinterpret_cast<const uint4*>(norm_shift), reinterpret_cast<const uint4*>(weight), scales, biases, residual,
          gain, out);
}
