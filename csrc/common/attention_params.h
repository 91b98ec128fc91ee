// SPDX-License-Identifier: Apache-2.0
// What the ops of the attention family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "paged_view.h"
#include "tree_view.h"

namespace specdec {

enum class Visibility : int32_t { tree, block };

// Largest head sizes; all are multiples of 8.
inline constexpr int64_t kMaxKeyDim = 576;
inline constexpr int64_t kMaxValueDim = 512;

// Rows of queries: request b owns rows cu[b] to cu[b+1]; row r is node nodes[r] of its request. Without `cu` the rows
// are those of the tree, each its own node.
struct QueryRows {
  Strided<const int32_t> cu;  // [batch + 1] or null
  IndexView nodes;            // [total]; given with `cu`
  int64_t total = 0;
};

struct TreeAttentionParams {
  const void* query = nullptr;  // [queries.total, heads, key_dim]
  FloatType query_type = FloatType::float32;
  int64_t query_row_stride = 0;
  int64_t query_head_stride = 0;
  PagedView key;    // [num_pages, page_size, kv_heads, key_dim]
  PagedView value;  // [num_pages, page_size, kv_heads, value_dim]
  BlockTable table;
  IndexView context_lens;  // [batch]
  TreeView tree;
  Strided<const int32_t> slots;  // [tree.total] or null: a node's slot is its local index
  QueryRows queries;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  int64_t max_nodes = 0;  // host bound of the nodes of a request
  float scale = 1.0f;
  float softcap = 0.0f;              // 0: off
  int64_t window = 0;                // 0: off
  Strided<const float> sinks;        // [heads] or null
  Strided<const float> key_scale;    // [kv_heads] (stride 0: one for all) or null
  Strided<const float> value_scale;  // likewise
  Visibility visibility = Visibility::tree;
  Strided<const bool> active;  // [batch] or null
  void* out = nullptr;         // [queries.total, heads, value_dim] of the query's type, without gaps
  float* lse = nullptr;        // [queries.total, heads], without gaps
  int32_t* status = nullptr;   // [batch] or null
};

struct MergeStatesParams {
  const void* values = nullptr;  // [rows, states, heads, dim]
  FloatType type = FloatType::float32;
  int64_t value_strides[3] = {0, 0, 0};
  const float* lses = nullptr;  // [rows, states, heads]
  int64_t lse_strides[3] = {0, 0, 0};
  int64_t rows = 0;
  int64_t states = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  void* out = nullptr;   // [rows, heads, dim], without gaps
  float* lse = nullptr;  // [rows, heads], without gaps
};

}  // namespace specdec
