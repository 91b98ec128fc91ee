// SPDX-License-Identifier: Apache-2.0
// to_dense_mask: one warp per row, 512 columns at a time: the warp finds them as bits, and every lane writes 16 bytes.
// Where rows are not aligned to that, every lane writes bytes. One launch.
#pragma once

#include "request.cuh"

namespace specdec::cuda {

struct DenseMaskCall {
  DenseMaskParams params;
  int64_t rows = 0;  // of a block
  int64_t pieces = 0;
};

// Four bits as four bytes of 0 or 1, the first in the lowest.
__device__ __forceinline__ uint32_t bytes_of_bits(uint32_t bits) { return (bits & 0xf) * 0x204081u & 0x1010101u; }

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    dense_mask_kernel(const __grid_constant__ DenseMaskCall call) {
  const DenseMaskParams& p = call.params;
  const int64_t b = blockIdx.x / call.pieces;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const RequestNodes nodes = open_bounded_request_in_parallel(p.tree, b, p.nodes);
  const bool aligned = p.nodes % 16 == 0 && reinterpret_cast<uintptr_t>(p.mask) % 16 == 0;
  rows_of_piece(blockIdx.x % call.pieces, call.rows, p.nodes, [&](int64_t i) {
    bool* row = p.mask + (b * p.nodes + i) * p.nodes;
    if (!aligned) {
      for (int64_t j = lane; j < p.nodes; j += kWarp) row[j] = sees(p.tree, nodes, i, j);
      return;
    }
    for (int64_t base = 0; base < p.nodes; base += 16 * kWarp) {
      uint32_t mine = 0;
      for (int word = 0; word < 16; ++word) {
        const uint32_t bits = visible_word(p.tree, nodes, i, base / kWarp + word);
        if (lane / 2 == word) mine = bits >> (lane % 2 * 16);
      }
      const int64_t j = base + 16 * lane;
      if (j >= p.nodes) continue;
      *reinterpret_cast<uint4*>(row + j) = {bytes_of_bits(mine), bytes_of_bits(mine >> 4), bytes_of_bits(mine >> 8),
                                            bytes_of_bits(mine >> 12)};
    }
  });
}

inline cudaError_t launch_to_dense_mask(const DenseMaskParams& p, cudaStream_t stream) {
  if (p.tree.batch == 0 || p.nodes == 0) return cudaSuccess;
  DenseMaskCall call{p};
  call.rows = rows_of_block(p.nodes);
  call.pieces = (p.nodes + call.rows - 1) / call.rows;
  const unsigned blocks = static_cast<unsigned>(p.tree.batch * call.pieces);
  return launch(dense_mask_kernel, {blocks, kExportThreads, 0, stream}, call);
}

}  // namespace specdec::cuda
