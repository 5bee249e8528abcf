// The rows that a linear map takes and gives: into shared memory, normalised on the way, and out with what stands after
// the map. Each block normalises all rows for itself.

constexpr int PLAIN = 0, RMS = 1, LAYER = 2;                      // before
constexpr int STORE = 0, ADD = 1, GATE = 2, GELU = 3, SCALE = 4;  // after

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

__device__ inline void take(const uint4& from, uint32_t (&words)[4]) {
  words[0] = from.x, words[1] = from.y, words[2] = from.z, words[3] = from.w;
}

template <typename T>
constexpr int PIECE = 16 / sizeof(T);  // values in 16 bytes

template <typename T>
__device__ inline void read(const uint4& piece, float (&values)[PIECE<T>]) {
  uint32_t words[4];
  take(piece, words);
  unpack(words, values, T());
}

// x [N_ROWS, N_IN] in shared memory. `Layout` says where the pieces of a row lie (`place`), in which order a piece's
// values (`value`), of how many pieces there is a row (`ROW`), and of how many values the sums are that are wanted
// (`CHUNK`; 0: none).
template <typename T, int NORM, int N_ROWS, int N_IN, int THREADS, typename Layout>
struct Rows {
  static constexpr int N = PIECE<T>, N_PIECES = N_IN / N, WARPS = THREADS / WARP;
  static constexpr int EACH = (N_PIECES + THREADS - 1) / THREADS;
  static constexpr int N_SUMS = Layout::CHUNK ? N_IN / Layout::CHUNK : 0;

  uint4* x;        // [N_ROWS, ROW]
  float* scratch;  // [2, N_ROWS, WARPS]
  float* sums;     // [N_ROWS, N_SUMS]
  float* after;    // what lies behind them, on a boundary of 16 bytes

  __device__ Rows() {
    DYNAMIC(memory);
    x = reinterpret_cast<uint4*>(memory);
    scratch = reinterpret_cast<float*>(x + N_ROWS * Layout::ROW);
    sums = scratch + (2 * N_ROWS * WARPS + 3) / 4 * 4;
    after = sums + (N_ROWS * N_SUMS + 3) / 4 * 4;
  }

  __device__ uint4& at(int n, int piece) const { return x[n * Layout::ROW + Layout::place(piece)]; }

  __device__ static uint4 packed(const float (&values)[N]) {
    uint4 piece;
#pragma unroll
    for (int i = 0; i < N; ++i) put(reinterpret_cast<T*>(&piece) + i, values[Layout::value(i)]);
    return piece;
  }

  // The block's sums of each row's `part`, in every thread.
  __device__ static void sum_rows(float (&part)[N_ROWS], float* between) {
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

  // A thread sees only its own pieces until the last barrier; they keep their values' order until they are normalised.
  __device__ void bring(const uint4* from, const uint4* gain, const uint4* shift) {
    uint4 gains[EACH], shifts[EACH];
    float part[N_ROWS], mean[N_ROWS];
#pragma unroll
    for (int n = 0; n < N_ROWS; ++n) part[n] = mean[n] = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      int piece = i * THREADS + threadIdx.x;
      if (piece >= N_PIECES) continue;
      if constexpr (NORM != PLAIN) gains[i] = gain[piece];
      if constexpr (NORM == LAYER) shifts[i] = shift[piece];
#pragma unroll
      for (int n = 0; n < N_ROWS; ++n) {
        uint4 raw = from[n * N_PIECES + piece];
        float values[N];
        read<T>(raw, values);
        at(n, piece) = NORM == PLAIN ? packed(values) : raw;
#pragma unroll
        for (int j = 0; j < N; ++j) part[n] += NORM == RMS ? values[j] * values[j] : values[j];
      }
    }
    if constexpr (NORM != PLAIN) {
      sum_rows(part, scratch);
      if constexpr (NORM == LAYER) {
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) mean[n] = part[n] / N_IN, part[n] = 0;
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
          int piece = i * THREADS + threadIdx.x;
          if (piece >= N_PIECES) continue;
#pragma unroll
          for (int n = 0; n < N_ROWS; ++n) {
            float values[N];
            read<T>(at(n, piece), values);
#pragma unroll
            for (int j = 0; j < N; ++j) part[n] += (values[j] - mean[n]) * (values[j] - mean[n]);
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
        float by[N], plus[N];
        read<T>(gains[i], by);
        if constexpr (NORM == LAYER) read<T>(shifts[i], plus);
#pragma unroll
        for (int n = 0; n < N_ROWS; ++n) {
          float values[N];
          read<T>(at(n, piece), values);
#pragma unroll
          for (int j = 0; j < N; ++j) {
            values[j] = rounded<T>((values[j] - mean[n]) * part[n]) * by[j];
            if constexpr (NORM == LAYER) values[j] = rounded<T>(values[j]) + plus[j];
          }
          at(n, piece) = packed(values);
        }
      }
    }
    __syncthreads();
    if constexpr (N_SUMS != 0) {
      constexpr int PIECES = Layout::CHUNK / N;
      for (int i = threadIdx.x; i < N_ROWS * N_SUMS; i += THREADS) {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
          float values[N];
          read<T>(at(i / N_SUMS, i % N_SUMS * PIECES + p), values);
#pragma unroll
          for (int j = 0; j < N; ++j) sum += values[j];
        }
        sums[i] = sum;
      }
      __syncthreads();
    }
  }
};

// The rows of the weight that a task of `n` rows is made of: a gate and its value go together.
template <int END, int WIDTH>
__device__ constexpr int row_of(int task, int n, int r) {
  return END == GATE ? r % 2 * WIDTH + task * (n / 2) + r / 2 : task * n + r;
}

// What becomes of a sum, for the output at `at` of rows of `width`; rounded where the stock operations store.
template <typename T, int END>
__device__ inline float finished(float sum, float gate, int at, int width, const T* residual, const T* gain) {
  float y = rounded<T>(sum);
  if constexpr (END == ADD) return number(residual[at]) + y;
  if constexpr (END == SCALE) return number(residual[at]) + rounded<T>(y * number(gain[at % width]));
  if constexpr (END == GELU) return y * (1 + erff(y * 0.70710678f)) / 2;
  if constexpr (END == GATE) {
    gate = rounded<T>(gate);
    return rounded<T>(gate * rounded<T>(1 / (1 + expf(-gate)))) * y;
  }
  return y;
}
