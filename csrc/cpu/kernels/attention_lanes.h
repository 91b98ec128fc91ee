// SPDX-License-Identifier: Apache-2.0
// Arithmetic on one register of floats for attention: fused where the instruction set has it, written out, so that an
// operation is the same one wherever it is inlined (nothing is left for the compiler to contract).
#pragma once

#include <utility>

#include "../../common/attention_params.h"
#include "../simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

SPECDEC_ISA_BEGIN

#define SPECDEC_VECTOR [[maybe_unused]] static inline __attribute__((always_inline))

SPECDEC_VECTOR VecF splat(float value) { return value - VecF{}; }

SPECDEC_VECTOR VecF load_vector(const float* from) {
  VecF r;
  __builtin_memcpy(&r, from, sizeof(r));
  return r;
}
SPECDEC_VECTOR void store_vector(float* to, VecF value) { __builtin_memcpy(to, &value, sizeof(value)); }

// Keeps a value in a register: compilers would rather load it again for every use, and loads are what is short.
#if defined(__x86_64__)
#define SPECDEC_IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__aarch64__)
#define SPECDEC_IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define SPECDEC_IN_REGISTER(value) (void)(value)
#endif

// a b + c.
SPECDEC_VECTOR VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (VecF)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

SPECDEC_VECTOR VecF choose(VecI mask, VecF a, VecF b) { return mask ? a : b; }
// `b` where one of the two is NaN.
SPECDEC_VECTOR VecF larger(VecF a, VecF b) { return a > b ? a : b; }

// ---- sums over the lanes of several registers ----

// Halves of groups of 2 S lanes: first the one of `a`, then that of `b`, in every group.
template <int S, bool kUpper, int... J>
SPECDEC_VECTOR VecF halves(VecF a, VecF b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, ((J & S) ? kVectorLanes + J - (kUpper ? 0 : S) : J + (kUpper ? S : 0))...);
}

template <int S>
SPECDEC_VECTOR void fold(VecF (&x)[kVectorLanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, kVectorLanes>();
#pragma GCC unroll 16
  for (int i = 0; i < S; ++i) {
    x[i] = halves<S, false>(x[i], x[i + S], lanes) + halves<S, true>(x[i], x[i + S], lanes);
  }
  if constexpr (S > 1) fold<S / 2>(x);
}

// Lane i of the result: the lanes of x[i] added at distance L/2, ..., 2, 1.
SPECDEC_VECTOR VecF sums_of(VecF (&x)[kVectorLanes]) {
  fold<kVectorLanes / 2>(x);
  return x[0];
}

// Each lane with its partner at distance S.
template <int S, int... J>
SPECDEC_VECTOR VecF partners(VecF x, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(x, x, (J ^ S)...);
}

// In all lanes the sum of all lanes, added at distance L/2, ..., 2, 1; and the largest.
template <int S = kVectorLanes / 2>
SPECDEC_VECTOR VecF sum_of(VecF x) {
  x = x + partners<S>(x, std::make_integer_sequence<int, kVectorLanes>());
  if constexpr (S > 1) return sum_of<S / 2>(x);
  return x;
}
template <int S = kVectorLanes / 2>
SPECDEC_VECTOR VecF largest_of(VecF x) {
  x = larger(x, partners<S>(x, std::make_integer_sequence<int, kVectorLanes>()));
  if constexpr (S > 1) return largest_of<S / 2>(x);
  return x;
}

// ---- elementary functions ----

// 2^t for t <= 0, relative error below 2e-7; exactly 1 at 0, 0 below -126.5; NaN stays NaN.
SPECDEC_VECTOR VecF exp2_vector(VecF t) {
  const VecF least = splat(-127.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: an integer is left in the low bits
  t = larger(least, t);
  const VecF shifted = t + magic;
  const VecF f = t - (shifted - magic);  // in [-0.5, 0.5]
  VecF p = splat(0x1.5bba14p-10f);       // minimax for 2^f, as in lanes_math.h
  p = multiply_add(p, f, splat(0x1.3cea88p-7f));
  p = multiply_add(p, f, splat(0x1.c6b752p-5f));
  p = multiply_add(p, f, splat(0x1.ebf9bcp-3f));
  p = multiply_add(p, f, splat(0x1.62e42ap-1f));
  p = multiply_add(p, f, splat(1.0f));
  return p * (VecF)(((VecU)shifted + 127u) << 23);
}

// tanh, relative error below 4e-7: an odd polynomial near 0, where the quotient would cancel.
SPECDEC_VECTOR VecF tanh_vector(VecF x) {
  const VecF size = (VecF)((VecI)x & 0x7fffffff), one = splat(1.0f);
  const VecF e = exp2_vector(size * splat(-2.885390082f));
  const VecF large = (one - e) / (one + e);
  const VecF signed_large = (VecF)((VecI)large | ((VecI)x & (int32_t)0x80000000));
  const VecF z = x * x;
  VecF p = splat(-1382.0f / 155925);
  p = multiply_add(p, z, splat(62.0f / 2835));
  p = multiply_add(p, z, splat(-17.0f / 315));
  p = multiply_add(p, z, splat(2.0f / 15));
  p = multiply_add(p, z, splat(-1.0f / 3));
  return choose(size < splat(0.3f), multiply_add(x * z, p, x), signed_large);
}

// ---- elements of caches as floats, exactly ----

// Bytes and halves as 32-bit lanes. (Compilers widen them poorly.)
SPECDEC_VECTOR VecU load_bytes(const void* from) {
#if defined(__AVX512F__)
  return (VecU)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (VecU)_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
#else
  using VecU8 = uint8_t __attribute__((vector_size(SPECDEC_VECTOR_BYTES / 4)));
  VecU8 bytes;
  __builtin_memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(bytes, VecU);
#endif
}
SPECDEC_VECTOR VecU load_halves(const void* from) {
#if defined(__AVX512F__)
  return (VecU)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (VecU)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  VecU16 halves;
  __builtin_memcpy(&halves, from, sizeof(halves));
  return __builtin_convertvector(halves, VecU);
#endif
}

template <CacheType type>
SPECDEC_VECTOR VecF widen_vector(const void* from) {
  if constexpr (type == CacheType::float32) {
    return load_vector(static_cast<const float*>(from));
  } else if constexpr (type == CacheType::bfloat16 || type == CacheType::float16) {
    if constexpr (type == CacheType::bfloat16) return (VecF)(load_halves(from) << 16);
#if defined(__AVX512F__)
    return (VecF)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
    const VecU bits = load_halves(from);
    const VecU magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    // Rebased by an addition to the exponent; below the least exponent by a subtraction that normalises.
    const VecF normal = (VecF)(magnitude + (112u << 23));
    const VecF tiny = (VecF)(magnitude + (113u << 23)) - splat(0x1p-14f);
    const VecU special = (VecU)(VecI)(magnitude >= 0x0f800000u) & 0x7f800000u;
    const VecF value = choose((VecI)(magnitude < 0x00800000u), tiny, normal);
    return (VecF)((VecU)value | special | sign);
#endif
  } else {
    const VecU bits = load_bytes(from);
    constexpr bool kE5 = type == CacheType::float8_e5m2;
    const VecU magnitude = (bits & 0x7fu) << (kE5 ? 21 : 20), sign = (bits & 0x80u) << 24;
    constexpr uint32_t kRebase = kE5 ? 112 : 120;
    const VecF normal = (VecF)(magnitude + (kRebase << 23));
    const VecF tiny = (VecF)(magnitude + ((kRebase + 1) << 23)) - splat(kE5 ? 0x1p-14f : 0x1p-6f);
    const VecF value = choose((VecI)(magnitude < 0x00800000u), tiny, normal);
    // Exponent 31 of e5m2 is infinity or NaN; e4m3 has one NaN, all bits set, and no infinity.
    const VecU special = kE5 ? (VecU)(VecI)(magnitude >= (0x7cu << 21)) & 0x7f800000u
                             : (VecU)(VecI)(magnitude == (0x7fu << 20)) & 0x7fc00000u;
    return (VecF)((VecU)value | special | sign);
  }
}

// `count` elements (a multiple of 8) to floats, and zeros up to the next multiple of a register.
template <CacheType type>
static inline void widen_as(const char* from, int64_t count, float* to) {
  constexpr int kBytes = type == CacheType::float32                                  ? 4
                         : type == CacheType::bfloat16 || type == CacheType::float16 ? 2
                                                                                     : 1;
  int64_t i = 0;
  for (; i + kVectorLanes <= count; i += kVectorLanes) store_vector(to + i, widen_vector<type>(from + i * kBytes));
  if (i == count) return;
  alignas(64) char rest[kVectorLanes * kBytes] = {};
  __builtin_memcpy(rest, from + i * kBytes, (size_t)(count - i) * kBytes);
  store_vector(to + i, widen_vector<type>(rest));
}

static inline void widen(CacheType type, const char* from, int64_t count, float* to) {
  switch (type) {
    case CacheType::bfloat16:
      return widen_as<CacheType::bfloat16>(from, count, to);
    case CacheType::float16:
      return widen_as<CacheType::float16>(from, count, to);
    case CacheType::float8_e4m3:
      return widen_as<CacheType::float8_e4m3>(from, count, to);
    case CacheType::float8_e5m2:
      return widen_as<CacheType::float8_e5m2>(from, count, to);
    default:
      return widen_as<CacheType::float32>(from, count, to);
  }
}

SPECDEC_ISA_END
