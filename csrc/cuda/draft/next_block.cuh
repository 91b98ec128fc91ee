// SPDX-License-Identifier: Apache-2.0
// draft.block: a warp has one request, a lane every 32nd entry of its block.
//
// Memory traffic: a few numbers per request, and one write of the block. One launch.
#pragma once

#include "../../common/draft_params.h"
#include "../../common/status.h"
#include "../device.cuh"

namespace specdec::cuda {

inline constexpr int kNextBlockThreads = 128;
inline constexpr int kNextBlockWarps = kNextBlockThreads / 32;

[[maybe_unused]] static __global__ void __launch_bounds__(kNextBlockThreads)
    draft_block_kernel(const __grid_constant__ DraftBlockParams p) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kNextBlockWarps + threadIdx.x / 32;
  if (b >= p.batch) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const NextBlock block = open_block(p, b);
  bool complete = true;
  for (int64_t j = lane; j < p.size; j += 32) complete &= write_block_entry(p, block, b, j);
  const bool all_complete = __all_sync(~0u, complete) != 0;  // from here on all lanes have read the old context
  if (lane == 0) {
    p.roots.set(b, block.root);
    p.new_contexts.set(b, block.length);
    if (p.status != nullptr) {
      p.status[b] = (block.malformed ? kStatusMalformed : 0) | (all_complete ? 0 : kStatusPageOutOfRange);
    }
  }
}

inline cudaError_t launch_draft_block(const DraftBlockParams& p, cudaStream_t stream) {
  const int64_t blocks = (p.batch + kNextBlockWarps - 1) / kNextBlockWarps;
  if (blocks == 0) return cudaSuccess;
  return launch(draft_block_kernel, {static_cast<unsigned>(blocks), kNextBlockThreads, 0, stream}, p);
}

}  // namespace specdec::cuda
