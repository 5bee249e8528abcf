// Pinned keys turned on to where they should stand, in the rings themselves: of each layer and each slot that is due,
// the keys as they were read, turned by one angle for each pair. A warp takes a row of a head.

template <typename T, int D, int H, int R, int PERIOD, bool READ_PACKED, bool PACKED, typename... Pointers>
__device__ void turn_pins(const int32_t* where, Pointers... pointers) {
  // `where`: how many slots are due, how many rows were read, then of each slot its number, its pinned rows, and by how
  // many positions they turn. Of each layer: what was read (packed, its units too), what is written.
  constexpr int RING = READ_PACKED ? 2 : 1, EACH = RING + (PACKED ? 2 : 1);
  constexpr int N = (sizeof...(Pointers) - 1) / EACH, MINE = D / WARP;
  static_assert(D % (2 * WARP) == 0, "whole pairs for each lane");
  SHARED(const void*, all, sizeof...(Pointers));
  if (threadIdx.x == 0) {
    int i = 0;
    ((all[i++] = pointers), ...);
    if (blockIdx.x == 0) *static_cast<int32_t*>(const_cast<void*>(all[N * EACH])) = where[0];
  }
  __syncthreads();
  const int lane = threadIdx.x % WARP, warps = gridDim.x * (blockDim.x / WARP), due = where[0], held = where[1];
  for (int i = 0; i < due; ++i) {
    const int slot = where[2 + 3 * i], n_rows = where[3 + 3 * i], shift = where[4 + 3 * i];
    float cosine[MINE / 2], sine[MINE / 2];
#pragma unroll
    for (int p = 0; p < MINE / 2; ++p) {
      const int pair = lane * (MINE / 2) + p;
      sincosf(shift * exp2f(-2.0f * pair / D * log2f(float(PERIOD))), &sine[p], &cosine[p]);
    }
    for (int item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; item < N * H * n_rows; item += warps) {
      const int layer = item / (H * n_rows), head = item / n_rows % H, row = item % n_rows;
      const size_t source = size_t(head) * held + row, at = size_t(slot * H + head) * R + row;
      float read[MINE], turned[MINE], most = 0;
#pragma unroll
      for (int j = 0; j < MINE; ++j) {
        const size_t from = source * D + lane * MINE + j;
        if constexpr (READ_PACKED) {
          const float unit = static_cast<const float*>(all[layer * EACH + 1])[source];
          read[j] = rounded<T>(float(static_cast<const int8_t*>(all[layer * EACH])[from]) * unit);
        } else {
          read[j] = number(static_cast<const T*>(all[layer * EACH])[from]);
        }
      }
#pragma unroll
      for (int p = 0; p < MINE / 2; ++p) {
        const float x = read[2 * p], y = read[2 * p + 1];
        turned[2 * p] = rounded<T>(x * cosine[p] - y * sine[p]);
        turned[2 * p + 1] = rounded<T>(x * sine[p] + y * cosine[p]);
        most = fmaxf(most, fmaxf(fabsf(turned[2 * p]), fabsf(turned[2 * p + 1])));
      }
      void* ring = const_cast<void*>(all[layer * EACH + RING]);
      if constexpr (PACKED) {
        const float unit = warp_max(most) / 127;
        int8_t* to = static_cast<int8_t*>(ring) + at * D + lane * MINE;
#pragma unroll
        for (int j = 0; j < MINE; ++j) to[j] = int8_t(rintf(turned[j] / (unit == 0 ? 1 : unit)));
        if (lane == 0) static_cast<float*>(const_cast<void*>(all[layer * EACH + RING + 1]))[at] = unit;
      } else {
        T* to = static_cast<T*>(ring) + at * D + lane * MINE;
#pragma unroll
        for (int j = 0; j < MINE; ++j) put(to + j, turned[j]);
      }
    }
  }
}
