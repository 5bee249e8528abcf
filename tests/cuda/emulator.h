// CUDA's words for a C++ compiler: the threads of all blocks are fibers on one core, so that kernels can be tested
// where there is no card. Barriers, shuffles and votes are exact; races are not found, and nothing is timed.
// Every thread must reach every barrier of its block and every shuffle of its warp.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
struct int4 { int32_t x, y, z, w; };
struct int2 { int32_t x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

#define EMULATED 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n)  // MLX's memory on a processor is aligned to 8 bytes only

namespace emulator {

struct Barrier { unsigned waiting = 0, turn = 0; };

struct Block {
  Barrier barrier;
  std::vector<Barrier> warps;
  std::vector<uint64_t> lanes;  // what each thread shows its warp
  std::vector<std::array<uint32_t, 6>> fragments;
  std::map<int, std::vector<char>> shared;
  std::vector<char> dynamic;
};

// A copy that was begun, in the thread's group numbered `group`.
struct Copy { char* to; const char* from; int size; unsigned group; };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Block* block;
  dim3 thread, at;
  bool done = false;
  std::vector<Copy> copies;
  unsigned group = 0;
};

inline ucontext_t scheduler;
inline Fiber* now = nullptr;
inline dim3 block_size, grid_size;
inline void (*body)(void*);
inline void* body_of;

inline void pause() { swapcontext(&now->context, &scheduler); }

inline void wait(Barrier& barrier, unsigned n) {
  unsigned turn = barrier.turn;
  if (++barrier.waiting == n) {
    barrier.waiting = 0;
    ++barrier.turn;
    return;
  }
  while (barrier.turn == turn) pause();
}

inline void enter() {
  body(body_of);
  now->done = true;
  pause();
}

inline int new_id() {
  static int next = 0;
  return next++;
}

template <typename T>
T* shared(int id, size_t n) {
  auto& bytes = now->block->shared[id];
  if (bytes.size() < n * sizeof(T)) {
    bytes.resize(n * sizeof(T) + 64);
    std::memset(bytes.data(), 0xff, bytes.size());  // NaN: who reads what nobody wrote sees it
  }
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(bytes.data()) + 15) / 16 * 16);
}

// Run `blocks` of `threads`, all at once.
inline void run(void (*kernel)(void*), void* of, unsigned blocks, unsigned threads, size_t dynamic) {
  body = kernel;
  body_of = of;
  block_size = {threads, 1, 1};
  grid_size = {blocks, 1, 1};
  if (threads % 32) { std::fprintf(stderr, "threads must be whole warps\n"); std::abort(); }
  std::vector<Block> all(blocks);
  std::vector<Fiber> fibers(size_t(blocks) * threads);
  constexpr size_t STACK = 48 * 1024;
  for (unsigned b = 0; b < blocks; ++b) {
    all[b].warps.resize(threads / 32);
    all[b].lanes.resize(threads);
    all[b].fragments.resize(threads);
    all[b].dynamic.assign(dynamic + 16, char(0xff));
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = fibers[size_t(b) * threads + t];
      fiber.stack.reset(new char[STACK]);
      fiber.block = &all[b];
      fiber.thread = {t, 0, 0};
      fiber.at = {b, 0, 0};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = STACK;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, enter, 0);
    }
  }
  size_t left = fibers.size();
  std::vector<size_t> order(fibers.size());
  std::iota(order.begin(), order.end(), size_t(0));
  static std::mt19937 chance(1);
  for (size_t passes = 0; left; ++passes) {
    if (passes > 2000000) { std::fprintf(stderr, "threads wait for ever\n"); std::abort(); }
    // In another order each time, and not all of them: a barrier that is missing then shows, sooner or later.
    std::shuffle(order.begin(), order.end(), chance);
    for (size_t i = 0; i < order.size(); ++i) {
      Fiber& fiber = fibers[order[i]];
      if (fiber.done || chance() % 4 == 0) continue;
      now = &fiber;
      swapcontext(&scheduler, &fiber.context);
      left -= fiber.done;
    }
  }
}

template <typename T>
T exchange(T x, int from) {
  Block& block = *now->block;
  unsigned warp = now->thread.x / 32;
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof x);
  block.lanes[now->thread.x] = bits;
  wait(block.warps[warp], 32);
  bits = block.lanes[warp * 32 + (from & 31)];
  wait(block.warps[warp], 32);
  T found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

}  // namespace emulator

#define threadIdx (emulator::now->thread)
#define blockIdx (emulator::now->at)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define SHARED(type, name, n) \
  static const int name##_id = emulator::new_id(); \
  type* name = emulator::shared<type>(name##_id, n)

inline void* dynamic_shared() {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(emulator::now->block->dynamic.data()) + 15) / 16 * 16);
}
inline void __syncthreads() { emulator::wait(emulator::now->block->barrier, emulator::block_size.x); }
inline void __syncwarp(unsigned = ~0u) {
  emulator::wait(emulator::now->block->warps[emulator::now->thread.x / 32], 32);
}
// Copies that run beside their thread: some are done when they begin, the others no sooner than they are waited for.
inline void emulated_copy(char* to, const char* from, int size) {
  static std::mt19937 chance(2);
  if (chance() % 2) std::memcpy(to, from, size);
  else emulator::now->copies.push_back({to, from, size, emulator::now->group});
}
inline void emulated_end_group() { ++emulator::now->group; }
inline void emulated_await_groups(unsigned left) {
  emulator::Fiber& fiber = *emulator::now;
  auto due = [&](const emulator::Copy& copy) { return copy.group + left < fiber.group; };
  for (const emulator::Copy& copy : fiber.copies)
    if (due(copy)) std::memcpy(copy.to, copy.from, copy.size);
  fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), due), fiber.copies.end());
}
inline void __trap() { std::fprintf(stderr, "the kernel gave up\n"); std::abort(); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { emulator::pause(); }

template <typename T> T __shfl_sync(unsigned, T x, int from) { return emulator::exchange(x, from); }
template <typename T> T __shfl_xor_sync(unsigned, T x, int apart) {
  return emulator::exchange(x, (threadIdx.x & 31) ^ apart);
}
template <typename T> T __shfl_down_sync(unsigned, T x, unsigned by) {
  unsigned lane = threadIdx.x & 31;
  return emulator::exchange(x, lane + by < 32 ? lane + by : lane);
}
template <typename T> T __shfl_up_sync(unsigned, T x, unsigned by) {
  unsigned lane = threadIdx.x & 31;
  return emulator::exchange(x, lane >= by ? lane - by : lane);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= unsigned(emulator::exchange(int(vote), lane)) << lane;
  return votes;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) == ~0u; }

template <typename T> T atomicAdd(T* at, T x) { T old = *at; *at += x; return old; }
template <typename T> T atomicMax(T* at, T x) { T old = *at; *at = std::max(old, x); return old; }
template <typename T> T atomicMin(T* at, T x) { T old = *at; *at = std::min(old, x); return old; }
template <typename T> T atomicExch(T* at, T x) { T old = *at; *at = x; return old; }

template <typename T> T __ldg(const T* at) { return *at; }
template <typename T> T __ldcs(const T* at) { return *at; }
template <typename T> T __ldcg(const T* at) { return *at; }
template <typename T> void __stcg(T* at, T x) { *at = x; }

inline uint32_t __float_as_uint(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }
inline float __uint_as_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline int32_t __float_as_int(float x) { return int32_t(__float_as_uint(x)); }
inline float __int_as_float(int32_t bits) { return __uint_as_float(uint32_t(bits)); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline void sincosf(float x, float* s, float* c) { *s = std::sin(x); *c = std::cos(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
using std::max;
using std::min;

struct __nv_bfloat16 { uint16_t bits; };
struct __half { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
  uint32_t bits = __float_as_uint(x);
  if (x != x) return {0x7fff};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half x) { _Float16 as; std::memcpy(&as, &x, 2); return float(as); }
inline __half __float2half(float x) { _Float16 as = _Float16(x); __half bits; std::memcpy(&bits, &as, 2); return bits; }

// One warp's m16n8k16 product of bfloat16 pairs, as the PTX manual lays out the fragments.
inline void emulated_mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  emulator::Block& block = *emulator::now->block;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  block.fragments[threadIdx.x] = {a0, a1, a2, a3, b0, b1};
  emulator::wait(block.warps[warp], 32);
  auto part = [](uint32_t pair, int which) { return __uint_as_float((which ? pair >> 16 : pair) << 16); };
  const auto* of = &block.fragments[warp * 32];
  for (int half = 0; half < 2; ++half)
    for (int from = 0; from < 4; ++from)
      for (int which = 0; which < 2; ++which)
        for (int n = 0; n < 2; ++n) {
          const float x = part(of[(2 * t + n) * 4 + from][4 + half], which);
          d[n] += part(of[g * 4 + from][2 * half], which) * x;
          d[2 + n] += part(of[g * 4 + from][2 * half + 1], which) * x;
        }
  emulator::wait(block.warps[warp], 32);
}

// ldmatrix with four matrices.
inline void emulated_load_matrices(const char* row, uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
  emulator::Block& block = *emulator::now->block;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  block.lanes[threadIdx.x] = reinterpret_cast<uint64_t>(row);
  emulator::wait(block.warps[warp], 32);
  uint32_t* to[4] = {&a, &b, &c, &d};
  for (unsigned i = 0; i < 4; ++i)
    std::memcpy(to[i], reinterpret_cast<const char*>(block.lanes[warp * 32 + i * 8 + lane / 4]) + lane % 4 * 4, 4);
  emulator::wait(block.warps[warp], 32);
}
