// How much in doubt the choices of one step were (engine/sampling.py's step_entropies).

// A part of a softmax: the largest logit, the sum of all exponentials relative to it, and of them times their logit.
struct Doubt {
  float most, sum, weighed;

  __device__ inline void add(const Doubt& other) {
    const float top = fmaxf(most, other.most);
    const float mine = sum == 0 ? 0.0f : expf(most - top), theirs = other.sum == 0 ? 0.0f : expf(other.most - top);
    most = top;
    sum = sum * mine + other.sum * theirs;
    weighed = weighed * mine + other.weighed * theirs;
  }
};

// The entropy of the softmax of n logits in nats, in every thread of the block; `scratch` holds a part for each warp.
template <typename T>
__device__ inline float entropy(const T* logits, int n, Doubt* scratch) {
  Doubt doubt{-3.4028234663852886e38f, 0, 0};
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    const float x = number(logits[i]);
    doubt.add(Doubt{x, 1, x});
  }
  for (int apart = WARP / 2; apart > 0; apart /= 2) {
    doubt.add(Doubt{
        __shfl_xor_sync(ALL, doubt.most, apart), __shfl_xor_sync(ALL, doubt.sum, apart),
        __shfl_xor_sync(ALL, doubt.weighed, apart)});
  }
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = doubt;
  __syncthreads();
  doubt = scratch[0];
  for (int warp = 1; warp < int(blockDim.x / WARP); ++warp) doubt.add(scratch[warp]);
  __syncthreads();
  return doubt.most + logf(doubt.sum) - doubt.weighed / doubt.sum;
}

// text [B, V], audio [B, STEPS, W] -> out [B, 3] float32: of text, of the first code, of CODES - 1 more on average.
// A block per slot.
template <int V, int W, int STEPS, int CODES, typename T, typename A>
__device__ inline void step_entropies(const T* text, const A* audio, float* out) {
  SHARED(Doubt, scratch, WARP);
  const size_t slot = blockIdx.x;
  const float of_text = entropy(text + slot * V, V, scratch);
  float first = 0, others = 0;
  for (int code = 0; code < CODES; ++code) {
    const float found = entropy(audio + (slot * STEPS + code) * W, W, scratch);
    if (code) others += found;
    else first = found;
  }
  if (threadIdx.x == 0) {
    out[3 * slot] = of_text;
    out[3 * slot + 1] = first;
    out[3 * slot + 2] = others / (CODES - 1);
  }
}
