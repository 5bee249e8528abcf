// What every kernel here is made of: shared memory, sums over a warp and over a block, numbers of any type as float.
// Blocks have whole warps, and all threads of a block reach every sum and barrier.

#ifndef SHARED
// An array in the block's shared memory. The emulator of the tests gives each block its own in another way.
#define SHARED(type, name, n) __shared__ __align__(16) type name[n]
#endif

// The block's dynamic shared memory, whose size the launch gives.
#ifdef EMULATED
#define DYNAMIC(name) char* name = static_cast<char*>(dynamic_shared())
#else
extern __shared__ __align__(16) char dynamic_memory[];
#define DYNAMIC(name) char* name = dynamic_memory
#endif

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARP = 32;

__device__ inline float number(float x) { return x; }
__device__ inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float number(__half x) { return __half2float(x); }

__device__ inline void put(float* at, float x) { *at = x; }
__device__ inline void put(__nv_bfloat16* at, float x) { *at = __float2bfloat16(x); }
__device__ inline void put(__half* at, float x) { *at = __float2half(x); }

// x as type T rounds it, where the stock operations store it.
template <typename T>
__device__ inline float rounded(float x) {
  T as;
  put(&as, x);
  return number(as);
}

__device__ inline float warp_sum(float x) {
  for (int apart = WARP / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL, x, apart);
  return x;
}

__device__ inline float warp_max(float x) {
  for (int apart = WARP / 2; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, apart));
  return x;
}

// The sum over the block, in every thread; `scratch` holds a number per warp, and may be used again after a barrier.
__device__ inline float block_sum(float x, float* scratch) {
  x = warp_sum(x);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
  __syncthreads();
  float sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) sum += scratch[warp];
  return sum;
}
