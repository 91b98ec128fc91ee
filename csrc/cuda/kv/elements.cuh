// SPDX-License-Identifier: Apache-2.0
// Elements of rows and of paged caches: one at a time, or eight where all addresses are multiples of what a thread
// moves.
#pragma once

#include "../../common/float8.h"
#include "../../common/paged_view.h"
#include "../device.cuh"

namespace specdec::cuda {

inline constexpr int kEight = 8;

// What all blocks of a launch read again (kOnce false) goes through the first-level cache.
template <bool kOnce, class T>
__device__ __forceinline__ T load_some(const T* pointer) {
  if constexpr (kOnce) return load_once(pointer);
  return *pointer;
}

template <bool kOnce = true>
__device__ inline float load_element(FloatType type, const void* from, int64_t at) {
  switch (type) {
    case FloatType::bfloat16:
      return __bfloat162float(load_some<kOnce>(static_cast<const __nv_bfloat16*>(from) + at));
    case FloatType::float16:
      return __half2float(load_some<kOnce>(static_cast<const __half*>(from) + at));
    default:
      return load_some<kOnce>(static_cast<const float*>(from) + at);
  }
}

template <bool kOnce = true>
__device__ inline void load_eight(FloatType type, const void* data, int64_t at, float (&x)[kEight]) {
  if (type == FloatType::float32) {
    const uint4* from = reinterpret_cast<const uint4*>(static_cast<const float*>(data) + at);
    const uint4 low = load_some<kOnce>(from), high = load_some<kOnce>(from + 1);
    memcpy(x, &low, sizeof(low));
    memcpy(x + 4, &high, sizeof(high));
    return;
  }
  const uint4 bits = load_some<kOnce>(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + at));
  uint16_t halves[kEight];
  memcpy(halves, &bits, sizeof(bits));
#pragma unroll
  for (int i = 0; i < kEight; ++i) {
    x[i] = type == FloatType::bfloat16 ? __bfloat162float(__ushort_as_bfloat16(halves[i]))
                                       : __half2float(__ushort_as_half(halves[i]));
  }
}

__device__ __forceinline__ uint16_t narrow_half(CacheType type, float x) {
  return type == CacheType::bfloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                                     : __half_as_ushort(__float2half_rn(x));
}

__device__ __forceinline__ uint8_t narrow_byte(CacheType type, float x) {
  return type == CacheType::float8_e4m3 ? to_float8<false>(x) : to_float8<true>(x);
}

__device__ inline void store_element(const PagedView& to, int64_t at, float x) {
  switch (bytes_of(to.type)) {
    case 4:
      return store(static_cast<float*>(to.data) + at, x);
    case 2:
      return store(static_cast<uint16_t*>(to.data) + at, narrow_half(to.type, x));
    default:
      return store(static_cast<uint8_t*>(to.data) + at, narrow_byte(to.type, x));
  }
}

__device__ inline void store_eight(const PagedView& to, int64_t at, const float (&x)[kEight]) {
  if (to.type == CacheType::float32) {
    uint4 bits[2];
    memcpy(bits, x, sizeof(bits));
    uint4* place = reinterpret_cast<uint4*>(static_cast<float*>(to.data) + at);
    store(place, bits[0]);
    store(place + 1, bits[1]);
  } else if (bytes_of(to.type) == 2) {
    uint16_t halves[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) halves[i] = narrow_half(to.type, x[i]);
    uint4 bits;
    memcpy(&bits, halves, sizeof(bits));
    store(reinterpret_cast<uint4*>(static_cast<uint16_t*>(to.data) + at), bits);
  } else {
    uint8_t bytes[kEight];
#pragma unroll
    for (int i = 0; i < kEight; ++i) bytes[i] = narrow_byte(to.type, x[i]);
    uint2 bits;
    memcpy(&bits, bytes, sizeof(bits));
    store(reinterpret_cast<uint2*>(static_cast<uint8_t*>(to.data) + at), bits);
  }
}

}  // namespace specdec::cuda
