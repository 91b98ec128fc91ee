// SPDX-License-Identifier: Apache-2.0
// The launchers of the attention family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include "paged_arguments.h"
#include "register.h"

namespace specdec {

inline const char* name_of(FloatType type) {
  return type == FloatType::float32 ? "float32" : type == FloatType::bfloat16 ? "bfloat16" : "float16";
}

// A tensor without gaps of three dimensions, of the type of another.
inline void* read_out_like(const Arguments& a, const char* name, const Tensor& tensor, const Tensor& like, int64_t rows,
                           int64_t heads, int64_t dim) {
  a.check_rank(name, tensor, 3);
  SPECDEC_CHECK(tensor.size(0) == rows && tensor.size(1) == heads && tensor.size(2) == dim, a.op(), ": ", name,
                " must have shape [", rows, ", ", heads, ", ", dim, "], got ", shape_text(tensor));
  SPECDEC_CHECK(tensor.scalar_type() == like.scalar_type(), a.op(), ": ", name, " must have dtype ",
                name_of(a.float_type(name, like)), ", got another dtype");
  SPECDEC_CHECK(tensor.is_contiguous(), a.op(), ": ", name, " must be contiguous, got other strides");
  return tensor.data_ptr();
}

template <class Backend>
void attention_tree_attention(const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
                              const Tensor& block_table, const OptionalTensor& table_rows, const Tensor& context_lens,
                              const Tensor& cu_nodes, const Tensor& tokens, const Tensor& parents, const Tensor& depths,
                              const Tensor& ends, const OptionalTensor& slots, int64_t max_nodes, int64_t max_depth,
                              const OptionalTensor& query_nodes, const OptionalTensor& cu_queries, double scale,
                              double softcap, int64_t window, const OptionalTensor& sinks,
                              const OptionalTensor& key_scale, const OptionalTensor& value_scale, int64_t visibility,
                              const OptionalTensor& active, const Tensor& out, const Tensor& lse,
                              const OptionalTensor& status) {
  const Arguments a("attention.tree_attention", Backend::kDevice);
  a.check_rank("query", query, 3);
  a.check_rank("tree.cu_nodes", cu_nodes, 1);
  SPECDEC_CHECK(cu_nodes.size(0) >= 1, a.op(), ": tree.cu_nodes must have at least one element, got none");
  const int64_t batch = cu_nodes.size(0) - 1;
  TreeAttentionParams p;
  p.tree = read_tree(a, {cu_nodes, tokens, parents, depths, ends}, batch, max_depth);
  p.slots = read_slots(a, slots, p.tree.total);
  p.max_nodes = max_nodes;
  p.queries = read_query_rows(a, query_nodes, cu_queries, batch, p.tree.total);
  p.query = query.data_ptr();
  p.query_type = a.float_type("query", query);
  p.query_row_stride = query.stride(0);
  p.query_head_stride = query.stride(1);
  p.heads = query.size(1);
  p.key_dim = query.size(2);
  SPECDEC_CHECK(query.size(0) == p.queries.total, a.op(), ": query must have ", p.queries.total, " rows, got ",
                query.size(0));
  SPECDEC_CHECK(p.key_dim <= 1 || query.stride(2) == 1, a.op(),
                ": query must have unit stride in its last dimension, got stride ", query.stride(2));
  p.key = read_pages(a, "key_cache", key_cache);
  p.value = read_pages(a, "value_cache", value_cache);
  p.kv_heads = key_cache.size(2);
  p.value_dim = value_cache.size(3);
  SPECDEC_CHECK(key_cache.size(3) == p.key_dim, a.op(), ": key_cache must have a head size of ", p.key_dim, ", got ",
                key_cache.size(3));
  SPECDEC_CHECK(value_cache.size(0) == p.key.num_pages && value_cache.size(1) == p.key.page_size &&
                    value_cache.size(2) == p.kv_heads,
                a.op(), ": value_cache must have the pages and heads of key_cache, got ", shape_text(value_cache));
  SPECDEC_CHECK(p.key_dim % 8 == 0 && p.key_dim >= 8 && p.key_dim <= kMaxKeyDim, a.op(),
                ": query must have a head size that is a multiple of 8 up to ", kMaxKeyDim, ", got ", p.key_dim);
  SPECDEC_CHECK(p.value_dim % 8 == 0 && p.value_dim >= 8 && p.value_dim <= kMaxValueDim, a.op(),
                ": value_cache must have a head size that is a multiple of 8 up to ", kMaxValueDim, ", got ",
                p.value_dim);
  SPECDEC_CHECK(p.kv_heads >= 1 && p.heads % p.kv_heads == 0, a.op(), ": query must have a multiple of ", p.kv_heads,
                " heads, got ", p.heads);
  p.table = read_block_table(a, block_table, table_rows, batch);
  p.context_lens = a.index("context_lens", context_lens, batch);
  p.scale = static_cast<float>(scale);
  SPECDEC_CHECK(softcap >= 0, a.op(), ": softcap must be at least 0, got ", softcap);
  SPECDEC_CHECK(window >= 0, a.op(), ": window must be at least 0, got ", window);
  p.softcap = static_cast<float>(softcap);
  p.window = window;
  if (sinks) {
    const Strided<float> view = a.vector<float>("sinks", *sinks, p.heads);
    p.sinks = {view.data, view.stride};
  }
  p.key_scale = read_scale(a, "key_scale", key_scale, p.kv_heads);
  p.value_scale = read_scale(a, "value_scale", value_scale, p.kv_heads);
  SPECDEC_CHECK(visibility == 0 || visibility == 1, a.op(), ": visibility must be 0 or 1, got ", visibility);
  p.visibility = static_cast<Visibility>(visibility);
  p.active = read_active(a, active, batch);
  p.out = read_out_like(a, "out[0]", out, query, p.queries.total, p.heads, p.value_dim);
  p.lse = a.contiguous_rows<float>("out[1]", lse, p.queries.total, p.heads);
  p.status = read_status(a, status, batch);
  Backend::tree_attention(p, a, query);
}

template <class Backend>
void attention_merge_states(const Tensor& values, const Tensor& lses, const Tensor& out, const Tensor& lse) {
  const Arguments a("attention.merge_states", Backend::kDevice);
  a.check_rank("values", values, 4);
  a.check_rank("lses", lses, 3);
  MergeStatesParams p;
  p.values = values.data_ptr();
  p.type = a.float_type("values", values);
  p.rows = values.size(0);
  p.states = values.size(1);
  p.heads = values.size(2);
  p.dim = values.size(3);
  SPECDEC_CHECK(p.dim <= 1 || values.stride(3) == 1, a.op(),
                ": values must have unit stride in its last dimension, got stride ", values.stride(3));
  a.check_type<float>("lses", lses);
  for (int d = 0; d < 3; ++d) {
    SPECDEC_CHECK(lses.size(d) == values.size(d), a.op(), ": lses must have shape [", p.rows, ", ", p.states, ", ",
                  p.heads, "], got ", shape_text(lses));
    p.value_strides[d] = values.stride(d);
    p.lse_strides[d] = lses.stride(d);
  }
  p.lses = static_cast<const float*>(lses.data_ptr());
  p.out = read_out_like(a, "out[0]", out, values, p.rows, p.heads, p.dim);
  p.lse = a.contiguous_rows<float>("out[1]", lse, p.rows, p.heads);
  Backend::merge_states(p, a, values);
}

template <class Backend, class Library>
void register_attention(Library& library) {
  SPECDEC_IMPL(library, attention_tree_attention, attention_tree_attention<Backend>);
  SPECDEC_IMPL(library, attention_merge_states, attention_merge_states<Backend>);
}

}  // namespace specdec
