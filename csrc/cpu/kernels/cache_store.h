// SPDX-License-Identifier: Apache-2.0
// float32 numbers to a paged cache, in the type of the cache.
#pragma once

#include "../../common/float8.h"
#include "../../common/paged_view.h"
#include "convert.h"

SPECDEC_ISA_BEGIN

static inline void store_narrow(const float* from, int count, CacheType type, void* to, int64_t offset) {
  uint8_t* bytes = static_cast<uint8_t*>(to) + offset;
  switch (type) {
    case CacheType::float8_e4m3:
      for (int i = 0; i < count; ++i) bytes[i] = to_float8<false>(from[i]);
      return;
    case CacheType::float8_e5m2:
      for (int i = 0; i < count; ++i) bytes[i] = to_float8<true>(from[i]);
      return;
    case CacheType::bfloat16:
      return store_floats(from, count, FloatType::bfloat16, to, offset);
    case CacheType::float16:
      return store_floats(from, count, FloatType::float16, to, offset);
    default:
      return store_floats(from, count, FloatType::float32, to, offset);
  }
}

static inline bool same_type(FloatType a, CacheType b) {
  return (a == FloatType::float32 && b == CacheType::float32) ||
         (a == FloatType::bfloat16 && b == CacheType::bfloat16) || (a == FloatType::float16 && b == CacheType::float16);
}

SPECDEC_ISA_END
