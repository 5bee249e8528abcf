// What a launch reads once and in an order known from its start, weights and old keys and values, comes into shared
// memory by copies that run ahead of their use: past the meetings of blocks too, in which memory would otherwise rest.
// Nobody waits for anybody else here: each warp has a ring of its own, which it fills and uses.

constexpr int LINE = 128;  // bytes of a weight row in a unit

// What is copied at once: 16 weight rows of 128 bytes, then their groups' scales, then the biases; or keys and values.
template <int BITS, typename S>
struct UnitOf {
  static constexpr int COLUMNS = LINE * 8 / BITS, CHUNKS = COLUMNS / CHUNK;
  static constexpr int SIDE = BITS < 16 ? CHUNKS * int(sizeof(S)) : 0;  // bytes of a row's scales
  static constexpr int WEIGHTS = TILE * LINE, BYTES = (WEIGHTS + 2 * TILE * SIDE + LINE - 1) / LINE * LINE;
};

template <int N>
__device__ inline void copy_ahead(char* to, const char* from) {
#ifdef EMULATED
  emulated_copy(to, from, N);
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (N == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(N) : "memory");
#endif
}

__device__ inline void end_group() {
#ifdef EMULATED
  emulated_end_group();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until no more than `LEFT` of this thread's groups are on their way.
template <int LEFT>
__device__ inline void await_groups() {
#ifdef EMULATED
  emulated_await_groups(LEFT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}

// Four matrices of 8 rows of 16 bytes, of which each lane gives where one row lies: matrix lane / 8, row lane % 8. It
// gets of each the word lane % 4 of row lane / 4.
__device__ inline void load_matrices(const char* row, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
#ifdef EMULATED
  emulated_load_matrices(row, a, b, c, d);
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
               : "r"(at)
               : "memory");
#endif
}

// A warp's ring, and where what it copies next lies. A part of the launch is a linear map, or a share of a ring of keys
// and values of HEAD numbers (0: there is none); `next.turn(flow)` turns to the next part, and is false when there is
// none. Units lie `UNIT` bytes apart; `SIDE` are the bytes of a row's scales in a map that is packed.
template <int UNIT, int SIDE, int HEAD, int WARPS, int STAGES>
struct Flow {
  static constexpr int WEIGHTS = TILE * LINE, HALF = WEIGHTS / 2;  // bytes of weights; of keys, and of values, likewise
  static constexpr int PIECES = HEAD ? HEAD / 8 : 1;               // of 16 bytes, of a key
  static constexpr int KEYS = HALF / (16 * PIECES);                // of a unit
  static constexpr int BYTES = WARPS * STAGES * UNIT;
  static_assert(STAGES >= 2 && HEAD % 64 == 0 && HEAD <= 256, "rings of two units or more, heads of whole lines");

  const int warp;
  char* ring;
  int filled = 0, used = 0;  // stages

  int left = 0;  // units of the present part
  bool of_map = true, packed = false;
  // Of a map: this lane's first piece, and its row's scales or biases, of the unit numbered 0; units are numbered along
  // a weight row and on to the next. From a piece to that four rows on, and to that in the tile's other half.
  // Of a ring: keys and values, the lane's first key of the next unit, and the end.
  const char *pieces, *side;
  int at, four_on, half_on;
  int in_tile, row_units, skip;  // which unit of its tile's row it is, of how many; from a tile's end to the next tile

  // By the shuffle the compiler sees that a warp's threads agree on it, and on all that comes of it.
  __device__ inline explicit Flow(char* memory)
      : warp(__shfl_sync(ALL, int(threadIdx.x / WARP), 0)), ring(memory + warp * STAGES * UNIT) {}

  // Of n units dealt to the warps in turn, how many are this warp's.
  __device__ inline int share(int n) const { return warp < n ? (n - 1 - warp) / WARPS + 1 : 0; }

  // A map's tiles from `first_tile` on. Each has `apart` rows from the next; its rows from the eighth on lie `other` rows
  // behind its first eight. The tiles' units are dealt to the warps in turn.
  template <int BITS, typename S>
  __device__ inline void turn_to(const void* w, const S* scales, const S* biases, int columns, int first_tile,
                                 int n_tiles, int apart, int other) {
    using Of = UnitOf<BITS, S>;
    static_assert(Of::BYTES <= UNIT && (Of::SIDE == SIDE || Of::SIDE == 0), "room for a unit");
    const int lane = threadIdx.x % WARP, half = lane % 16;
    row_units = columns / Of::COLUMNS;
    pieces = static_cast<const char*>(w) + (long long)(first_tile * apart + lane / 8) * row_units * LINE + lane % 8 * 16;
    four_on = 4 * row_units * LINE, half_on = other * row_units * LINE;
    packed = BITS < 16;
    if constexpr (BITS < 16) {
      const int its = first_tile * apart + half % 8 + half / 8 * other;
      side = reinterpret_cast<const char*>(lane < 16 ? scales : biases) + (long long)its * row_units * Of::SIDE;
    }
    skip = (apart - 1) * row_units;
    in_tile = at = warp;
    to_tile();
    left = share(n_tiles * row_units);
    of_map = true;
  }

  // A share of a head's keys and values, those numbered `begin` to `stop` - 1.
  __device__ inline void turn_to(const __nv_bfloat16* keys, const __nv_bfloat16* values, int begin, int stop) {
    const int lane = threadIdx.x % WARP;
    pieces = reinterpret_cast<const char*>(keys) + lane % PIECES * 16;
    side = reinterpret_cast<const char*>(values) + lane % PIECES * 16;
    at = begin + warp * KEYS + lane / PIECES, four_on = stop;
    left = share((stop - begin + KEYS - 1) / KEYS);
    of_map = false;
  }

  __device__ inline void to_tile() {
    while (in_tile >= row_units) in_tile -= row_units, at += skip;
  }

  // Begin to copy the next unit, if there is one.
  template <typename Next>
  __device__ inline void fill(Next& next) {
    while (left == 0 && next.turn(*this)) {
    }
    if (left > 0) {
      --left;
      const int lane = threadIdx.x % WARP;
      char* unit = ring + filled * UNIT;
      if (of_map) {
        // A row's pieces lie crosswise, so that those of eight rows in one column are in different banks.
        char *even = unit + lane / 8 * LINE + (lane % 8 ^ lane / 8) * 16;
        char *odd = unit + lane / 8 * LINE + (lane % 8 ^ lane / 8 ^ 4) * 16;
        const char* from = pieces + (long long)at * LINE;
        copy_ahead<16>(even, from);
        copy_ahead<16>(odd + 4 * LINE, from + four_on);
        copy_ahead<16>(even + 8 * LINE, from + half_on);
        copy_ahead<16>(odd + 12 * LINE, from + half_on + four_on);
        if constexpr (SIDE > 0) {
          if (packed) copy_ahead<SIDE>(unit + WEIGHTS + lane * SIDE, side + (long long)at * SIDE);
        }
        in_tile += WARPS, at += WARPS;
        to_tile();
      } else if constexpr (HEAD > 0) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = at + half * (WARP / PIECES), end = four_on;
          if (i < end) {
            const long long row = (long long)next.seen.row(i) * HEAD * 2;
            copy_ahead<16>(unit + (half * WARP + lane) * 16, pieces + row);
            copy_ahead<16>(unit + HALF + (half * WARP + lane) * 16, side + row);
          }
        }
        at += WARPS * KEYS;
      }
    }
    end_group();
    filled = filled + 1 == STAGES ? 0 : filled + 1;
  }

  template <typename Next>
  __device__ inline void begin(Next& next) {
#pragma unroll 1
    for (int stage = 0; stage < STAGES - 1; ++stage) fill(next);
  }

  // The next unit; what `take` gave before is overwritten.
  template <typename Next>
  __device__ inline const char* take(Next& next) {
    await_groups<STAGES - 2>();
    __syncwarp();  // other lanes' copies are there too, and all have read the last unit
    fill(next);
    const char* unit = ring + used * UNIT;
    used = used + 1 == STAGES ? 0 : used + 1;
    return unit;
  }
};

// Eight numbers from column k of a chunk, to where and in the order in which the multiplications take them: the thread
// with t = lane % 4 finds its 16 of a chunk side by side.
template <int BITS>
__device__ inline void lay(const Eight& x, __nv_bfloat16* chunk, int k) {
  if constexpr (BITS == 4) {  // nibbles 0 4, 1 5, 2 6, 3 7 of the words at 8 t and 32 + 8 t
    Eight ordered;
#pragma unroll
    for (int i = 0; i < 8; ++i) ordered.of[i] = x.of[i / 2 + i % 2 * 4];
    *reinterpret_cast<Eight*>(chunk + k / 8 % 4 * 16 + k / 32 * 8) = ordered;
  } else if constexpr (BITS == 8) {  // bytes 0 2, 1 3 of the words at 16 j + 4 t
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      __nv_bfloat16* to = chunk + (k % 16 + i) / 4 * 16 + k / 16 * 4;
      to[0] = x.of[i], to[1] = x.of[i + 2], to[2] = x.of[i + 1], to[3] = x.of[i + 3];
    }
  } else {  // pairs at 16 j + 2 t and 16 j + 8 + 2 t
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      __nv_bfloat16* to = chunk + i / 2 * 16 + k / 16 * 4 + k / 8 % 2 * 2;
      to[0] = x.of[i], to[1] = x.of[i + 1];
    }
  }
}

// Add a unit's products with x to sum: of rows g and g + 8, g = lane / 4, in sum[0] and sum[2]. The unit begins with
// chunk `first` of x, which lies as `lay` leaves it. Every column of the product is the same vector: it is the first
// that counts, and others cost nothing.
template <int BITS, typename S>
__device__ inline void multiply_unit(float (&sum)[4], const char* unit, const __nv_bfloat16* x, const float* x_sums,
                                     int first) {
  using Of = UnitOf<BITS, S>;
  const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
  const char* row = unit + lane % 16 * LINE;
  const int piece = (lane / 16 ^ lane % 8) * 16;
  Side<S, Of::CHUNKS> scale[2], bias[2];
  if constexpr (BITS < 16) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const char* at = unit + Of::WEIGHTS + (g + 8 * h) * Of::SIDE;
      scale[h] = *reinterpret_cast<const Side<S, Of::CHUNKS>*>(at);
      bias[h] = *reinterpret_cast<const Side<S, Of::CHUNKS>*>(at + TILE * Of::SIDE);
    }
  }
#pragma unroll
  for (int c = 0; c < Of::CHUNKS; ++c) {
    const uint4* of_x = reinterpret_cast<const uint4*>(x + (first + c) * CHUNK + t * 16);
    const uint4 one = of_x[0], two = of_x[1];
    const uint32_t b0[4] = {one.x, one.z, two.x, two.z}, b1[4] = {one.y, one.w, two.y, two.w};
    constexpr int LOADS = BITS / 4;  // of a chunk: each has 32 bytes of 16 rows
    uint32_t word[LOADS][4];         // rows g and g + 8 of the first 16 bytes, then of the second
#pragma unroll
    for (int i = 0; i < LOADS; ++i)
      load_matrices(row + (piece ^ (c * LOADS + i) * 32), word[i][0], word[i][1], word[i][2], word[i][3]);
    if constexpr (BITS == 16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(sum, word[j][0], word[j][1], word[j][2], word[j][3], b0[j], b1[j]);
    } else {
      float low[4], high[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int half = BITS == 4 ? j / 2 : j % 2;
        const uint32_t(&of)[4] = word[BITS == 4 ? 0 : j / 2];
        multiply_packed<BITS>(low, high, j, of[2 * half], of[2 * half + 1], b0[j], b1[j]);
      }
      constexpr float OFFSET = BITS == 4 ? 128 : 17 * 128;
      const float x_sum = x_sums[first + c];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float unit_of = number(scale[h].of[c]), rest = number(bias[h].of[c]) - OFFSET * unit_of;
        const float whole = BITS == 4 ? low[2 * h] : low[2 * h] + 16 * high[2 * h];
        sum[2 * h] += unit_of * whole + rest * x_sum;
      }
    }
  }
}
