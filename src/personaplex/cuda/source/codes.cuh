// One frame of the depformer for one slot, in one launch, by tensor cores: as depformer.cuh does it, with weights that
// come in by copies which run ahead over the meetings. A layer has four parts: in_proj; attention, which every block
// does for itself, and out_proj; the gate; linear_out. A step ends with its head.

template <int BITS, int GROUP>
__device__ inline Eight table_numbers(const void* const* table, int row, int columns, int k) {
  Eight found;
  const char* words = static_cast<const char*>(table[0]) + ((long long)row * columns + k) * BITS / 8;
  if constexpr (BITS == 16) {
    found = *reinterpret_cast<const Eight*>(words);
  } else {
    const int group = (row * columns + k) / GROUP;
    const float scale = number(static_cast<const __nv_bfloat16*>(table[1])[group]);
    const float bias = number(static_cast<const __nv_bfloat16*>(table[2])[group]);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t word = reinterpret_cast<const uint32_t*>(words)[i * BITS / 32];
      const uint32_t q = word >> (i * BITS % 32) & ((1u << BITS) - 1);
      put(&found.of[i], rounded<__nv_bfloat16>(scale * q) + bias);
    }
  }
  return found;
}

template <int N_STEPS, int N_LAYERS, int DIM, int N_HEADS, int HIDDEN, int Z_DIM, int CARD, int BITS, int HEAD_BITS,
          int TABLE_BITS, int TABLE_GROUP, int WARPS, int BLOCKS, int STAGES>
struct Codes {
  using S = __nv_bfloat16;
  using Unit = UnitOf<BITS, S>;
  using HeadUnit = UnitOf<HEAD_BITS, S>;
  static_assert(BITS == HEAD_BITS || HEAD_BITS == 16, "heads are plain, or packed like all else");
  using Ahead = Flow<(Unit::BYTES > HeadUnit::BYTES ? Unit::BYTES : HeadUnit::BYTES), Unit::SIDE, 0, WARPS, STAGES>;
  using Of = Parts<WARPS, BLOCKS>;
  using Project = typename Of::template Map<BITS, S, Z_DIM, N_STEPS * DIM, STORE>;
  using In = typename Of::template Map<BITS, S, DIM, 3 * DIM, STORE>;
  using Out = typename Of::template Map<BITS, S, DIM, DIM, ADD>;
  using Up = typename Of::template Map<BITS, S, DIM, HIDDEN, GATE>;
  using Down = typename Of::template Map<BITS, S, HIDDEN, DIM, ADD>;
  using Last = typename Of::template Map<HEAD_BITS, S, DIM, CARD, STORE>;
  enum Kind { IN, OUT, UP, DOWN, LAST, PROJECT };

  static constexpr int HEAD = DIM / N_HEADS, OF_STEP = 4 * N_LAYERS + 1, N_PARTS = 1 + N_STEPS * OF_STEP;
  // Where the weights' pointers lie in the table.
  static constexpr int EACH = BITS < 16 ? 3 : 1, OF_TABLE = TABLE_BITS < 16 ? 3 : 1, OF_HEAD = HEAD_BITS < 16 ? 3 : 1;
  static constexpr int TEXT = EACH, AUDIO = TEXT + OF_TABLE, HEADS = AUDIO + OF_TABLE, LAYERS = HEADS + OF_HEAD;
  static constexpr int LAYER = 2 + 4 * EACH, NORM1 = 0, AT_IN = 1, AT_OUT = 1 + EACH, NORM2 = 1 + 2 * EACH,
                       AT_UP = NORM2 + 1, AT_DOWN = AT_UP + EACH, WEIGHTS = LAYERS + N_LAYERS * LAYER;

  __device__ static constexpr int larger(int a, int b) { return a > b ? a : b; }
  static constexpr int TO_CHOOSE = CARD * 2 + int(sizeof(Selection));
  static constexpr int WORK = larger(larger(larger(Project::BYTES, In::BYTES), larger(Out::BYTES, Up::BYTES)),
                                     larger(larger(Down::BYTES, Last::BYTES), TO_CHOOSE));
  // Shared memory: what a part works with, the residual stream, what attention gives, the warps' rings.
  static constexpr int STREAM = (WORK + 15) / 16 * 16, ATTENDED = STREAM + DIM * 2;
  static constexpr int RINGS = (ATTENDED + DIM * 2 + LINE - 1) / LINE * LINE, BYTES = RINGS + Ahead::BYTES + LINE;
  static_assert(CARD * 2 % 16 == 0, "a code's numbers end in whole pieces");

  __device__ static inline int kind_of(int part) {
    const int at = (part - 1) % OF_STEP;
    return part == 0 ? PROJECT : at == OF_STEP - 1 ? LAST : at % 4;
  }

  struct Plan {
    const void* const* table;
    int part = -1;

    // Step `step`'s rows of a stack of maps.
    template <typename M, int THEIR_BITS, int N_ROWS>
    __device__ static inline void map(Ahead& flow, const void* const* at, int step) {
      const long long numbers = (long long)step * N_ROWS * M::N_IN;
      const char* words = static_cast<const char*>(at[0]) + numbers * THEIR_BITS / 8;
      if constexpr (THEIR_BITS == 16) {
        M::turn(flow, words, nullptr, nullptr);
      } else {
        M::turn(flow, words, static_cast<const S*>(at[1]) + numbers / CHUNK,
                static_cast<const S*>(at[2]) + numbers / CHUNK);
      }
    }

    __device__ inline bool turn(Ahead& flow) {
      if (part + 1 >= N_PARTS) return false;
      ++part;
      const int step = (part - 1) / OF_STEP;
      const void* const* layer = table + LAYERS + (part - 1) % OF_STEP / 4 * LAYER;
      switch (kind_of(part)) {
        case PROJECT: map<Project, BITS, 0>(flow, table, 0); break;
        case IN: map<In, BITS, 3 * DIM>(flow, layer + AT_IN, step); break;
        case OUT: map<Out, BITS, DIM>(flow, layer + AT_OUT, step); break;
        case UP: map<Up, BITS, 2 * HIDDEN>(flow, layer + AT_UP, step); break;
        case DOWN: map<Down, BITS, DIM>(flow, layer + AT_DOWN, step); break;
        default: map<Last, HEAD_BITS, CARD>(flow, table + HEADS, step);
      }
      return true;
    }
  };

  // The code of a step, in every thread: drawn, or what was wanted.
  __device__ static inline int choose(char* memory, const int32_t* wanted, const float* noise, float temperature,
                                      int top_k, const __nv_bfloat16* logits, int step) {
    if (wanted[step] != UNGENERATED) return wanted[step];
    auto* here = reinterpret_cast<__nv_bfloat16*>(memory);
    for (int k = 8 * threadIdx.x; k < CARD; k += 8 * WARPS * WARP)
      *reinterpret_cast<Eight*>(here + k) = fresh(logits + step * CARD + k);
    __syncthreads();
    return select_token(here, CARD, top_k, temperature, noise + step * CARD,
                        reinterpret_cast<Selection*>(memory + CARD * 2));
  }

  __device__ __forceinline__ static void run(const void* const* table, const __nv_bfloat16* z, int token,
                                             const int32_t* wanted, const float* noise, float temperature, int top_k,
                                             const uint32_t* counters, int32_t* codes, __nv_bfloat16* logits,
                                             __nv_bfloat16* exchanged) {
    DYNAMIC(memory);
    auto* stream = reinterpret_cast<__nv_bfloat16*>(memory + STREAM);
    auto* attended = reinterpret_cast<__nv_bfloat16*>(memory + ATTENDED);
    const auto* laid = reinterpret_cast<const __nv_bfloat16*>(memory);
    // What blocks tell each other: z's part of each step's input, queries, keys and values of all steps, the residual
    // stream after attention and after the layer, what is gated.
    __nv_bfloat16* projected = exchanged;
    __nv_bfloat16* qkv = projected + N_STEPS * DIM;
    __nv_bfloat16* middle = qkv + N_LAYERS * N_STEPS * 3 * DIM;
    __nv_bfloat16* residual = middle + DIM;
    __nv_bfloat16* hidden = residual + DIM;

    char* rings = memory + RINGS;
    rings += (LINE - reinterpret_cast<size_t>(rings) % LINE) % LINE;
    Ahead flow(rings);
    Plan plan{table};
    flow.begin(plan);
    Grid grid(const_cast<uint32_t*>(counters));
    const auto nothing = [] {};
    // The residual stream, of which the block keeps a copy: what comes out of the branch is added to that.
    const auto from_stream = [&](const __nv_bfloat16* at) {
      return [=](int k) {
        const Eight x = fresh(at + k);
        *reinterpret_cast<Eight*>(stream + k) = x;
        return x;
      };
    };
    const auto had = [=](int row, int) { return stream[row]; };

#pragma unroll 1
    for (int part = 0; part < N_PARTS; ++part) {
      const int kind = kind_of(part), step = (part - 1) / OF_STEP, l = (part - 1) % OF_STEP / 4;
      const void* const* layer = table + LAYERS + l * LAYER;
      const auto gain = [&](int which) { return static_cast<const __nv_bfloat16*>(layer[which]); };
      typename Of::Job job;
      switch (kind) {
        case PROJECT:
          job = Of::template prepare<Project, BITS, PLAIN>(memory, grid, nullptr, nothing,
                                                           [=](int k) { return fresh(z + k); });
          break;
        case IN:
          job = Of::template prepare<In, BITS, RMS>(
              memory, grid, gain(NORM1),
              [&] {
                if (l > 0 || step == 0) return;
                token = choose(memory, wanted, noise, temperature, top_k, logits, step - 1);
                if (blockIdx.x == 0 && threadIdx.x == 0) codes[step - 1] = token;
              },
              [&](int k) {
                if (l > 0) return from_stream(residual)(k);
                // The step's input: what z gives it + the embedding of the token before, if that is not below zero.
                Eight x = fresh(projected + step * DIM + k);
                if (token >= 0) {
                  const int row = step == 0 ? token : (step - 1) * (CARD + 1) + token;
                  const Eight of = table_numbers<TABLE_BITS, TABLE_GROUP>(table + (step == 0 ? TEXT : AUDIO), row, DIM, k);
#pragma unroll
                  for (int i = 0; i < 8; ++i) put(&x.of[i], number(x.of[i]) + number(of.of[i]));
                }
                *reinterpret_cast<Eight*>(stream + k) = x;
                return x;
              });
          break;
        case OUT:
          job = Of::template prepare<Out, BITS, PLAIN>(
              memory, grid, nullptr,
              [&] {
                const __nv_bfloat16* rows = qkv + l * N_STEPS * 3 * DIM;
                for (int head = flow.warp; head < N_HEADS; head += WARPS)
                  attend_head<__nv_bfloat16, DIM, HEAD, N_STEPS>([&](int t) { return rows + t * 3 * DIM + head * HEAD; },
                                                                 step, attended + head * HEAD);
                __syncthreads();
              },
              [=](int k) { return *reinterpret_cast<const Eight*>(attended + k); });
          break;
        case UP:
          job = Of::template prepare<Up, BITS, RMS>(memory, grid, gain(NORM2), nothing, from_stream(middle));
          break;
        case DOWN:
          job = Of::template prepare<Down, BITS, PLAIN>(memory, grid, nullptr, nothing,
                                                        [=](int k) { return fresh(hidden + k); });
          break;
        default:
          job = Of::template prepare<Last, HEAD_BITS, PLAIN>(memory, grid, nullptr, nothing,
                                                             [=](int k) { return fresh(residual + k); });
      }
      if (HEAD_BITS != BITS && kind == LAST)
        Of::template multiply_all<HEAD_BITS, S>(job, flow, plan, laid);
      else
        Of::template multiply_all<BITS, S>(job, flow, plan, laid);
      switch (kind) {
        case PROJECT: Of::template finish<Project>(job.partial, had, projected); break;
        case IN: Of::template finish<In>(job.partial, had, qkv + (l * N_STEPS + step) * 3 * DIM); break;
        case OUT: Of::template finish<Out>(job.partial, had, middle); break;
        case UP: Of::template finish<Up>(job.partial, had, hidden); break;
        case DOWN: Of::template finish<Down>(job.partial, had, residual); break;
        default: Of::template finish<Last>(job.partial, had, logits + step * CARD);
      }
      grid.arrive();
    }
    if (blockIdx.x == 0) {
      grid.wait();  // the last step's logits
      token = choose(memory, wanted, noise, temperature, top_k, logits, N_STEPS - 1);
      if (threadIdx.x == 0) codes[N_STEPS - 1] = token;
    }
    grid.leave();
  }
};

// As `depformer`, for one slot: z [Z_DIM], text [1], wanted [COLUMNS], noise [N_STEPS, CARD], temperature and top_k [1],
// counters [64] that are zero; each weight; then codes [N_STEPS], logits [N_STEPS, CARD] and room for `exchanged`.
template <int N_STEPS, int N_LAYERS, int DIM, int N_HEADS, int HIDDEN, int Z_DIM, int CARD, int BITS, int HEAD_BITS,
          int TABLE_BITS, int TABLE_GROUP, int COLUMN, int WARPS, int BLOCKS, int STAGES, int SHARED_BYTES,
          typename... Pointers>
__device__ void codes_of_frame(const __nv_bfloat16* z, const int32_t* text, const int32_t* wanted, const float* noise,
                               const float* temperature, const int32_t* top_k, const uint32_t* counters,
                               Pointers... pointers) {
  using Frame = Codes<N_STEPS, N_LAYERS, DIM, N_HEADS, HIDDEN, Z_DIM, CARD, BITS, HEAD_BITS, TABLE_BITS, TABLE_GROUP,
                      WARPS, BLOCKS, STAGES>;
  static_assert(sizeof...(Pointers) == Frame::WEIGHTS + 3, "a weight is missing or one too many");
  static_assert(Frame::BYTES == SHARED_BYTES, "shared memory");
  SHARED(const void*, table, sizeof...(Pointers));
  if (threadIdx.x == 0) {
    int i = 0;
    ((table[i++] = pointers), ...);
  }
  __syncthreads();
  const auto made = [&](int i) { return const_cast<void*>(table[Frame::WEIGHTS + i]); };
  // A slot's few numbers lie where the host can reach them, and where reading takes long: it is done once.
  Frame::run(table, z, text[0], wanted + COLUMN, noise, temperature[0], top_k[0], counters,
             static_cast<int32_t*>(made(0)), static_cast<__nv_bfloat16*>(made(1)), static_cast<__nv_bfloat16*>(made(2)));
}
