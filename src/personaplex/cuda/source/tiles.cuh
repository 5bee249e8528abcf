// A linear map of one to eight rows by the tensor cores: they multiply sixteen weight rows at a time, and do it so much
// faster than memory delivers that nothing but the reading is left, whether weights have 16, 8 or 4 bits.
//
// A block takes tiles of 16 weight rows; each of its warps takes every WARPS-th unit of 256 columns and reads the next
// unit before it multiplies the last one. Within a chunk of 64 columns the thread with t = lane % 4 holds columns
// 16 t ... 16 t + 15 of weight rows g and g + 8, g = lane / 4: as one to four words that lie side by side. Which of them
// a multiplication calls its columns is free as long as x is laid out alike, and x is laid out once, in shared memory.
// An n-bit weight becomes a number by three bits' work: 0x4300 | q is the bfloat16 128 + q for q < 128; the 128 is taken
// off with the group's bias. Eight bits are two such numbers.
//
// Needs columns in whole units and rows in whole tiles; quantised weights are MLX's affine ones in groups of 64.

constexpr int CHUNK = 64, TILE = 16;
// Chunks in a unit: what a thread holds twice must fit its registers; quantised, four groups' scales are one load.
template <int BITS>
constexpr int CHUNKS_OF = BITS == 16 ? 2 : 4;
constexpr int PLAIN = 0, RMS = 1, LAYER = 2;        // what is done to x first
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

// What another block of this launch may have written: not from this multiprocessor's own cache.
__device__ inline __nv_bfloat16 fresh_one(const __nv_bfloat16* at) { return __ldcg(at); }
__device__ inline Eight fresh(const __nv_bfloat16* at) {
  const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(at));
  return *reinterpret_cast<const Eight*>(&bits);
}

// x as rows in memory.
template <int N_IN>
struct Rows {
  const __nv_bfloat16* at;
  __device__ inline Eight operator()(int row, int k) const { return fresh(at + row * N_IN + k); }
};

// Eight threads side by side hold a chunk; the first of them notes what it sums to. Whole warps come here.
__device__ inline void note_sum(float sum, float* x_sums, int k) {
  for (int apart = 4; apart > 0; apart /= 2) sum += __shfl_xor_sync(ALL, sum, apart);
  if (k % CHUNK == 0) x_sums[k / CHUNK] = sum;
}

template <typename S>
struct __align__(4 * sizeof(S)) Four {
  S of[4];
};

// One warp's share of a unit: the words of 2 weight rows x 4 chunks, and their groups' scales and biases.
template <int BITS, typename S>
struct Unit {
  static constexpr int CHUNKS = CHUNKS_OF<BITS>, UNIT = CHUNK * CHUNKS;
  static constexpr int WORDS = BITS / 2;  // of a thread, per row and chunk
  uint32_t word[2][CHUNKS][WORDS];
  Four<S> scale[2], bias[2];

  __device__ inline void load(const void* w, const S* scales, const S* biases, int row0, int row1, int unit, int n_in) {
    const int t = threadIdx.x % 4;
    const int rows[2] = {row0, row1};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const long long first = (long long)rows[h] * n_in + unit * UNIT + 16 * t;  // in weights
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const char* at = static_cast<const char*>(w) + (first + c * CHUNK) * BITS / 8;
        if constexpr (BITS == 4) {
          const uint2 two = streamed(reinterpret_cast<const uint2*>(at));
          word[h][c][0] = two.x, word[h][c][1] = two.y;
        } else {
#pragma unroll
          for (int part = 0; part < WORDS / 4; ++part) {
            const uint4 four = streamed(reinterpret_cast<const uint4*>(at) + part);
            word[h][c][4 * part] = four.x, word[h][c][4 * part + 1] = four.y;
            word[h][c][4 * part + 2] = four.z, word[h][c][4 * part + 3] = four.w;
          }
        }
      }
      if constexpr (BITS < 16) {
        const long long group = ((long long)rows[h] * n_in + unit * UNIT) / CHUNK;
        scale[h] = *reinterpret_cast<const Four<S>*>(scales + group);
        bias[h] = *reinterpret_cast<const Four<S>*>(biases + group);
      }
    }
  }

  // Add this unit's products to sum: rows g and g + 8, slots 2 t and 2 t + 1. `x` is as `lay_out` leaves it.
  template <int ROWS>
  __device__ inline void multiply_into(float (&sum)[4], const uint4* x, int stride, const float* x_sums, int unit,
                                       int n_chunks) {
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int chunk = unit * CHUNKS + c;
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
        constexpr uint32_t MASK = 0x000f000f, ONES = 0x43004300;
        float low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if constexpr (BITS == 4) {
            const int shift = 8 * (j % 2);
            const uint32_t p = one[j / 2] >> shift, q = two[j / 2] >> shift;
            multiply(low, (p & MASK) | ONES, (q & MASK) | ONES, ((p >> 4) & MASK) | ONES, ((q >> 4) & MASK) | ONES,
                     b0[j], b1[j]);
          } else {
            const uint32_t p = one[j], q = two[j];
            multiply(low, (p & MASK) | ONES, (q & MASK) | ONES, ((p >> 8) & MASK) | ONES, ((q >> 8) & MASK) | ONES,
                     b0[j], b1[j]);
            multiply(high, ((p >> 4) & MASK) | ONES, ((q >> 4) & MASK) | ONES, ((p >> 12) & MASK) | ONES,
                     ((q >> 12) & MASK) | ONES, b0[j], b1[j]);
          }
        }
        constexpr float OFFSET = BITS == 4 ? 128 : 17 * 128;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const int slot = 2 * t + n;
          const float x_sum = slot < ROWS ? x_sums[slot * n_chunks + chunk] : 0;
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float unit_of = number(scale[h].of[c]);
            const float whole = BITS == 4 ? low[2 * h + n] : low[2 * h + n] + 16 * high[2 * h + n];
            sum[2 * h + n] += unit_of * whole + (number(bias[h].of[c]) - OFFSET * unit_of) * x_sum;
          }
        }
      }
    }
  }
};

// Where x[k], k within a chunk, lies in the chunk's 64 numbers of shared memory.
template <int BITS>
__device__ inline int place(int k) {
  const int t = k / 16, of = k % 16;
  int j, at;
  if (BITS == 16) {
    j = of / 4, at = of % 4;
  } else if (BITS == 8) {  // word j holds 4 j ... 4 j + 3; pairs (0, 2), (1, 3)
    j = of / 4, at = of % 4 == 0 ? 0 : of % 4 == 2 ? 1 : of % 4 == 1 ? 2 : 3;
  } else {  // word of / 8; nibbles (0, 4), (1, 5) then (2, 6), (3, 7)
    const int nibble = of % 8, low = nibble % 4;
    j = 2 * (of / 8) + low / 2, at = 2 * (low % 2) + nibble / 4;
  }
  return t * 16 + j * 4 + at;
}

// The whole of x, normalised, into shared memory: `x` [ROWS][stride] as the multiplications read it, and what each
// chunk sums to. Every thread of the block; ends with a barrier. A thread takes eight numbers at a time, a warp 256.
// `given(row, k)` are eight numbers from k.
template <int BITS, int ROWS, int N_IN, int BEFORE, typename Given>
__device__ inline void lay_out(Given given, const __nv_bfloat16* gain, __nv_bfloat16* x, int stride, float* x_sums,
                               float* scratch) {
  static_assert(N_IN % (8 * WARP) == 0, "whole warps");
  constexpr int N_CHUNKS = N_IN / CHUNK;
  for (int row = 0; row < ROWS; ++row) {
    float squares = 0;
    for (int k = 8 * threadIdx.x; k < N_IN; k += 8 * blockDim.x) {
      const Eight eight = given(row, k);
      __nv_bfloat16* to = x + row * stride + k / CHUNK * CHUNK;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float value = number(eight.of[i]);
        to[place<BITS>(k % CHUNK + i)] = eight.of[i];
        squares += value * value;
        sum += value;
      }
      if constexpr (BITS < 16 && BEFORE == PLAIN) note_sum(sum, x_sums + row * N_CHUNKS, k);
    }
    if constexpr (BEFORE == RMS) {
      const float scale = rsqrtf(block_sum(squares, scratch) / N_IN + 1e-8f);
      for (int k = 8 * threadIdx.x; k < N_IN; k += 8 * blockDim.x) {
        __nv_bfloat16* at = x + row * stride + k / CHUNK * CHUNK;
        const Eight gains = *reinterpret_cast<const Eight*>(gain + k);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          __nv_bfloat16* mine = at + place<BITS>(k % CHUNK + i);  // this very thread put it there
          put(mine, number(*mine) * scale * number(gains.of[i]));
          sum += number(*mine);
        }
        if constexpr (BITS < 16) note_sum(sum, x_sums + row * N_CHUNKS, k);
      }
      __syncthreads();  // scratch is used again
    }
  }
  __syncthreads();
}

// How a linear map lies in shared memory: x, its chunks' sums, a number per warp, and two tiles' partial sums.
template <int BITS, int ROWS, int N_IN, int WARPS>
struct Shared {
  static constexpr int N_CHUNKS = N_IN / CHUNK, STRIDE = N_IN + 8;  // rows begin in different banks
  static constexpr int SUMS = (ROWS * STRIDE * 2 + 15) / 16 * 16;
  static constexpr int SCRATCH = SUMS + (BITS < 16 ? ROWS * N_CHUNKS * 4 : 0);
  static constexpr int PARTIAL = (SCRATCH + WARP * 4 + 15) / 16 * 16;
  static constexpr int BYTES = PARTIAL + 2 * WARPS * TILE * ROWS * 4;
};

// out [ROWS][N_OUT] from x [ROWS][N_IN], weights [N_OUT or, gated, 2 N_OUT][N_IN]; `gain` for RMS, `residual` for ADD.
// The first weights are on their way before `wait` is called, after which x and the residual must be there.
template <int BITS, int ROWS, int N_IN, int N_OUT, int WARPS, int BEFORE, int AFTER, typename S, typename Given,
          typename Wait>
__device__ __forceinline__ void tile_matvec(Given given, const __nv_bfloat16* gain, const void* w, const S* scales,
                                         const S* biases, const __nv_bfloat16* residual, __nv_bfloat16* out,
                                         Wait wait) {
  DYNAMIC(memory);
  using Layout = Shared<BITS, ROWS, N_IN, WARPS>;
  static_assert(N_IN % Unit<BITS, S>::UNIT == 0 && N_OUT % TILE == 0, "whole units and tiles");
  constexpr int N_UNITS = N_IN / Unit<BITS, S>::UNIT, N_CHUNKS = Layout::N_CHUNKS, STRIDE = Layout::STRIDE;
  constexpr int N_TILES = (AFTER == GATE ? 2 : 1) * N_OUT / TILE;
  auto* x = reinterpret_cast<__nv_bfloat16*>(memory);
  auto* x_sums = reinterpret_cast<float*>(memory + Layout::SUMS);
  auto* scratch = reinterpret_cast<float*>(memory + Layout::SCRATCH);
  auto* partial = reinterpret_cast<float*>(memory + Layout::PARTIAL);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

  // Gated, a tile is 8 rows of the gate and the same 8 of the values.
  auto row_of = [&](int tile, int half) {
    return AFTER == GATE ? tile * 8 + g + half * N_OUT : tile * TILE + g + 8 * half;
  };
  Unit<BITS, S> now, next;
  int tile = blockIdx.x, unit = warp;
  const bool works = warp < N_UNITS;  // a warp without a unit still meets the others
  if (tile < N_TILES && works) now.load(w, scales, biases, row_of(tile, 0), row_of(tile, 1), unit, N_IN);
  wait();
  lay_out<BITS, ROWS, N_IN, BEFORE>(given, gain, x, STRIDE, x_sums, scratch);

#pragma unroll 1
  for (int turn = 0; tile < N_TILES; ++turn) {
    float sum[4] = {0, 0, 0, 0};
    const int next_tile = tile + gridDim.x;
    if (works) {
#pragma unroll 1
      for (unit = warp; unit < N_UNITS; unit += WARPS) {
        const bool last = unit + WARPS >= N_UNITS;
        const int tile_then = last ? next_tile : tile, unit_then = last ? warp : unit + WARPS;
        if (tile_then < N_TILES)
          next.load(w, scales, biases, row_of(tile_then, 0), row_of(tile_then, 1), unit_then, N_IN);
        now.template multiply_into<ROWS>(sum, reinterpret_cast<const uint4*>(x), STRIDE / 8, x_sums, unit, N_CHUNKS);
        now = next;
      }
    }
    // Two buffers: who is fast may write the next tile's sums while these are read, and must not overtake twice.
    float* sums = partial + turn % 2 * WARPS * TILE * ROWS;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      if (2 * t + n < ROWS) {
        sums[(warp * TILE + g) * ROWS + 2 * t + n] = sum[n];
        sums[(warp * TILE + g + 8) * ROWS + 2 * t + n] = sum[2 + n];
      }
    }
    __syncthreads();
    constexpr int N_RESULTS = (AFTER == GATE ? 8 : TILE) * ROWS;
    for (int i = threadIdx.x; i < N_RESULTS; i += blockDim.x) {
      const int row = i / ROWS, slot = i % ROWS;
      float total = 0, value = 0;
      for (int from = 0; from < WARPS; ++from) {
        total += sums[(from * TILE + row) * ROWS + slot];
        if constexpr (AFTER == GATE) value += sums[(from * TILE + row + 8) * ROWS + slot];
      }
      const int column = AFTER == GATE ? tile * 8 + row : tile * TILE + row;
      __nv_bfloat16* at = out + slot * N_OUT + column;
      // Rounded where the stock operations store.
      total = rounded<__nv_bfloat16>(total);
      if constexpr (AFTER == GATE) {
        const float open = rounded<__nv_bfloat16>(1 / (1 + expf(-total)));
        put(at, rounded<__nv_bfloat16>(total * open) * rounded<__nv_bfloat16>(value));
      } else if constexpr (AFTER == ADD) {
        put(at, number(fresh_one(residual + slot * N_OUT + column)) + total);
      } else {
        put(at, total);
      }
    }
    tile = next_tile;
  }
}

// One linear map as a kernel of its own.
template <int BITS, int ROWS, int N_IN, int N_OUT, int WARPS, int BEFORE, int AFTER, typename S>
__device__ void tile_linear(const __nv_bfloat16* given, const __nv_bfloat16* gain, const void* w, const S* scales,
                            const S* biases, const __nv_bfloat16* residual, __nv_bfloat16* out) {
  tile_matvec<BITS, ROWS, N_IN, N_OUT, WARPS, BEFORE, AFTER>(Rows<N_IN>{given}, gain, w, scales, biases,
                                                             residual, out, [] {});
}
