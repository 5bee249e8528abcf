// Attention over the few steps of one frame.

// Two numbers that another block may have written in this launch: past the L1 cache, which does not see others' writes.
__device__ inline float2 read_fresh_pair(const __nv_bfloat16* from) {
  uint32_t word = __ldcg(reinterpret_cast<const uint32_t*>(from));
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

__device__ inline float2 read_fresh_pair(const float* from) {
  uint2 words = __ldcg(reinterpret_cast<const uint2*>(from));
  return make_float2(__uint_as_float(words.x), __uint_as_float(words.y));
}

// One head by one warp: q, k and v of step t lie at `at(t)`, DIM apart; over steps 0 ... `step` (< N_STEPS).
template <typename T, int DIM, int HEAD, int N_STEPS, typename F>
__device__ inline void attend_head(F at, int step, T* out) {
  constexpr int PAIRS = (HEAD / 2 + WARP - 1) / WARP;
  const int lane = threadIdx.x % WARP;
  float2 q[PAIRS] = {}, k[N_STEPS][PAIRS] = {}, v[N_STEPS][PAIRS] = {};
#pragma unroll
  for (int t = 0; t < N_STEPS; ++t) {
    if (t > step) continue;
    const T* row = at(t);
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) {
      const int d = 2 * (i * WARP + lane);
      if (d >= HEAD) continue;
      if (t == step) q[i] = read_fresh_pair(row + d);
      k[t][i] = read_fresh_pair(row + DIM + d);
      v[t][i] = read_fresh_pair(row + 2 * DIM + d);
    }
  }
  float scores[N_STEPS], highest = __uint_as_float(0xff800000u), sum = 0;  // minus infinity
#pragma unroll
  for (int t = 0; t < N_STEPS; ++t) {
    float dot = 0;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) dot += q[i].x * k[t][i].x + q[i].y * k[t][i].y;
    scores[t] = warp_sum(dot) * (1 / sqrtf(float(HEAD)));
    if (t <= step) highest = fmaxf(highest, scores[t]);
  }
#pragma unroll
  for (int t = 0; t < N_STEPS; ++t) {
    scores[t] = t <= step ? expf(scores[t] - highest) : 0;
    sum += scores[t];
  }
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    const int d = 2 * (i * WARP + lane);
    if (d >= HEAD) continue;
    float2 mixed = make_float2(0, 0);
#pragma unroll
    for (int t = 0; t < N_STEPS; ++t) {
      mixed.x += scores[t] * v[t][i].x;
      mixed.y += scores[t] * v[t][i].y;
    }
    put(out + d, mixed.x / sum);
    put(out + d + 1, mixed.y / sum);
  }
}

// A slot by a block: the latest of `latest` + 1 steps attends to all of them. `steps` are N_STEPS arrays
// [slots, 3 DIM], of which those after the latest are not read, then what is made [slots, DIM].
template <typename T, int DIM, int N_HEADS, typename... Pointers>
__device__ void attend_latest(const int32_t* latest, Pointers... steps) {
  constexpr int N_STEPS = int(sizeof...(Pointers)) - 1, HEAD = DIM / N_HEADS;
  const T* rows[N_STEPS + 1] = {steps...};
  T* out = const_cast<T*>(rows[N_STEPS]) + size_t(blockIdx.x) * DIM;
  const int step = latest[0];
  for (int head = threadIdx.x / WARP; head < N_HEADS; head += blockDim.x / WARP) {
    const size_t first = size_t(blockIdx.x) * 3 * DIM + head * HEAD;
    attend_head<T, DIM, HEAD, N_STEPS>([&](int t) { return rows[t] + first; }, step, out + head * HEAD);
  }
}
