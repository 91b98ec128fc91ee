// SPDX-License-Identifier: Apache-2.0
// to_packed_mask. Bits of rows ("query", "words"): one warp per row, one launch. Segments with their context ("full"):
// where one begins depends on the requests before, so there are two launches: one counts live nodes, one block per
// request; in the other every block sums up the segments before its own, and writes a piece of it and of the zeros
// behind all segments in words of 32 bits. Workspace of "full": 4 bytes per request.
#pragma once

#include "../block.cuh"
#include "request.cuh"

namespace specdec::cuda {

struct PackedMaskCall {
  PackedMaskParams params;
  int64_t rows = 0;  // of a block: of bits; in the full layout bytes
  int64_t pieces = 0;
  int32_t* live = nullptr;  // [batch], full only

  static int64_t bytes(const PackedMaskParams& p) { return p.layout == MaskLayout::full ? p.tree.batch * 4 : 0; }
};

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    mask_rows_kernel(const __grid_constant__ PackedMaskCall call) {
  const PackedMaskParams& p = call.params;
  const int64_t b = blockIdx.x / call.pieces, words = (p.nodes + 31) / 32, bytes = (p.nodes + 7) / 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const RequestNodes nodes = open_bounded_request_in_parallel(p.tree, b, p.nodes);
  rows_of_piece(blockIdx.x % call.pieces, call.rows, p.nodes, [&](int64_t i) {
    const int64_t row = b * p.nodes + i;
    for (int64_t base = 0; base < words; base += kWarp) {
      const int64_t left = words - base;
      uint32_t mine = 0;
      for (int word = 0; word < kWarp && word < left; ++word) {
        const uint32_t bits = visible_word(p.tree, nodes, i, base + word);
        if (lane == word) mine = bits;
      }
      if (p.layout == MaskLayout::words) {
        if (lane < left) static_cast<uint32_t*>(p.mask)[row * words + base + lane] = mine;
        continue;
      }
      uint8_t* to = static_cast<uint8_t*>(p.mask) + row * bytes;
      for (int part = 0; part < 4; ++part) {
        const uint32_t word = __shfl_sync(~0u, mine, part * 8 + lane / 4);
        const int64_t at = base * 4 + part * kWarp + lane;
        if (at < bytes) to[at] = static_cast<uint8_t>(word >> (lane % 4 * 8));
      }
    }
  });
}

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    count_live_kernel(const __grid_constant__ PackedMaskCall call) {
  const RequestNodes nodes = open_bounded_request_in_parallel(call.params.tree, blockIdx.x, call.params.nodes);
  if (threadIdx.x == 0) call.live[blockIdx.x] = nodes.count;
}

__device__ inline int64_t context_of(const PackedMaskParams& p, int64_t b) {
  const int64_t context = p.context_lens[b];
  return context < 0 ? 0 : context;
}

// Bits [bit, bit + 32) of a segment; 0 behind its end.
__device__ inline uint32_t segment_word(const TreeView& tree, const RequestNodes& nodes, int64_t context, int64_t bit) {
  const int64_t width = context + nodes.count;
  int64_t i = bit / width, t = bit % width;
  uint32_t word = 0;
  for (int done = 0; done < 32 && i < nodes.count;) {
    if (t < context) {
      const int run = context - t < 32 - done ? static_cast<int>(context - t) : 32 - done;
      word |= (run == 32 ? ~0u : (1u << run) - 1) << done;
      done += run;
      t += run;
    } else {
      word |= static_cast<uint32_t>(sees(tree, nodes, i, t - context)) << done;
      ++done;
      ++t;
    }
    if (t == width) {
      t = 0;
      ++i;
    }
  }
  return word;
}

// Writes bytes [from, to) of `base` in aligned words as far as that goes; word_at(byte) is four bytes from there on.
// By threads `thread` of `threads`.
template <class WordAt>
__device__ inline void write_bytes(uint8_t* base, int64_t from, int64_t to, int64_t thread, int64_t threads,
                                   const WordAt& word_at) {
  if (from >= to) return;
  // Words lie where their address says; the first one may begin before `from`.
  const int64_t shift = static_cast<int64_t>(reinterpret_cast<uintptr_t>(base + from) % 4);
  for (int64_t at = from - shift + 4 * thread; at < to; at += 4 * threads) {
    if (at >= from && at + 4 <= to) {
      *reinterpret_cast<uint32_t*>(base + at) = word_at(at);
      continue;
    }
    for (int64_t byte = at < from ? from : at; byte < at + 4 && byte < to; ++byte) {
      base[byte] = static_cast<uint8_t>(word_at(byte));
    }
  }
}

[[maybe_unused]] static __global__ void __launch_bounds__(kExportThreads)
    full_mask_kernel(const __grid_constant__ PackedMaskCall call) {
  BlockScan scan(shared_storage<ScanStorage>());
  const PackedMaskParams& p = call.params;
  const int64_t batch = p.tree.batch;
  if (batch == 0) {
    if (threadIdx.x == 0) p.indptr[0] = 0;
    return;
  }
  const int64_t b = blockIdx.x / call.pieces, piece = blockIdx.x % call.pieces, share = p.bytes / batch;
  int32_t before = 0, all = 0;  // at most p.bytes
  for (int64_t k = threadIdx.x; k < batch; k += kExportThreads) {
    const int32_t size = static_cast<int32_t>(segment_bytes(call.live[k], context_of(p, k), share));
    if (k < b) before += size;
    all += size;
  }
  const int64_t first = scan.sum(before).all, end = scan.sum(all).all;
  RequestNodes nodes;
  nodes.count = call.live[b];
  if (nodes.count > 0) nodes.first = p.tree.cu_nodes[b];
  const int64_t context = context_of(p, b), size = segment_bytes(nodes.count, context, share);
  if (threadIdx.x == 0 && piece == 0) {
    if (b == 0) p.indptr[0] = 0;
    p.indptr[b + 1] = static_cast<int32_t>(first + size);
  }
  uint8_t* mask = static_cast<uint8_t*>(p.mask);
  const int64_t from = piece * call.rows, to = from + call.rows < size ? from + call.rows : size;
  write_bytes(mask + first, from, to, threadIdx.x, kExportThreads,
              [&](int64_t byte) { return segment_word(p.tree, nodes, context, 8 * byte); });
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kExportThreads + threadIdx.x;
  write_bytes(mask, end, p.bytes, thread, static_cast<int64_t>(gridDim.x) * kExportThreads, [](int64_t) { return 0u; });
}

inline cudaError_t launch_to_packed_mask(const PackedMaskParams& p, void* workspace, cudaStream_t stream) {
  const int64_t batch = p.tree.batch;
  PackedMaskCall call{p};
  if (p.layout != MaskLayout::full) {
    if (batch == 0 || p.nodes == 0) return cudaSuccess;
    call.rows = rows_of_block((p.nodes + 7) / 8);
    call.pieces = (p.nodes + call.rows - 1) / call.rows;
    const unsigned blocks = static_cast<unsigned>(batch * call.pieces);
    return launch(mask_rows_kernel, {blocks, kExportThreads, 0, stream}, call);
  }
  call.live = static_cast<int32_t*>(workspace);
  call.rows = 4 * 4 * kExportThreads;
  call.pieces = batch == 0 ? 1 : (p.bytes / batch + call.rows - 1) / call.rows;
  if (call.pieces < 1) call.pieces = 1;
  if (batch > 0) {
    const Launch count{static_cast<unsigned>(batch), kExportThreads, 0, stream};
    const cudaError_t error = launch(count_live_kernel, count, call);
    if (error != cudaSuccess) return error;
  }
  const unsigned blocks = batch == 0 ? 1 : static_cast<unsigned>(batch * call.pieces);
  return launch(full_mask_kernel, {blocks, kExportThreads, sizeof(ScanStorage), stream}, call);
}

}  // namespace specdec::cuda
