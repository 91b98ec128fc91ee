// SPDX-License-Identifier: Apache-2.0
// What the ops of the tree family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "tree_order.h"
#include "tree_view.h"
#include "views.h"

namespace specdec {

// A two-dimensional int32 or int64 tensor of any strides.
struct IndexMatrix {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  bool wide = false;  // int64

  SPECDEC_HD IndexView row(int64_t i) const {
    return {static_cast<const char*>(data) + i * row_stride * (wide ? 8 : 4), column_stride, wide};
  }
};

struct FromChainsParams {
  const void* chains = nullptr;  // [batch, width] int32 or int64
  bool wide = false;             // int64 chains and tokens
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  int64_t batch = 0;
  int64_t width = 0;
  IndexView lengths;  // [batch] or null: all rows are live
  int32_t* cu_nodes = nullptr;
  MutableIndexView tokens;
  int32_t* parents = nullptr;
  int32_t* depths = nullptr;
  int32_t* ends = nullptr;
  int32_t* status = nullptr;
};

// Rows of request b are those of `rows_of_request`. Rows of no live node are padding: token -1, parent -1, depth 0, end
// 0, order = the row itself, slot = its place in the rows of its request (0 where it belongs to none). A malformed
// request is its root alone (nothing where it has no rows or max_nodes is 0), flagged.
struct FromParentsParams {
  IndexView given_tokens;           // [total]
  IndexView given_parents;          // [total], local: -1 for the first row of a request, else below the own index
  Strided<const int32_t> cu_nodes;  // [batch + 1]
  IndexView lengths;                // [batch] or null: all rows are live; outside [0, rows]: malformed
  int64_t batch = 0;
  int64_t total = 0;
  int64_t max_nodes = 0;    // at most kMaxTreeNodes; a request with more is malformed
  int64_t max_depth = 0;    // likewise
  MutableIndexView tokens;  // [total], unit stride, as all that follow; dtype of given_tokens
  int32_t* parents = nullptr;
  int32_t* depths = nullptr;
  int32_t* ends = nullptr;
  int32_t* slots = nullptr;   // or null
  int64_t* order = nullptr;   // global row of given_tokens
  int32_t* status = nullptr;  // [batch]
};

// Which rows of [0, total) a request is responsible for, whatever `cu_nodes` holds. With m(b) = the largest of 0 and
// the first b + 1 offsets, clipped to `total`, those of request b are m(b) to m(b + 1), so that requests never share a
// row; the first one also pads [0, m(0)), the last one [m(batch), total). Its offsets are sound iff they are m(b) and
// m(b + 1); else all of its rows are padding and it is malformed.
struct RequestRows {
  int64_t first = 0;
  int64_t after = 0;
  bool sound = true;
};

// `largest` is m(b): m(0) = bounded_offset(0, cu_nodes[0], total), and m(b + 1) = bounded_offset(m(b), cu_nodes[b + 1],
// total).
SPECDEC_SHARED int64_t bounded_offset(int64_t before, int64_t offset, int64_t total) {
  const int64_t largest = offset > before ? offset : before;
  return largest < total ? largest : total;
}
SPECDEC_SHARED RequestRows rows_of_request(const FromParentsParams& p, int64_t b, int64_t largest) {
  const int64_t after = bounded_offset(largest, p.cu_nodes[b + 1], p.total);
  return {largest, after, p.cu_nodes[b] == largest && p.cu_nodes[b + 1] == after};
}

// A tree with `max_nodes` rows per request, all without gaps. Rows after the live nodes are padding: token -1, parent
// -1, depth 0, end 0.
struct NewTree {
  int64_t max_nodes = 0;        // at most kMaxTreeNodes
  int32_t* cu_nodes = nullptr;  // [batch + 1]: multiples of max_nodes
  MutableIndexView tokens;      // [batch * max_nodes]
  int32_t* parents = nullptr;
  int32_t* depths = nullptr;
  int32_t* ends = nullptr;
  int32_t* status = nullptr;  // [batch]
};

// Nodes that a request may have, its root included.
SPECDEC_SHARED int64_t budget_of(const IndexView& budgets, int64_t max_nodes, int64_t request) {
  const int64_t budget = budgets ? budgets[request] : max_nodes;
  return budget < 0 ? 0 : budget < max_nodes ? budget : max_nodes;
}

// Candidate i of a request is absent if its index is not below the length, its score is -inf or NaN, its id is not a
// token, its parent is not in [-1, i), its depth exceeds max_depth, or its parent is absent. Those of one canonical
// parent and one token are one node: the one of the lowest index, with the largest of their scores; its children are
// those of all. A score counts as at most that of the parent (a child of the root keeps its own). The first `budget` -
// 1 nodes by `beam_key` are taken; siblings stand in that order.
//
// A request without a token as its root, or with a budget below 1, is idle: no nodes, status 0. With a length outside
// [0, pool] it is its root alone, flagged; a candidate that is absent for nothing but its parent's index is flagged
// too.
struct FromBeamsParams {
  IndexView root_tokens;    // [batch]
  IndexMatrix pool_tokens;  // [batch, pool]
  IndexMatrix pool_parents;
  const float* scores = nullptr;  // [batch, pool]
  int64_t score_row_stride = 0;
  int64_t score_column_stride = 1;
  IndexView lengths;  // [batch] or null: all candidates
  IndexView budgets;  // [batch] or null: max_nodes
  int64_t batch = 0;
  int64_t pool = 0;  // at most kMaxPool
  int64_t max_depth = 0;
  NewTree tree;              // tokens have the dtype of the root's
  int32_t* order = nullptr;  // [batch * max_nodes]: pool index, -1 for roots and padding
};

// A node of depth d is a rank of row d - 1 under a node of depth d - 1; its score is that of its parent (0 for the
// root) plus the rank's log-probability, made safe by `safe_log_prob`, in single precision. A rank whose
// log-probability is -inf or whose id is not a token, and a node whose score is -inf, is absent. The first `budget` - 1
// nodes by `best_first_key` are taken; siblings stand in the order of their ranks. With a total budget, of the nodes
// that requests would take without it the first `total_budget` - (live roots) by `batch_key` are taken.
//
// A request without a token as its root, or with a budget below 1, is idle. The status is always 0.
struct BestFirstParams {
  IndexView root_tokens;             // [batch]
  const float* log_probs = nullptr;  // [batch, depth, ranks]
  int64_t log_prob_strides[3] = {0, 0, 0};
  const void* token_ids = nullptr;  // [batch, depth, ranks] int32 or int64
  bool wide = false;
  int64_t token_id_strides[3] = {0, 0, 0};
  IndexView budgets;  // [batch] or null: max_nodes
  int64_t batch = 0;
  int64_t depth = 0;
  int64_t ranks = 0;
  int64_t total_budget = -1;  // -1: none
  NewTree tree;               // tokens have the dtype of the root's
  float* scores = nullptr;    // [batch * max_nodes] or null: score of each node, 0 for roots, -inf for padding
};

// ---- exports: `nodes` rows per request, all written, without gaps ----

// What an export sees of a request. One with more than `nodes` nodes is malformed: its root alone.
SPECDEC_SHARED RequestNodes open_bounded_request(const TreeView& tree, int64_t request, int64_t nodes) {
  RequestNodes opened = open_request(tree, request);
  if (opened.count > nodes) {
    opened.malformed = true;
    opened.count = nodes < 1 ? 0 : 1;
  }
  return opened;
}

struct DenseMaskParams {
  TreeView tree;  // of any depth
  int64_t nodes = 0;
  bool* mask = nullptr;  // [batch, nodes, nodes]: whether live node i is live node j or below it
};

enum class MaskLayout : int32_t { full, query, words };

// Bit k of a sequence is bit k % 8 of byte k / 8 (of a word: bit k % 32 of word k / 32).
// query, words: [batch, nodes, ceil(nodes / 8)] bytes or [.., ceil(nodes / 32)] words; bit j of row i as in the dense
// mask.
// full: the segments of the requests one after the other, each from a byte on. With q live nodes behind a context of c
// (below 0: 0) it has q * (c + q) bits; bit i * (c + q) + t is set for t < c, and for t = c + j as in the dense mask. A
// segment longer than bytes / batch is empty. What is left of the last byte of a segment, and bytes after the last
// segment, are 0.
struct PackedMaskParams {
  TreeView tree;  // of any depth
  MaskLayout layout = MaskLayout::full;
  IndexView context_lens;  // [batch], full only
  int64_t nodes = 0;
  void* mask = nullptr;
  int64_t bytes = 0;          // of the mask; at most INT32_MAX where there is `indptr`
  int32_t* indptr = nullptr;  // [batch + 1], full only: first byte of each segment, then the end of the last
};

// Bytes of the segment of a request in the full layout; `share` is bytes / batch.
SPECDEC_SHARED int64_t segment_bytes(int64_t live, int64_t context, int64_t share) {
  if (live == 0 || context > 8 * share) return 0;
  const int64_t size = (live * (context + live) + 7) / 8;
  return size <= share ? size : 0;
}

// Local nodes, -1 where there is none; `retrieve_index` is the global row of a live node, else -1.
struct LinksParams {
  TreeView tree;  // of any depth
  int64_t nodes = 0;
  MutableIndexView first_child;  // [batch * nodes] each, of one dtype
  MutableIndexView next_sibling;
  MutableIndexView retrieve_index;
};

// One path per leaf, in the order of the leaves: local nodes from the root, -1 beyond.
struct PathsParams {
  TreeView tree;  // max_depth = width - 1
  int64_t nodes = 0;
  int64_t width = 0;
  int32_t* paths = nullptr;      // [batch, nodes, width]
  int32_t* num_paths = nullptr;  // [batch]
};

}  // namespace specdec
