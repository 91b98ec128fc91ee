// SPDX-License-Identifier: Apache-2.0
// A row of logits as a law sees it: entries, and the ids that they stand for.
#pragma once

#include <cstdint>

#include "race.h"
#include "verify_call.h"

namespace specdec {

// * Without maps, entry i is id i.
// * With `column_of` (and its inverse `id_of`), entry i is id i, whose logit stands in column column_of[i]: the row of
// a
//   draft seen from the target's vocabulary.
// * With `id_of` alone, entry i is column i and stands for id id_of[i]: the row of a draft as it lies.
struct Source {
  const void* data = nullptr;  // null: a row without any allowed id
  FloatType type = FloatType::float32;
  int64_t columns = 0;  // in memory
  int64_t entries = 0;  // columns, or the target's vocabulary
  Mask mask;
  IndexView column_of, id_of;

  static constexpr int64_t kLastListedId = INT32_MAX;

  SPECDEC_HD bool listed() const { return id_of && !column_of; }
  SPECDEC_HD int64_t blocks() const { return (entries + kBlockIds - 1) / kBlockIds; }
  SPECDEC_HD int length(int64_t block) const {
    const int64_t left = entries - block * kBlockIds;
    return left < kBlockIds ? static_cast<int>(left) : kBlockIds;
  }
  // The id of an entry; -1 if it has none.
  SPECDEC_HD int64_t id(int64_t entry) const {
    if (!listed()) return entry;
    const int64_t id = id_of[entry];
    return id >= 0 && id <= kLastListedId ? id : -1;
  }
  // The column where the logit of an entry stands; -1 if nowhere.
  SPECDEC_HD int64_t column(int64_t entry) const {
    if (!column_of) return entry;
    const int64_t column = column_of[entry];
    return column >= 0 && column < columns && id_of[column] == entry ? column : -1;
  }
};

// A source of a row of logits; null data if the index is out of range.
SPECDEC_SHARED Source row_source(const RowsView& logits, int64_t index) {
  Source source;
  source.type = logits.type;
  source.columns = source.entries = logits.columns;
  if (index >= 0 && index < logits.rows) {
    const int64_t size = logits.type == FloatType::float32 ? 4 : 2;
    source.data = static_cast<const char*>(logits.data) + index * logits.row_stride * size;
  }
  return source;
}

}  // namespace specdec
