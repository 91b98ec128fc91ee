// SPDX-License-Identifier: Apache-2.0
// Sixteen float lanes on any instruction set: one 64-byte, two 32-byte or four 16-byte registers, through the vector
// extensions of GCC and Clang. A result depends on the sixteen lanes alone, never on the width of a register, so that
// every instruction set gives the same bits (the files that use it are compiled without contraction).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define SPECDEC_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SPECDEC_VECTOR_BYTES 32
#else
#define SPECDEC_VECTOR_BYTES 16
#endif

SPECDEC_ISA_BEGIN

inline constexpr int kLanes = 16;
inline constexpr int kVectorLanes = SPECDEC_VECTOR_BYTES / 4;
inline constexpr int kParts = kLanes / kVectorLanes;

using VecF = float __attribute__((vector_size(SPECDEC_VECTOR_BYTES)));
using VecI = int32_t __attribute__((vector_size(SPECDEC_VECTOR_BYTES)));
using VecU = uint32_t __attribute__((vector_size(SPECDEC_VECTOR_BYTES)));
using VecU16 = uint16_t __attribute__((vector_size(SPECDEC_VECTOR_BYTES / 2)));

template <class Vector>
struct Lanes {
  Vector part[kParts];
};
using F16 = Lanes<VecF>;  // sixteen float lanes
using I16 = Lanes<VecI>;  // sixteen int32 lanes; comparisons give 0 or -1
using U16 = Lanes<VecU>;  // sixteen uint32 lanes

// Lanes live in registers: what takes or gives them is part of its caller.
#define SPECDEC_LANES [[maybe_unused]] static inline __attribute__((always_inline))
#define SPECDEC_EACH_PART for (int part_ = 0; part_ < kParts; ++part_)

// Element-wise operators for every lane type.
#define SPECDEC_LANE_OPERATOR(T, op)                                  \
  SPECDEC_LANES T operator op(const T& a, const T& b) {               \
    T r;                                                              \
    SPECDEC_EACH_PART r.part[part_] = a.part[part_] op b.part[part_]; \
    return r;                                                         \
  }
SPECDEC_LANE_OPERATOR(F16, +)
SPECDEC_LANE_OPERATOR(F16, -)
SPECDEC_LANE_OPERATOR(F16, *)
SPECDEC_LANE_OPERATOR(F16, /)
SPECDEC_LANE_OPERATOR(I16, +)
SPECDEC_LANE_OPERATOR(I16, -)
SPECDEC_LANE_OPERATOR(I16, &)
SPECDEC_LANE_OPERATOR(I16, |)
SPECDEC_LANE_OPERATOR(U16, +)
SPECDEC_LANE_OPERATOR(U16, -)
SPECDEC_LANE_OPERATOR(U16, *)
SPECDEC_LANE_OPERATOR(U16, &)
SPECDEC_LANE_OPERATOR(U16, |)
SPECDEC_LANE_OPERATOR(U16, ^)
#undef SPECDEC_LANE_OPERATOR

#define SPECDEC_LANE_COMPARE(T, op)                                   \
  SPECDEC_LANES I16 operator op(const T& a, const T& b) {             \
    I16 r;                                                            \
    SPECDEC_EACH_PART r.part[part_] = a.part[part_] op b.part[part_]; \
    return r;                                                         \
  }
SPECDEC_LANE_COMPARE(F16, <)
SPECDEC_LANE_COMPARE(F16, <=)
SPECDEC_LANE_COMPARE(F16, >)
SPECDEC_LANE_COMPARE(F16, >=)
SPECDEC_LANE_COMPARE(F16, ==)
SPECDEC_LANE_COMPARE(F16, !=)
SPECDEC_LANE_COMPARE(I16, <)
SPECDEC_LANE_COMPARE(I16, >)
SPECDEC_LANE_COMPARE(I16, ==)
#undef SPECDEC_LANE_COMPARE

SPECDEC_LANES F16 broadcast(float value) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = value - VecF{};
  return r;
}

SPECDEC_LANES I16 broadcast_int(int32_t value) {
  I16 r;
  SPECDEC_EACH_PART r.part[part_] = value - VecI{};
  return r;
}

SPECDEC_LANES U16 broadcast_uint(uint32_t value) {
  U16 r;
  SPECDEC_EACH_PART r.part[part_] = value - VecU{};
  return r;
}

// Bits of one lane type seen as another.
template <class To, class From>
SPECDEC_LANES To bits_as(const From& from) {
  To to;
  using Vector = std::remove_reference_t<decltype(to.part[0])>;
  SPECDEC_EACH_PART to.part[part_] = (Vector)from.part[part_];
  return to;
}

// Where the mask is set the value, else 0.
SPECDEC_LANES F16 keep(const I16& mask, const F16& a) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = (VecF)((VecI)a.part[part_] & mask.part[part_]);
  return r;
}

// mask ? a : b, lane by lane; the mask's lanes are 0 or -1.
SPECDEC_LANES F16 select(const I16& mask, const F16& a, const F16& b) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = mask.part[part_] ? a.part[part_] : b.part[part_];
  return r;
}

// Where one of the two is NaN, the second one.
SPECDEC_LANES F16 max(const F16& a, const F16& b) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = a.part[part_] > b.part[part_] ? a.part[part_] : b.part[part_];
  return r;
}

SPECDEC_LANES F16 min(const F16& a, const F16& b) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = a.part[part_] < b.part[part_] ? a.part[part_] : b.part[part_];
  return r;
}

SPECDEC_LANES U16 operator<<(const U16& a, int bits) {
  U16 r;
  SPECDEC_EACH_PART r.part[part_] = a.part[part_] << bits;
  return r;
}

SPECDEC_LANES U16 operator>>(const U16& a, int bits) {
  U16 r;
  SPECDEC_EACH_PART r.part[part_] = a.part[part_] >> bits;
  return r;
}

// The sign comes in from the left.
SPECDEC_LANES I16 operator>>(const I16& a, int bits) {
  I16 r;
  SPECDEC_EACH_PART r.part[part_] = a.part[part_] >> bits;
  return r;
}

SPECDEC_LANES F16 to_float(const I16& a) {
  F16 r;
  SPECDEC_EACH_PART r.part[part_] = __builtin_convertvector(a.part[part_], VecF);
  return r;
}

// The low 32 bits of `a * m`, and the high ones.
SPECDEC_LANES U16 multiply_wide(const U16& a, uint32_t m, U16& high) {
  U16 low;
  SPECDEC_EACH_PART {
#if defined(__AVX512F__)
    const __m512i x = (__m512i)a.part[part_], y = _mm512_set1_epi32((int)m);
    const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    low.part[part_] = (VecU)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    high.part[part_] = (VecU)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif defined(__AVX2__)
    const __m256i x = (__m256i)a.part[part_], y = _mm256_set1_epi32((int)m);
    const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    low.part[part_] = (VecU)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    high.part[part_] = (VecU)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
    VecU lower = {}, upper = {};
    for (int i = 0; i < kVectorLanes; ++i) {
      const uint64_t product = (uint64_t)a.part[part_][i] * m;
      lower[i] = (uint32_t)product;
      upper[i] = (uint32_t)(product >> 32);
    }
    low.part[part_] = lower;
    high.part[part_] = upper;
#endif
  }
  return low;
}

// Register by register: compilers would move a whole F16 through the stack.
template <class To, class Element>
SPECDEC_LANES To load_as(const Element* from) {
  static_assert(sizeof(Element) == 4);
  To r;
  SPECDEC_EACH_PART std::memcpy(&r.part[part_], from + part_ * kVectorLanes, SPECDEC_VECTOR_BYTES);
  return r;
}
SPECDEC_LANES F16 load(const float* from) { return load_as<F16>(from); }

template <class From, class Element>
SPECDEC_LANES void store_as(Element* to, const From& lanes) {
  static_assert(sizeof(Element) == 4);
  SPECDEC_EACH_PART std::memcpy(to + part_ * kVectorLanes, &lanes.part[part_], SPECDEC_VECTOR_BYTES);
}
SPECDEC_LANES void store(float* to, const F16& lanes) { store_as(to, lanes); }

// Widened exactly to float: the bits of a bfloat16 are the upper half of a float's.
SPECDEC_LANES F16 load_bfloat16(const uint16_t* from) {
  U16 r;
  SPECDEC_EACH_PART {
    VecU16 half;
    std::memcpy(&half, from + part_ * kVectorLanes, sizeof(half));
    r.part[part_] = __builtin_convertvector(half, VecU) << 16;
  }
  return bits_as<F16>(r);
}

// Widened exactly to float: the exponent is rebased by a product with 2^112, which also scales subnormals; infinity and
// NaN (exponent 31) get the exponent of their float kind.
SPECDEC_LANES F16 load_float16(const uint16_t* from) {
  F16 r;
  SPECDEC_EACH_PART {
    VecU16 half;
    std::memcpy(&half, from + part_ * kVectorLanes, sizeof(half));
    const VecU bits = __builtin_convertvector(half, VecU);
    const VecU magnitude = (bits & 0x7fffu) << 13;
    VecF value;
    std::memcpy(&value, &magnitude, sizeof(value));
    value *= 0x1p112f;
    VecU out;
    std::memcpy(&out, &value, sizeof(out));
    const VecI special = (VecI)(magnitude >= 0x0f800000u);
    out |= (VecU)special & 0x7f800000u;
    out |= (bits & 0x8000u) << 16;
    std::memcpy(&r.part[part_], &out, sizeof(out));
  }
  return r;
}

// True where any lane of the mask is set.
SPECDEC_LANES bool any(const I16& mask) {
  VecI seen = mask.part[0];
  for (int part = 1; part < kParts; ++part) seen |= mask.part[part];
  int64_t words[SPECDEC_VECTOR_BYTES / 8];
  std::memcpy(words, &seen, sizeof(words));
  int64_t all = 0;
  for (const int64_t word : words) all |= word;
  return all != 0;
}

// Lanes added pairwise at distance 8, 4, 2, 1: one order on every machine.
SPECDEC_LANES float sum(const F16& lanes) {
  float v[kLanes];
  store(v, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

SPECDEC_LANES float min_lane(const F16& lanes) {
  float v[kLanes];
  store(v, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] = v[i] < v[i + width] ? v[i] : v[i + width];
  }
  return v[0];
}

SPECDEC_LANES float max_lane(const F16& lanes) {
  float v[kLanes];
  store(v, lanes);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  }
  return v[0];
}

SPECDEC_ISA_END
