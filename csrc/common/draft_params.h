// SPDX-License-Identifier: Apache-2.0
// What the ops of the draft family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "tree_order.h"
#include "views.h"

namespace specdec {

struct NgramParams {
  const void* history = nullptr;  // [batch, columns] int32 or int64, unit column stride
  bool wide = false;
  int64_t row_stride = 0;
  int64_t batch = 0;
  int64_t columns = 0;
  IndexView lengths;
  int64_t min_n = 1;
  int64_t max_n = 1;
  int64_t num = 1;
  Strided<bool> active;    // [batch] or null
  void* drafts = nullptr;  // [batch, num], contiguous, dtype of history
  int32_t* counts = nullptr;
};

// Row r of `logits` is beam r % width of request r / width. Its children are the `num` best ids in the order (larger
// logit, then lower id), NaN as -inf and +inf as the largest finite float; child j stands in column (r % width) * num +
// j, with the score `child_score`. A child does not exist where its beam's score is -inf or NaN, where the row has no
// such id above -inf, where its score is -inf, or where `draft_to_target` names no token: token -1, score -inf. `beams`
// are the first columns by `child_key` of the children that exist, then -1. A row whose beam does not exist is not
// read.
struct ExpandParams {
  RowsView logits;                // [batch * width, columns]
  const float* scores = nullptr;  // [batch, width] or null: zeros, and width is 1
  int64_t score_row_stride = 0;
  int64_t score_column_stride = 1;
  int64_t batch = 0;
  int64_t width = 0;                // at most kMaxExpand
  int64_t num = 1;                  // 1 to kMaxExpand
  int64_t beams = 1;                // 1 to kMaxExpand
  IndexView draft_to_target;        // [columns] or null; the children are chosen before ids are mapped
  int64_t* tokens = nullptr;        // [batch, width * num], without gaps as all that follow
  float* child_scores = nullptr;    // [batch, width * num]
  int32_t* beam_columns = nullptr;  // [batch, beams]
};

// The score of a child: `max` is the largest logit of its row, `log_sum` the logarithm of the sum of exp(logit - max).
// One rounding, so that huge logits lose nothing.
SPECDEC_SHARED float child_score(float beam_score, float logit, float max, double log_sum) {
  return static_cast<float>(static_cast<double>(beam_score) + ((static_cast<double>(logit) - max) - log_sum));
}

}  // namespace specdec
