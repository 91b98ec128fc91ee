// SPDX-License-Identifier: Apache-2.0
// The launchers of the tree family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include <initializer_list>

#include "../common/tree_params.h"
#include "register.h"
#include "tree_arguments.h"

namespace specdec {

template <class Backend>
void tree_from_chains(const Tensor& chains, const OptionalTensor& lengths, const Tensor& cu_nodes, const Tensor& tokens,
                      const Tensor& parents, const Tensor& depths, const Tensor& ends, const Tensor& status) {
  const Arguments arguments("tree.from_chains", Backend::kDevice);
  arguments.check_rank("tokens", chains, 2);
  const int64_t batch = chains.size(0), width = chains.size(1), count = batch * width;
  FromChainsParams p;
  p.chains = chains.data_ptr();
  p.wide = arguments.is_wide("tokens", chains);
  p.row_stride = chains.stride(0);
  p.column_stride = chains.stride(1);
  p.batch = batch;
  p.width = width;
  p.lengths = arguments.index("lengths", lengths, batch);
  p.cu_nodes = arguments.contiguous<int32_t>("out.cu_nodes", cu_nodes, batch + 1);
  p.tokens = arguments.index_out("out.tokens", tokens, count);
  SPECDEC_CHECK(tokens.scalar_type() == chains.scalar_type(), arguments.op(),
                ": out.tokens must have the dtype of tokens, got another dtype");
  SPECDEC_CHECK(count <= 1 || tokens.stride(0) == 1, arguments.op(), ": out.tokens must be contiguous, got stride ",
                tokens.stride(0));
  p.parents = arguments.contiguous<int32_t>("out.parents", parents, count);
  p.depths = arguments.contiguous<int32_t>("out.depths", depths, count);
  p.ends = arguments.contiguous<int32_t>("out.ends", ends, count);
  p.status = arguments.contiguous<int32_t>("out.status", status, batch);
  Backend::from_chains(p, arguments, chains);
}

// The tensors of a tree that is built; `name` is that of the tree.
struct NewTreeTensors {
  const Tensor& cu_nodes;
  const Tensor& tokens;
  const Tensor& parents;
  const Tensor& depths;
  const Tensor& ends;
  const Tensor& status;
};

inline void check_bound(const Arguments& a, const char* name, int64_t value, int64_t most) {
  SPECDEC_CHECK(value >= 0 && value <= most, a.op(), ": ", name, " must be between 0 and ", most, ", got ", value);
}

inline MutableIndexView new_tokens(const Arguments& a, const char* name, const Tensor& tokens, int64_t count,
                                   const char* like_name, const Tensor& like) {
  const MutableIndexView view = a.index_out(name, tokens, count);
  SPECDEC_CHECK(tokens.scalar_type() == like.scalar_type(), a.op(), ": ", name, " must have the dtype of ", like_name,
                ", got another dtype");
  SPECDEC_CHECK(count <= 1 || view.stride == 1, a.op(), ": ", name, " must be contiguous, got stride ", view.stride);
  return {view.data, 1, view.wide};
}

// Trees with `max_nodes` rows for each of `batch` requests; `prefix` is that of the names of their tensors.
inline NewTree read_new_tree(const Arguments& a, const std::string& prefix, const NewTreeTensors& tensors,
                             int64_t batch, int64_t max_nodes, const Tensor& root_tokens) {
  check_bound(a, "max_nodes", max_nodes, kMaxTreeNodes);
  const auto column = [&](const char* field, const Tensor& tensor, int64_t size) {
    return a.contiguous<int32_t>((prefix + field).c_str(), tensor, size);
  };
  const int64_t count = batch * max_nodes;
  NewTree tree;
  tree.max_nodes = max_nodes;
  tree.cu_nodes = column("cu_nodes", tensors.cu_nodes, batch + 1);
  tree.tokens = new_tokens(a, (prefix + "tokens").c_str(), tensors.tokens, count, "root_tokens", root_tokens);
  tree.parents = column("parents", tensors.parents, count);
  tree.depths = column("depths", tensors.depths, count);
  tree.ends = column("ends", tensors.ends, count);
  tree.status = column("status", tensors.status, batch);
  return tree;
}

// A tensor of exactly this shape, of any strides.
inline void check_sizes(const Arguments& a, const char* name, const Tensor& tensor,
                        std::initializer_list<int64_t> sizes) {
  a.check_rank(name, tensor, static_cast<int64_t>(sizes.size()));
  bool fits = true;
  std::ostringstream wanted;
  int64_t i = 0;
  for (const int64_t size : sizes) {
    wanted << (i ? ", " : "") << size;
    fits &= tensor.size(i++) == size;
  }
  SPECDEC_CHECK(fits, a.op(), ": ", name, " must have shape [", wanted.str(), "], got ", shape_text(tensor));
}

// The same without gaps.
template <class T>
T* read_dense(const Arguments& a, const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes) {
  check_sizes(a, name, tensor, sizes);
  a.check_type<T>(name, tensor);
  int64_t stride = 1;
  for (int64_t i = tensor.dim(); i-- > 0;) {
    SPECDEC_CHECK(tensor.size(i) <= 1 || tensor.stride(i) == stride || tensor.numel() == 0, a.op(), ": ", name,
                  " must be contiguous, got stride ", tensor.stride(i), " in dimension ", i);
    stride *= tensor.size(i);
  }
  return static_cast<T*>(tensor.data_ptr());
}

inline IndexMatrix read_matrix(const Arguments& a, const char* name, const Tensor& tensor, int64_t rows,
                               int64_t columns) {
  check_sizes(a, name, tensor, {rows, columns});
  return {tensor.data_ptr(), tensor.stride(0), tensor.stride(1), a.is_wide(name, tensor)};
}

template <class Backend>
void tree_from_parents(const Tensor& given_tokens, const Tensor& given_parents, const Tensor& cu_nodes,
                       const OptionalTensor& lengths, int64_t max_nodes, int64_t max_depth, const Tensor& tokens,
                       const Tensor& parents, const Tensor& depths, const Tensor& ends, const OptionalTensor& slots,
                       const Tensor& order, const Tensor& status) {
  const Arguments a("tree.from_parents", Backend::kDevice);
  a.check_rank("tokens", given_tokens, 1);
  a.check_rank("cu_nodes", cu_nodes, 1);
  SPECDEC_CHECK(cu_nodes.size(0) >= 1, a.op(), ": cu_nodes must have at least one element, got shape [0]");
  FromParentsParams p;
  p.total = given_tokens.size(0);
  p.batch = cu_nodes.size(0) - 1;
  p.given_tokens = a.index("tokens", given_tokens, p.total);
  p.given_parents = a.index("parents", given_parents, p.total);
  p.cu_nodes = read_int32(a, "cu_nodes", cu_nodes, p.batch + 1);
  p.lengths = a.index("lengths", lengths, p.batch);
  check_bound(a, "max_nodes", max_nodes, kMaxTreeNodes);
  SPECDEC_CHECK(max_depth >= 0, a.op(), ": max_depth must be at least 0, got ", max_depth);
  p.max_nodes = max_nodes;
  p.max_depth = max_depth;
  p.tokens = new_tokens(a, "out[0].tokens", tokens, p.total, "tokens", given_tokens);
  p.parents = a.contiguous<int32_t>("out[0].parents", parents, p.total);
  p.depths = a.contiguous<int32_t>("out[0].depths", depths, p.total);
  p.ends = a.contiguous<int32_t>("out[0].ends", ends, p.total);
  if (slots) p.slots = a.contiguous<int32_t>("out[0].slots", *slots, p.total);
  p.order = a.contiguous<int64_t>("out[1]", order, p.total);
  p.status = a.contiguous<int32_t>("out[0].status", status, p.batch);
  Backend::from_parents(p, a, given_tokens);
}

template <class Backend>
void tree_from_beams(const Tensor& root_tokens, const Tensor& pool_tokens, const Tensor& pool_parents,
                     const Tensor& scores, const OptionalTensor& lengths, const OptionalTensor& budgets,
                     int64_t max_nodes, int64_t max_depth, const Tensor& cu_nodes, const Tensor& tokens,
                     const Tensor& parents, const Tensor& depths, const Tensor& ends, const Tensor& status,
                     const Tensor& order) {
  const Arguments a("tree.from_beams", Backend::kDevice);
  a.check_rank("root_tokens", root_tokens, 1);
  a.check_rank("tokens", pool_tokens, 2);
  FromBeamsParams p;
  p.batch = root_tokens.size(0);
  p.pool = pool_tokens.size(1);
  SPECDEC_CHECK(p.pool <= kMaxPool, a.op(), ": tokens must have at most ", kMaxPool, " columns, got ", p.pool);
  p.root_tokens = a.index("root_tokens", root_tokens, p.batch);
  p.pool_tokens = read_matrix(a, "tokens", pool_tokens, p.batch, p.pool);
  p.pool_parents = read_matrix(a, "parents", pool_parents, p.batch, p.pool);
  check_sizes(a, "scores", scores, {p.batch, p.pool});
  a.check_type<float>("scores", scores);
  p.scores = static_cast<const float*>(scores.data_ptr());
  p.score_row_stride = scores.stride(0);
  p.score_column_stride = scores.stride(1);
  p.lengths = a.index("lengths", lengths, p.batch);
  p.budgets = a.index("budget", budgets, p.batch);
  SPECDEC_CHECK(max_depth >= 0, a.op(), ": max_depth must be at least 0, got ", max_depth);
  p.max_depth = max_depth;
  p.tree =
      read_new_tree(a, "out[0].", {cu_nodes, tokens, parents, depths, ends, status}, p.batch, max_nodes, root_tokens);
  p.order = a.contiguous<int32_t>("out[1]", order, p.batch * max_nodes);
  Backend::from_beams(p, a, root_tokens);
}

template <class Backend>
void tree_best_first(const Tensor& root_tokens, const Tensor& log_probs, const Tensor& token_ids,
                     const OptionalTensor& budgets, int64_t max_nodes, int64_t total_budget, const Tensor& cu_nodes,
                     const Tensor& tokens, const Tensor& parents, const Tensor& depths, const Tensor& ends,
                     const Tensor& status, const OptionalTensor& scores) {
  const Arguments a("tree.best_first", Backend::kDevice);
  a.check_rank("root_tokens", root_tokens, 1);
  a.check_rank("log_probs", log_probs, 3);
  BestFirstParams p;
  p.batch = root_tokens.size(0);
  p.depth = log_probs.size(1);
  p.ranks = log_probs.size(2);
  p.root_tokens = a.index("root_tokens", root_tokens, p.batch);
  check_sizes(a, "log_probs", log_probs, {p.batch, p.depth, p.ranks});
  a.check_type<float>("log_probs", log_probs);
  p.log_probs = static_cast<const float*>(log_probs.data_ptr());
  check_sizes(a, "token_ids", token_ids, {p.batch, p.depth, p.ranks});
  p.token_ids = token_ids.data_ptr();
  p.wide = a.is_wide("token_ids", token_ids);
  for (int64_t i = 0; i < 3; ++i) {
    p.log_prob_strides[i] = log_probs.stride(i);
    p.token_id_strides[i] = token_ids.stride(i);
  }
  p.budgets = a.index("budget", budgets, p.batch);
  SPECDEC_CHECK(total_budget >= -1, a.op(), ": total_budget must be at least -1, got ", total_budget);
  p.total_budget = total_budget;
  p.tree = read_new_tree(a, "out.", {cu_nodes, tokens, parents, depths, ends, status}, p.batch, max_nodes, root_tokens);
  if (scores) p.scores = a.contiguous<float>("scores", *scores, p.batch * max_nodes);
  Backend::best_first(p, a, root_tokens);
}

inline constexpr int64_t kAnyDepth = INT32_MAX;

template <class Backend>
void tree_to_dense_mask(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                        const Tensor& ends, const Tensor& mask) {
  const Arguments a("tree.to_dense_mask", Backend::kDevice);
  a.check_rank("out", mask, 3);
  DenseMaskParams p;
  const int64_t batch = mask.size(0);
  p.nodes = mask.size(1);
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, kAnyDepth);
  p.mask = read_dense<bool>(a, "out", mask, {batch, p.nodes, p.nodes});
  Backend::to_dense_mask(p, a, mask);
}

template <class Backend>
void tree_to_packed_mask(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                         const Tensor& ends, const OptionalTensor& context_lens, int64_t layout, int64_t max_nodes,
                         const Tensor& mask, const OptionalTensor& indptr) {
  const Arguments a("tree.to_packed_mask", Backend::kDevice);
  SPECDEC_CHECK(layout >= 0 && layout <= 2, a.op(), ": layout must be 0, 1 or 2, got ", layout);
  SPECDEC_CHECK(max_nodes >= 0, a.op(), ": tree.max_nodes must be at least 0, got ", max_nodes);
  a.check_rank("tree.cu_nodes", cu_nodes, 1);
  SPECDEC_CHECK(cu_nodes.size(0) >= 1, a.op(), ": tree.cu_nodes must have at least one element, got shape [0]");
  const int64_t batch = cu_nodes.size(0) - 1;
  PackedMaskParams p;
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, kAnyDepth);
  p.layout = static_cast<MaskLayout>(layout);
  p.nodes = max_nodes;
  if (p.layout == MaskLayout::full) {
    SPECDEC_CHECK(context_lens.has_value(), a.op(), ": context_lens must be given for this layout, got None");
    SPECDEC_CHECK(indptr.has_value(), a.op(), ": out[1] must be given for this layout, got None");
    p.context_lens = a.index("context_lens", context_lens, batch);
    a.check_rank("out[0]", mask, 1);
    p.bytes = mask.size(0);
    SPECDEC_CHECK(p.bytes <= INT32_MAX, a.op(), ": out[0] must have at most 2147483647 bytes, got ", p.bytes);
    p.mask = a.contiguous<uint8_t>("out[0]", mask, p.bytes);
    p.indptr = a.contiguous<int32_t>("out[1]", *indptr, batch + 1);
  } else if (p.layout == MaskLayout::query) {
    p.mask = read_dense<uint8_t>(a, "out[0]", mask, {batch, max_nodes, (max_nodes + 7) / 8});
    p.bytes = mask.numel();
  } else {
    p.mask = read_dense<int32_t>(a, "out[0]", mask, {batch, max_nodes, (max_nodes + 31) / 32});
    p.bytes = 4 * mask.numel();
  }
  Backend::to_packed_mask(p, a, mask);
}

template <class Backend>
void tree_to_links(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& first_child, const Tensor& next_sibling,
                   const Tensor& retrieve_index) {
  const Arguments a("tree.to_links", Backend::kDevice);
  a.check_rank("out.first_child", first_child, 2);
  LinksParams p;
  const int64_t batch = first_child.size(0);
  p.nodes = first_child.size(1);
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, kAnyDepth);
  const auto column = [&](const char* name, const Tensor& tensor) -> MutableIndexView {
    a.check_contiguous_rows(name, tensor, batch, p.nodes);
    const bool wide = a.is_wide(name, tensor);
    SPECDEC_CHECK(tensor.scalar_type() == first_child.scalar_type(), a.op(), ": ", name,
                  " must have the dtype of out.first_child, got another dtype");
    return {tensor.data_ptr(), 1, wide};
  };
  p.first_child = column("out.first_child", first_child);
  p.next_sibling = column("out.next_sibling", next_sibling);
  p.retrieve_index = column("out.retrieve_index", retrieve_index);
  Backend::to_links(p, a, first_child);
}

template <class Backend>
void tree_to_paths(const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                   const Tensor& ends, const Tensor& paths, const Tensor& num_paths) {
  const Arguments a("tree.to_paths", Backend::kDevice);
  a.check_rank("out[0]", paths, 3);
  PathsParams p;
  const int64_t batch = paths.size(0);
  p.nodes = paths.size(1);
  p.width = paths.size(2);
  SPECDEC_CHECK(p.width >= 1, a.op(), ": out[0] must have at least one column, got ", p.width);
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, p.width - 1);
  p.paths = read_dense<int32_t>(a, "out[0]", paths, {batch, p.nodes, p.width});
  p.num_paths = a.contiguous<int32_t>("out[1]", num_paths, batch);
  Backend::to_paths(p, a, paths);
}

template <class Backend, class Library>
void register_tree(Library& library) {
  SPECDEC_IMPL(library, tree_from_chains, tree_from_chains<Backend>);
  SPECDEC_IMPL(library, tree_from_parents, tree_from_parents<Backend>);
  SPECDEC_IMPL(library, tree_from_beams, tree_from_beams<Backend>);
  SPECDEC_IMPL(library, tree_best_first, tree_best_first<Backend>);
  SPECDEC_IMPL(library, tree_to_dense_mask, tree_to_dense_mask<Backend>);
  SPECDEC_IMPL(library, tree_to_packed_mask, tree_to_packed_mask<Backend>);
  SPECDEC_IMPL(library, tree_to_links, tree_to_links<Backend>);
  SPECDEC_IMPL(library, tree_to_paths, tree_to_paths<Backend>);
}

}  // namespace specdec
