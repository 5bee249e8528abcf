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

// What lies at unit `at` of a slot's part of an array once `row` is put there. Both are of groups: of `span` units in
// the array, of which the row has the first `held`, and the others become zero or stay `before`.
template <typename Unit>
__device__ inline Unit unit_of(const Unit* row, const Unit* before, int at, int span, int held, bool clear) {
  const int group = at / span, within = at - group * span;
  if (within < held) return row[size_t(group) * held + within];
  return clear ? Unit{} : before[at];
}

// One share of one array. In place, `to` is where the slot lies in it, and no more is touched than changes; else `to`
// becomes the whole array of `slots`.
template <bool IN_PLACE, typename Unit>
__device__ inline void place_of(
    const void* array, const void* row, const void* made, int slot, int slots, int groups, int span, int held,
    bool clear, int share, int shares) {
  const int each = groups * span, step = shares * blockDim.x, begin = share * blockDim.x + threadIdx.x;
  const Unit *from = static_cast<const Unit*>(row), *before = static_cast<const Unit*>(array);
  const size_t mine = size_t(slot) * each;
  if constexpr (IN_PLACE) {
    Unit* to = const_cast<Unit*>(before) + mine;
    const int width = clear ? span : held;
    for (int i = begin; i < groups * width; i += step) {
      const int at = clear ? i : i / held * span + i % held;
      to[at] = unit_of(from, to, at, span, held, clear);
    }
  } else {
    Unit* to = static_cast<Unit*>(const_cast<void*>(made));
    for (size_t i = begin; i < size_t(slots) * each; i += step) {
      const bool of_slot = i >= mine && i - mine < each;
      to[i] = of_slot ? unit_of(from, before + mine, int(i - mine), span, held, clear) : before[i];
    }
  }
}

// A slot of every array of a state becomes a one-slot state's. `pointers` are an array and its row in turn, then what is
// made: the arrays, or in place one number, which is there when they are. size: slot, slots, the shares of each array,
// then for each array its groups, bytes of a group in it and in the row, and whether the rest is cleared.
template <bool IN_PLACE, typename... Pointers>
__device__ void place(const int32_t* size, Pointers... pointers) {
  constexpr int N = IN_PLACE ? (sizeof...(Pointers) - 1) / 2 : sizeof...(Pointers) / 3;
  SHARED(const void*, all, sizeof...(Pointers));  // to take one by its number: registers have none
  if (threadIdx.x == 0) {
    int i = 0;
    ((all[i++] = pointers), ...);
    if (IN_PLACE && blockIdx.x == 0) *static_cast<int32_t*>(const_cast<void*>(all[2 * N])) = size[0];
  }
  __syncthreads();
  const int slot = size[0], slots = size[1], shares = size[2];
  for (int item = blockIdx.x; item < N * shares; item += gridDim.x) {
    const int i = item / shares, share = item % shares;
    const int32_t* of = size + 3 + 4 * i;
    const int groups = of[0], span = of[1], held = of[2];
    const bool clear = of[3];
    const void *array = all[2 * i], *row = all[2 * i + 1], *made = IN_PLACE ? nullptr : all[2 * N + i];
    // A view may begin anywhere.
    const auto aligned = span | held | reinterpret_cast<size_t>(array) | reinterpret_cast<size_t>(row);
    if (aligned % 16 == 0) {
      place_of<IN_PLACE, uint4>(array, row, made, slot, slots, groups, span / 16, held / 16, clear, share, shares);
    } else if (aligned % 4 == 0) {
      place_of<IN_PLACE, uint32_t>(array, row, made, slot, slots, groups, span / 4, held / 4, clear, share, shares);
    } else {
      place_of<IN_PLACE, uint8_t>(array, row, made, slot, slots, groups, span, held, clear, share, shares);
    }
  }
}
