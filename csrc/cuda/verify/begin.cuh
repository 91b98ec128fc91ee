// SPDX-License-Identifier: Apache-2.0
// How the kernels of verify begin: one block per request looks at its tree and clears its outputs.
#pragma once

#include "../../common/verify_call.h"
#include "../tree_check.cuh"

namespace specdec::cuda {

inline constexpr int kPrepareThreads = 128;

// Whether offsets are not in order, so that requests may share rows; by all threads of a block.
__device__ inline bool is_irregular(const TreeView& tree) {
  bool wrong = false;
  for (int64_t i = threadIdx.x; i < tree.batch; i += blockDim.x) {
    wrong |= tree.cu_nodes[i] < 0 || tree.cu_nodes[i] > tree.cu_nodes[i + 1] || tree.cu_nodes[i + 1] > tree.total;
  }
  return __syncthreads_or(wrong) != 0;
}

// The live nodes of a request, none if nothing is to be emitted; by all threads of a block.
__device__ inline RequestNodes live_nodes(const VerifyCall& call, int64_t b) {
  RequestNodes nodes;
  if (!call.active || call.active[b]) nodes = open_request_in_parallel(call.tree, b);
  if (call.limit(b) <= 0) nodes.count = 0;
  return nodes;
}

// The same, and its outputs are cleared.
__device__ inline RequestNodes begin_request(const VerifyCall& call, int64_t b) {
  const int64_t width = call.width();
  const RequestNodes nodes = live_nodes(call, b);
  if (threadIdx.x == 0) {
    call.num_tokens[b] = 0;
    call.status[b] = nodes.malformed ? kStatusMalformed : 0;
  }
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    const int64_t at = b * width + i;
    call.out_tokens.set(at, -1);
    call.path[at] = -1;
    if (call.logprobs_mode != Logprobs::none) call.logprobs[at] = call.lse[at] = 0.0f;
    if (call.divergence != nullptr) call.divergence[at] = 0.0f;
  }
  return nodes;
}

}  // namespace specdec::cuda
