// A linear map of one to eight rows by the tensor cores: they multiply sixteen weight rows at a time, and do it so much
// faster than memory delivers that nothing but the reading is left, whether weights have 16, 8 or 4 bits.
//
// A block takes tiles of 16 weight rows, cut into units of 128 or 256 columns; its warps take a tile's units in turn, and
// read some ahead of those that they multiply, of the next tile too. Each adds up what it has of a tile for itself;
// once, at the end, the block adds up its warps. Within a chunk of 64 columns the thread with t = lane % 4 holds columns
// 16 t ... 16 t + 15 of weight rows g and g + 8, g = lane / 4: as one to four words that lie side by side. Which of them
// a multiplication calls its columns is free as long as x is laid out alike, and x is laid out once, in shared memory.
// An n-bit weight becomes a number by three bits' work: 0x4300 | q is the bfloat16 128 + q for q < 128; the 128 is taken
// off with the group's bias. Eight bits are two such numbers.
//
// Needs columns in whole units and rows in whole tiles; quantised weights are MLX's affine ones in groups of 64.

constexpr int CHUNK = 64, TILE = 16;
// Chunks in a unit: what a thread holds twice must fit its registers; the scales of its groups are one load.
template <int BITS>
constexpr int CHUNKS_OF = BITS == 4 ? 4 : 2;
constexpr int STAGES = 2;  // units that a warp has or awaits
constexpr int PLAIN = 0, RMS = 1;            // what is done to x first
constexpr int STORE = 0, ADD = 1, GATE = 2;         // and to what comes out

__device__ inline void multiply(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                uint32_t b1) {
#ifdef EMULATED
  emulated_mma(d, a0, a1, a2, a3, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// The same into a d that begins as nothing.
__device__ inline void multiply_first(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                      uint32_t b1) {
#ifdef EMULATED
  d[0] = d[1] = d[2] = d[3] = 0;
  emulated_mma(d, a0, a1, a2, a3, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
#endif
}

// Two packed numbers as bfloat16s that are 128 too large. One instruction, where the compiler made two.
__device__ inline uint32_t raised(uint32_t word) {
#ifdef EMULATED
  return (word & 0x000f000f) | 0x43004300;
#else
  uint32_t found;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(found) : "r"(word), "r"(0x000f000f), "r"(0x43004300));
  return found;
#endif
}

// The j-th of a chunk's four products: columns 16 j ... 16 j + 15 of the rows to which words p and q belong. Eight bits
// are two numbers of four, whose products are `low` and `high`; each begins as nothing.
template <int BITS>
__device__ inline void multiply_packed(float (&low)[4], float (&high)[4], int j, uint32_t p, uint32_t q, uint32_t b0,
                                       uint32_t b1) {
  const int shift = BITS == 4 ? 8 * (j % 2) : 0, next = BITS == 4 ? 4 : 8;
  const uint32_t a[4] = {raised(p >> shift), raised(q >> shift), raised(p >> (shift + next)),
                         raised(q >> (shift + next))};
  if (j == 0) multiply_first(low, a[0], a[1], a[2], a[3], b0, b1);
  else multiply(low, a[0], a[1], a[2], a[3], b0, b1);
  if constexpr (BITS == 8) {
    const uint32_t h[4] = {raised(p >> 4), raised(q >> 4), raised(p >> 12), raised(q >> 12)};
    if (j == 0) multiply_first(high, h[0], h[1], h[2], h[3], b0, b1);
    else multiply(high, h[0], h[1], h[2], h[3], b0, b1);
  }
}

__device__ inline uint4 streamed(const uint4* at) {
#ifdef EMULATED
  return *at;
#else
  return __ldcs(at);
#endif
}

__device__ inline uint2 streamed(const uint2* at) {
#ifdef EMULATED
  return *at;
#else
  return __ldcs(at);
#endif
}

struct __align__(16) Eight {
  __nv_bfloat16 of[8];
};

// Eight threads side by side hold a chunk; the first of them notes what it sums to. Whole warps come here.
__device__ inline void note_sum(float sum, float* x_sums, int k) {
  for (int apart = 4; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL, sum, apart);
  if (k % CHUNK == 0) x_sums[k / CHUNK] = sum;
}

template <typename S, int N>
struct __align__(N * sizeof(S)) Side {
  S of[N];
};

// As one load of 4, 8 or 16 bytes, from memory that does not change.
template <typename T>
__device__ inline T kept(const T* at) {
#ifdef EMULATED
  return *at;
#else
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "a load's size");
  T found;
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = __ldg(reinterpret_cast<const uint32_t*>(at));
    memcpy(&found, &bits, sizeof found);
  } else if constexpr (sizeof(T) == 8) {
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(at));
    memcpy(&found, &bits, sizeof found);
  } else {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(at));
    memcpy(&found, &bits, sizeof found);
  }
  return found;
#endif
}

// One warp's share of a unit: the words of 2 weight rows and its chunks, and their groups' scales and biases.
template <int BITS, typename S>
struct Unit {
  static constexpr int CHUNKS = CHUNKS_OF<BITS>, UNIT = CHUNK * CHUNKS;
  static constexpr int WORDS = BITS / 2;  // of a thread, per row and chunk
  uint32_t word[2][CHUNKS][WORDS];
  Side<S, CHUNKS> scale[2], bias[2];

  // Of row `half`, whose thread's first word, scale and bias are at these.
  __device__ inline void load(int half, const char* words, const S* scales, const S* biases) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const char* at = words + c * CHUNK * BITS / 8;
      if constexpr (BITS == 4) {
        const uint2 two = streamed(reinterpret_cast<const uint2*>(at));
        word[half][c][0] = two.x, word[half][c][1] = two.y;
      } else {
#pragma unroll
        for (int part = 0; part < WORDS / 4; ++part) {  // 64 bytes of the row at once
          const uint4 four = streamed(reinterpret_cast<const uint4*>(at) + 4 * part);
          word[half][c][4 * part] = four.x, word[half][c][4 * part + 1] = four.y;
          word[half][c][4 * part + 2] = four.z, word[half][c][4 * part + 3] = four.w;
        }
      }
    }
    if constexpr (BITS < 16) {
      scale[half] = kept(reinterpret_cast<const Side<S, CHUNKS>*>(scales));
      bias[half] = kept(reinterpret_cast<const Side<S, CHUNKS>*>(biases));
    }
  }

  // Add this unit's products to sum: rows g and g + 8, slots 2 t and 2 t + 1. `x` is as `lay_out` leaves it; the unit
  // begins with `first` of its chunks.
  template <int ROWS>
  __device__ inline void multiply_into(float (&sum)[4], const uint4* x, int stride, const float* x_sums, int first,
                                       int n_chunks) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int chunk = first + c;
      uint4 b[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
      if (g < ROWS) {
        const uint4* at = x + g * stride + (chunk * 4 + t) * 2;
        b[0] = at[0], b[1] = at[1];
      }
      const uint32_t b0[4] = {b[0].x, b[0].z, b[1].x, b[1].z}, b1[4] = {b[0].y, b[0].w, b[1].y, b[1].w};
      const uint32_t(&one)[WORDS] = word[0][c];
      const uint32_t(&two)[WORDS] = word[1][c];
      if constexpr (BITS == 16) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply(sum, one[2 * j], two[2 * j], one[2 * j + 1], two[2 * j + 1], b0[j], b1[j]);
      } else {
        float low[4], high[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_packed<BITS>(low, high, j, one[BITS == 4 ? j / 2 : j], two[BITS == 4 ? j / 2 : j], b0[j], b1[j]);
        constexpr float OFFSET = BITS == 4 ? 128 : 17 * 128;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float unit_of = number(scale[h].of[c]), rest = number(bias[h].of[c]) - OFFSET * unit_of;
#pragma unroll
          for (int n = 0; n < (ROWS > 1 ? 2 : 1); ++n) {
            const int slot = 2 * t + n;
            const float x_sum = slot < ROWS ? x_sums[slot * n_chunks + chunk] : 0;
            const float whole = BITS == 4 ? low[2 * h + n] : low[2 * h + n] + 16 * high[2 * h + n];
            sum[2 * h + n] += unit_of * whole + rest * x_sum;
          }
        }
      }
    }
  }
};

// Eight numbers of x lie side by side, in the order in which a multiplication takes them: `order(i)` of them is the i-th.
template <int BITS>
__device__ constexpr int order(int i) {
  if (BITS == 4) return i / 2 + i % 2 * 4;                           // nibbles 0 4, 1 5, 2 6, 3 7 of a word
  if (BITS == 8) return i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4);  // bytes 0 2, 1 3 of each of two
  return i;
}

// Where in its chunk's 64 numbers of shared memory the eight from k lie: thread t's 16, two eights of them.
template <int BITS>
__device__ inline int place(int k) {
  if (BITS == 16) return k / 8 % 4 * 16 + k / 32 * 8;  // thread t holds 8 t ... and 32 + 8 t ...
  return k;
}

// The whole of x, normalised, into shared memory: `x` [ROWS][stride] as the multiplications read it, and what each
// chunk sums to. Every thread of the block; ends with a barrier. A thread takes eight numbers at a time, a warp 256.
template <int BITS, int ROWS, int N_IN, int BEFORE, int THREADS>
__device__ inline void lay_out(const __nv_bfloat16* given, const __nv_bfloat16* gain, __nv_bfloat16* x, int stride,
                               float* x_sums, float* scratch) {
  static_assert(N_IN % (8 * WARP) == 0, "whole warps");
  constexpr int N_CHUNKS = N_IN / CHUNK, TURNS = (N_IN + 8 * THREADS - 1) / (8 * THREADS);
  for (int row = 0; row < ROWS; ++row) {
    Eight mine[TURNS];
    float squares = 0;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int k = 8 * (threadIdx.x + turn * THREADS);
      if (k >= N_IN) break;
      mine[turn] = *reinterpret_cast<const Eight*>(given + row * N_IN + k);
#pragma unroll
      for (int i = 0; i < 8; ++i) squares += number(mine[turn].of[i]) * number(mine[turn].of[i]);
    }
    const float scale = BEFORE == RMS ? rsqrtf(block_sum(squares, scratch) / N_IN + 1e-8f) : 1;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int k = 8 * (threadIdx.x + turn * THREADS);
      if (k >= N_IN) break;
      if constexpr (BEFORE == RMS) {
        const Eight gains = *reinterpret_cast<const Eight*>(gain + k);
#pragma unroll
        for (int i = 0; i < 8; ++i) put(&mine[turn].of[i], number(mine[turn].of[i]) * scale * number(gains.of[i]));
      }
      Eight ordered;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        ordered.of[i] = mine[turn].of[order<BITS>(i)];
        sum += number(ordered.of[i]);
      }
      *reinterpret_cast<Eight*>(x + row * stride + k / CHUNK * CHUNK + place<BITS>(k % CHUNK)) = ordered;
      if constexpr (BITS < 16) note_sum(sum, x_sums + row * N_CHUNKS, k);
    }
    if (BEFORE == RMS && ROWS > 1) __syncthreads();  // scratch is used again
  }
  __syncthreads();
}

// How a linear map lies in shared memory: x, its chunks' sums, a number per warp, and each warp's sums of the tiles.
template <int BITS, int ROWS, int N_IN, int N_OUT, int WARPS, int BLOCKS, int AFTER>
struct Shared {
  static constexpr int N_CHUNKS = N_IN / CHUNK, STRIDE = N_IN + 8;  // rows begin in different banks
  static constexpr int N_TILES = (AFTER == GATE ? 2 : 1) * N_OUT / TILE, MOST_TILES = (N_TILES + BLOCKS - 1) / BLOCKS;
  static constexpr int SIZE = MOST_TILES * TILE * ROWS;
  static constexpr int SUMS = (ROWS * STRIDE * 2 + 15) / 16 * 16;
  static constexpr int SCRATCH = SUMS + (BITS < 16 ? ROWS * N_CHUNKS * 4 : 0);
  static constexpr int PARTIAL = (SCRATCH + WARP * 4 + 15) / 16 * 16;
  static constexpr int BYTES = PARTIAL + WARPS * SIZE * 4;
};

// out [ROWS][N_OUT] from x [ROWS][N_IN], weights [N_OUT or, gated, 2 N_OUT][N_IN]; `gain` for RMS, `residual` for ADD.
template <int BITS, int ROWS, int N_IN, int N_OUT, int WARPS, int BLOCKS, int BEFORE, int AFTER, typename S>
__device__ void tile_linear(const __nv_bfloat16* given, const __nv_bfloat16* gain, const void* w, const S* scales,
                            const S* biases, const __nv_bfloat16* residual, __nv_bfloat16* out) {
  DYNAMIC(memory);
  using Layout = Shared<BITS, ROWS, N_IN, N_OUT, WARPS, BLOCKS, AFTER>;
  static_assert(N_IN % Unit<BITS, S>::UNIT == 0 && N_OUT % TILE == 0, "whole units and tiles");
  constexpr int N_UNITS = N_IN / Unit<BITS, S>::UNIT, N_CHUNKS = Layout::N_CHUNKS, STRIDE = Layout::STRIDE;
  constexpr int SIZE = Layout::SIZE;
  auto* x = reinterpret_cast<__nv_bfloat16*>(memory);
  auto* x_sums = reinterpret_cast<float*>(memory + Layout::SUMS);
  auto* scratch = reinterpret_cast<float*>(memory + Layout::SCRATCH);
  auto* partial = reinterpret_cast<float*>(memory + Layout::PARTIAL);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

  // The block's tiles lie side by side; of each, this warp takes units warp, warp + WARPS ... Gated, a tile is 8 rows of
  // the gate and the same 8 of the values.
  constexpr int CHUNKS = Unit<BITS, S>::CHUNKS, STEP = WARPS * CHUNKS, ROWS_APART = AFTER == GATE ? 8 : TILE;
  constexpr int CHUNK_BYTES = CHUNK * BITS / 8;
  constexpr long long OTHER = (AFTER == GATE ? N_OUT : 8) * (long long)N_CHUNKS;  // chunks from a row to its second
  const int first_tile = Layout::N_TILES * blockIdx.x / BLOCKS;
  const int n_tiles = Layout::N_TILES * (blockIdx.x + 1) / BLOCKS - first_tile;
  const int n_mine = warp < N_UNITS ? (N_UNITS - 1 - warp) / WARPS + 1 : 0;
  const long long row = (long long)(first_tile * ROWS_APART + g) * N_CHUNKS;
  const char* words = static_cast<const char*>(w) + row * CHUNK_BYTES + t * (BITS == 4 ? 8 : 16);
  const S *its_scales = scales + row, *its_biases = biases + row;

  // Where what is loaded next lies, in chunks from there; how many of a tile's units, and of all, are to be loaded.
  int at = warp * CHUNKS, of_tile = n_mine, to_load = n_tiles * n_mine;
  const int on = ROWS_APART * N_CHUNKS - (n_mine - 1) * STEP;
  Unit<BITS, S> ahead[STAGES];
  auto load = [&](Unit<BITS, S>& into) {
    const char* here = words + (long long)at * CHUNK_BYTES;
    into.load(0, here, its_scales + at, its_biases + at);
    into.load(1, here + OTHER * CHUNK_BYTES, its_scales + at + OTHER, its_biases + at + OTHER);
    --to_load;
    const bool same = --of_tile > 0;
    at += same ? STEP : on;
    if (!same) of_tile = n_mine;
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; ++stage)
    if (to_load > 0) load(ahead[stage]);
  if (n_mine == 0)
    for (int i = lane; i < SIZE; i += WARP) partial[warp * SIZE + i] = 0;
  lay_out<BITS, ROWS, N_IN, BEFORE, WARPS * WARP>(given, gain, x, STRIDE, x_sums, scratch);

  float sum[4] = {0, 0, 0, 0};
  float* mine = partial + warp * SIZE;
  int left = n_mine, first = warp * CHUNKS;
#pragma unroll 1
  for (int to_do = n_tiles * n_mine; to_do > 0;) {
#pragma unroll
    for (int stage = 0; stage < STAGES; ++stage) {
      if (to_do == 0) break;
      --to_do;
      ahead[stage].template multiply_into<ROWS>(sum, reinterpret_cast<const uint4*>(x), STRIDE / 8, x_sums, first,
                                                N_CHUNKS);
      if (to_load > 0) load(ahead[stage]);
      first += STEP;
      if (--left > 0) continue;
      // What this warp has of a tile.
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        if (2 * t + n < ROWS) {
          mine[g * ROWS + 2 * t + n] = sum[n];
          mine[(g + 8) * ROWS + 2 * t + n] = sum[2 + n];
        }
        sum[n] = sum[2 + n] = 0;
      }
      mine += TILE * ROWS, left = n_mine, first = warp * CHUNKS;
    }
  }
  constexpr int RESULTS = (AFTER == GATE ? 8 : TILE) * ROWS;
  __nv_bfloat16 early;  // the residual of this thread's first result, which it would otherwise wait for
  if constexpr (AFTER == ADD) {
    const int i = threadIdx.x;
    if (i < n_tiles * RESULTS)
      early = residual[i % ROWS * N_OUT + (first_tile + i / RESULTS) * TILE + i % RESULTS / ROWS];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n_tiles * RESULTS; i += blockDim.x) {
    const int tile = i / RESULTS, row = i % RESULTS / ROWS, slot = i % ROWS;
    const float* at = partial + (tile * TILE + row) * ROWS + slot;
    float total = 0, value = 0;
#pragma unroll
    for (int from = 0; from < WARPS; ++from) {
      total += at[from * SIZE];
      if constexpr (AFTER == GATE) value += at[from * SIZE + 8 * ROWS];
    }
    const int column = (first_tile + tile) * (AFTER == GATE ? 8 : TILE) + row;
    __nv_bfloat16* to = out + slot * N_OUT + column;
    // Rounded where the stock operations store.
    total = rounded<__nv_bfloat16>(total);
    if constexpr (AFTER == GATE) {
      const float open = rounded<__nv_bfloat16>(1 / (1 + expf(-total)));
      put(to, rounded<__nv_bfloat16>(total * open) * rounded<__nv_bfloat16>(value));
    } else if constexpr (AFTER == ADD) {
      put(to, number(i == threadIdx.x ? early : residual[slot * N_OUT + column]) + total);
    } else {
      put(to, total);
    }
  }
}
