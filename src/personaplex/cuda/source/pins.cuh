// Pinned keys turned on to where they should stand, in the rings themselves: of each layer and each slot that is due,
// the keys as they were read, turned by one angle for each pair. A warp takes a row of a head.

template <typename T, int D, int H, int R, int HELD, int PERIOD, bool PACKED, typename... Pointers>
__device__ void turn_pins(const int32_t* where, Pointers... pointers) {
  // `where`: how many slots are due, then of each its number, its pinned rows, and by how many positions they turn.
  constexpr int EACH = PACKED ? 3 : 2, N = (sizeof...(Pointers) - 1) / EACH, MINE = D / WARP;
  static_assert(D % (2 * WARP) == 0, "whole pairs for each lane");
  SHARED(const void*, all, sizeof...(Pointers));
  if (threadIdx.x == 0) {
    int i = 0;
    ((all[i++] = pointers), ...);
    if (blockIdx.x == 0) *static_cast<int32_t*>(const_cast<void*>(all[N * EACH])) = where[0];
  }
  __syncthreads();
  const int lane = threadIdx.x % WARP, warps = gridDim.x * (blockDim.x / WARP), due = where[0];
  for (int i = 0; i < due; ++i) {
    const int slot = where[1 + 3 * i], n_rows = where[2 + 3 * i], shift = where[3 + 3 * i];
    float cosine[MINE / 2], sine[MINE / 2];
#pragma unroll
    for (int p = 0; p < MINE / 2; ++p) {
      const int pair = lane * (MINE / 2) + p;
      sincosf(shift * exp2f(-2.0f * pair / D * log2f(float(PERIOD))), &sine[p], &cosine[p]);
    }
    for (int item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; item < N * H * n_rows; item += warps) {
      const int layer = item / (H * n_rows), head = item / n_rows % H, row = item % n_rows;
      const T* from = static_cast<const T*>(all[layer * EACH]) + (size_t(slot * H + head) * HELD + row) * D + lane * MINE;
      const size_t at = size_t(slot * H + head) * R + row;
      float turned[MINE], most = 0;
#pragma unroll
      for (int p = 0; p < MINE / 2; ++p) {
        const float x = number(from[2 * p]), y = number(from[2 * p + 1]);
        turned[2 * p] = rounded<T>(x * cosine[p] - y * sine[p]);
        turned[2 * p + 1] = rounded<T>(x * sine[p] + y * cosine[p]);
        most = fmaxf(most, fmaxf(fabsf(turned[2 * p]), fabsf(turned[2 * p + 1])));
      }
      void* ring = const_cast<void*>(all[layer * EACH + 1]);
      if constexpr (PACKED) {
        const float unit = warp_max(most) / 127;
        int8_t* to = static_cast<int8_t*>(ring) + at * D + lane * MINE;
#pragma unroll
        for (int j = 0; j < MINE; ++j) to[j] = int8_t(rintf(turned[j] / (unit == 0 ? 1 : unit)));
        if (lane == 0) static_cast<float*>(const_cast<void*>(all[layer * EACH + 2]))[at] = unit;
      } else {
        T* to = static_cast<T*>(ring) + at * D + lane * MINE;
#pragma unroll
        for (int j = 0; j < MINE; ++j) put(to + j, turned[j]);
      }
    }
  }
}
