// Numbers read together: 1, or 4 that lie at a multiple of 16 bytes.

template <int N>
__device__ inline void load(const float* from, float (&to)[N]) {
  static_assert(N == 1 || N == 4, "1 or 4 numbers");
  if constexpr (N == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  } else {
    to[0] = *from;
  }
}
