// Temperature and top-k sampling of one slot by one block: engine/sampling.py's Draws.draw, number for number.

constexpr int UNGENERATED = -2;  // in `wanted`: a code to be drawn (models/streams.py)
constexpr int DIGIT = 11;  // bits that one pass of the search for the k-th largest settles
constexpr int BINS = 1 << DIGIT;

// What a block needs in shared memory to select a token (8.6 KB).
struct Selection {
  uint32_t bins[BINS];
  uint32_t sums[WARP];
  uint32_t digit, left;
  float scores[WARP];
  int tokens[WARP];
};

__device__ inline float minus_infinity() { return __uint_as_float(0xff800000u); }

// Floats as unsigned numbers in the same order, and back.
__device__ inline uint32_t ordered(float x) {
  uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ inline float from_ordered(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// The k-th largest of n logits (1 <= k <= n), in every thread: digit by digit, the bin that it lies in.
template <typename T>
__device__ inline float kth_largest(const T* logits, int n, int k, Selection* scratch) {
  const int thread = threadIdx.x, threads = blockDim.x, lane = thread % WARP, warp = thread / WARP;
  // Two digits hold all of a number of 16 bits: what follows is the same in all of one sign.
  constexpr int LAST = sizeof(T) == 2 ? 32 - 2 * DIGIT : 0;
  uint32_t key = 0, known = 0, left = k;
  for (int shift = 32 - DIGIT;; shift = shift > DIGIT ? shift - DIGIT : 0) {
    for (int bin = thread; bin < BINS; bin += threads) scratch->bins[bin] = 0;
    __syncthreads();
#pragma unroll 4
    for (int i = thread; i < n; i += threads) {
      uint32_t mine = ordered(number(logits[i]));
      if ((mine & known) == key) atomicAdd(&scratch->bins[(mine & ~known) >> shift], 1u);
    }
    __syncthreads();
    // Thread 0 owns the highest bins; who owns the bin that the k-th falls in says so.
    const int each = (BINS + threads - 1) / threads, top = BINS - thread * each;
    uint32_t own = 0;
    for (int bin = top - 1; bin >= top - each && bin >= 0; --bin) own += scratch->bins[bin];
    uint32_t until = own;
    for (int by = 1; by < WARP; by *= 2) {
      uint32_t lower = __shfl_up_sync(ALL, until, by);
      if (lane >= by) until += lower;
    }
    if (lane == WARP - 1) scratch->sums[warp] = until;
    __syncthreads();
    for (int other = 0; other < warp; ++other) until += scratch->sums[other];
    if (until - own < left && left <= until) {
      uint32_t still = left - (until - own);
      int bin = top - 1;
      for (; scratch->bins[bin] < still; --bin) still -= scratch->bins[bin];
      scratch->digit = bin;
      scratch->left = still;
    }
    __syncthreads();
    key |= scratch->digit << shift;
    known = ~0u << shift;
    left = scratch->left;
    if (shift == LAST) break;
  }
  if (LAST && !(key >> 31)) key |= (1u << LAST) - 1;
  return from_ordered(key);
}

// The token that a block draws from n logits, in every thread: the first with the largest logit / temperature + noise
// among the k largest logits and what equals the last of them. k = 1 is the first maximum, k = 0 all.
// Every thread of the block calls it, after a barrier behind whoever wrote the logits; `scratch` and logits may be
// overwritten when it returns. `noise` [n] is not read where k = 1. Logits lie in shared memory, or in global memory
// that no other block has written in this launch.
template <typename T>
__device__ inline int select_token(
    const T* logits, int n, int k, float temperature, const float* noise, Selection* scratch) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const float lowest = 1 < k && k < n ? kth_largest(logits, n, k, scratch) : minus_infinity();
  float best = minus_infinity();
  int token = n;
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float x = number(logits[i]);
    // No multiplication and addition in one: stock rounds between division and sum.
    float score = k == 1 ? x : __fadd_rn(__fdiv_rn(x, temperature), noise[i]);
    if (x >= lowest && score > best) {
      best = score;
      token = i;
    }
  }
  for (int apart = WARP / 2; apart > 0; apart /= 2) {
    float other = __shfl_xor_sync(ALL, best, apart);
    int at = __shfl_xor_sync(ALL, token, apart);
    if (other > best || (other == best && at < token)) {
      best = other;
      token = at;
    }
  }
  if (lane == 0) {
    scratch->scores[warp] = best;
    scratch->tokens[warp] = token;
  }
  __syncthreads();
  best = scratch->scores[0];
  token = scratch->tokens[0];
  for (int other = 1; other < int(blockDim.x / WARP); ++other) {
    float score = scratch->scores[other];
    int at = scratch->tokens[other];
    if (score > best || (score == best && at < token)) {
      best = score;
      token = at;
    }
  }
  __syncthreads();
  return token < n ? token : 0;
}

// One token per slot: logits [B, V] -> out [B] int32, each slot with its temperature and k (1 for all if GREEDY), and
// noise [B, DRAWS, V]. `which` [2] says which of the draws it is, and which column of `wanted` [B, COLUMNS] holds the
// token that a slot gets instead, where it is not FREE. A block per slot.
template <int V, int DRAWS, int COLUMNS, int FREE, bool GREEDY, typename T>
__device__ inline void draw(
    const T* logits, const float* noise, const float* temperature, const int32_t* top_k, const int32_t* wanted,
    const int32_t* which, int32_t* out) {
  SHARED(Selection, scratch, 1);
  const size_t slot = blockIdx.x;
  int token = wanted[slot * COLUMNS + which[1]];
  // The same for all threads of the block: nobody misses a barrier.
  if (token == FREE) {
    const int k = GREEDY ? 1 : top_k[slot];
    token = select_token(logits + slot * V, V, k, temperature[slot], noise + (slot * DRAWS + which[0]) * V, scratch);
  }
  if (threadIdx.x == 0) out[slot] = token;
}
