// SPDX-License-Identifier: Apache-2.0
// Rows of logits as the sampling kernels read them: blocks of 4,096 clean floats. What the contract says of dtypes,
// NaN, infinities, allowed tokens and draft vocabularies is settled here; nobody else looks at a row in memory.
#pragma once

#include "../../common/sampling_law.h"
#include "../../common/source.h"
#include "convert.h"

SPECDEC_ISA_BEGIN

inline constexpr int kBlock = kBlockIds;

// Where a block of a source lies in memory; nothing behind the last one, and where entries are gathered.
struct Bytes {
  const char* data;
  int size;
};
static inline Bytes bytes_of(const Source& source, int64_t block) {
  if (source.data == nullptr || source.column_of || block >= source.blocks()) return {nullptr, 0};
  const int64_t size = source.type == FloatType::float32 ? 4 : 2;
  return {static_cast<const char*>(source.data) + block * kBlock * size, (int)(kBlock * size)};
}

// A block that has been read.
struct Block {
  const float* logits = nullptr;  // clean; null if only the maxima were wanted
  int count = 0;                  // entries
  float max = 0;                  // -inf if there is none
  F16 lane_max;                   // of each sixteenth of them
  bool nan = false;
};

// Reads a block: NaN is reported and becomes -inf, as does what is not allowed or has no id; +inf becomes the largest
// float. `buffer` has kBlock elements; the block lies there, followed by -inf up to a multiple of 64 entries, or in the
// row itself if that is clean. Without a buffer only the maxima are found.
Block load_block(const Source& source, int64_t block, float* buffer);

// The clean value of one entry.
float logit_of(const Source& source, int64_t entry);

// Whether a row in memory holds a NaN.
bool has_nan(const Source& source);

SPECDEC_ISA_END
