// SPDX-License-Identifier: Apache-2.0
// What the ops of the draft family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "paged_view.h"
#include "sampling_law.h"
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
// such id above -inf, where its score is -inf, where `draft_to_target` names no token, or where `stops` leave it out:
// token -1, score -inf. `beams` are the first columns by `child_key` of the children that exist, then -1. A row whose
// beam does not exist is not read.
struct ExpandParams {
  RowsView logits;                // [batch * width, columns]
  const float* scores = nullptr;  // [batch, width] or null: zeros, and width is 1
  int64_t score_row_stride = 0;
  int64_t score_column_stride = 1;
  int64_t batch = 0;
  int64_t width = 0;          // at most kMaxExpand
  int64_t num = 1;            // 1 to kMaxExpand
  int64_t beams = 1;          // 1 to kMaxExpand
  IndexView draft_to_target;  // [columns] or null; the children are chosen before ids are mapped
  StopsView stops;
  int64_t* tokens = nullptr;        // [batch, width * num], without gaps as all that follow
  float* child_scores = nullptr;    // [batch, width * num]
  int32_t* beam_columns = nullptr;  // [batch, beams]
};

// The score of a child: `max` is the largest logit of its row, `log_sum` the logarithm of the sum of exp(logit - max).
// One rounding, so that huge logits lose nothing.
SPECDEC_SHARED float child_score(float beam_score, float logit, float max, double log_sum) {
  return static_cast<float>(static_cast<double>(beam_score) + ((static_cast<double>(logit) - max) - log_sum));
}

// ---- draft.block ----

struct DraftBlockParams {
  const void* tokens = nullptr;  // [batch, width] int32 or int64
  bool wide = false;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  int64_t batch = 0;
  int64_t width = 0;
  Strided<const int32_t> num_tokens;  // [batch]
  IndexView context_lens;             // [batch]
  int64_t mask_token = 0;
  int64_t size = 1;  // of a block
  BlockTable table;  // null: no slots
  int64_t page_size = 1;
  Strided<const bool> active;     // [batch] or null
  MutableIndexView roots;         // [batch], as wide as the tokens
  void* ids = nullptr;            // [batch, size], as wide as the tokens, without gaps as all that follow
  int64_t* positions = nullptr;   // [batch, size]
  int64_t* slots = nullptr;       // [batch, size] or null
  MutableIndexView new_contexts;  // [batch], as wide as `context_lens`, and perhaps the same memory
  int32_t* status = nullptr;      // [batch] or null
};

// The next block of one request; root -1: there is none.
struct NextBlock {
  int64_t root = -1;
  int64_t begin = 0;   // its first position
  int64_t length = 0;  // of the context from now on
  int64_t row = -1;    // of the block table
  bool malformed = false;
};

SPECDEC_SHARED NextBlock open_block(const DraftBlockParams& p, int64_t b) {
  NextBlock block;
  const int64_t context = p.context_lens[b];
  block.length = context;
  if (p.active && !p.active[b]) return block;
  const int64_t tokens = p.num_tokens[b], count = tokens < 0 ? 0 : tokens > p.width ? p.width : tokens;
  block.malformed = tokens != count || context < 0;
  if (count == 0) return block;
  const int64_t before = context < 0 ? 0 : context > INT64_MAX / 2 ? INT64_MAX / 2 : context;  // beyond any table
  block.begin = before + count;
  block.length = p.context_lens.wide || block.begin < INT32_MAX ? block.begin : INT32_MAX;
  const int64_t at = b * p.row_stride + (count - 1) * p.column_stride;
  const int64_t root = p.wide ? static_cast<const int64_t*>(p.tokens)[at] : static_cast<const int32_t*>(p.tokens)[at];
  block.root = is_token(root) ? root : -1;
  if (p.table.data != nullptr) block.row = p.table.row_of(b);
  return block;
}

// Where position j of a block lies in the cache, page by page; -1 if it has no page.
SPECDEC_SHARED int64_t slot_of_block(const DraftBlockParams& p, const NextBlock& block, int64_t j) {
  if (block.root < 0) return -1;
  const int64_t position = block.begin + j;
  const int64_t page = p.table.page(block.row, position / p.page_size, INT64_MAX / p.page_size);
  return page < 0 ? -1 : page * p.page_size + position % p.page_size;
}

// Writes entry j of a block; false if it should have a slot and has none.
SPECDEC_SHARED bool write_block_entry(const DraftBlockParams& p, const NextBlock& block, int64_t b, int64_t j) {
  const int64_t at = b * p.size + j;
  const int64_t id = block.root < 0 ? -1 : j == 0 ? block.root : p.mask_token;
  MutableIndexView{p.ids, 1, p.wide}.set(at, id);
  p.positions[at] = block.root < 0 ? 0 : block.begin + j;
  if (p.slots == nullptr) return true;
  const int64_t slot = slot_of_block(p, block, j);
  p.slots[at] = slot;
  return slot >= 0 || block.root < 0;
}

}  // namespace specdec
