// SPDX-License-Identifier: Apache-2.0
// Paged caches, block tables and the nodes of a call among the arguments of an op, as torch-free views.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "../common/attention_params.h"
#include "../common/paged_view.h"
#include "tree_arguments.h"

namespace specdec {

inline CacheType read_cache_type(const Arguments& a, const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return CacheType::float32;
    case ScalarType::BFloat16:
      return CacheType::bfloat16;
    case ScalarType::Half:
      return CacheType::float16;
    case ScalarType::Float8_e4m3fn:
      return CacheType::float8_e4m3;
    case ScalarType::Float8_e5m2:
      return CacheType::float8_e5m2;
    default:
      fail(a.op(), ": ", name,
           " must have dtype float32, bfloat16, float16, float8_e4m3fn or float8_e5m2, got another dtype");
  }
}

// [num_pages, page_size, heads, dim] with unit stride in the last dimension.
inline PagedView read_pages(const Arguments& a, const char* name, const Tensor& tensor) {
  a.check_rank(name, tensor, 4);
  const int64_t size = tensor.size(1);
  SPECDEC_CHECK(tensor.size(3) <= 1 || tensor.stride(3) == 1, a.op(), ": ", name,
                " must have unit stride in its last dimension, got stride ", tensor.stride(3));
  SPECDEC_CHECK(size >= 1 && (size & (size - 1)) == 0, a.op(), ": ", name,
                " must have a page size that is a power of two, got ", size);
  PagedView view;
  view.data = tensor.data_ptr();
  view.type = read_cache_type(a, name, tensor);
  view.num_pages = tensor.size(0);
  view.page_size = size;
  view.page_stride = tensor.stride(0);
  view.slot_stride = tensor.stride(1);
  view.head_stride = tensor.stride(2);
  return view;
}

inline BlockTable read_block_table(const Arguments& a, const Tensor& table, const OptionalTensor& rows, int64_t batch) {
  a.check_rank("block_table", table, 2);
  BlockTable view;
  view.data = table.data_ptr();
  view.wide = a.is_wide("block_table", table);
  view.table_rows = table.size(0);
  view.max_pages = table.size(1);
  view.row_stride = table.stride(0);
  view.column_stride = table.stride(1);
  view.rows = a.index("table_rows", rows, batch);
  SPECDEC_CHECK(rows.has_value() || view.table_rows == batch, a.op(), ": block_table must have ", batch, " rows, got ",
                view.table_rows);
  return view;
}

// No two of the tensors that are written begin at the same place. `tensor_at` and `name_of` take a number below
// `count`.
template <class TensorAt, class NameOf>
void check_distinct(const Arguments& a, size_t count, const TensorAt& tensor_at, const NameOf& name_of) {
  std::vector<std::pair<const void*, size_t>> found;
  found.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor& tensor = tensor_at(i);
    if (tensor.numel() > 0) found.push_back({tensor.data_ptr(), i});
  }
  std::sort(found.begin(), found.end());
  for (size_t i = 1; i < found.size(); ++i) {
    SPECDEC_CHECK(found[i].first != found[i - 1].first, a.op(), ": ", name_of(found[i].second),
                  " must not be in the memory of another, got that of ", name_of(found[i - 1].second));
  }
}

// One factor, or one for each of `heads`.
inline Strided<const float> read_scale(const Arguments& a, const char* name, const OptionalTensor& tensor,
                                       int64_t heads) {
  if (!tensor) return {};
  const bool one = tensor->dim() == 1 && tensor->size(0) == 1;
  const Strided<float> view = a.vector<float>(name, *tensor, one ? 1 : heads);
  return {view.data, one ? 0 : view.stride};
}

inline QueryRows read_query_rows(const Arguments& a, const OptionalTensor& nodes, const OptionalTensor& cu,
                                 int64_t batch, int64_t tree_rows) {
  QueryRows rows;
  rows.total = tree_rows;
  SPECDEC_CHECK(nodes.has_value() == cu.has_value(), a.op(), ": ", nodes ? "cu_queries" : "query_nodes",
                " must be given together with the other, got None");
  if (!nodes) return rows;
  a.check_rank("query_nodes", *nodes, 1);
  rows.total = nodes->size(0);
  rows.nodes = a.index("query_nodes", *nodes, rows.total);
  rows.cu = read_int32(a, "cu_queries", *cu, batch + 1);
  return rows;
}

inline Strided<const int32_t> read_slots(const Arguments& a, const OptionalTensor& slots, int64_t total) {
  return slots ? read_int32(a, "tree.slots", *slots, total) : Strided<const int32_t>{};
}

inline Strided<const bool> read_active(const Arguments& a, const OptionalTensor& active, int64_t batch) {
  const Strided<bool> view = a.vector<bool>("active", active, batch);
  return {view.data, view.stride};
}

inline int32_t* read_status(const Arguments& a, const OptionalTensor& status, int64_t batch) {
  return status ? a.contiguous<int32_t>("status", *status, batch) : nullptr;
}

}  // namespace specdec
