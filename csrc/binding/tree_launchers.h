// SPDX-License-Identifier: Apache-2.0
// The launchers of the tree family: last-line checks, and tensors to parameters. A backend has `kDevice`, and a
// function for each kind of parameters that takes them, the arguments' checker, and a tensor that says where the call
// belongs.
#pragma once

#include "../common/tree_params.h"
#include "checks.h"
#include "register.h"

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

template <class Backend, class Library>
void register_tree(Library& library) {
  SPECDEC_IMPL(library, tree_from_chains, tree_from_chains<Backend>);
}

}  // namespace specdec
