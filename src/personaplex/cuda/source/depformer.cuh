// One frame of the depformer: every step's layers, heads and choice of a code, in one launch.
//
// A block's warps multiply their share of each matrix's rows by a vector that the block holds in shared memory. What
// they get goes to global memory, all blocks meet, and each block reads the whole vector again; so norms, attention
// (over at most N_STEPS steps) and the choice of a code are done by every block for itself, and cost no meeting.
// A layer has four meetings: after in_proj, out_proj, linear_in (with the gate) and linear_out; a step one more, after
// its head.
//
// Numbers are rounded to T where the stock operations store them.

// How codes are chosen: see `depformer`.
struct Choice {
  const int32_t* wanted;
  const float* noise;
  const float* temperature;
  const int32_t* top_k;
};

template <typename T, int N, int N_STEPS, int N_LAYERS, int DIM, int N_HEADS, int HIDDEN, int Z_DIM, int CARD,
          int LAYER_BITS, int LAYER_GROUP, int HEAD_BITS, int HEAD_GROUP, int TABLE_BITS, int TABLE_GROUP,
          int COLUMNS, int COLUMN, int N_ROWS, int N_PAIRS, int ONE_ROW, int AHEAD, bool EARLY>
struct Depformer {
  template <int K>
  using OfLayer = Matrix<T, LAYER_BITS, LAYER_GROUP, K>;
  using OfHead = Matrix<T, HEAD_BITS, HEAD_GROUP, DIM>;
  using Table = Matrix<T, TABLE_BITS, TABLE_GROUP, DIM>;
  template <typename M, int K, int PARTS, int ROWS>
  using Of = Product<M, T, K, PARTS, ROWS, (PARTS * ROWS == 1 && EACH<K> <= ONE_ROW) || EACH<K> < 4 ? EACH<K> : 4, N>;

  static constexpr int HEAD = DIM / N_HEADS;
  static constexpr int MATRIX = OfLayer<DIM>::POINTERS;
  static constexpr int PRODUCTS = 4 * N_LAYERS + 1;  // of a step
  // Where the weights' pointers lie in the table.
  static constexpr int TEXT = MATRIX, AUDIO = TEXT + Table::POINTERS, HEADS = AUDIO + Table::POINTERS;
  static constexpr int LAYERS = HEADS + OfHead::POINTERS, LAYER = 2 + 4 * MATRIX;
  static constexpr int NORM1 = 0, IN = 1, OUT = IN + MATRIX, NORM2 = OUT + MATRIX, UP = NORM2 + 1, DOWN = UP + MATRIX;
  static constexpr int WEIGHTS = LAYERS + N_LAYERS * LAYER;
  // Room for `vector`: the widest vectors, or one slot's logits and what the choice of a code needs.
  static constexpr int WIDEST = Z_DIM > HIDDEN ? (Z_DIM > DIM ? Z_DIM : DIM) : (HIDDEN > DIM ? HIDDEN : DIM);
  static constexpr int TO_CHOOSE = CARD + int((sizeof(Selection) + sizeof(T) - 1) / sizeof(T));
  static constexpr int ROOM = N * WIDEST > TO_CHOOSE ? N * WIDEST : TO_CHOOSE;

  Grid grid;
  const void* const* table;
  // In shared memory: the residual stream, the vector to be multiplied, numbers for sums.
  T* x;
  T* vector;
  float* scratch;
  // In global memory, for all blocks.
  T* projected;  // [N_STEPS, N, DIM]
  T* qkv;        // [N_LAYERS, N_STEPS, N, 3 DIM]
  T* residual;   // [N, DIM]
  T* gated;      // [N, HIDDEN]

  // z [N, Z_DIM] goes through every step's input map at once, because it is known from the start.
  __device__ void project(const T* z) {
    Of<OfLayer<Z_DIM>, Z_DIM, 1, N_ROWS> product(OfLayer<Z_DIM>(table, 0), N_STEPS * DIM);
    product.begin();
#pragma unroll 1
    for (int i = threadIdx.x * CHUNK; i < N * Z_DIM; i += blockDim.x * CHUNK) {
      copy_fresh(z + i, vector + i);
    }
    __syncthreads();  // `vector` is whole
    product.run(vector, [&](int row, int n, const float (&sum)[1]) {
      put(projected + (row / DIM * N + n) * DIM + row % DIM, sum[0]);
    });
  }

  // The step's input: what z gives it + the embedding of the token before.
  __device__ void hear(int step, const int* tokens) {
    for (int n = 0; n < N; ++n) {
      const int token = tokens[n];
#pragma unroll 1
      for (int k = threadIdx.x * CHUNK; k < DIM; k += blockDim.x * CHUNK) {
        float of_z[CHUNK], of_token[CHUNK] = {};
        read_fresh(projected + (step * N + n) * DIM + k, of_z);
        // A token below zero has no embedding.
        if (token >= 0) {
          if (step) {
            Table(table + AUDIO, (step - 1) * (CARD + 1)).numbers(token, k, of_token);
          } else {
            Table(table + TEXT, 0).numbers(token, k, of_token);
          }
        }
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) of_z[i] += of_token[i];
        write(x + n * DIM + k, of_z);
      }
    }
  }

  // The residual stream as all blocks have written it.
  __device__ void reread() {
    for (int n = 0; n < N; ++n) {
#pragma unroll 1
      for (int k = threadIdx.x * CHUNK; k < DIM; k += blockDim.x * CHUNK) {
        copy_fresh(residual + n * DIM + k, x + n * DIM + k);
      }
    }
  }

  // RMS norm of x into `vector`. Of x, a thread reads what it wrote itself.
  __device__ void norm(const void* weight) {
    float squares[N] = {};
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll 1
      for (int k = threadIdx.x * CHUNK; k < DIM; k += blockDim.x * CHUNK) {
        float of_x[CHUNK];
        read(x + n * DIM + k, of_x);
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) squares[n] += of_x[i] * of_x[i];
      }
      // A place of its own for each vector: none is overwritten while another thread still sums.
      squares[n] = block_sum(squares[n], scratch + n * WARP);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float factor = rsqrtf(squares[n] / DIM + 1e-8f);
#pragma unroll 1
      for (int k = threadIdx.x * CHUNK; k < DIM; k += blockDim.x * CHUNK) {
        float of_x[CHUNK], gain[CHUNK];
        read(x + n * DIM + k, of_x);
        read(static_cast<const T*>(weight) + k, gain);
#pragma unroll
        for (int i = 0; i < CHUNK; ++i) of_x[i] = gain[i] * rounded<T>(of_x[i] * factor);
        write(vector + n * DIM + k, of_x);
      }
    }
    __syncthreads();  // `vector` is whole; `scratch` may be used again
  }

  // Attention over steps 0 ... `step` into `vector`: a warp per head.
  __device__ void attend(int layer, int step) {
    for (int item = threadIdx.x / WARP; item < N * N_HEADS; item += blockDim.x / WARP) {
      const int n = item / N_HEADS, at = item % N_HEADS * HEAD;
      const T* first = qkv + (layer * N_STEPS * N + n) * 3 * DIM + at;
      attend_head<T, DIM, HEAD, N_STEPS>([&](int t) { return first + t * N * 3 * DIM; }, step, vector + n * DIM + at);
    }
    __syncthreads();  // `vector` is whole
  }

  // The codes of a step, in every thread: drawn, or what was wanted.
  __device__ void choose(int step, const Choice& choice, const T* logits, int32_t* codes, int (&tokens)[N]) {
    for (int n = 0; n < N; ++n) {
      tokens[n] = choice.wanted[n * COLUMNS + COLUMN + step];
      // The same for all threads of the block: nobody misses a barrier.
      if (tokens[n] == UNGENERATED) {
        const T* of_step = logits + (n * N_STEPS + step) * CARD;
#pragma unroll 1
        for (int i = threadIdx.x * CHUNK; i < CARD; i += blockDim.x * CHUNK) {
          copy_fresh(of_step + i, vector + i);
        }
        __syncthreads();  // `vector` is whole
        Selection* scratch = reinterpret_cast<Selection*>(vector + CARD);
        const float* noise = choice.noise + (n * N_STEPS + step) * CARD;
        tokens[n] = select_token(vector, CARD, choice.top_k[n], choice.temperature[n], noise, scratch);
      }
      if (blockIdx.x == 0 && threadIdx.x == 0) codes[n * N_STEPS + step] = tokens[n];
    }
  }

  // Ask for the weights of a product to come, while there is nothing else to wait for but other blocks.
  __device__ void fetch(int product) {
    if (threadIdx.x >= WARP || product >= N_STEPS * PRODUCTS) return;
    const int step = product / PRODUCTS, at = product % PRODUCTS;
    const void* const* layer = table + LAYERS + at / 4 * LAYER;
    if (at == PRODUCTS - 1) {
      fetch(OfHead(table + HEADS, step * CARD), CARD, 0);
    } else if (at % 4 == 0) {
      fetch(OfLayer<DIM>(layer + IN, step * 3 * DIM), 3 * DIM, 0);
    } else if (at % 4 == 1) {
      fetch(OfLayer<DIM>(layer + OUT, step * DIM), DIM, 0);
    } else if (at % 4 == 2) {
      fetch(OfLayer<DIM>(layer + UP, step * 2 * HIDDEN), HIDDEN, 0);
      fetch(OfLayer<DIM>(layer + UP, step * 2 * HIDDEN), HIDDEN, HIDDEN);
    } else {
      fetch(OfLayer<HIDDEN>(layer + DOWN, step * DIM), DIM, 0);
    }
  }

  template <typename M>
  __device__ void fetch(const M& matrix, int rows, int offset) {
    Share share(rows);
    matrix.fetch(offset + share.first, offset + share.last);
  }

  // All blocks have what all blocks wrote. Meanwhile the weights of the next products come nearer.
  template <typename P>
  __device__ void meet(P& next, int product) {
    grid.arrive();
    if (AHEAD) fetch(product + AHEAD);
    if (EARLY) next.begin();
    grid.wait();
    if (!EARLY) next.begin();
  }

  __device__ void run(const T* z, const int32_t* text, const Choice& choice, T* logits, int32_t* codes) {
    int tokens[N], product = 0;
    for (int n = 0; n < N; ++n) tokens[n] = text[n];
    for (int ahead = 0; ahead < AHEAD; ++ahead) fetch(ahead);
    project(z);
    for (int step = 0; step < N_STEPS; ++step) {
      for (int l = 0; l < N_LAYERS; ++l) {
        const void* const* layer = table + LAYERS + l * LAYER;
        T* now = qkv + (l * N_STEPS + step) * N * 3 * DIM;
        auto add = [&](int row, int n, const float (&sum)[1]) {
          put(residual + n * DIM + row, number(x[n * DIM + row]) + rounded<T>(sum[0]));
        };

        Of<OfLayer<DIM>, DIM, 1, N_ROWS> in(OfLayer<DIM>(layer + IN, step * 3 * DIM), 3 * DIM);
        meet(in, product++);  // `projected`, or the logits of the step before, or the residual stream
        if (l) {
          reread();
        } else {
          if (step) choose(step - 1, choice, logits, codes, tokens);
          hear(step, tokens);
        }
        norm(layer[NORM1]);
        in.run(vector, [&](int row, int n, const float (&sum)[1]) { put(now + n * 3 * DIM + row, sum[0]); });

        Of<OfLayer<DIM>, DIM, 1, 1> out(OfLayer<DIM>(layer + OUT, step * DIM), DIM);
        meet(out, product++);  // queries, keys and values of this step
        attend(l, step);
        // Nobody reads `residual` any more: all have read it before they came to the meeting.
        out.run(vector, add);

        Of<OfLayer<DIM>, DIM, 2, N_PAIRS> up(OfLayer<DIM>(layer + UP, step * 2 * HIDDEN), HIDDEN);
        meet(up, product++);  // the residual stream
        reread();
        norm(layer[NORM2]);
        up.run(vector, [&](int row, int n, const float (&halves)[2]) {
          const float gate = rounded<T>(halves[0]), value = rounded<T>(halves[1]);
          put(gated + n * HIDDEN + row, rounded<T>(gate * rounded<T>(1 / (1 + expf(-gate)))) * value);
        });

        Of<OfLayer<HIDDEN>, HIDDEN, 1, 1> down(OfLayer<HIDDEN>(layer + DOWN, step * DIM), DIM);
        meet(down, product++);  // the gated vector
#pragma unroll 1
        for (int i = threadIdx.x * CHUNK; i < N * HIDDEN; i += blockDim.x * CHUNK) {
          copy_fresh(gated + i, vector + i);
        }
        __syncthreads();  // `vector` is whole
        down.run(vector, add);
      }
      Of<OfHead, DIM, 1, N_ROWS> head(OfHead(table + HEADS, step * CARD), CARD);
      meet(head, product++);  // the residual stream
      reread();
      __syncthreads();  // `x` is whole
      head.run(x, [&](int row, int n, const float (&sum)[1]) {
        put(logits + (n * N_STEPS + step) * CARD + row, sum[0]);
      });
    }
    grid.arrive();
    grid.wait();  // the last step's logits
    choose(N_STEPS - 1, choice, logits, codes, tokens);
  }
};

// z [N, Z_DIM], text [N], wanted [N, COLUMNS] (the steps' codes from COLUMN on), noise [N, N_STEPS, CARD] (not read
// where top_k is 1), temperature and top_k [N], counters [64] that are zero; then each weight, packed ones with scales
// and biases: input map, text and audio tables, heads, and for each layer norm, in_proj, out_proj, norm, linear_in,
// linear_out. Then what is made: codes [N, N_STEPS], logits [N, N_STEPS, CARD], and room for what blocks tell each other.
template <typename T, int N, int N_STEPS, int N_LAYERS, int DIM, int N_HEADS, int HIDDEN, int Z_DIM, int CARD,
          int LAYER_BITS, int LAYER_GROUP, int HEAD_BITS, int HEAD_GROUP, int TABLE_BITS, int TABLE_GROUP,
          int COLUMNS, int COLUMN, int N_ROWS, int N_PAIRS, int ONE_ROW, int AHEAD, bool EARLY, typename... Pointers>
__device__ void depformer(
    const T* z, const int32_t* text, const int32_t* wanted, const float* noise, const float* temperature,
    const int32_t* top_k, const uint32_t* counters, Pointers... pointers) {
  using Frame = Depformer<T, N, N_STEPS, N_LAYERS, DIM, N_HEADS, HIDDEN, Z_DIM, CARD, LAYER_BITS, LAYER_GROUP,
                          HEAD_BITS, HEAD_GROUP, TABLE_BITS, TABLE_GROUP, COLUMNS, COLUMN, N_ROWS, N_PAIRS, ONE_ROW,
                          AHEAD, EARLY>;
  static_assert(sizeof...(Pointers) == Frame::WEIGHTS + 3, "a weight is missing or one too many");
  SHARED(const void*, table, sizeof...(Pointers));
  SHARED(T, x, N * DIM);
  SHARED(T, vector, Frame::ROOM);
  SHARED(float, scratch, N * WARP);
  // A slot's few numbers lie where the host can reach them, and where reading takes long: it is done once.
  SHARED(float, temperatures, N);
  SHARED(int32_t, top_ks, N);
  if (threadIdx.x < N) {
    temperatures[threadIdx.x] = temperature[threadIdx.x];
    top_ks[threadIdx.x] = top_k[threadIdx.x];
  }
  if (threadIdx.x == 0) {
    int i = 0;
    ((table[i++] = pointers), ...);
  }
  __syncthreads();  // all that is whole
  auto made = [&](int i) { return const_cast<void*>(table[Frame::WEIGHTS + i]); };
  T* logits = static_cast<T*>(made(1));
  T* projected = static_cast<T*>(made(2));
  T* qkv = projected + N_STEPS * N * DIM;
  T* residual = qkv + N_LAYERS * N_STEPS * N * 3 * DIM;
  T* gated = residual + N * DIM;
  Frame frame{Grid(const_cast<uint32_t*>(counters)), table, x, vector, scratch, projected, qkv, residual, gated};
  frame.run(z, text, Choice{wanted, noise, temperatures, top_ks}, logits, static_cast<int32_t*>(made(0)));
  frame.grid.leave();
}
