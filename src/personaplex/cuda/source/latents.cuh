// Mimi's transformer for one frame's latents of one slot, all layers in one launch, in float32: a layer's five parts
// with a meeting of all blocks between them instead of a launch for each. As in depformer.cuh a block's warps multiply
// their share of a matrix's rows by vectors that every block holds, and norms are every block's own work.

constexpr float LEAST = -3.0e38f;  // less than any score

template <int N, int N_LAYERS, int DIM, int HEADS, int HIDDEN, int N_ROWS, int CONTEXT, int PERIOD, int SHARES,
          int WARPS>
struct Latents {
  static constexpr int HEAD = DIM / HEADS, EACH_LANE = HEAD / WARP, THREADS = WARPS * WARP;
  static constexpr int TASKS = HEADS * SHARES, ENTRY = HEAD + 2;  // of an entry: sums, weight, largest score
  static constexpr int MOST_KEYS = (CONTEXT + SHARES - 1) / SHARES, EACH_WARP = (MOST_KEYS + WARPS - 1) / WARPS;
  static_assert(HEAD % WARP == 0, "a row of keys is a warp's");
  // Where a layer's pointers lie in the table.
  static constexpr int NORM1 = 0, SHIFT1 = 1, IN = 2, OUT = 3, SCALE1 = 4, NORM2 = 5, SHIFT2 = 6, UP = 7, DOWN = 8,
                       SCALE2 = 9, KEYS = 10, VALUES = 11, LAYER = 12;
  static constexpr int WIDEST = HIDDEN > DIM ? HIDDEN : DIM;
  static constexpr int ATTENTION = 3 * N * HEAD + WARPS * N * ENTRY;
  static constexpr int ROOM = N * WIDEST > ATTENTION ? N * WIDEST : ATTENTION;
  template <int K>
  using Weights = Matrix<float, 32, 64, K>;
  template <int K>
  using Of = Product<Weights<K>, float, K, 1, 1, EACH<K>, N>;  // a warp has a row, and all of it at once

  Grid grid;
  const void* const* table;
  // In shared memory: the residual stream [N, DIM], what is multiplied [ROOM], cosine and sine of each pair [N, HEAD].
  float *x, *vector, *turns;
  // In global memory, for all blocks.
  float *qkv, *shares, *middle, *hidden, *residual;

  __device__ const float* weight(int layer, int which) const {
    return static_cast<const float*>(table[layer * LAYER + which]);
  }

  // All have what all wrote; meanwhile the product's weights are loaded, and those after the next come nearer.
  template <typename P>
  __device__ void meet(P& product, int layer, int part) {
    grid.arrive();
    fetch(layer, part + 2);
    product.begin();
    grid.wait();
  }

  __device__ void fetch(int layer, int product) {
    layer += product / 4;
    if (threadIdx.x >= WARP || layer >= N_LAYERS) return;
    const void* const* of = table + layer * LAYER;
    switch (product % 4) {
      case 0: fetch(Weights<DIM>(of + IN, 0), 3 * DIM); break;
      case 1: fetch(Weights<DIM>(of + OUT, 0), DIM); break;
      case 2: fetch(Weights<DIM>(of + UP, 0), HIDDEN); break;
      default: fetch(Weights<HIDDEN>(of + DOWN, 0), DIM);
    }
  }

  template <typename M>
  __device__ void fetch(const M& matrix, int rows) {
    const Share share(rows);
    matrix.fetch(share.first, share.last);
  }

  __device__ void copy(const float* from, float* to, int n) {
#pragma unroll 1
    for (int i = threadIdx.x * CHUNK; i < n; i += THREADS * CHUNK) copy_fresh(from + i, to + i);
    __syncthreads();
  }

  // Layer norm of x into `vector`: a warp takes a latent.
  __device__ void norm(const float* gain, const float* shift) {
    const int lane = threadIdx.x % WARP;
    for (int n = threadIdx.x / WARP; n < N; n += WARPS) {
      constexpr int EACH_OF_ROW = (DIM + WARP - 1) / WARP;
      float mine[EACH_OF_ROW], sum = 0, squares = 0;
#pragma unroll
      for (int i = 0; i < EACH_OF_ROW; ++i) {
        const int k = i * WARP + lane;
        mine[i] = k < DIM ? x[n * DIM + k] : 0;
        sum += mine[i];
      }
      const float mean = warp_sum(sum) / DIM;
#pragma unroll
      for (int i = 0; i < EACH_OF_ROW; ++i)
        if (i * WARP + lane < DIM) squares += (mine[i] - mean) * (mine[i] - mean);
      const float factor = rsqrtf(warp_sum(squares) / DIM + 1e-5f);
#pragma unroll
      for (int i = 0; i < EACH_OF_ROW; ++i) {
        const int k = i * WARP + lane;
        if (k < DIM) vector[n * DIM + k] = (mine[i] - mean) * factor * gain[k] + shift[k];
      }
    }
    __syncthreads();
  }

  // This block's shares of the heads' attention, from `qkv`; the new keys and values go into the ring.
  __device__ void attend(int layer, int position) {
    float *q = vector, *new_k = q + N * HEAD, *new_v = new_k + N * HEAD, *entries = new_v + N * HEAD;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* k = static_cast<float*>(const_cast<void*>(table[layer * LAYER + KEYS]));
    float* v = static_cast<float*>(const_cast<void*>(table[layer * LAYER + VALUES]));
    const int oldest = max(0, position - CONTEXT + 1), count = position - oldest;
    const int task = blockIdx.x, head = task / SHARES, share = task % SHARES;
    const bool mine = task < TASKS;
    const int begin = count * share / SHARES, end = count * (share + 1) / SHARES;
    // Old keys and values do not wait for the new: the last of a warp's places is for one of those.
    float key[EACH_WARP + 1][EACH_LANE], value[EACH_WARP + 1][EACH_LANE];
#pragma unroll
    for (int e = 0; e < EACH_WARP; ++e) {
      const int i = begin + e * WARPS + warp;
      const bool there = mine && i < end;
      const int at = ((there ? head : 0) * N_ROWS + (there ? (oldest + i) % N_ROWS : 0)) * HEAD + lane * EACH_LANE;
#pragma unroll
      for (int j = 0; j < EACH_LANE; ++j) {
        key[e][j] = there ? k[at + j] : 0;
        value[e][j] = there ? v[at + j] : 0;
      }
    }
    grid.wait();
    if (!mine) return;
    for (int i = threadIdx.x; i < 3 * N * HEAD / 2; i += THREADS) {
      const int of = i / (N * HEAD / 2), n = i / (HEAD / 2) % N, at = 2 * (i % (HEAD / 2));
      const float* from = qkv + n * 3 * DIM + of * DIM + head * HEAD + at;
      float2 two = read_fresh_pair(from);
      if (of < 2) {
        const float cosine = turns[n * HEAD + at], sine = turns[n * HEAD + at + 1];
        two = make_float2(two.x * cosine - two.y * sine, two.x * sine + two.y * cosine);
      }
      if (of > 0 && share == 0) {  // nobody reads these rows in this launch: their last latents have left the window
        float* row = (of == 1 ? k : v) + (head * N_ROWS + (position + n) % N_ROWS) * HEAD + at;
        row[0] = two.x, row[1] = two.y;
      }
      const float scale = of == 0 ? rsqrtf(float(HEAD)) : 1;
      q[(of * N + n) * HEAD + at] = two.x * scale, q[(of * N + n) * HEAD + at + 1] = two.y * scale;
    }
    __syncthreads();
    const bool with_new = share == 0 && warp < N;
#pragma unroll
    for (int j = 0; j < EACH_LANE; ++j) {
      key[EACH_WARP][j] = with_new ? new_k[warp * HEAD + lane * EACH_LANE + j] : 0;
      value[EACH_WARP][j] = with_new ? new_v[warp * HEAD + lane * EACH_LANE + j] : 0;
    }
    for (int n = 0; n < N; ++n) {
      float score[EACH_WARP + 1], largest = LEAST, weight = 0, sum[EACH_LANE] = {};
#pragma unroll
      for (int e = 0; e <= EACH_WARP; ++e) {
        float dot = 0;
#pragma unroll
        for (int j = 0; j < EACH_LANE; ++j) dot += q[n * HEAD + lane * EACH_LANE + j] * key[e][j];
        const int i = begin + e * WARPS + warp;
        const bool seen = e < EACH_WARP ? i < end && oldest + i > position + n - CONTEXT : with_new && warp <= n;
        dot = warp_sum(dot);
        score[e] = seen ? dot : LEAST;
        largest = fmaxf(largest, score[e]);
      }
#pragma unroll
      for (int e = 0; e <= EACH_WARP; ++e) {
        const float w = score[e] > LEAST ? expf(score[e] - largest) : 0;
        weight += w;
#pragma unroll
        for (int j = 0; j < EACH_LANE; ++j) sum[j] += w * value[e][j];
      }
      float* entry = entries + (warp * N + n) * ENTRY;
#pragma unroll
      for (int j = 0; j < EACH_LANE; ++j) entry[lane * EACH_LANE + j] = sum[j];
      if (lane == 0) entry[HEAD] = weight, entry[HEAD + 1] = largest;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < N * HEAD; i += THREADS) {
      const int n = i / HEAD, at = i % HEAD;
      float largest = LEAST, all = 0, total = 0;
      for (int of = 0; of < WARPS; ++of) largest = fmaxf(largest, entries[(of * N + n) * ENTRY + HEAD + 1]);
      for (int of = 0; of < WARPS; ++of) {
        const float* entry = entries + (of * N + n) * ENTRY;
        const float w = expf(entry[HEAD + 1] - largest);
        all += w * entry[HEAD];
        total += w * entry[at];
      }
      float* to = shares + (task * N + n) * ENTRY;
      to[at] = total;
      if (at == 0) to[HEAD] = all, to[HEAD + 1] = largest;
    }
  }

  // The attention's results from their shares into `vector`.
  __device__ void combine() {
    for (int i = threadIdx.x; i < N * DIM / 2; i += THREADS) {
      const int n = i / (DIM / 2), k = 2 * (i % (DIM / 2));
      float2 last[SHARES], sums[SHARES];
#pragma unroll
      for (int share = 0; share < SHARES; ++share) {
        const float* of = shares + ((k / HEAD * SHARES + share) * N + n) * ENTRY;
        last[share] = read_fresh_pair(of + HEAD);
        sums[share] = read_fresh_pair(of + k % HEAD);
      }
      float largest = LEAST, all = 0;
      float2 total = make_float2(0, 0);
#pragma unroll
      for (int share = 0; share < SHARES; ++share) largest = fmaxf(largest, last[share].y);
#pragma unroll
      for (int share = 0; share < SHARES; ++share) {
        const float w = expf(last[share].y - largest);
        all += w * last[share].x;
        total.x += w * sums[share].x, total.y += w * sums[share].y;
      }
      vector[n * DIM + k] = total.x / all, vector[n * DIM + k + 1] = total.y / all;
    }
    __syncthreads();
  }

  __device__ void run(const float* given, int position, float* out) {
    for (int i = threadIdx.x; i < N * HEAD / 2; i += THREADS) {
      const int n = i / (HEAD / 2), pair = i % (HEAD / 2);
      float sine, cosine;
      sincosf((position + n) * exp2f(-2.0f * pair / HEAD * log2f(float(PERIOD))), &sine, &cosine);
      turns[n * HEAD + 2 * pair] = cosine, turns[n * HEAD + 2 * pair + 1] = sine;
    }
    // The end of a branch: x plus the scaled products.
    const auto added = [&](float* to, const float* scale) {
      return [=](int row, int n, const float(&sum)[1]) {
        to[n * DIM + row] = x[n * DIM + row] + scale[row] * sum[0];
      };
    };
#pragma unroll 1
    for (int l = 0; l < N_LAYERS; ++l) {
      const void* const* layer = table + l * LAYER;
      {
        Of<DIM> in(Weights<DIM>(layer + IN, 0), 3 * DIM);
        meet(in, l, 0);  // the residual stream
        copy(l == 0 ? given : residual, x, N * DIM);
        norm(weight(l, NORM1), weight(l, SHIFT1));
        in.run(vector, [&](int row, int n, const float(&sum)[1]) { qkv[n * 3 * DIM + row] = sum[0]; });
      }
      grid.arrive();
      attend(l, position);
      {
        Of<DIM> after(Weights<DIM>(layer + OUT, 0), DIM);
        meet(after, l, 1);  // the shares
        combine();
        after.run(vector, added(middle, weight(l, SCALE1)));
      }
      {
        Of<DIM> up(Weights<DIM>(layer + UP, 0), HIDDEN);
        meet(up, l, 2);
        copy(middle, x, N * DIM);
        norm(weight(l, NORM2), weight(l, SHIFT2));
        up.run(vector, [&](int row, int n, const float(&sum)[1]) {
          hidden[n * HIDDEN + row] = 0.5f * sum[0] * (1 + erff(sum[0] * 0.70710678118654752f));
        });
      }
      {
        Of<HIDDEN> down(Weights<HIDDEN>(layer + DOWN, 0), DIM);
        meet(down, l, 3);
        copy(hidden, vector, N * HIDDEN);
        down.run(vector, added(l == N_LAYERS - 1 ? out : residual, weight(l, SCALE2)));
      }
    }
    grid.leave();
  }
};

// given [N, DIM], position [1], counters [64] that are zero, then each layer's twelve arrays; then what is made: out
// [N, DIM], and room for what blocks tell each other.
template <int N, int N_LAYERS, int DIM, int HEADS, int HIDDEN, int N_ROWS, int CONTEXT, int PERIOD, int SHARES,
          int WARPS, typename... Pointers>
__device__ void latents(const float* given, const int32_t* position, const uint32_t* counters, Pointers... pointers) {
  using Frame = Latents<N, N_LAYERS, DIM, HEADS, HIDDEN, N_ROWS, CONTEXT, PERIOD, SHARES, WARPS>;
  constexpr int WEIGHTS = N_LAYERS * Frame::LAYER;
  static_assert(sizeof...(Pointers) == WEIGHTS + 2, "a weight is missing or one too many");
  SHARED(const void*, table, sizeof...(Pointers));
  SHARED(float, x, N * DIM);
  SHARED(float, vector, Frame::ROOM);
  SHARED(float, turns, N * Frame::HEAD);
  if (threadIdx.x == 0) {
    int i = 0;
    ((table[i++] = pointers), ...);
  }
  __syncthreads();
  const auto made = [&](int i) { return static_cast<float*>(const_cast<void*>(table[WEIGHTS + i])); };
  float* qkv = made(1);
  float* shares = qkv + N * 3 * DIM;
  float* middle = shares + Frame::TASKS * N * Frame::ENTRY;
  float* hidden = middle + N * DIM;
  float* residual = hidden + N * HIDDEN;
  Frame frame{Grid(const_cast<uint32_t*>(counters)), table, x, vector, turns, qkv, shares, middle, hidden, residual};
  frame.run(given, position[0], made(0));
}
