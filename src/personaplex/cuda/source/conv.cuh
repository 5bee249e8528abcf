// A causal convolution over [B, T, n_in] that carries its past, as one product: the `taps` rows under an output lie one
// after the other in [past; x], so y[slot, t, column] = weight[column] . [past; x][slot] from t x stride x n_in on.
// A transposed convolution of kernel 2 x stride is the same with two taps, a column per (sample, channel), and the
// weights' halves read the other way round. The past is kept as it went into the sums: activated.

enum Flag { TRANSPOSED = 1, ELU_IN = 2, ELU_OUT = 4, ADDS = 8, REPEATS = 16 };

__device__ inline float elu(float x) { return fmaxf(x, expf(fminf(x, 0.f)) - 1); }

struct Conv {
  const float *x, *past, *weight, *bias, *residual;
  const bool* begun;
  int slots, steps, n_in, columns, taps, stride, biases, flags;
  int outs, rows, depth, past_size, x_size;

  __device__ Conv(const float* x, const float* past, const float* weight, const float* bias, const float* residual,
                  const void* begun, const int32_t* size)
      : x(x), past(past), weight(weight), bias(bias), residual(residual), begun(static_cast<const bool*>(begun)) {
    const int4 a = reinterpret_cast<const int4*>(size)[0], b = reinterpret_cast<const int4*>(size)[1];
    slots = a.x, steps = a.y, n_in = a.z, columns = a.w;
    taps = b.x, stride = b.y, biases = b.z, flags = b.w;
    outs = steps / stride, rows = slots * outs, depth = taps * n_in;
    past_size = (taps - stride) * n_in, x_size = steps * n_in;
  }

  __device__ bool is(Flag flag) const { return flags & flag; }

  // The weight of `column` that meets what lies `at` numbers into its window.
  __device__ const float* weights(int column, int at) const {
    if (!is(TRANSPOSED)) return weight + size_t(column) * depth + at;
    return weight + (at < n_in ? size_t(columns + column) * n_in + at : size_t(column) * n_in + (at - n_in));
  }

  __device__ void finish(int row, int column, float sum, float* y) const {
    const size_t at = size_t(row) * columns + column;
    if (biases) sum += bias[column % biases];
    if (is(ADDS)) sum += residual[at];
    y[at] = is(ELU_OUT) ? elu(sum) : sum;
  }
};

// The window under one output: what of its slot's [past; x] begins `start` numbers in.
struct Window {
  int slot, start;

  __device__ Window() {}
  __device__ Window(const Conv& conv, int row)
      : slot(row / conv.outs), start((row - slot * conv.outs) * conv.stride * conv.n_in) {}

  template <int N>
  __device__ void read(const Conv& conv, int at, float (&to)[N]) const {
    int from = start + at - conv.past_size;
    if (from < 0) {
      if (!conv.is(REPEATS) || conv.begun[slot]) {
        load(conv.past + (slot + 1) * conv.past_size + from, to);
        return;
      }
      from = at % conv.n_in;  // before the first input of all, that input repeats
    }
    load(conv.x + slot * conv.x_size + from, to);
    if (conv.is(ELU_IN)) {
#pragma unroll
      for (int i = 0; i < N; ++i) to[i] = elu(to[i]);
    }
  }
};

// The last inputs, activated, are the next call's past; where the call is shorter than it, its end is the old past's.
template <int N>
__device__ inline void keep_past(const Conv& conv, float* after, bool* begun_after) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  if (after) {
    for (int at = thread * N; at < conv.slots * conv.past_size; at += threads * N) {
      const int slot = at / conv.past_size;
      Window whole(conv, slot * conv.outs);
      float kept[N];
      whole.read(conv, at - slot * conv.past_size + conv.x_size, kept);
#pragma unroll
      for (int i = 0; i < N; ++i) after[at + i] = kept[i];
    }
  }
  if (begun_after) {
    for (int slot = thread; slot < conv.slots; slot += threads) begun_after[slot] = true;
  }
}

// A block makes ROWS outputs in time by COLUMNS; each of its warps a tile of 4 TM x 8 TN, of a SLICES-th of the depth.
// N numbers are read at once: 4, or 1 where a row of x is no multiple.
template <int ROWS, int COLUMNS, int TM, int TN, int SLICES, int N>
__device__ void conv_tile(const float* x, const float* past, const float* weight, const float* bias,
                          const float* residual, const void* begun, const int32_t* size, float* y,
                          float* after = nullptr, bool* begun_after = nullptr) {
  constexpr int TILES_M = ROWS / (4 * TM), TILES = TILES_M * (COLUMNS / (8 * TN)), THREADS = WARP * TILES * SLICES;
  constexpr int DEPTH = SLICES > 2 ? 16 * SLICES : 32, SPAN = DEPTH / SLICES;
  constexpr int PITCH = DEPTH + 4;  // 4 words further per row: the rows that a warp reads at once lie in other banks
  constexpr int GROUPS = DEPTH / N, EVERY = THREADS / GROUPS, X_LOADS = ROWS / EVERY, W_LOADS = COLUMNS / EVERY;
  static_assert(THREADS % GROUPS == 0 && ROWS % EVERY == 0 && COLUMNS % EVERY == 0 && SPAN % 4 == 0, "tile");
  constexpr int TILE = (ROWS + COLUMNS) * PITCH, PARTS = SLICES > 1 ? SLICES * ROWS * COLUMNS : 0;
  SHARED(float, shared, (TILE > PARTS ? TILE : PARTS));

  const Conv conv(x, past, weight, bias, residual, begun, size);
  const int across = (conv.columns + COLUMNS - 1) / COLUMNS;
  const int row0 = blockIdx.x / across * ROWS, column0 = blockIdx.x % across * COLUMNS;
  const int mine = threadIdx.x / GROUPS, at0 = threadIdx.x % GROUPS * N;
  Window windows[X_LOADS];
#pragma unroll
  for (int i = 0; i < X_LOADS; ++i) windows[i] = Window(conv, min(row0 + mine + i * EVERY, conv.rows - 1));

  float held[X_LOADS + W_LOADS][N];
  auto fetch = [&](int at) {
    const bool inside = at < conv.depth;  // beyond the depth both factors are zero
#pragma unroll
    for (int i = 0; i < X_LOADS + W_LOADS; ++i) {
#pragma unroll
      for (int j = 0; j < N; ++j) held[i][j] = 0;
    }
    if (!inside) return;
#pragma unroll
    for (int i = 0; i < W_LOADS; ++i) {
      load(conv.weights(min(column0 + mine + i * EVERY, conv.columns - 1), at), held[X_LOADS + i]);
    }
#pragma unroll
    for (int i = 0; i < X_LOADS; ++i) windows[i].read(conv, at, held[i]);
  };

  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, slice = warp / TILES, tile = warp % TILES;
  const int row = tile % TILES_M * 4 * TM + lane / 8, column = tile / TILES_M * 8 * TN + lane % 8;
  float sums[TM][TN] = {};
  fetch(at0);
  for (int start = 0; start < conv.depth; start += DEPTH) {
    if (start) __syncthreads();  // the tile before has been read by all
#pragma unroll
    for (int i = 0; i < X_LOADS + W_LOADS; ++i) {
      const int line = i < X_LOADS ? mine + i * EVERY : ROWS + mine + (i - X_LOADS) * EVERY;
      float* to = shared + line * PITCH + at0;
      if constexpr (N == 4) {
        *reinterpret_cast<float4*>(to) = make_float4(held[i][0], held[i][1], held[i][2], held[i][3]);
      } else {
        *to = held[i][0];
      }
    }
    __syncthreads();
    if (start + DEPTH < conv.depth) fetch(start + DEPTH + at0);
    const float* left = shared + row * PITCH + slice * SPAN;
    const float* right = shared + (ROWS + column) * PITCH + slice * SPAN;
#pragma unroll
    for (int k = 0; k < SPAN; k += 4) {
      float b[TN][4];
#pragma unroll
      for (int j = 0; j < TN; ++j) load(right + 8 * j * PITCH + k, b[j]);
#pragma unroll
      for (int i = 0; i < TM; ++i) {
        float a[4];
        load(left + 4 * i * PITCH + k, a);
#pragma unroll
        for (int j = 0; j < TN; ++j) {
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[i][j] += a[l] * b[j][l];
        }
      }
    }
  }

  if constexpr (SLICES == 1) {
#pragma unroll
    for (int i = 0; i < TM; ++i) {
#pragma unroll
      for (int j = 0; j < TN; ++j) {
        const int r = row0 + row + 4 * i, c = column0 + column + 8 * j;
        if (r < conv.rows && c < conv.columns) conv.finish(r, c, sums[i][j], y);
      }
    }
  } else {
    __syncthreads();  // the tile becomes the slices' sums
#pragma unroll
    for (int i = 0; i < TM; ++i) {
#pragma unroll
      for (int j = 0; j < TN; ++j) shared[(slice * ROWS + row + 4 * i) * COLUMNS + column + 8 * j] = sums[i][j];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < ROWS * COLUMNS; at += THREADS) {
      const int r = row0 + at / COLUMNS, c = column0 + at % COLUMNS;
      float sum = 0;
#pragma unroll
      for (int part = 0; part < SLICES; ++part) sum += shared[part * ROWS * COLUMNS + at];
      if (r < conv.rows && c < conv.columns) conv.finish(r, c, sum, y);
    }
  }
  keep_past<N>(conv, after, begun_after);
}

// For at most ROWS outputs in time, where only reading the weights counts: SPLIT of the block's warps share a column.
template <int ROWS, int SPLIT, int AHEAD, int WARPS>
__device__ void conv_rows(const float* x, const float* past, const float* weight, const float* bias,
                          const float* residual, const void* begun, const int32_t* size, float* y,
                          float* after = nullptr, bool* begun_after = nullptr) {
  SHARED(float, parts, WARPS * ROWS);
  constexpr int STEP = SPLIT * WARP * 4;
  const Conv conv(x, past, weight, bias, residual, begun, size);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int column = blockIdx.x * (WARPS / SPLIT) + warp / SPLIT, read_column = min(column, conv.columns - 1);
  Window windows[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) windows[r] = Window(conv, min(r, conv.rows - 1));

  float sums[ROWS] = {};
  for (int start = (warp % SPLIT * WARP + lane) * 4; start < conv.depth; start += STEP * AHEAD) {
    float w[AHEAD][4];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int at = start + i * STEP;
      if (at < conv.depth) {
        const float4 four = __ldcs(reinterpret_cast<const float4*>(conv.weights(read_column, at)));
        w[i][0] = four.x, w[i][1] = four.y, w[i][2] = four.z, w[i][3] = four.w;
      }
    }
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) {
      const int at = start + i * STEP;
      if (at < conv.depth) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          float a[4];
          windows[r].read(conv, at, a);
#pragma unroll
          for (int l = 0; l < 4; ++l) sums[r] += a[l] * w[i][l];
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane == 0) parts[warp * ROWS + r] = sum;
  }
  __syncthreads();
  for (int at = threadIdx.x; at < WARPS / SPLIT * ROWS; at += WARPS * WARP) {
    const int c = blockIdx.x * (WARPS / SPLIT) + at / ROWS, r = at % ROWS;
    float sum = 0;
#pragma unroll
    for (int part = 0; part < SPLIT; ++part) sum += parts[(at / ROWS * SPLIT + part) * ROWS + r];
    if (r < conv.rows && c < conv.columns) conv.finish(r, c, sum, y);
  }
  keep_past<4>(conv, after, begun_after);
}

// Channel by channel, each input sounds in `stride` outputs of its own and in the next input's:
// x [B, T, channels], last [B, channels], weight [2, stride, channels] -> [B, T x stride, channels].
__device__ void upsample(const float* x, const float* last, const float* weight, const int32_t* size, float* y) {
  const int slots = size[0], steps = size[1], channels = size[2], stride = size[3];
  for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < slots * steps * channels; at += gridDim.x * blockDim.x) {
    const int channel = at % channels, row = at / channels, slot = row / steps;
    const float now = x[at], before = row % steps ? x[at - channels] : last[slot * channels + channel];
    for (int i = 0; i < stride; ++i) {
      const float* of = weight + i * channels + channel;
      y[(size_t(row) * stride + i) * channels + channel] = of[0] * now + of[stride * channels] * before;
    }
  }
}
