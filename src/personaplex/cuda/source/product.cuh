// Products of a matrix, plain or packed, with a few vectors that lie in shared memory: a block's share of them.
//
// What another block wrote in this launch is read with __ldcg, past the L1 cache, which does not see others' writes.

constexpr int CHUNK = 8;  // numbers of a row that a lane takes at once

// Chunks of a row of K that a lane takes in all.
template <int K>
constexpr int EACH = (K + WARP * CHUNK - 1) / (WARP * CHUNK);

// Read once, by one warp: not worth a place in the L1 cache. Volatile, so that it is issued where it stands: before a
// meeting that comes between it and its use.
__device__ inline void stream(const uint32_t* from, uint32_t (&to)[1]) {
#ifdef EMULATED
  to[0] = *from;
#else
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(to[0]) : "l"(from));
#endif
}

__device__ inline void stream(const uint32_t* from, uint32_t (&to)[2]) {
#ifdef EMULATED
  for (int i = 0; i < 2; ++i) to[i] = from[i];
#else
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "l"(from));
#endif
}

template <int N>
__device__ inline void stream(const uint32_t* from, uint32_t (&to)[N]) {
  for (int i = 0; i < N; i += 4) {
#ifdef EMULATED
    for (int j = i; j < i + 4; ++j) to[j] = from[j];
#else
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[i]), "=r"(to[i + 1]), "=r"(to[i + 2]), "=r"(to[i + 3])
                 : "l"(from + i));
#endif
  }
}

// CHUNK numbers of type T, as they lie in memory.
template <typename T>
constexpr int WORDS_OF = CHUNK * int(sizeof(T)) / 4;

template <typename T>
__device__ inline void unpack(const uint32_t (&words)[WORDS_OF<T>], float (&x)[CHUNK]) {
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = __uint_as_float(words[i]);
    } else {  // bfloat16: the upper half of a float
      x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
  }
}

template <typename T>
__device__ inline void read(const T* from, float (&x)[CHUNK]) {
  uint32_t words[WORDS_OF<T>];
#pragma unroll
  for (int i = 0; i < WORDS_OF<T>; i += 4) {
    uint4 four = *reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(from) + i);
    words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
  }
  unpack<T>(words, x);
}

// The same for what another block may have written in this launch.
template <typename T>
__device__ inline void read_fresh(const T* from, float (&x)[CHUNK]) {
  uint32_t words[WORDS_OF<T>];
#pragma unroll
  for (int i = 0; i < WORDS_OF<T>; i += 4) {
    uint4 four = __ldcg(reinterpret_cast<const uint4*>(reinterpret_cast<const uint32_t*>(from) + i));
    words[i] = four.x, words[i + 1] = four.y, words[i + 2] = four.z, words[i + 3] = four.w;
  }
  unpack<T>(words, x);
}

// CHUNK numbers as they are.
template <typename T>
__device__ inline void copy_fresh(const T* from, T* to) {
#pragma unroll
  for (int i = 0; i < WORDS_OF<T> / 4; ++i) {
    reinterpret_cast<uint4*>(to)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
  }
}

template <typename T>
__device__ inline void write(T* to, const float (&x)[CHUNK]) {
#pragma unroll
  for (int i = 0; i < CHUNK; ++i) put(to + i, x[i]);
}

// Rows of K numbers: of type T (BITS 16 or 32), or packed as mx.quantize packs them.
template <typename T, int BITS, int GROUP, int K>
struct Matrix {
  static constexpr bool PLAIN = BITS >= 16;
  static constexpr int WORDS = PLAIN ? WORDS_OF<T> : CHUNK * BITS / 32;
  static constexpr int POINTERS = PLAIN ? 1 : 3;

  const uint32_t* weight;
  const T* scales;
  const T* biases;

  struct Chunk {
    uint32_t words[WORDS];
    T scale, bias;
  };

  // From the table of pointers, and from a row on.
  __device__ Matrix(const void* const* at, int row) {
    weight = static_cast<const uint32_t*>(at[0]) + size_t(row) * (K / CHUNK) * WORDS;
    scales = PLAIN ? nullptr : static_cast<const T*>(at[1]) + size_t(row) * (K / GROUP);
    biases = PLAIN ? nullptr : static_cast<const T*>(at[2]) + size_t(row) * (K / GROUP);
  }

  __device__ void load(int row, int k, Chunk& chunk) const {
    stream(weight + (size_t(row) * (K / CHUNK) + k / CHUNK) * WORDS, chunk.words);
    if constexpr (!PLAIN) {
      chunk.scale = scales[size_t(row) * (K / GROUP) + k / GROUP];
      chunk.bias = biases[size_t(row) * (K / GROUP) + k / GROUP];
    }
  }

  // The chunk's part of a row's product with x, whose sum is `total`.
  __device__ static float dot(const Chunk& chunk, const float (&x)[CHUNK], float total) {
    float w[CHUNK], sum = 0;
    if constexpr (PLAIN) {
      unpack<T>(chunk.words, w);
    } else {
      integers(chunk, w);
    }
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) sum += w[i] * x[i];
    if constexpr (PLAIN) return sum;
    return number(chunk.scale) * sum + number(chunk.bias) * total;
  }

  // CHUNK numbers of one row, as a lookup rounds them.
  __device__ void numbers(int row, int k, float (&x)[CHUNK]) const {
    Chunk chunk;
    load(row, k, chunk);
    if constexpr (PLAIN) {
      unpack<T>(chunk.words, x);
    } else {
      integers(chunk, x);
#pragma unroll
      for (int i = 0; i < CHUNK; ++i) x[i] = rounded<T>(rounded<T>(number(chunk.scale) * x[i]) + number(chunk.bias));
    }
  }

  // Ask for rows first ... last - 1 to be brought near, into the L2 cache; by warp 0.
  __device__ void fetch(int first, int last) const {
    near(weight + size_t(first) * (K / CHUNK) * WORDS, (last - first) * (K / CHUNK) * WORDS * 4);
    if constexpr (!PLAIN) {
      near(scales + size_t(first) * (K / GROUP), (last - first) * (K / GROUP) * int(sizeof(T)));
      near(biases + size_t(first) * (K / GROUP), (last - first) * (K / GROUP) * int(sizeof(T)));
    }
  }

 private:
  __device__ static void integers(const Chunk& chunk, float (&x)[CHUNK]) {
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      constexpr int IN_WORD = 32 / BITS;
      x[i] = float((chunk.words[i / IN_WORD] >> (i % IN_WORD * BITS)) & ((1u << BITS) - 1));
    }
  }

  __device__ static void near(const void* from, int bytes) {
#ifndef EMULATED
    // Whole 16 bytes within the range: what is cut off at its ends is only read later.
    size_t start = (reinterpret_cast<size_t>(from) + 15) / 16 * 16;
    size_t end = (reinterpret_cast<size_t>(from) + bytes) / 16 * 16;
    constexpr uint32_t PIECE = 4096;
    for (start += threadIdx.x * PIECE; start < end; start += WARP * PIECE) {
      uint32_t size = end - start < PIECE ? uint32_t(end - start) : PIECE;
#if __CUDA_ARCH__ >= 900
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(start), "r"(size) : "memory");
#else
      for (uint32_t line = 0; line < size; line += 128) asm volatile("prefetch.global.L2 [%0];" ::"l"(start + line));
#endif
    }
#endif
  }
};

// A block's share of the rows of a matrix.
struct Share {
  int first, last;
  __device__ explicit Share(int rows) : first(rows * int(blockIdx.x) / int(gridDim.x)),
                                        last(rows * (int(blockIdx.x) + 1) / int(gridDim.x)) {}
};

// The block's share of a product with N vectors. A warp takes N_ROWS rows at a time, with PARTS 2 as many more from
// the matrix's second half: its lanes hold AT_ONCE chunks of each row, and load the next when those are used.
template <typename M, typename T, int K, int PARTS, int N_ROWS, int AT_ONCE, int N>
struct Product {
  static constexpr int STRIDE = AT_ONCE * WARP * CHUNK;

  M matrix;
  Share share;
  int rows;  // in one part
  typename M::Chunk held[PARTS * N_ROWS][AT_ONCE];

  __device__ Product(const M& matrix, int rows) : matrix(matrix), share(rows), rows(rows) {}

  // Load the first of what will be needed; the vectors need not be known.
  __device__ void begin() {
    // Chunks that are not loaded below must not seem to hold what they held before: registers would be kept for that.
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
#pragma unroll
      for (int r = 0; r < PARTS * N_ROWS; ++r) held[r][i] = {};
    }
    load(mine(), 0);
  }

  // x: N vectors of K numbers. `take(row, vector, products of its parts)` is called once for each. After `begin`.
  template <typename F>
  __device__ void run(const T* x, F take) {
    const int lane = threadIdx.x % WARP, stride = int(blockDim.x / WARP) * N_ROWS;
    for (int row = mine(); row < share.last; row += stride) {
      float sums[PARTS * N_ROWS][N] = {};
#pragma unroll 1
      for (int from = 0; from < K; from += STRIDE) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
          const int k = from + (i * WARP + lane) * CHUNK;
          if (k >= K) continue;
#pragma unroll
          for (int n = 0; n < N; ++n) {
            float of_x[CHUNK], total = 0;
            read(x + n * K + k, of_x);
#pragma unroll
            for (int j = 0; j < CHUNK; ++j) total += of_x[j];
#pragma unroll
            for (int r = 0; r < PARTS * N_ROWS; ++r) sums[r][n] += M::dot(held[r][i], of_x, total);
          }
        }
        if (from + STRIDE < K) {
          load(row, from + STRIDE);
        } else {
          load(row + stride, 0);
        }
      }
#pragma unroll
      for (int r = 0; r < N_ROWS; ++r) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
          float products[PARTS];
#pragma unroll
          for (int p = 0; p < PARTS; ++p) products[p] = warp_sum(sums[p * N_ROWS + r][n]);
          // Each result is another lane's to store.
          if (lane == (r * N + n) % WARP && row + r < share.last) take(row + r, n, products);
        }
      }
    }
  }

 private:
  __device__ int mine() const { return share.first + int(threadIdx.x / WARP) * N_ROWS; }

  __device__ void load(int row, int from) {
    if (row >= share.last) return;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int k = from + (i * WARP + int(threadIdx.x % WARP)) * CHUNK;
      if (k >= K) continue;
#pragma unroll
      for (int r = 0; r < PARTS * N_ROWS; ++r) {
        // Beyond the share's last row, that row again.
        matrix.load(r / N_ROWS * rows + min(row + r % N_ROWS, share.last - 1), k, held[r][i]);
      }
    }
  }
};
