// SPDX-License-Identifier: Apache-2.0
// Atomics and arithmetic under their CUDA names. Rounding intrinsics are exact where nothing is contracted
// (-ffp-contract=off); the fast ones (__expf and its like) are the C library's, not the bits of a GPU.
#pragma once

#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "engine.h"

// ---- atomics: one host thread runs, so that plain code is atomic ----
namespace specdec::emulator {

template <class T, class Update>
T atomically(T* address, const Place& place, const Update& update) {
  interleave(place);
  const T old = *address;
  *address = update(old);
  return old;
}

// Integers wrap.
template <class T>
T sum_of(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

}  // namespace specdec::emulator

#define SPECDEC_EMULATOR_ATOMIC(name, T, expression)                                                  \
  inline T name(T* address, T value, specdec::emulator::Place place = {}) {                           \
    return specdec::emulator::atomically(address, place, [value](T old) -> T { return expression; }); \
  }
#define SPECDEC_EMULATOR_ATOMIC_BITS(T)             \
  SPECDEC_EMULATOR_ATOMIC(atomicAnd, T, old& value) \
  SPECDEC_EMULATOR_ATOMIC(atomicOr, T, old | value) \
  SPECDEC_EMULATOR_ATOMIC(atomicXor, T, old ^ value)
#define SPECDEC_EMULATOR_ATOMIC_ORDER(T)                           \
  SPECDEC_EMULATOR_ATOMIC(atomicMin, T, value < old ? value : old) \
  SPECDEC_EMULATOR_ATOMIC(atomicMax, T, old < value ? value : old)
SPECDEC_EMULATOR_ATOMIC_BITS(int)
SPECDEC_EMULATOR_ATOMIC_BITS(unsigned)
SPECDEC_EMULATOR_ATOMIC_BITS(unsigned long long)
SPECDEC_EMULATOR_ATOMIC_ORDER(int)
SPECDEC_EMULATOR_ATOMIC_ORDER(unsigned)
SPECDEC_EMULATOR_ATOMIC_ORDER(long long)
SPECDEC_EMULATOR_ATOMIC_ORDER(unsigned long long)
SPECDEC_EMULATOR_ATOMIC(atomicAdd, int, specdec::emulator::sum_of(old, value))
SPECDEC_EMULATOR_ATOMIC(atomicAdd, unsigned, specdec::emulator::sum_of(old, value))
SPECDEC_EMULATOR_ATOMIC(atomicAdd, unsigned long long, specdec::emulator::sum_of(old, value))
SPECDEC_EMULATOR_ATOMIC(atomicAdd, float, old + value)
SPECDEC_EMULATOR_ATOMIC(atomicAdd, double, old + value)
SPECDEC_EMULATOR_ATOMIC(atomicExch, int, (static_cast<void>(old), value))
SPECDEC_EMULATOR_ATOMIC(atomicExch, unsigned, (static_cast<void>(old), value))
SPECDEC_EMULATOR_ATOMIC(atomicExch, unsigned long long, (static_cast<void>(old), value))
SPECDEC_EMULATOR_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
SPECDEC_EMULATOR_ATOMIC(atomicInc, unsigned, old >= value ? 0u : old + 1u)
#undef SPECDEC_EMULATOR_ATOMIC_ORDER
#undef SPECDEC_EMULATOR_ATOMIC_BITS
#undef SPECDEC_EMULATOR_ATOMIC

#define SPECDEC_EMULATOR_CAS(T)                                                                                      \
  inline T atomicCAS(T* address, T expected, T value, specdec::emulator::Place place = {}) {                         \
    return specdec::emulator::atomically(address, place, [=](T old) -> T { return old == expected ? value : old; }); \
  }
SPECDEC_EMULATOR_CAS(int)
SPECDEC_EMULATOR_CAS(unsigned)
SPECDEC_EMULATOR_CAS(unsigned long long)
#undef SPECDEC_EMULATOR_CAS

// There is no memory model: a fence is only a place where others may run.
inline void __threadfence(specdec::emulator::Place place = {}) { specdec::emulator::interleave(place); }
inline void __threadfence_block(specdec::emulator::Place place = {}) { specdec::emulator::interleave(place); }
inline void __threadfence_system(specdec::emulator::Place place = {}) { specdec::emulator::interleave(place); }

[[noreturn]] inline void __trap(specdec::emulator::Place place = {}) { specdec::emulator::fail(place, "__trap"); }

// ---- bits ----
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __ffsll(long long x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned control = selector >> (4 * i);
    const unsigned byte = static_cast<unsigned>(both >> (8 * (control & 7))) & 0xffu;
    result |= ((control & 8) != 0 ? (byte >> 7) * 0xffu : byte) << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }
inline int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// ---- arithmetic ----
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
// Out of range saturates, NaN is 0.
inline int __float2int_rz(float x) {
  return x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : static_cast<int>(x);
}
inline int __float2int_rn(float x) { return __float2int_rz(rintf(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(floorf(x)); }
inline unsigned __float2uint_rz(float x) {
  return !(x > 0.0f) ? 0u : x >= 0x1p32f ? UINT32_MAX : static_cast<unsigned>(x);
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __fdividef(float x, float y) { return x / y; }
// Macros, because the C library's header declares functions of these names.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

#define SPECDEC_EMULATOR_MIN_MAX(A, B, R)                                                                          \
  inline R min(A a, B b) { return static_cast<R>(b) < static_cast<R>(a) ? static_cast<R>(b) : static_cast<R>(a); } \
  inline R max(A a, B b) { return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(b) : static_cast<R>(a); }
SPECDEC_EMULATOR_MIN_MAX(int, int, int)
SPECDEC_EMULATOR_MIN_MAX(unsigned, unsigned, unsigned)
SPECDEC_EMULATOR_MIN_MAX(int, unsigned, unsigned)
SPECDEC_EMULATOR_MIN_MAX(unsigned, int, unsigned)
SPECDEC_EMULATOR_MIN_MAX(long, long, long)
SPECDEC_EMULATOR_MIN_MAX(unsigned long, unsigned long, unsigned long)
SPECDEC_EMULATOR_MIN_MAX(long, unsigned long, unsigned long)
SPECDEC_EMULATOR_MIN_MAX(unsigned long, long, unsigned long)
SPECDEC_EMULATOR_MIN_MAX(long long, long long, long long)
SPECDEC_EMULATOR_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
SPECDEC_EMULATOR_MIN_MAX(long long, unsigned long long, unsigned long long)
SPECDEC_EMULATOR_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef SPECDEC_EMULATOR_MIN_MAX
// NaN is the absent one.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }
