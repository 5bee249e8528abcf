// For every array of a state, each slot's part of the new one where the slot is active and of the old one elsewhere.
// `pointers` are new and old of each array in turn, then the results; size[0] is the number of slots, size[1 + i] the
// bytes of a slot in array i.

template <typename Unit>
__device__ inline void choose_of(const bool* active, const void* fresh, const void* old, void* chosen, int slots, int units) {
  for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < slots * units; at += gridDim.x * blockDim.x) {
    const void* from = active[at / units] ? fresh : old;
    static_cast<Unit*>(chosen)[at] = static_cast<const Unit*>(from)[at];
  }
}

template <typename... Pointers>
__device__ void choose(const bool* active, const int32_t* size, Pointers... pointers) {
  constexpr int N = sizeof...(Pointers) / 3;
  const void* const all[] = {pointers...};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const void *fresh = all[2 * i], *old = all[2 * i + 1];
    void* chosen = const_cast<void*>(all[2 * N + i]);
    const int bytes = size[1 + i];
    // A view may begin anywhere.
    const auto aligned = bytes | reinterpret_cast<size_t>(fresh) | reinterpret_cast<size_t>(old);
    if (aligned % 16 == 0) {
      choose_of<uint4>(active, fresh, old, chosen, size[0], bytes / 16);
    } else if (aligned % 4 == 0) {
      choose_of<uint32_t>(active, fresh, old, chosen, size[0], bytes / 4);
    } else {
      choose_of<uint8_t>(active, fresh, old, chosen, size[0], bytes);
    }
  }
}
