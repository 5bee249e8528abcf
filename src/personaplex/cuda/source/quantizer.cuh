// Residual vector quantisation: rows of latents to codes, and back.

// A vector of DIM numbers, spread over a warp.
template <int DIM>
struct Spread {
  static constexpr int N = DIM % (4 * WARP) ? 1 : 4, PARTS = (DIM + WARP * N - 1) / (WARP * N);
  float of[PARTS][N];

  __device__ void read(const float* from) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const int at = (part * WARP + lane) * N;
#pragma unroll
      for (int i = 0; i < N; ++i) of[part][i] = 0;
      if (at < DIM) load(from + at, of[part]);
    }
  }

  __device__ void subtract(const Spread& other) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
      for (int i = 0; i < N; ++i) of[part][i] -= other.of[part][i];
    }
  }

  // This lane's share of the product.
  __device__ float product(const Spread& other) const {
    float sum = 0;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum += of[part][i] * other.of[part][i];
    }
    return sum;
  }
};

// Both branches' projections of latents [rows, width] -> [2, rows, dim], a column per warp; and what the blocks of `search`
// share, as it must be when they begin: `n_best` words for the nearest so far, and the counters of their meetings.
template <int WARPS>
__device__ void project(const float* latents, const float* meaning, const float* sound, const int32_t* size,
                        float* projected, uint32_t* best) {
  const int rows = size[0], width = size[1], dim = size[2], n_best = size[3], counters = 64;
  const int warp = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < n_best + counters; at += gridDim.x * blockDim.x) {
    best[at] = at < n_best ? 0xffffffffu : 0;
  }
  if (warp >= 2 * dim) return;
  const float* weight = warp < dim ? meaning + size_t(warp) * width : sound + size_t(warp - dim) * width;
  float* to = projected + (warp < dim ? warp : rows * dim + warp - dim);
  for (int row = 0; row < rows; ++row) {
    float sum = 0;
#pragma unroll 8
    for (int at = lane; at < width; at += WARP) sum += latents[size_t(row) * width + at] * weight[at];
    sum = warp_sum(sum);
    if (lane == 0) to[row * dim] = sum;
  }
}

// Scores and indices as one number, the smaller the better: of equal scores the first index is.
__device__ inline unsigned long long ranked(float score, uint32_t index) {
  uint32_t bits = __float_as_uint(score);
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (static_cast<unsigned long long>(bits) << 32) | index;
}

// Codes [rows, 1 + n_tables] of projected vectors [2, rows, DIM]: of the first by `meaning` [bins, DIM], of the second by
// `tables` [n_tables, bins, DIM] in turn, each of what the one before left. Every block searches its share of each
// table for all rows. All blocks must run at once: they meet after each table.
template <int DIM, int WARPS>
__device__ void search(const float* projected, const float* meaning, const float* meaning_energy, const float* tables,
                       const float* energies, const uint32_t* best_given, const int32_t* size, int32_t* codes) {
  constexpr int AT_ONCE = 4;  // centroids whose products a warp sums together, so that it waits once
  SHARED(unsigned long long, found, WARPS);
  const int rows = size[0], bins = size[1], n_tables = size[2];
  auto* best = reinterpret_cast<unsigned long long*>(const_cast<uint32_t*>(best_given));
  Grid grid(const_cast<uint32_t*>(best_given) + 2 * rows * (1 + n_tables));
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int share = (bins + gridDim.x - 1) / gridDim.x;
  const int begin = min(bins, int(blockIdx.x) * share), end = min(bins, begin + share);
  // Few rows: several warps share a row's centroids.
  const int sharing = rows < WARPS ? WARPS / rows : 1;

#ifndef EMULATED
  // The tables are read one after the other, but all can be on their way now.
  for (int table = -1; table < n_tables; ++table) {
    const float* from = table < 0 ? meaning : tables + size_t(table) * bins * DIM;
    for (int at = begin * DIM + threadIdx.x * 32; at < end * DIM; at += WARPS * WARP * 32) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
    }
  }
#endif

  for (int table = -1; table < n_tables; ++table) {
    if (table > 0) grid.meet();
    const float* centroids = table < 0 ? meaning : tables + size_t(table) * bins * DIM;
    const float* energy = table < 0 ? meaning_energy : energies + size_t(table) * bins;
    const float* from = table < 0 ? projected : projected + size_t(rows) * DIM;
    unsigned long long* to = best + size_t(table + 1) * rows;
    for (int item = warp; item < rows * sharing; item += WARPS) {
      const int row = item / sharing;
      Spread<DIM> left;
      left.read(from + size_t(row) * DIM);
      // Each lane fetches one table's code: they lie beside each other in time, not after each other.
      const int mine = lane < table ? int(__ldcg(best + size_t(lane + 1) * rows + row) & 0xffffffffu) : 0;
#pragma unroll 4
      for (int earlier = 0; earlier < table; ++earlier) {
        const int code = __shfl_sync(ALL, mine, earlier);
        Spread<DIM> centroid;
        centroid.read(tables + (size_t(earlier) * bins + code) * DIM);
        left.subtract(centroid);
      }
      unsigned long long nearest = ~0ull;
      for (int first = begin + item % sharing; first < end; first += AT_ONCE * sharing) {
        float sums[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
          Spread<DIM> centroid;
          centroid.read(centroids + size_t(min(first + i * sharing, end - 1)) * DIM);
          sums[i] = left.product(centroid);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
          const int index = min(first + i * sharing, end - 1);
          const unsigned long long rank = ranked(energy[index] - warp_sum(sums[i]), index);
          nearest = rank < nearest ? rank : nearest;
        }
      }
      if (sharing == 1) {
        if (lane == 0) atomicMin(to + row, nearest);
      } else if (lane == 0) {
        found[warp] = nearest;
      }
    }
    if (sharing > 1) {
      __syncthreads();
      if (int(threadIdx.x) < rows) {
        unsigned long long nearest = ~0ull;
        for (int i = 0; i < sharing; ++i) {
          const unsigned long long rank = found[threadIdx.x * sharing + i];
          nearest = rank < nearest ? rank : nearest;
        }
        atomicMin(to + threadIdx.x, nearest);
      }
      __syncthreads();  // before the next table's are found
    }
  }
  grid.meet();
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, n_codes = n_tables + 1;
  for (int at = thread; at < rows * n_codes; at += gridDim.x * blockDim.x) {
    codes[at] = int(__ldcg(best + size_t(at % n_codes) * rows + at / n_codes) & 0xffffffffu);
  }
}

// Codes [rows, n_codes] -> [rows, width]: the sums of each branch's centroids, each projected by its matrix [width, DIM].
// A block makes COLUMNS of one row per warp.
template <int DIM, int COLUMNS, int WARPS>
__device__ void restore(const int32_t* codes, const float* meaning, const float* tables, const float* meaning_out,
                        const float* sound_out, const int32_t* size, float* latents) {
  SHARED(float, sums, 2 * DIM);
  const int rows = size[0], bins = size[1], n_codes = size[2], width = size[3];
  const int row = blockIdx.x % rows, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int at = threadIdx.x; at < 2 * DIM; at += WARPS * WARP) {
    float sum = 0;
    if (at < DIM) {
      sum = meaning[size_t(codes[row * n_codes]) * DIM + at];
    } else {
#pragma unroll 8
      for (int table = 1; table < n_codes; ++table) {
        sum += tables[(size_t(table - 1) * bins + codes[row * n_codes + table]) * DIM + at - DIM];
      }
    }
    sums[at] = sum;
  }
  __syncthreads();
  Spread<DIM> left, right;
  left.read(sums);
  right.read(sums + DIM);
  const int first = (blockIdx.x / rows * WARPS + warp) * COLUMNS;
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i) {
    const int column = min(first + i, width - 1);
    Spread<DIM> weight;
    weight.read(meaning_out + size_t(column) * DIM);
    float product = left.product(weight);
    weight.read(sound_out + size_t(column) * DIM);
    product = warp_sum(product + right.product(weight));
    if (lane == 0 && first + i < width) latents[size_t(row) * width + column] = product;
  }
}
