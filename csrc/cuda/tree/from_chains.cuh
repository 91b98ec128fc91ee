// SPDX-License-Identifier: Apache-2.0
// from_chains: row i of a request has parent i - 1, depth i and end `length`; rows beyond are padding. A length outside
// [0, width] leaves the root alone and is flagged. One thread per row, one launch.
#pragma once

#include "../../common/status.h"
#include "../../common/tree_params.h"
#include "../device.cuh"

namespace specdec::cuda {

inline constexpr int kChainThreads = 128;

[[maybe_unused]] static __global__ void __launch_bounds__(kChainThreads)
    from_chains_kernel(const __grid_constant__ FromChainsParams p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kChainThreads + threadIdx.x;
  const auto length_of = [&](int64_t b, bool& wrong) {
    const int64_t length = p.lengths ? p.lengths[b] : p.width;
    wrong = length < 0 || length > p.width;
    return wrong ? (p.width < 1 ? p.width : 1) : length;
  };
  if (at <= p.batch) {
    p.cu_nodes[at] = static_cast<int32_t>(at * p.width);
    if (at < p.batch) {
      bool wrong;
      (void)length_of(at, wrong);
      p.status[at] = wrong ? kStatusMalformed : 0;
    }
  }
  if (at >= p.batch * p.width) return;
  const int64_t b = at / p.width, i = at % p.width;
  bool wrong;
  const int64_t length = length_of(b, wrong);
  const bool live = i < length;
  int64_t token = -1;
  if (live) {
    const int64_t from = b * p.row_stride + i * p.column_stride;
    token = p.wide ? static_cast<const int64_t*>(p.chains)[from] : static_cast<const int32_t*>(p.chains)[from];
  }
  p.tokens.set(at, token);
  p.parents[at] = live ? static_cast<int32_t>(i - 1) : -1;
  p.depths[at] = live ? static_cast<int32_t>(i) : 0;
  p.ends[at] = live ? static_cast<int32_t>(length) : 0;
}

inline cudaError_t launch_from_chains(const FromChainsParams& p, cudaStream_t stream) {
  const int64_t rows = p.batch * p.width, threads = rows > p.batch + 1 ? rows : p.batch + 1;
  const int64_t blocks = (threads + kChainThreads - 1) / kChainThreads;
  return launch(from_chains_kernel, {static_cast<unsigned>(blocks), kChainThreads, 0, stream}, p);
}

}  // namespace specdec::cuda
