// SPDX-License-Identifier: Apache-2.0
// Rows of logits as the sampling kernels read them: blocks of 4,096 clean floats. What the contract says of dtypes,
// NaN, infinities, allowed tokens and draft vocabularies is settled here; nobody else looks at a row in memory.
#pragma once

#include "../../common/race.h"
#include "../../common/sampling_law.h"
#include "../../common/verify_call.h"
#include "linear_convert.h"

SPECDEC_ISA_BEGIN

inline constexpr int kBlock = kBlockIds;

// A row, and which ids its entries stand for.
//
// * Without maps, entry i is id i.
// * With `column_of` (and its inverse `id_of`), entry i is id i, whose logit stands in column column_of[i]: a draft's
// row
//   seen from the target's vocabulary.
// * With `id_of` alone, entry i is column i and stands for id id_of[i]: a draft's row as it lies.
struct Source {
  const void* data = nullptr;  // null: a row without any allowed id
  FloatType type = FloatType::float32;
  int64_t columns = 0;  // in memory
  int64_t entries = 0;  // columns, or the target's vocabulary
  Mask mask;
  IndexView column_of, id_of;

  bool listed() const { return id_of && !column_of; }
  int64_t blocks() const { return (entries + kBlock - 1) / kBlock; }
  int length(int64_t block) const {
    const int64_t left = entries - block * kBlock;
    return left < kBlock ? (int)left : kBlock;
  }
  // Where a block lies in memory; nothing behind the last one, and where entries are gathered.
  struct Bytes {
    const char* data;
    int size;
  };
  Bytes bytes_of(int64_t block) const {
    if (data == nullptr || column_of || block >= blocks()) return {nullptr, 0};
    const int64_t size = type == FloatType::float32 ? 4 : 2;
    return {static_cast<const char*>(data) + block * kBlock * size, (int)(kBlock * size)};
  }
  // The id of an entry; -1 if it has none.
  int64_t id(int64_t entry) const {
    if (!listed()) return entry;
    const int64_t id = id_of[entry];
    return id >= 0 && id <= kLastListedId ? id : -1;
  }

  static constexpr int64_t kLastListedId = INT32_MAX;
};

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

// A source of a row of logits; null data if the index is out of range.
static inline Source row_source(const RowsView& logits, int64_t index) {
  Source source;
  source.type = logits.type;
  source.columns = source.entries = logits.columns;
  if (index >= 0 && index < logits.rows) {
    const int64_t size = logits.type == FloatType::float32 ? 4 : 2;
    source.data = static_cast<const char*>(logits.data) + index * logits.row_stride * size;
  }
  return source;
}

SPECDEC_ISA_END
