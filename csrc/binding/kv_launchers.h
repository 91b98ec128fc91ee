// SPDX-License-Identifier: Apache-2.0
// The launchers of the kv family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a function
// for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call belongs.
#pragma once

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "paged_arguments.h"
#include "register.h"
#include "row_pieces.h"

namespace specdec {

using Tensors = std::vector<Tensor>;
using OptionalTensors = std::vector<OptionalTensor>;

// ---- kv.write ----

// Keys or values with their cache and their scale.
inline KvSide read_side(const Arguments& a, const std::string& name, const Tensor& from, const Tensor& cache,
                        const OptionalTensor& scale, int64_t rows, int64_t heads) {
  KvSide side;
  a.check_rank(name.c_str(), from, 3);
  SPECDEC_CHECK(from.size(0) == rows && from.size(1) == heads, a.op(), ": ", name, " must have shape [", rows, ", ",
                heads, ", D], got ", shape_text(from));
  side.dim = from.size(2);
  SPECDEC_CHECK(side.dim <= 1 || from.stride(2) == 1, a.op(), ": ", name,
                " must have unit stride in its last dimension, got stride ", from.stride(2));
  side.from = from.data_ptr();
  side.type = a.float_type(name.c_str(), from);
  side.row_stride = from.stride(0);
  side.head_stride = from.stride(1);
  const std::string cache_name = name + "_cache", scale_name = name + "_scale";
  side.to = read_pages(a, cache_name.c_str(), cache);
  SPECDEC_CHECK(cache.size(2) == heads && cache.size(3) == side.dim, a.op(), ": ", cache_name,
                " must have shape [P, S, ", heads, ", ", side.dim, "], got ", shape_text(cache));
  side.scale = read_scale(a, scale_name.c_str(), scale, heads);
  return side;
}

template <class Backend>
void kv_write(const Tensor& key, const OptionalTensor& value, const Tensor& block_table,
              const OptionalTensor& table_rows, const Tensor& context_lens, const Tensor& cu_nodes,
              const Tensor& tokens, const Tensor& parents, const Tensor& depths, const Tensor& ends,
              const OptionalTensor& slots, int64_t, int64_t max_depth, const OptionalTensor& query_nodes,
              const OptionalTensor& cu_queries, const OptionalTensor& key_scale, const OptionalTensor& value_scale,
              const OptionalTensor& active, const Tensor& key_cache, const OptionalTensor& value_cache,
              const OptionalTensor& status) {
  const Arguments a("kv.write", Backend::kDevice);
  a.check_rank("key", key, 3);
  a.check_rank("tree.cu_nodes", cu_nodes, 1);
  SPECDEC_CHECK(cu_nodes.size(0) >= 1, a.op(), ": tree.cu_nodes must have at least one element, got none");
  const int64_t batch = cu_nodes.size(0) - 1;
  KvWriteParams p;
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, max_depth);
  p.slots = read_slots(a, slots, p.tree.total);
  p.queries = read_query_rows(a, query_nodes, cu_queries, batch, p.tree.total);
  p.heads = key.size(1);
  p.sides[0] = read_side(a, "key", key, key_cache, key_scale, p.queries.total, p.heads);
  SPECDEC_CHECK(value.has_value() == value_cache.has_value(), a.op(), ": ", value ? "value_cache" : "value",
                " must be given together with the other, got None");
  if (value) {
    p.side_count = 2;
    p.sides[1] = read_side(a, "value", *value, *value_cache, value_scale, p.queries.total, p.heads);
    SPECDEC_CHECK(
        p.sides[1].to.num_pages == p.sides[0].to.num_pages && p.sides[1].to.page_size == p.sides[0].to.page_size,
        a.op(), ": value_cache must have the pages of key_cache, got ", shape_text(*value_cache));
  } else {
    SPECDEC_CHECK(!value_scale, a.op(), ": value_scale must be None without values, got a tensor");
  }
  p.table = read_block_table(a, block_table, table_rows, batch);
  p.context_lens = a.index("context_lens", context_lens, batch);
  p.active = read_active(a, active, batch);
  p.status = read_status(a, status, batch);
  Backend::write(p, a, key);
}

// ---- kv.commit ----

// The dimensions of a tensor from the `first`-th on, in bytes.
inline std::vector<Extent> extents(const Tensor& tensor, int64_t first, int64_t element) {
  std::vector<Extent> dims;
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = static_cast<size_t>(first); i < sizes.size(); ++i) dims.push_back({sizes[i], strides[i] * element});
  return dims;
}

inline void check_row_bytes(const Arguments& a, const std::string& name, const std::vector<Extent>& dims,
                            int64_t element) {
  int64_t bytes = element;
  for (const Extent& dim : dims) bytes *= dim.count;
  SPECDEC_CHECK(bytes <= INT32_MAX, a.op(), ": ", name, " must have rows of less than 2 GiB, got ", bytes, " bytes");
}

// The pieces of the rows of buffers. Most buffers of a call have the layout of the one before.
class BufferRows {
 public:
  const std::vector<RowPiece>& pieces(const Arguments& a, const Tensor& tensor, size_t number, int64_t element) {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    if (element == element_ && std::ranges::equal(sizes, sizes_) && std::ranges::equal(strides, strides_)) {
      return pieces_;
    }
    const std::vector<Extent> dims = extents(tensor, 2, element);
    check_row_bytes(a, buffer_name(number), dims, element);
    pieces_ = pieces_of_row(dims, element, true);
    sizes_.assign(sizes.begin(), sizes.end());
    strides_.assign(strides.begin(), strides.end());
    element_ = element;
    return pieces_;
  }

  static std::string buffer_name(size_t number) { return "buffers[" + std::to_string(number) + "]"; }

 private:
  std::vector<int64_t> sizes_, strides_;
  int64_t element_ = 0;
  std::vector<RowPiece> pieces_;
};

// Adds the buffers of tensor `number` of the call.
inline void read_buffer(const Arguments& a, const Tensor& tensor, size_t number, int32_t group_number,
                        KvGroupView& group, BufferRows& rows, std::vector<KvBuffer>& buffers) {
  const auto name = [&] { return BufferRows::buffer_name(number); };
  a.check_device("buffers", tensor);
  SPECDEC_CHECK(tensor.dim() >= 2, a.op(), ": ", name(), " must have at least 2 dimensions, got shape ",
                shape_text(tensor));
  const int64_t size = tensor.size(1), element = static_cast<int64_t>(tensor.element_size());
  SPECDEC_CHECK(size >= 1 && (size & (size - 1)) == 0, a.op(), ": ", name(),
                " must have a page size that is a power of two, got ", size);
  const int32_t shift = std::countr_zero(static_cast<uint64_t>(size));
  if (group.page_shift < 0) group.page_shift = shift;
  SPECDEC_CHECK(group.page_shift == shift, a.op(), ": ", name(), " must have the page size of its group, ",
                int64_t{1} << group.page_shift, ", got ", size);
  KvBuffer buffer;
  buffer.num_pages = tensor.size(0);
  buffer.page_stride = tensor.stride(0) * element;
  buffer.slot_stride = tensor.stride(1) * element;
  buffer.group = group_number;
  if (buffer.num_pages < group.fewest_pages) group.fewest_pages = buffer.num_pages;
  char* data = static_cast<char*>(tensor.data_ptr());
  for (const RowPiece& piece : rows.pieces(a, tensor, number, element)) {
    buffer.data = data + piece.offset;
    buffer.row = piece.row;
    buffer.row.width =
        width_of(piece.row, {reinterpret_cast<intptr_t>(buffer.data), buffer.page_stride, buffer.slot_stride});
    buffers.push_back(buffer);
  }
}

template <class Backend>
void kv_commit(const Tensors& tensors, const std::vector<int64_t>& group_sizes, const Tensors& block_tables,
               const OptionalTensors& table_rows, const Tensors& context_lens, const OptionalTensors& slots,
               const OptionalTensor& cu_nodes, const Tensor& path, const Tensor& num_tokens,
               const OptionalTensor& active, const OptionalTensor& status) {
  const Arguments a("kv.commit", Backend::kDevice);
  a.check_rank("path", path, 2);
  const int64_t batch = path.size(0);
  KvCommitParams p;
  CommitCall& call = p.call;
  a.check_type<int32_t>("path", path);
  SPECDEC_CHECK(path.size(1) <= INT32_MAX, a.op(), ": path must have at most 2147483647 columns, got ", path.size(1));
  call.path = static_cast<const int32_t*>(path.data_ptr());
  call.path_row_stride = path.stride(0);
  call.path_column_stride = path.stride(1);
  call.batch = batch;
  call.width = static_cast<int32_t>(path.size(1));
  call.num_tokens = read_int32(a, "num_tokens", num_tokens, batch);
  if (cu_nodes) call.cu_nodes = read_int32(a, "cu_nodes", *cu_nodes, batch + 1);
  call.active = read_active(a, active, batch);
  call.status = read_status(a, status, batch);
  const size_t count = group_sizes.size();
  SPECDEC_CHECK(block_tables.size() == count && table_rows.size() == count && context_lens.size() == count &&
                    slots.size() == count,
                a.op(), ": block_tables must have ", count, " elements, as all lists of groups, got ",
                block_tables.size());
  std::vector<KvBuffer> buffers;
  std::vector<KvGroupView> groups;
  BufferRows rows;
  buffers.reserve(tensors.size());
  size_t next = 0;
  for (size_t g = 0; g < count; ++g) {
    KvGroupView group;
    group.table = read_block_table(a, block_tables[g], table_rows[g], batch);
    group.context_lens = a.index("context_lens", context_lens[g], batch);
    if (slots[g]) {
      SPECDEC_CHECK(cu_nodes.has_value(), a.op(), ": cu_nodes must be given with slots, got None");
      a.check_rank("slots", *slots[g], 1);
      group.slots_total = slots[g]->size(0);
      group.slots = read_int32(a, "slots", *slots[g], group.slots_total);
    }
    group.page_shift = -1;
    group.fewest_pages = INT64_MAX;
    SPECDEC_CHECK(group_sizes[g] >= 0 && group_sizes[g] <= static_cast<int64_t>(tensors.size() - next), a.op(),
                  ": group_sizes must count the buffers, got ", group_sizes[g], " for group ", g);
    for (int64_t i = 0; i < group_sizes[g]; ++i, ++next) {
      read_buffer(a, tensors[next], next, static_cast<int32_t>(groups.size()), group, rows, buffers);
    }
    if (group_sizes[g] > 0) groups.push_back(group);
  }
  SPECDEC_CHECK(next == tensors.size(), a.op(), ": group_sizes must count the buffers, got ", next, " of ",
                tensors.size());
  check_distinct(a, tensors.size(), [&](size_t i) -> const Tensor& { return tensors[i]; }, BufferRows::buffer_name);
  p.buffers = buffers.data();
  p.buffer_count = static_cast<int64_t>(buffers.size());
  p.groups = groups.data();
  p.group_count = static_cast<int64_t>(groups.size());
  Backend::commit(p, a, path);
}

// ---- kv.gather ----

template <class Backend>
void kv_gather(const Tensor& values, const Tensor& cu_nodes, const Tensor& path, const Tensor& num_tokens,
               const Tensor& out) {
  const Arguments a("kv.gather", Backend::kDevice);
  a.check_device("values", values);
  SPECDEC_CHECK(values.dim() >= 1, a.op(), ": values must have at least 1 dimension, got shape ", shape_text(values));
  a.check_rank("path", path, 2);
  a.check_type<int32_t>("path", path);
  const int64_t batch = path.size(0), width = path.size(1), element = static_cast<int64_t>(values.element_size());
  const std::vector<Extent> dims = extents(values, 1, element);
  check_row_bytes(a, "values", dims, element);
  a.check_device("out", out);
  bool fits = out.dim() == values.dim() + 1 && out.size(0) == batch && out.size(1) == width;
  for (int64_t i = 1; fits && i < values.dim(); ++i) fits = out.size(i + 1) == values.size(i);
  SPECDEC_CHECK(fits, a.op(), ": out must have shape [", batch, ", ", width, ", ...] with the rows of values, got ",
                shape_text(out));
  SPECDEC_CHECK(out.scalar_type() == values.scalar_type(), a.op(),
                ": out must have the dtype of values, got another dtype");
  SPECDEC_CHECK(out.is_contiguous(), a.op(), ": out must be contiguous, got other strides");
  KvGatherParams p;
  p.total = values.size(0);
  p.row_stride = values.stride(0) * element;
  p.cu_nodes = read_int32(a, "cu_nodes", cu_nodes, batch + 1);
  p.path = static_cast<const int32_t*>(path.data_ptr());
  p.path_row_stride = path.stride(0);
  p.path_column_stride = path.stride(1);
  p.num_tokens = read_int32(a, "num_tokens", num_tokens, batch);
  p.batch = batch;
  p.width = width;
  p.out_row_bytes = element;
  for (const Extent& dim : dims) p.out_row_bytes *= dim.count;
  if (batch * width == 0) return;
  for (const RowPiece& piece : pieces_of_row(dims, element, false)) {  // one, unless there are many dimensions
    p.values = static_cast<const char*>(values.data_ptr()) + piece.offset;
    p.out = static_cast<char*>(out.data_ptr()) + piece.begin;
    p.row = piece.row;
    const intptr_t from = reinterpret_cast<intptr_t>(p.values), to = reinterpret_cast<intptr_t>(p.out);
    p.row.width = width_of(piece.row, {from, to, p.row_stride, p.out_row_bytes});
    Backend::gather(p, a, values);
  }
}

template <class Backend, class Library>
void register_kv(Library& library) {
  SPECDEC_IMPL(library, kv_write, kv_write<Backend>);
  SPECDEC_IMPL(library, kv_commit, kv_commit<Backend>);
  SPECDEC_IMPL(library, kv_gather, kv_gather<Backend>);
}

}  // namespace specdec
