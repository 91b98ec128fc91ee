// SPDX-License-Identifier: Apache-2.0
// What the ops of the kv family are given and write, as raw pointers, and what each entry of a path means. Strides of
// buffers that are moved as bytes are in bytes, all others in elements.
#pragma once

#include <cstdint>

#include "attention_params.h"

namespace specdec {

// ---- kv.write ----

struct KvSide {
  const void* from = nullptr;  // [queries.total, heads, dim], unit stride in the last dimension
  FloatType type = FloatType::float32;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  int64_t dim = 0;
  PagedView to;                // [num_pages, page_size, heads, dim]
  Strided<const float> scale;  // [heads] (stride 0: one for all) or null
};

struct KvWriteParams {
  KvSide sides[2];  // keys, values
  int32_t side_count = 1;
  int64_t heads = 0;
  BlockTable table;
  IndexView context_lens;  // [batch]
  TreeView tree;
  Strided<const int32_t> slots;  // [tree.total] or null: a node's slot is its local index
  QueryRows queries;
  Strided<const bool> active;  // [batch] or null
  int32_t* status = nullptr;   // [batch] or null
};

// ---- rows of bytes ----

// The bytes of one row of a tensor: runs without gaps, repeated along up to three dimensions.
struct RowShape {
  int64_t strides[3] = {0, 0, 0};
  int32_t counts[3] = {1, 1, 1};
  int32_t run = 0;    // bytes
  int32_t width = 1;  // 16, 8, 4, 2 or 1: all addresses and runs are multiples of it

  SPECDEC_HD int32_t units_per_run() const { return run / width; }
  SPECDEC_HD int64_t runs() const { return static_cast<int64_t>(counts[0]) * counts[1] * counts[2]; }
  SPECDEC_HD int64_t units() const { return runs() * units_per_run(); }

  // The place of run `i` of a row.
  SPECDEC_HD int64_t offset_of_run(int32_t i) const {
    const int32_t outer = i / counts[2];
    return outer / counts[1] * strides[0] + outer % counts[1] * strides[1] + i % counts[2] * strides[2];
  }
};

// ---- kv.commit ----

inline constexpr int32_t kMaxPathNodes = 4096;  // local indices on a path are below this

// A tensor whose rows are moved, or a part of one whose rows have more dimensions than a RowShape.
struct KvBuffer {
  char* data = nullptr;
  int64_t num_pages = 0;
  int64_t page_stride = 0;
  int64_t slot_stride = 0;
  RowShape row;
  int32_t group = 0;
};

// Where the rows of some buffers lie.
struct KvGroupView {
  BlockTable table;
  IndexView context_lens;        // [batch]
  Strided<const int32_t> slots;  // [slots_total] or null: a node's slot is its local index
  int64_t slots_total = 0;
  int32_t page_shift = 0;    // of a page size that is a power of two
  int64_t fewest_pages = 0;  // of its buffers
};

struct CommitCall {
  const int32_t* path = nullptr;  // [batch, width]
  int64_t path_row_stride = 0;
  int64_t path_column_stride = 1;
  Strided<const int32_t> num_tokens;  // [batch]
  Strided<const int32_t> cu_nodes;    // [batch + 1], where a group has slots
  Strided<const bool> active;         // [batch] or null
  int32_t* status = nullptr;          // [batch] or null
  int64_t batch = 0;
  int32_t width = 0;
};

struct KvCommitParams {
  CommitCall call;
  const KvBuffer* buffers = nullptr;  // those of a group together, and each group has one
  int64_t buffer_count = 0;
  const KvGroupView* groups = nullptr;
  int64_t group_count = 0;
};

// One request in one group.
struct CommitRequest {
  int64_t row = -1;     // of the block table
  int64_t context = 0;  // committed positions
  int64_t first = 0;    // of its slots
  int32_t nodes = 0;    // local indices are below this
  int32_t count = 0;    // entries of the path
  bool malformed = false;
};

SPECDEC_SHARED CommitRequest open_commit(const CommitCall& call, const KvGroupView& group, int64_t b) {
  CommitRequest request;
  if (call.active && !call.active[b]) return request;
  const int32_t tokens = call.num_tokens[b];
  request.count = tokens < 0 ? 0 : tokens > call.width ? call.width : tokens;
  request.context = group.context_lens[b];
  request.malformed = tokens != request.count || request.context < 0;
  if (request.context < 0) request.context = 0;
  if (request.context > INT64_MAX / 2) request.context = INT64_MAX / 2;  // beyond any table
  request.row = group.table.row_of(b);
  request.nodes = kMaxPathNodes;
  if (group.slots) {
    const int64_t first = call.cu_nodes[b], after = call.cu_nodes[b + 1];
    const bool inside = first >= 0 && first <= after && after <= group.slots_total;
    request.first = first;
    request.nodes = !inside ? 0 : after - first < kMaxPathNodes ? static_cast<int32_t>(after - first) : kMaxPathNodes;
  }
  return request;
}

// An entry of a path: the node, and its slot behind the context; -1 if there is no such node.
struct PathEntry {
  int32_t node = -1;
  int32_t slot = -1;

  // Whether this entry may follow `before`, or begin a path (`before` is then an entry of -1). Slots that increase
  // strictly from at least 0 are at least the number of entries before them.
  SPECDEC_HD bool follows(const PathEntry& before) const { return node > before.node && slot > before.slot; }
};

SPECDEC_SHARED PathEntry path_entry(const CommitCall& call, const KvGroupView& group, const CommitRequest& request,
                                    int64_t b, int32_t j) {
  if (j < 0) return {};
  const int32_t node = call.path[b * call.path_row_stride + j * call.path_column_stride];
  if (node < 0 || node >= request.nodes) return {};
  return {node, group.slots ? group.slots[request.first + node] : node};
}

// Where a position lies in a buffer, in bytes; -1 if it has no page.
SPECDEC_SHARED int64_t place_of(const KvGroupView& group, int64_t table_row, int64_t position, int64_t num_pages,
                                int64_t page_stride, int64_t slot_stride) {
  const int64_t page = group.table.page(table_row, position >> group.page_shift, num_pages);
  if (page < 0) return -1;
  return page * page_stride + (position & ((int64_t{1} << group.page_shift) - 1)) * slot_stride;
}

// ---- kv.gather ----

struct KvGatherParams {
  const char* values = nullptr;  // [total, ...]
  int64_t row_stride = 0;
  RowShape row;  // of the values; its runs, in order, are the bytes of a row of the result from `begin` on
  int64_t total = 0;
  Strided<const int32_t> cu_nodes;  // [batch + 1]
  const int32_t* path = nullptr;    // [batch, width]
  int64_t path_row_stride = 0;
  int64_t path_column_stride = 1;
  Strided<const int32_t> num_tokens;  // [batch]
  int64_t batch = 0;
  int64_t width = 0;
  char* out = nullptr;  // [batch, width, out_row_bytes]
  int64_t out_row_bytes = 0;
};

// The row of the values that goes to place j of request b; -1 if there is none.
SPECDEC_SHARED int64_t gathered_row(const KvGatherParams& p, int64_t b, int64_t j) {
  if (j >= p.num_tokens[b]) return -1;
  const int64_t node = p.path[b * p.path_row_stride + j * p.path_column_stride];
  const int64_t begin = p.cu_nodes[b], end = p.cu_nodes[b + 1];
  if (begin < 0 || node < 0 || node >= end - begin || begin + node >= p.total) return -1;
  return begin + node;
}

}  // namespace specdec
