// Random numbers as mlx.random draws them: Threefry 2x32 with 20 rounds (Salmon et al. 2011), counters in halves.

__device__ inline uint32_t turned(uint32_t x, int by) { return x << by | x >> (32 - by); }

__device__ inline uint2 threefry(uint2 key, uint2 x) {
  constexpr int TURNS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.x, key.y, key.x ^ key.y ^ 0x1bd11bdau};
  x.x += keys[0];
  x.y += keys[1];
#pragma unroll
  for (int i = 0; i < 5; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      x.x += x.y;
      x.y = turned(x.y, TURNS[i % 2][j]) ^ x.x;
    }
    x.x += keys[(i + 1) % 3];
    x.y += keys[(i + 2) % 3] + i + 1;
  }
  return x;
}

// Word i of the n that a key gives: two of them are made at once, half of all apart. Where n is odd, the one in the
// middle is made alone.
__device__ inline uint32_t word(uint2 key, uint32_t i, uint32_t n) {
  const uint32_t half = n / 2, second = n - half;
  if (i >= second) return threefry(key, uint2{i - second, i}).y;
  return threefry(key, uint2{i, i < half ? second + i : 0}).x;
}

// As mlx.random.gumbel makes it of 32 bits: no number is 1, and the logarithms are taken one by one.
__device__ inline float gumbel(uint32_t bits) {
  return -logf(-logf(fminf(float(bits) * 2.3283064365386963e-10f, 0.99999994f)));
}

// Noise [B, DRAWS, V] for draws FIRST ... of the ALL that a frame may have, at `position` [B] of sessions with `key`
// [B, 2]: gumbel(V) with the keys split(session's key, its first word crossed with the position; ALL). BLOCKS for each.
template <int V, int DRAWS, int FIRST, int ALL_DRAWS, int BLOCKS>
__device__ inline void frame_noise(const uint32_t* key, const int32_t* position, float* noise) {
  constexpr int HALF = V / 2, SECOND = V - HALF;
  const int draw = blockIdx.x / BLOCKS % DRAWS;
  const size_t slot = blockIdx.x / (BLOCKS * DRAWS);
  const uint2 session{key[2 * slot] ^ uint32_t(position[slot]), key[2 * slot + 1]};
  const uint32_t at = 2 * (FIRST + draw);
  const uint2 mine{word(session, at, 2 * ALL_DRAWS), word(session, at + 1, 2 * ALL_DRAWS)};
  float* to = noise + (slot * DRAWS + draw) * V;
  for (int i = blockIdx.x % BLOCKS * blockDim.x + threadIdx.x; i < SECOND; i += BLOCKS * blockDim.x) {
    const uint2 bits = threefry(mine, uint2{uint32_t(i), i < HALF ? uint32_t(SECOND + i) : 0});
    to[i] = gumbel(bits.x);
    if (i < HALF) to[SECOND + i] = gumbel(bits.y);
  }
}
