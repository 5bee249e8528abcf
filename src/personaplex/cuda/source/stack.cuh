// Transformer layers for one token of one slot in a single launch: a block per multiprocessor, and a meeting of all
// blocks between a layer's five parts instead of a launch for each. While blocks wait for each other the next part's
// first weights are already on their way.

constexpr float LEAST = -3.0e38f;  // less than any score

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
  __nv_bfloat16 *k, *v;  // the ring [HEADS][R][HEAD]; this token's rows are written
};

// Which tokens the one at `position` sees besides itself, numbered 0 ... count - 1, and in which rows of the ring they
// lie (nn/attention.py): the pinned ones that the window has left, then the window.
struct Seen {
  int pinned, turning, outside, first, count;

  __device__ inline Seen(int position, int pinned, int n_rows, int context) : pinned(pinned), turning(n_rows - pinned) {
    first = max(0, position - context + 1);
    outside = min(pinned, first);
    count = outside + position - first;
  }
  __device__ inline int row_of(int at) const { return at < pinned ? at : pinned + (at - pinned) % turning; }
  __device__ inline int row(int i) const { return row_of(i < outside ? i : first + i - outside); }
};

// One share of one head's attention: a partial sum of values [HEAD], their weight, and the largest score.
template <int HEADS, int HEAD, int N_ROWS, int CONTEXT, int WARPS, int PERIOD, int SHARES>
struct Ring {
  static constexpr int DIM = HEADS * HEAD, LANES = HEAD / 8, TEAMS = WARPS * WARP / LANES, AHEAD = 4;
  static constexpr int SIZE = HEAD + 2;  // numbers of a share
  static constexpr int BYTES = (3 * HEAD + TEAMS * SIZE) * 4;

  // Every block takes its shares of `qkv` [3 DIM], and leaves them in `shares` [HEADS][SHARES][SIZE].
  __device__ __forceinline__ static void attend(const __nv_bfloat16* qkv, int position, int pinned, __nv_bfloat16* k,
                                             __nv_bfloat16* v, float* shares) {
    DYNAMIC(memory);
    float* q = reinterpret_cast<float*>(memory);
    float *new_k = q + HEAD, *new_v = new_k + HEAD, *teams = new_v + HEAD;
    const Seen seen(position, pinned, N_ROWS, CONTEXT);
    for (int task = blockIdx.x; task < HEADS * SHARES; task += gridDim.x) {
      const int head = task / SHARES, share = task % SHARES;
      const long long ring = (long long)head * N_ROWS * HEAD;
      __syncthreads();  // the last task's numbers are read
      for (int i = threadIdx.x; i < HEAD; i += blockDim.x) {
        const int pair = i / 2;
        const float angle = position * exp2f(-2.0f * pair / HEAD * log2f(float(PERIOD)));
        float sine, cosine;
        sincosf(angle, &sine, &cosine);
        auto turned = [&](const __nv_bfloat16* at) {
          const float even = number(fresh_one(at + 2 * pair)), odd = number(fresh_one(at + 2 * pair + 1));
          return rounded<__nv_bfloat16>(i % 2 ? even * sine + odd * cosine : even * cosine - odd * sine);
        };
        q[i] = turned(qkv + head * HEAD) * rsqrtf(float(HEAD));
        new_k[i] = turned(qkv + DIM + head * HEAD);
        new_v[i] = number(fresh_one(qkv + 2 * DIM + head * HEAD + i));
        if (share == 0) {  // nobody reads this row in this launch: its last token has left the window
          put(k + ring + seen.row_of(position) * HEAD + i, new_k[i]);
          put(v + ring + seen.row_of(position) * HEAD + i, new_v[i]);
        }
      }
      __syncthreads();
      // A team of LANES threads reads a row, eight numbers each.
      const int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
      float mine[8], sum[8] = {}, weight = 0, largest = LEAST;
#pragma unroll
      for (int i = 0; i < 8; ++i) mine[i] = q[lane * 8 + i];
      auto score_of = [&](const float(&key)[8]) {
        float score = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) score += mine[i] * key[i];
#pragma unroll
        for (int apart = LANES / 2; apart > 0; apart /= 2) score += __shfl_xor_sync(ALL, score, apart);
        return score;
      };
      const int begin = (long long)seen.count * share / SHARES, end = (long long)seen.count * (share + 1) / SHARES;
      // All teams of a warp take the same number of turns: they shuffle together.
      const int turns = (end - begin + AHEAD * TEAMS - 1) / (AHEAD * TEAMS);
      for (int turn = 0; turn < turns; ++turn) {
        Eight keys[AHEAD], values[AHEAD];
        bool there[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
          const int i = begin + (turn * AHEAD + a) * TEAMS + team;
          there[a] = i < end;
          const long long at = ring + (long long)(there[a] ? seen.row(i) : 0) * HEAD + lane * 8;
          const uint4 zero = make_uint4(0, 0, 0, 0);
          const uint4 key = there[a] ? streamed(reinterpret_cast<const uint4*>(k + at)) : zero;
          const uint4 value = there[a] ? streamed(reinterpret_cast<const uint4*>(v + at)) : zero;
          keys[a] = *reinterpret_cast<const Eight*>(&key);
          values[a] = *reinterpret_cast<const Eight*>(&value);
        }
        float score[AHEAD], highest = largest;
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
          float key[8];
#pragma unroll
          for (int i = 0; i < 8; ++i) key[i] = number(keys[a].of[i]);
          score[a] = score_of(key);
          if (!there[a]) score[a] = LEAST;
          highest = fmaxf(highest, score[a]);
        }
        if (highest > LEAST) {
          const float fade = expf(largest - highest);
          weight *= fade;
#pragma unroll
          for (int i = 0; i < 8; ++i) sum[i] *= fade;
#pragma unroll
          for (int a = 0; a < AHEAD; ++a) {
            const float w = expf(score[a] - highest);
            weight += w;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += w * number(values[a].of[i]);
          }
          largest = highest;
        }
      }
      if (share == 0) {  // the token itself; every team scores it, the first counts it
        float key[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) key[i] = new_k[lane * 8 + i];
        const float score = score_of(key);
        if (team == 0) {
          const float highest = fmaxf(largest, score), fade = expf(largest - highest), w = expf(score - highest);
          weight = weight * fade + w;
#pragma unroll
          for (int i = 0; i < 8; ++i) sum[i] = sum[i] * fade + w * new_v[lane * 8 + i];
          largest = highest;
        }
      }
      float* mine_of = teams + team * SIZE;
#pragma unroll
      for (int i = 0; i < 8; ++i) mine_of[lane * 8 + i] = sum[i];
      if (lane == 0) mine_of[HEAD] = weight, mine_of[HEAD + 1] = largest;
      __syncthreads();
      float* to = shares + task * SIZE;
      for (int i = threadIdx.x; i < HEAD; i += blockDim.x) {
        float highest = LEAST, total = 0, all = 0;
        for (int of = 0; of < TEAMS; ++of) highest = fmaxf(highest, teams[of * SIZE + HEAD + 1]);
        for (int of = 0; of < TEAMS; ++of) {
          const float largest_of = teams[of * SIZE + HEAD + 1];
          const float w = largest_of > LEAST ? expf(largest_of - highest) : 0;
          total += w * teams[of * SIZE + i];
          all += w * teams[of * SIZE + HEAD];
        }
        to[i] = total;
        if (i == 0) to[HEAD] = all, to[HEAD + 1] = highest;
      }
    }
  }

  // Eight numbers of the attention's result from its shares.
  struct Result {
    const float* shares;
    __device__ inline Eight operator()(int, int k) const {
      const float* at = shares + k / HEAD * SHARES * SIZE;
      float highest = LEAST, all = 0, sum[8] = {};
#pragma unroll
      for (int share = 0; share < SHARES; ++share) highest = fmaxf(highest, __ldcg(at + share * SIZE + HEAD + 1));
#pragma unroll
      for (int share = 0; share < SHARES; ++share) {
        const float* of = at + share * SIZE;
        const float largest = __ldcg(of + HEAD + 1), w = largest > LEAST ? expf(largest - highest) : 0;
        all += w * __ldcg(of + HEAD);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
          const float2 two = __ldcg(reinterpret_cast<const float2*>(of + k % HEAD + i));
          sum[i] += w * two.x;
          sum[i + 1] += w * two.y;
        }
      }
      Eight result;
#pragma unroll
      for (int i = 0; i < 8; ++i) put(&result.of[i], sum[i] / all);
      return result;
    }
  };
};

// x [DIM] through `n_layers` layers to out [DIM]. `where` holds position and pinned tokens; the rest is scratch.
template <int BITS, int DIM, int HEADS, int HIDDEN, int N_ROWS, int CONTEXT, int PERIOD, int WARPS, int BLOCKS,
          int SHARES, typename S>
__device__ void stack(const StackLayer<S>* layers, int n_layers, const __nv_bfloat16* x, const int32_t* where,
                      const uint32_t* given_gate, __nv_bfloat16* out, __nv_bfloat16* qkv, float* shares,
                      __nv_bfloat16* middle, __nv_bfloat16* hidden, __nv_bfloat16* between) {
  using Attention = Ring<HEADS, DIM / HEADS, N_ROWS, CONTEXT, WARPS, PERIOD, SHARES>;
  uint32_t* gate = const_cast<uint32_t*>(given_gate);
  const auto together = [gate] { meet(gate); };
  // One part at a time, so that the compiler keeps nothing of one in registers during another.
#pragma unroll 1
  for (int part = 0; part < 5 * n_layers; ++part) {
    const int l = part / 5;
    const StackLayer<S>& layer = layers[l];
    // Two buffers in turn: the residual is read until the last block has added it.
    const __nv_bfloat16* before = l == 0 ? x : between + (l - 1) % 2 * DIM;
    switch (part % 5) {
      case 0:
        tile_matvec<BITS, 1, DIM, 3 * DIM, WARPS, BLOCKS, RMS, STORE>(Rows<DIM>{before}, layer.norm1, layer.in_w,
                                                                      layer.in_s, layer.in_b, nullptr, qkv, together);
        break;
      case 1:
        meet(gate);
        Attention::attend(qkv, where[0], where[1], layer.k, layer.v, shares);
        break;
      case 2:
        tile_matvec<BITS, 1, DIM, DIM, WARPS, BLOCKS, PLAIN, ADD>(typename Attention::Result{shares}, nullptr,
                                                                  layer.out_w, layer.out_s, layer.out_b, before, middle,
                                                                  together);
        break;
      case 3:
        tile_matvec<BITS, 1, DIM, HIDDEN, WARPS, BLOCKS, RMS, GATE>(Rows<DIM>{middle}, layer.norm2, layer.gate_w,
                                                                    layer.gate_s, layer.gate_b, nullptr, hidden,
                                                                    together);
        break;
      default:
        tile_matvec<BITS, 1, HIDDEN, DIM, WARPS, BLOCKS, PLAIN, ADD>(
            Rows<HIDDEN>{hidden}, nullptr, layer.down_w, layer.down_s, layer.down_b, middle,
            l == n_layers - 1 ? out : between + l % 2 * DIM, together);
    }
  }
}
