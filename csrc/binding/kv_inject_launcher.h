// SPDX-License-Identifier: Apache-2.0
// The launcher of kv.inject, as those of kv_launchers.h.
#pragma once

#include <string>
#include <vector>

#include "../common/kv_inject_params.h"
#include "paged_arguments.h"
#include "register.h"

namespace specdec {

// [1], [heads], [layers, 1] or [layers, heads].
inline InjectScale read_layer_scale(const Arguments& a, const char* name, const OptionalTensor& tensor, int64_t layers,
                                    int64_t heads) {
  InjectScale scale;
  if (!tensor) return scale;
  if (tensor->dim() == 1) {
    const Strided<const float> view = read_scale(a, name, tensor, heads);
    scale.data = view.data;
    scale.head_stride = view.stride;
    return scale;
  }
  a.check_rank(name, *tensor, 2);
  a.check_type<float>(name, *tensor);
  const bool one = tensor->size(1) == 1;
  SPECDEC_CHECK(tensor->size(0) == layers && (one || tensor->size(1) == heads), a.op(), ": ", name,
                " must have shape [", layers, ", ", heads, "], got ", shape_text(*tensor));
  scale.data = static_cast<const float*>(address_of(*tensor));
  scale.layer_stride = tensor->stride(0);
  scale.head_stride = one ? 0 : tensor->stride(1);
  return scale;
}

inline void check_unit_stride(const Arguments& a, const char* name, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  SPECDEC_CHECK(tensor.size(last) <= 1 || tensor.stride(last) == 1, a.op(), ": ", name,
                " must have unit stride in its last dimension, got stride ", tensor.stride(last));
}

// The caches of one side, all of one layout; `data` receives where they are.
inline InjectSide read_inject_side(const Arguments& a, const char* name, const std::vector<Tensor>& caches,
                                   const KvInjectParams& p, std::vector<void*>& data) {
  SPECDEC_CHECK(static_cast<int64_t>(caches.size()) == p.layers, a.op(), ": ", name, " must have ", p.layers,
                " elements, one for each layer, got ", caches.size());
  InjectSide side;
  for (size_t i = 0; i < caches.size(); ++i) {
    const std::string each = std::string(name) + "[" + std::to_string(i) + "]";
    const Tensor& cache = caches[i];
    const PagedView pages = read_pages(a, each.c_str(), cache);
    SPECDEC_CHECK(cache.size(2) == p.heads && cache.size(3) == p.dim, a.op(), ": ", each, " must have shape [P, S, ",
                  p.heads, ", ", p.dim, "], got ", shape_text(cache));
    data.push_back(pages.data);
    if (i == 0) side.to = pages;
    const PagedView& first = side.to;
    SPECDEC_CHECK(pages.num_pages == first.num_pages && pages.page_size == first.page_size &&
                      pages.page_stride == first.page_stride && pages.slot_stride == first.slot_stride &&
                      pages.head_stride == first.head_stride && pages.type == first.type,
                  a.op(), ": ", each, " must have the shape, strides and dtype of the first, got shape ",
                  shape_text(cache));
  }
  side.to.data = nullptr;
  side.caches = data.data();
  return side;
}

inline void read_inject_tables(const Arguments& a, const OptionalTensor& key_norm, const OptionalTensor& cos_sin,
                               const OptionalTensor& positions, KvInjectParams& p) {
  if (key_norm) {
    a.check_rank("key_norm", *key_norm, 2);
    SPECDEC_CHECK(key_norm->size(0) == p.layers && key_norm->size(1) == p.dim, a.op(), ": key_norm must have shape [",
                  p.layers, ", ", p.dim, "], got ", shape_text(*key_norm));
    check_unit_stride(a, "key_norm", *key_norm);
    p.norm = {address_of(*key_norm), a.float_type("key_norm", *key_norm), key_norm->stride(0), 0, p.layers};
  }
  if (cos_sin) {
    a.check_rank("cos_sin", *cos_sin, 3);
    SPECDEC_CHECK(cos_sin->size(1) == 2 && cos_sin->size(2) == p.dim, a.op(),
                  ": cos_sin must have shape [max_positions, 2, ", p.dim, "], got ", shape_text(*cos_sin));
    SPECDEC_CHECK(p.dim % 2 == 0, a.op(), ": projected must have an even last dimension to be turned, got ", p.dim);
    check_unit_stride(a, "cos_sin", *cos_sin);
    p.angles = {address_of(*cos_sin), a.float_type("cos_sin", *cos_sin), cos_sin->stride(0), cos_sin->stride(1),
                cos_sin->size(0)};
  }
  if (positions) {
    SPECDEC_CHECK(cos_sin.has_value(), a.op(), ": cos_sin must be given with positions, got None");
    a.check_rank("positions", *positions, 2);
    SPECDEC_CHECK(positions->size(0) == p.batch && positions->size(1) == p.width, a.op(),
                  ": positions must have shape [", p.batch, ", ", p.width, "], got ", shape_text(*positions));
    p.positions = {address_of(*positions), positions->stride(0), a.is_wide("positions", *positions)};
    p.position_column_stride = positions->stride(1);
  }
}

template <class Backend>
void kv_inject(const Tensor& projected, const OptionalTensor& key_norm, const OptionalTensor& cos_sin,
               const OptionalTensor& positions, const Tensor& block_table, const OptionalTensor& table_rows,
               const Tensor& context_lens, const Tensor& num_tokens, double eps, bool interleaved,
               const OptionalTensor& key_scale, const OptionalTensor& value_scale, const OptionalTensor& active,
               const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches,
               const OptionalTensor& status) {
  const Arguments a("kv.inject", Backend::kDevice);
  a.check_rank("projected", projected, 6);
  KvInjectParams p;
  p.type = a.float_type("projected", projected);
  p.projected = projected.data_ptr();
  p.batch = projected.size(0);
  p.width = projected.size(1);
  p.layers = projected.size(2);
  p.heads = projected.size(4);
  p.dim = projected.size(5);
  SPECDEC_CHECK(p.layers >= 1 && projected.size(3) == 2, a.op(),
                ": projected must have shape [B, W, L, 2, Hkv, D] with at least one layer, got ",
                shape_text(projected));
  SPECDEC_CHECK(p.dim >= 1 && p.dim <= kMaxInjectDim, a.op(), ": projected must have between 1 and ", kMaxInjectDim,
                " elements in its last dimension, got ", p.dim);
  check_unit_stride(a, "projected", projected);
  p.request_stride = projected.stride(0);
  p.row_stride = projected.stride(1);
  p.layer_stride = projected.stride(2);
  p.side_stride = projected.stride(3);
  p.head_stride = projected.stride(4);
  SPECDEC_CHECK(eps >= 0, a.op(), ": eps must be at least 0, got ", eps);
  p.eps = static_cast<float>(eps);
  p.interleaved = interleaved;
  read_inject_tables(a, key_norm, cos_sin, positions, p);
  std::vector<void*> keys, values;
  p.sides[0] = read_inject_side(a, "key_caches", key_caches, p, keys);
  p.sides[1] = read_inject_side(a, "value_caches", value_caches, p, values);
  SPECDEC_CHECK(
      p.sides[1].to.num_pages == p.sides[0].to.num_pages && p.sides[1].to.page_size == p.sides[0].to.page_size, a.op(),
      ": value_caches[0] must have the pages of key_caches[0], got ", shape_text(value_caches[0]));
  p.sides[0].scale = read_layer_scale(a, "key_scale", key_scale, p.layers, p.heads);
  p.sides[1].scale = read_layer_scale(a, "value_scale", value_scale, p.layers, p.heads);
  check_distinct(
      a, 2 * key_caches.size(),
      [&](size_t i) -> const Tensor& {
        return i < key_caches.size() ? key_caches[i] : value_caches[i - key_caches.size()];
      },
      [&](size_t i) {
        const bool key = i < key_caches.size();
        return (key ? "key_caches[" : "value_caches[") + std::to_string(key ? i : i - key_caches.size()) + "]";
      });
  p.table = read_block_table(a, block_table, table_rows, p.batch);
  p.context_lens = a.index("context_lens", context_lens, p.batch);
  p.num_tokens = read_int32(a, "num_tokens", num_tokens, p.batch);
  p.active = read_active(a, active, p.batch);
  p.status = read_status(a, status, p.batch);
  Backend::inject(p, a, projected);
}

template <class Backend, class Library>
void register_kv_inject(Library& library) {
  SPECDEC_IMPL(library, kv_inject, kv_inject<Backend>);
}

}  // namespace specdec
