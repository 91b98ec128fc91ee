// SPDX-License-Identifier: Apache-2.0
// A tree among the arguments of an op, as a torch-free view.
#pragma once

#include "../common/tree_view.h"
#include "checks.h"

namespace specdec {

inline Strided<const int32_t> read_int32(const Arguments& a, const char* name, const Tensor& tensor, int64_t size) {
  const Strided<int32_t> view = a.vector<int32_t>(name, tensor, size);
  return {view.data, view.stride};
}

struct TreeTensors {
  const Tensor& cu_nodes;
  const Tensor& tokens;
  const Tensor& parents;
  const Tensor& depths;
  const Tensor& ends;
};

inline TreeView read_tree(const Arguments& a, const TreeTensors& tree, int64_t batch, int64_t max_depth) {
  a.check_rank("tree.tokens", tree.tokens, 1);
  TreeView view;
  view.batch = batch;
  view.total = tree.tokens.size(0);
  view.max_depth = max_depth;
  view.cu_nodes = read_int32(a, "tree.cu_nodes", tree.cu_nodes, batch + 1);
  view.tokens = a.index("tree.tokens", tree.tokens, view.total);
  view.parents = read_int32(a, "tree.parents", tree.parents, view.total);
  view.depths = read_int32(a, "tree.depths", tree.depths, view.total);
  view.ends = read_int32(a, "tree.ends", tree.ends, view.total);
  return view;
}

}  // namespace specdec
