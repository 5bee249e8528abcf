// The vector of a column of tokens: one row of each stream's table, added up. A thread for each channel.

// A channel of a table's row; packed as MLX packs whole numbers of bits that divide a word.
template <typename T, int BITS, int GROUP, int N_CHANNELS, typename Weight>
__device__ inline float channel_of(const Weight* weight, const T* scales, const T* biases, size_t row, int channel) {
  if constexpr (BITS == 0) {
    return number(weight[row * N_CHANNELS + channel]);
  } else {
    constexpr int PER_WORD = 32 / BITS;
    uint32_t word = weight[row * (N_CHANNELS / PER_WORD) + channel / PER_WORD];
    size_t group = row * (N_CHANNELS / GROUP) + channel / GROUP;
    float value = float(word >> channel % PER_WORD * BITS & ((1u << BITS) - 1));
    return rounded<T>(rounded<T>(number(scales[group]) * value) + number(biases[group]));
  }
}

// tokens [n, 1 + N_AUDIO], the text's first; below zero: a vector of zeros. Tables [1, N_TEXT_ROWS, N_CHANNELS] and
// [N_AUDIO, N_AUDIO_ROWS, N_CHANNELS]. The text's row is added to the rounded sum of the others.
template <typename T, int BITS, int GROUP, int N_AUDIO, int N_AUDIO_ROWS, int N_CHANNELS, typename Weight>
__device__ void embed(const int32_t* tokens, const Weight* text, const T* text_scales, const T* text_biases,
                      const Weight* audio, const T* audio_scales, const T* audio_biases, T* out) {
  constexpr int BLOCKS = (N_CHANNELS + 255) / 256;
  int channel = blockIdx.x % BLOCKS * 256 + threadIdx.x, n = blockIdx.x / BLOCKS;
  if (channel >= N_CHANNELS) return;
  const int32_t* mine = tokens + size_t(n) * (1 + N_AUDIO);
  float sum = 0;
#pragma unroll
  for (int k = 0; k < N_AUDIO; ++k) {
    int token = mine[1 + k];
    if (token >= 0) {
      size_t row = size_t(k) * N_AUDIO_ROWS + token;
      sum += channel_of<T, BITS, GROUP, N_CHANNELS>(audio, audio_scales, audio_biases, row, channel);
    }
  }
  sum = rounded<T>(sum);
  if (mine[0] >= 0) sum += channel_of<T, BITS, GROUP, N_CHANNELS>(text, text_scales, text_biases, mine[0], channel);
  put(out + size_t(n) * N_CHANNELS + channel, sum);
}
