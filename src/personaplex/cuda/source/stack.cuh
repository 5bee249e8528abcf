// Transformer layers for one token of one slot in a single launch: a block per multiprocessor, and a meeting of all
// blocks between a layer's five parts instead of a launch for each. What the next parts read comes in meanwhile.

constexpr float LEAST = -3.0e38f;  // less than any score
constexpr int PARTS = 5;           // of a layer: queries, keys and values; attention; its output; the gate; down

template <typename S>
struct StackLayer {
  const __nv_bfloat16* norm1;
  const void* in_w;
  const S *in_s, *in_b;
  const void* out_w;
  const S *out_s, *out_b;
  const __nv_bfloat16* norm2;
  const void* gate_w;
  const S *gate_s, *gate_b;
  const void* down_w;
  const S *down_s, *down_b;
  __nv_bfloat16 *k, *v;  // the ring [HEADS][N_ROWS][HEAD]; this token's rows are written
};

// Which tokens the one at `position` sees besides itself, numbered 0 ... count - 1, and in which rows of the ring they
// lie (nn/attention.py): the pinned ones that the window has left, then the window.
struct Seen {
  int pinned, turning, outside, count, own_row, begin;

  __device__ inline Seen(int position, int pinned, int n_rows, int context) : pinned(pinned), turning(n_rows - pinned) {
    const int first = max(0, position - context + 1);
    outside = min(pinned, first);
    count = outside + position - first;
    own_row = position < pinned ? position : pinned + (position - pinned) % turning;
    begin = first < pinned ? first : pinned + (first - pinned) % turning;
  }
  __device__ inline int row(int i) const {
    if (i < outside) return i;
    const int at = begin + i - outside;  // the window is no longer than what turns
    return at < pinned + turning ? at : at - turning;
  }
};

__device__ inline float2 pair_of(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ inline void numbers_of(uint4 words, float (&to)[8]) {
  const uint32_t of[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = pair_of(of[i]);
    to[2 * i] = two.x, to[2 * i + 1] = two.y;
  }
}

template <int BITS, int DIM, int HEADS, int HIDDEN, int N_ROWS, int CONTEXT, int PERIOD, int WARPS, int BLOCKS,
          int SHARES, int STAGES, typename S>
struct Stack {
  static constexpr int HEAD = DIM / HEADS, TASKS = HEADS * SHARES, THREADS = WARPS * WARP;
  static constexpr int LANES = HEAD / 8, TEAMS = WARP / LANES, ENTRY = HEAD + 2;  // of an entry: sums, weight, largest
  using Unit = UnitOf<BITS, S>;
  using Ahead = Flow<Unit::BYTES, Unit::SIDE, HEAD, WARPS, STAGES>;
  using Of = Parts<WARPS, BLOCKS>;
  using In = typename Of::template Map<BITS, S, DIM, 3 * DIM, STORE>;
  using Out = typename Of::template Map<BITS, S, DIM, DIM, ADD>;
  using Up = typename Of::template Map<BITS, S, DIM, HIDDEN, GATE>;
  using Down = typename Of::template Map<BITS, S, HIDDEN, DIM, ADD>;

  __device__ static constexpr int larger(int a, int b) { return a > b ? a : b; }
  static constexpr int ATTENTION = (3 * HEAD + WARPS * ENTRY) * 4;
  static constexpr int WORK = larger(larger(larger(In::BYTES, Out::BYTES), larger(Up::BYTES, Down::BYTES)), ATTENTION);
  // Shared memory: what a part works with, sines and cosines of this position, the warps' rings.
  static constexpr int TURNS = (WORK + 15) / 16 * 16, RINGS = (TURNS + HEAD * 4 + LINE - 1) / LINE * LINE;
  static constexpr int BYTES = RINGS + Ahead::BYTES + LINE;

  // What is copied, in the order in which it is used.
  struct Plan {
    const StackLayer<S>* layers;
    int n_layers;
    const Seen& seen;
    int part = -1, task = 0;

    __device__ inline bool turn(Ahead& flow) {
      if (part % PARTS == 1 && task + BLOCKS < TASKS) {
        task += BLOCKS;
      } else {
        if (part + 1 >= PARTS * n_layers) return false;
        ++part, task = blockIdx.x;
      }
      const StackLayer<S>& layer = layers[part / PARTS];
      switch (part % PARTS) {
        case 0: In::turn(flow, layer.in_w, layer.in_s, layer.in_b); break;
        case 1: {
          if (task >= TASKS) break;
          const long long head = (long long)(task / SHARES) * N_ROWS * HEAD;
          const int share = task % SHARES;
          flow.turn_to(layer.k + head, layer.v + head, begin(seen, share), begin(seen, share + 1));
          break;
        }
        case 2: Out::turn(flow, layer.out_w, layer.out_s, layer.out_b); break;
        case 3: Up::turn(flow, layer.gate_w, layer.gate_s, layer.gate_b); break;
        default: Down::turn(flow, layer.down_w, layer.down_s, layer.down_b);
      }
      return true;
    }
  };

  __device__ static inline int begin(const Seen& seen, int share) { return (long long)seen.count * share / SHARES; }

  // The residual of this thread's first row, which it would otherwise wait for: it has been there since the part before
  // the last.
  template <typename M>
  __device__ __forceinline__ static __nv_bfloat16 early_of(const __nv_bfloat16* residual) {
    __nv_bfloat16 early = {};
    if (int(threadIdx.x) < M::n_tiles() * M::APART)
      early = fresh_one(residual + M::first_tile() * M::APART + threadIdx.x);
    return early;
  }

  // The block's shares of the heads' attention: of each the sum of values, `shares` [TASKS][HEAD], then behind them
  // their weight and the largest score [TASKS][2].
  __device__ __forceinline__ static void attend(char* memory, const float* turns, Ahead& flow, Plan& plan,
                                                const __nv_bfloat16* qkv, __nv_bfloat16* k, __nv_bfloat16* v,
                                                float* shares) {
    float* q = reinterpret_cast<float*>(memory);
    float *new_k = q + HEAD, *new_v = new_k + HEAD, *entries = new_v + HEAD;
    const int warp = flow.warp, team = threadIdx.x % WARP / LANES, lane = threadIdx.x % LANES;
    const Seen& seen = plan.seen;
#pragma unroll 1
    for (int task = blockIdx.x; task < TASKS; task += BLOCKS) {
      const int head = task / SHARES, share = task % SHARES;
      if (task >= BLOCKS) __syncthreads();  // the last task's numbers are read
      for (int i = threadIdx.x; i < 3 * HEAD / 2; i += THREADS) {
        const int of = i / (HEAD / 2), at = 2 * (i % (HEAD / 2));  // queries, keys, values; a pair of them
        float2 two = pair_of(__ldcg(reinterpret_cast<const uint32_t*>(qkv + of * DIM + head * HEAD + at)));
        if (of < 2) {
          const float cosine = turns[at], sine = turns[at + 1];
          two = make_float2(rounded<__nv_bfloat16>(two.x * cosine - two.y * sine),
                            rounded<__nv_bfloat16>(two.x * sine + two.y * cosine));
        }
        if (of > 0 && share == 0) {  // nobody reads this row in this launch: its last token has left the window
          __nv_bfloat16* row = (of == 1 ? k : v) + ((long long)head * N_ROWS + seen.own_row) * HEAD + at;
          put(row, two.x), put(row + 1, two.y);
        }
        // Scores are made for powers of two, which are one instruction.
        const float scale = of == 0 ? 1.4426950408889634f * rsqrtf(float(HEAD)) : 1;
        q[of * HEAD + at] = two.x * scale, q[of * HEAD + at + 1] = two.y * scale;
      }
      __syncthreads();
      float mine[8], sum[8] = {}, weight = 0, largest = LEAST;
#pragma unroll
      for (int i = 0; i < 8; ++i) mine[i] = q[lane * 8 + i];
      const auto score_of = [&](const float(&key)[8]) {
        float score = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) score += mine[i] * key[i];
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) score += __shfl_xor_sync(ALL, score, apart);
        return score;
      };
      const int stop = begin(seen, share + 1), units = (stop - begin(seen, share) + Ahead::KEYS - 1) / Ahead::KEYS;
      int first = begin(seen, share) + warp * Ahead::KEYS + team;
      // A team of LANES threads takes two rows of a unit, eight numbers of each by a thread.
#pragma unroll 1
      for (int to_do = flow.share(units); to_do > 0; --to_do, first += WARPS * Ahead::KEYS) {
        const char* unit = flow.take(plan) + threadIdx.x % WARP * 16;
        float score[2], values[2][8], highest = largest;
#pragma unroll
        for (int a = 0; a < 2; ++a) {
          float key[8];
          const bool there = first + a * TEAMS < stop;  // where not, nothing was copied
          numbers_of(*reinterpret_cast<const uint4*>(unit + a * WARP * 16), key);
          const uint4 zero = make_uint4(0, 0, 0, 0);
          numbers_of(there ? *reinterpret_cast<const uint4*>(unit + Ahead::HALF + a * WARP * 16) : zero, values[a]);
          score[a] = score_of(key);
          if (!there) score[a] = LEAST;
          highest = fmaxf(highest, score[a]);
        }
        const float fade = exp2f(largest - highest), one = exp2f(score[0] - highest), two = exp2f(score[1] - highest);
        const bool any = highest > LEAST;
        weight = weight * fade + (any ? one + two : 0);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = sum[i] * fade + (one * values[0][i] + two * values[1][i]);
        largest = highest;
      }
      if (share == 0) {  // the token itself; every team scores it, the first counts it
        float key[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) key[i] = new_k[lane * 8 + i];
        const float score = score_of(key);
        if (warp == 0 && team == 0) {
          const float highest = fmaxf(largest, score), fade = exp2f(largest - highest), w = exp2f(score - highest);
          weight = weight * fade + w;
#pragma unroll
          for (int i = 0; i < 8; ++i) sum[i] = sum[i] * fade + w * new_v[lane * 8 + i];
          largest = highest;
        }
      }
#pragma unroll
      for (int apart = LANES; apart < WARP; apart *= 2) {  // the warp's teams
        const float other = __shfl_xor_sync(ALL, largest, apart), highest = fmaxf(largest, other);
        const float fade = exp2f(largest - highest), theirs = exp2f(other - highest);
        weight = weight * fade + __shfl_xor_sync(ALL, weight, apart) * theirs;
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] = sum[i] * fade + __shfl_xor_sync(ALL, sum[i], apart) * theirs;
        largest = highest;
      }
      float* entry = entries + warp * ENTRY;
      if (team == 0) {
#pragma unroll
        for (int i = 0; i < 8; ++i) entry[lane * 8 + i] = sum[i];
        if (lane == 0) entry[HEAD] = weight, entry[HEAD + 1] = largest;
      }
      __syncthreads();
      for (int i = threadIdx.x; i < HEAD; i += THREADS) {
        float highest = LEAST, total = 0, all = 0;
#pragma unroll
        for (int of = 0; of < WARPS; ++of) highest = fmaxf(highest, entries[of * ENTRY + HEAD + 1]);
#pragma unroll
        for (int of = 0; of < WARPS; ++of) {
          const float w = exp2f(entries[of * ENTRY + HEAD + 1] - highest);
          total += w * entries[of * ENTRY + i];
          all += w * entries[of * ENTRY + HEAD];
        }
        shares[task * HEAD + i] = total;
        if (i == 0) shares[TASKS * HEAD + 2 * task] = all, shares[TASKS * HEAD + 2 * task + 1] = highest;
      }
    }
  }

  // Eight numbers of the attention's result from its shares.
  __device__ static inline Eight attended(const float* shares, int k) {
    const int task = k / HEAD * SHARES;
    float weight[SHARES], largest[SHARES], of[SHARES][8], highest = LEAST;
#pragma unroll
    for (int share = 0; share < SHARES; ++share) {
      const float* two = shares + TASKS * HEAD + 2 * (task + share);
      weight[share] = __ldcg(two), largest[share] = __ldcg(two + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* at = shares + (task + share) * HEAD + k % HEAD + 4 * half;
        const float4 four = __ldcg(reinterpret_cast<const float4*>(at));
        of[share][4 * half] = four.x, of[share][4 * half + 1] = four.y;
        of[share][4 * half + 2] = four.z, of[share][4 * half + 3] = four.w;
      }
    }
    float all = 0, sum[8] = {};
#pragma unroll
    for (int share = 0; share < SHARES; ++share) highest = fmaxf(highest, largest[share]);
#pragma unroll
    for (int share = 0; share < SHARES; ++share) {
      const float w = exp2f(largest[share] - highest);
      all += w * weight[share];
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += w * of[share][i];
    }
    Eight result;
#pragma unroll
    for (int i = 0; i < 8; ++i) put(&result.of[i], sum[i] / all);
    return result;
  }

  // x [DIM] through the layers to out [DIM]. `where` holds position and pinned tokens; the rest is scratch.
  __device__ __forceinline__ static void run(const StackLayer<S>* layers, int n_layers, const __nv_bfloat16* x,
                                             const int32_t* where, const uint32_t* counters, __nv_bfloat16* out,
                                             __nv_bfloat16* qkv, float* shares, __nv_bfloat16* middle,
                                             __nv_bfloat16* hidden, __nv_bfloat16* between) {
    DYNAMIC(memory);
    float* turns = reinterpret_cast<float*>(memory + TURNS);
    const int position = where[0];
    const Seen seen(position, where[1], N_ROWS, CONTEXT);
    Plan plan{layers, n_layers, seen};
    char* rings = memory + RINGS;
    rings += (LINE - reinterpret_cast<size_t>(rings) % LINE) % LINE;
    Ahead flow(rings);
    flow.begin(plan);
    for (int pair = threadIdx.x; pair < HEAD / 2; pair += THREADS) {
      float sine, cosine;
      sincosf(position * exp2f(-2.0f * pair / HEAD * log2f(float(PERIOD))), &sine, &cosine);
      turns[2 * pair] = cosine, turns[2 * pair + 1] = sine;
    }
    Grid grid(const_cast<uint32_t*>(counters));
    const auto row = [](const __nv_bfloat16* from) { return [from](int k) { return fresh(from + k); }; };
    const auto nothing = [] {};
    const auto* laid = reinterpret_cast<const __nv_bfloat16*>(memory);
#pragma unroll 1
    for (int part = 0; part < PARTS * n_layers; ++part) {
      const int l = part / PARTS;
      const StackLayer<S>& layer = layers[l];
      // Two buffers in turn: the residual is read until the last block has added it.
      const __nv_bfloat16* before = l == 0 ? x : between + (l - 1) % 2 * DIM;
      __nv_bfloat16* after = l == n_layers - 1 ? out : between + l % 2 * DIM;
      const __nv_bfloat16* residual = part % PARTS == 2 ? before : middle;
      __nv_bfloat16 early = {};
      const auto had = [&](int row, int i) { return i == int(threadIdx.x) ? early : fresh_one(residual + row); };
      typename Of::Job job;
      switch (part % PARTS) {
        case 0:
          job = Of::template prepare<In, BITS, RMS>(memory, grid, layer.norm1, nothing, row(before));
          break;
        case 1:
          grid.wait();
          attend(memory, turns, flow, plan, qkv, layer.k, layer.v, shares);
          break;
        case 2:
          early = early_of<Out>(residual);
          job = Of::template prepare<Out, BITS, PLAIN>(memory, grid, nullptr, nothing,
                                                       [shares](int k) { return attended(shares, k); });
          break;
        case 3:
          job = Of::template prepare<Up, BITS, RMS>(memory, grid, layer.norm2, nothing, row(middle));
          break;
        default:
          early = early_of<Down>(residual);
          job = Of::template prepare<Down, BITS, PLAIN>(memory, grid, nullptr, nothing, row(hidden));
      }
      if (part % PARTS != 1) Of::template multiply_all<BITS, S>(job, flow, plan, laid);
      switch (part % PARTS) {
        case 0: Of::template finish<In>(job.partial, had, qkv); break;
        case 1: break;
        case 2: Of::template finish<Out>(job.partial, had, middle); break;
        case 3: Of::template finish<Up>(job.partial, had, hidden); break;
        default: Of::template finish<Down>(job.partial, had, after);
      }
      grid.arrive();
    }
    grid.leave();
  }
};
