// One decoding step of rotary attention over a ring of keys and values (nn/attention.py says what lies where).
//
// attend_ring: a block takes one slot, one head and one share of the rows that are seen; rows that nothing was written
// to, or that the window has left, are not read. The block of the first share turns the new keys, writes them and the
// new values to their rows, and sees them itself, from shared memory. Nobody reads those rows in this launch: the keys
// that are still seen lie in others (a ring turns in no fewer rows than a call sees).
// combine: the shares of a slot's head, added up.

// Numbers in 16 bytes, which is what a lane reads at once of a row (less only if the row has less).
template <typename K>
constexpr int PIECE = 16 / sizeof(K);

template <typename K, int E>
__device__ inline uint4 piece(const K* row, int lane) {
  if constexpr (E == PIECE<K>) return reinterpret_cast<const uint4*>(row)[lane];
  static_assert(E == PIECE<K> || 2 * E == PIECE<K>, "rows are of 8 bytes or of whole 16");
  const uint2 half = reinterpret_cast<const uint2*>(row)[lane];
  return uint4{half.x, half.y, 0, 0};
}

__device__ inline void unpack(uint4 raw, const float*, float* x) {
  x[0] = __uint_as_float(raw.x), x[1] = __uint_as_float(raw.y);
  x[2] = __uint_as_float(raw.z), x[3] = __uint_as_float(raw.w);
}

__device__ inline void unpack(uint4 raw, const __nv_bfloat16*, float* x) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

__device__ inline void unpack(uint4 raw, const __half*, float* x) {
  const __half* halves = reinterpret_cast<const __half*>(&raw);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = number(halves[i]);
}

__device__ inline void unpack(uint4 raw, const int8_t*, float* x) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // 2^23 + byte as a float is the byte in its last bits: faster than conversions.
    uint32_t shifted = words[i] ^ 0x80808080u;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x[4 * i + j] = __uint_as_float(0x4b000000u | ((shifted >> (8 * j)) & 0xffu)) - 8388736.0f;
    }
  }
}

// What one call of a slot sees of its ring besides the new tokens: first the pinned rows that the window has left,
// then the window, oldest first.
struct Seen {
  int oldest;    // position where the window of the first new token begins
  int n_pins;    // pinned tokens before it
  int count;     // rows in all
  int n_pinned;  // the rows behind these turn
  int turning;   // row of the first position in the window that is not pinned, less that position

  __device__ Seen(int position, int pinned, int context, int n_rows) {
    oldest = position - context + 1 > 0 ? position - context + 1 : 0;
    n_pinned = pinned;
    n_pins = pinned < oldest ? pinned : oldest;
    count = n_pins + position - oldest;
    int first = oldest > pinned ? oldest : pinned;
    turning = row_of(first, pinned, n_rows) - first;
  }

  static __device__ int row_of(int position, int pinned, int n_rows) {
    return position < pinned ? position : pinned + (position - pinned) % (n_rows - pinned);
  }

  __device__ int position(int i) const { return i < n_pins ? i : oldest + i - n_pins; }

  __device__ int row(int i, int n_rows) const {
    int at = position(i);
    if (at < n_pinned) return at;
    at += turning;
    return at < n_rows ? at : at - (n_rows - n_pinned);
  }
};

// How many of `splits` shares are taken, of how many rows each; the first has the new tokens, and is always taken.
__device__ inline int share(int count, int splits, int fewest) {
  int each = (count + splits - 1) / splits;
  return each > fewest ? each : fewest;
}

constexpr uint32_t MINUS_INFINITY = 0xff800000u;

// What a score weighs beside the largest one; nothing if it was not seen, for then both may be minus infinity.
__device__ inline float weigh(float score, float most) {
  return score == __uint_as_float(MINUS_INFINITY) ? 0.0f : exp2f(score - most);
}

// A part of a softmax and of the values it weighs: the largest score (in powers of 2), the sum, the values.
template <int E>
struct Part {
  float most, sum, values[E];

  __device__ void clear() {
    most = __uint_as_float(MINUS_INFINITY);
    sum = 0;
#pragma unroll
    for (int e = 0; e < E; ++e) values[e] = 0;
  }

  // Make room for a score.
  __device__ void raise(float score) {
    if (score <= most) return;
    float less = exp2f(most - score);
    most = score;
    sum *= less;
#pragma unroll
    for (int e = 0; e < E; ++e) values[e] *= less;
  }
};

// D channels per head; N tokens per slot in this call; rings of R rows, of which CONTEXT are seen and those of pinned
// tokens besides, if there are PINS (else `pinned` is not read).
// qkv [B * N, 3 * H * D]; position, pinned [B]; k, v [B, H, R, D]; k_unit, v_unit [B, H, R] where k and v are packed.
// SPLITS == 1: `out` [B * N, H * D] like qkv. Else float32 [B, H, SPLITS, N, D + 2]: values, largest score, sum.
template <int D, int N, int H, int R, int CONTEXT, int PERIOD, bool PINS, int SPLITS, int FEWEST, int ROWS, int THREADS,
          typename T, typename K, typename O>
__device__ inline void attend_packed(
    const T* qkv, const int32_t* position, const int32_t* pinned, const K* k_ring, const K* v_ring,
    const float* k_unit, const float* v_unit, O* out) {
  constexpr bool PACKED = sizeof(K) == 1;
  constexpr int E = PIECE<K> < D ? PIECE<K> : D, LANES = D / E, GROUPS = THREADS / LANES, WARPS = THREADS / WARP;
  static_assert(D % E == 0 && LANES <= WARP && WARP % LANES == 0, "a row is read by lanes of one warp");
  const int thread = threadIdx.x, lane = thread % LANES, group = thread / LANES;
  const int split = blockIdx.x % SPLITS, head = blockIdx.x / SPLITS % H, slot = blockIdx.x / (SPLITS * H);
  const int at = position[slot], first = PINS ? pinned[slot] : 0;
  const Seen seen(at, first, CONTEXT, R);
  const int each = share(seen.count, SPLITS, FEWEST), begin = split * each;
  const int end = begin + each < seen.count ? begin + each : seen.count;
  if (split > 0 && begin >= seen.count) return;  // the whole block: nobody waits for it

  SHARED(float, q, N * D);
  SHARED(float, k_new, N * D);
  SHARED(float, v_new, N * D);
  SHARED(float, ends, WARPS * N * (D + 2));

  // Powers of 2 in place of e: the scores are scaled for it.
  const float scale = 1.44269504088896341f * rsqrtf(float(D));
  for (int i = thread; i < N * D / 2; i += THREADS) {
    const int token = i / (D / 2), pair = i % (D / 2);
    const T* from = qkv + (size_t(slot) * N + token) * 3 * H * D + head * D + 2 * pair;
    const float rate = exp2f(-(float(pair) / float(D / 2)) * log2f(float(PERIOD)));
    float sine, cosine;
    sincosf(float(at + token) * rate, &sine, &cosine);
    float x = number(from[0]), y = number(from[1]);
    q[token * D + 2 * pair] = rounded<T>(x * cosine - y * sine) * scale;
    q[token * D + 2 * pair + 1] = rounded<T>(x * sine + y * cosine) * scale;
    if (split == 0) {
      x = number(from[H * D]), y = number(from[H * D + 1]);
      k_new[token * D + 2 * pair] = rounded<T>(x * cosine - y * sine);
      k_new[token * D + 2 * pair + 1] = rounded<T>(x * sine + y * cosine);
      v_new[token * D + 2 * pair] = number(from[2 * H * D]);
      v_new[token * D + 2 * pair + 1] = number(from[2 * H * D + 1]);
    }
  }
  __syncthreads();

  const size_t ring = (size_t(slot) * H + head) * R;
  if (split == 0) {
    // A warp per row to write, keys and values in turn.
    for (int i = thread / WARP; i < 2 * N; i += WARPS) {
      const int token = i / 2, row = Seen::row_of(at + token, first, R);
      float* x = (i % 2 ? v_new : k_new) + token * D;
      K* to = const_cast<K*>(i % 2 ? v_ring : k_ring) + (ring + row) * D;
      if constexpr (PACKED) {
        float most = 0;
        for (int d = thread % WARP; d < D; d += WARP) most = fmaxf(most, fabsf(x[d]));
        const float unit = __fdiv_rn(warp_max(most), 127.0f);
        for (int d = thread % WARP; d < D; d += WARP) {
          const float whole = rintf(__fdiv_rn(x[d], unit == 0 ? 1.0f : unit));
          to[d] = K(int(whole));
          x[d] = whole * unit;
        }
        if (thread % WARP == 0) const_cast<float*>(i % 2 ? v_unit : k_unit)[ring + row] = unit;
      } else {
        for (int d = thread % WARP; d < D; d += WARP) {
          put(to + d, x[d]);
          x[d] = rounded<K>(x[d]);
        }
      }
    }
    __syncthreads();
  }

  float mine[N][E];
  Part<E> parts[N];
#pragma unroll
  for (int token = 0; token < N; ++token) {
    parts[token].clear();
#pragma unroll
    for (int e = 0; e < E; ++e) mine[token][e] = q[token * D + lane * E + e];
  }

  for (int start = begin; start < end; start += GROUPS * ROWS) {
    uint4 keys[ROWS], values[ROWS];
    float units[ROWS], v_units[ROWS], scores[ROWS][N];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int i = start + r * GROUPS + group;
      keys[r] = values[r] = uint4{0, 0, 0, 0};
      units[r] = v_units[r] = 1;
      if (i < end) {
        const size_t row = ring + seen.row(i, R);
        keys[r] = piece<K, E>(k_ring + row * D, lane);
        values[r] = piece<K, E>(v_ring + row * D, lane);
        if constexpr (PACKED) units[r] = k_unit[row], v_units[r] = v_unit[row];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int i = start + r * GROUPS + group;
      float x[PIECE<K>];
      unpack(keys[r], k_ring, x);
#pragma unroll
      for (int token = 0; token < N; ++token) {
        float score = 0;
#pragma unroll
        for (int e = 0; e < E; ++e) score += mine[token][e] * x[e];
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) score += __shfl_xor_sync(ALL, score, apart);
        if constexpr (PACKED) score *= units[r];
        // A later token's window begins later; pinned tokens stay.
        const bool left = token > 0 && seen.position(i) < at + token - CONTEXT + 1 && seen.position(i) >= first;
        scores[r][token] = i < end && !left ? score : __uint_as_float(MINUS_INFINITY);
      }
    }
#pragma unroll
    for (int token = 0; token < N; ++token) {
      float most = scores[0][token];
#pragma unroll
      for (int r = 1; r < ROWS; ++r) most = fmaxf(most, scores[r][token]);
      parts[token].raise(most);
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float x[PIECE<K>];
      unpack(values[r], v_ring, x);
#pragma unroll
      for (int token = 0; token < N; ++token) {
        Part<E>& part = parts[token];
        float weight = weigh(scores[r][token], part.most);
        part.sum += weight;
        if constexpr (PACKED) weight *= v_units[r];
#pragma unroll
        for (int e = 0; e < E; ++e) part.values[e] += weight * x[e];
      }
    }
  }

  // The new tokens, each seen by itself and by those after it: the first group's. All lanes reach the shuffles.
  if (split == 0 && thread < WARP) {
#pragma unroll
    for (int other = 0; other < N; ++other) {
#pragma unroll
      for (int token = other; token < N; ++token) {
        float score = 0;
#pragma unroll
        for (int e = 0; e < E; ++e) score += mine[token][e] * k_new[other * D + lane * E + e];
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) score += __shfl_xor_sync(ALL, score, apart);
        if (group == 0) {
          Part<E>& part = parts[token];
          part.raise(score);
          const float weight = exp2f(score - part.most);
          part.sum += weight;
#pragma unroll
          for (int e = 0; e < E; ++e) part.values[e] += weight * v_new[other * D + lane * E + e];
        }
      }
    }
  }

  // The groups of a warp, then the warps of the block.
#pragma unroll
  for (int token = 0; token < N; ++token) {
    Part<E>& part = parts[token];
    float most = part.most;
#pragma unroll
    for (int apart = LANES; apart < WARP; apart *= 2) most = fmaxf(most, __shfl_xor_sync(ALL, most, apart));
    part.raise(most);
#pragma unroll
    for (int apart = LANES; apart < WARP; apart *= 2) {
      part.sum += __shfl_xor_sync(ALL, part.sum, apart);
#pragma unroll
      for (int e = 0; e < E; ++e) part.values[e] += __shfl_xor_sync(ALL, part.values[e], apart);
    }
    float* end_of = ends + (thread / WARP * N + token) * (D + 2);
    if (thread % WARP < LANES) {
#pragma unroll
      for (int e = 0; e < E; ++e) end_of[lane * E + e] = part.values[e];
      if (thread % WARP == 0) end_of[D] = part.most, end_of[D + 1] = part.sum;
    }
  }
  __syncthreads();
  for (int i = thread; i < N * D; i += THREADS) {
    const int token = i / D, d = i % D;
    const float* of = ends + token * (D + 2);
    float most = of[D], sum = 0, value = 0;
    for (int warp = 1; warp < WARPS; ++warp) most = fmaxf(most, of[warp * N * (D + 2) + D]);
    for (int warp = 0; warp < WARPS; ++warp) {
      const float* end_of = of + warp * N * (D + 2);
      const float weight = weigh(end_of[D], most);
      sum += weight * end_of[D + 1];
      value += weight * end_of[d];
    }
    if constexpr (SPLITS == 1) {
      put(out + ((size_t(slot) * N + token) * H + head) * D + d, value / sum);
    } else {
      float* to = reinterpret_cast<float*>(out) + (size_t(blockIdx.x) * N + token) * (D + 2);
      to[d] = value;
      if (d == 0) to[D] = most, to[D + 1] = sum;
    }
  }
}

// The same for rings that are not packed.
template <int D, int N, int H, int R, int CONTEXT, int PERIOD, bool PINS, int SPLITS, int FEWEST, int ROWS, int THREADS,
          typename T, typename K, typename O>
__device__ inline void attend_ring(
    const T* qkv, const int32_t* position, const int32_t* pinned, const K* k_ring, const K* v_ring, O* out) {
  attend_packed<D, N, H, R, CONTEXT, PERIOD, PINS, SPLITS, FEWEST, ROWS, THREADS>(
      qkv, position, pinned, k_ring, v_ring, nullptr, nullptr, out);
}

// parts [B, H, SPLITS, N, D + 2] of those -> out [B * N, H * D]. A block per slot, head and token.
template <int D, int N, int H, int R, int CONTEXT, bool PINS, int SPLITS, int FEWEST, typename T>
__device__ inline void combine(const float* parts, const int32_t* position, const int32_t* pinned, T* out) {
  const int token = blockIdx.x % N, head = blockIdx.x / N % H, slot = blockIdx.x / (N * H);
  const Seen seen(position[slot], PINS ? pinned[slot] : 0, CONTEXT, R);
  const int each = share(seen.count, SPLITS, FEWEST), taken = (seen.count + each - 1) / each;
  const float* from = parts + ((size_t(slot) * H + head) * SPLITS * N + token) * (D + 2);
  constexpr int APART = N * (D + 2);
  float most = from[D];
  for (int split = 1; split < taken; ++split) most = fmaxf(most, from[split * APART + D]);
  for (int d = threadIdx.x; d < D; d += blockDim.x) {
    float sum = 0, value = 0;
    for (int split = 0; split < taken || split == 0; ++split) {
      const float* part = from + split * APART;
      const float weight = weigh(part[D], most);
      sum += weight * part[D + 1];
      value += weight * part[d];
    }
    put(out + ((size_t(slot) * N + token) * H + head) * D + d, value / sum);
  }
}

// Position [B] + N, once `rows` are there: what comes after a call must not write to the rings before it has ended.
template <int B, int N, typename T>
__device__ inline void moved_on(const int32_t* position, const T*, int32_t* after) {
  for (int slot = threadIdx.x; slot < B; slot += blockDim.x) after[slot] = position[slot] + N;
}
