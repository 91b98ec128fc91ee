// SPDX-License-Identifier: Apache-2.0
// Exports of trees. A row of a mask is that of the parent and one bit more; links and paths follow from `ends` and
// `parents`. Requests are spread over threads, every element of an output is written once.
#include <cstring>
#include <vector>

#include "parallel.h"
#include "tree.h"

SPECDEC_ISA_BEGIN
namespace {

void set_bit(uint8_t* bits, int64_t at) { bits[at / 8] |= static_cast<uint8_t>(1u << (at % 8)); }

// Sets bits [from, from + count).
void set_bits(uint8_t* bits, int64_t from, int64_t count) {
  int64_t at = from;
  const int64_t after = from + count;
  while (at < after && at % 8 != 0) set_bit(bits, at++);
  const int64_t bytes = (after - at) / 8;
  std::memset(bits + at / 8, 0xff, static_cast<size_t>(bytes));
  for (at += 8 * bytes; at < after; ++at) set_bit(bits, at);
}

int32_t parent_of(const TreeView& tree, const RequestNodes& nodes, int32_t node) {
  return node == 0 ? -1 : tree.parents[nodes.first + node];
}

// Rows of `width` bytes, in which bit or byte j stands for node j.
template <class Mark>
void write_rows(const TreeView& tree, const RequestNodes& nodes, int64_t count, int64_t width, uint8_t* rows,
                const Mark& mark) {
  for (int32_t i = 0; i < nodes.count; ++i) {
    uint8_t* row = rows + i * width;
    const int32_t parent = parent_of(tree, nodes, i);
    if (parent < 0) {
      std::memset(row, 0, static_cast<size_t>(width));
    } else {
      std::memcpy(row, rows + parent * width, static_cast<size_t>(width));
    }
    mark(row, i);
  }
  std::memset(rows + nodes.count * width, 0, static_cast<size_t>((count - nodes.count) * width));
}

void write_segment(const TreeView& tree, const RequestNodes& nodes, int64_t context, uint8_t* bits, int64_t bytes) {
  std::memset(bits, 0, static_cast<size_t>(bytes));
  if (bytes == 0) return;
  for (int32_t i = 0; i < nodes.count; ++i) {
    const int64_t first = i * (context + nodes.count);
    set_bits(bits, first, context);
    for (int32_t j = i; j >= 0; j = parent_of(tree, nodes, j)) set_bit(bits, first + context + j);
  }
}

void pack_full(const PackedMaskParams& p) {
  const int64_t batch = p.tree.batch, share = batch > 0 ? p.bytes / batch : 0;
  uint8_t* mask = static_cast<uint8_t*>(p.mask);
  std::vector<RequestNodes> requests(static_cast<size_t>(batch));
  const auto context_of = [&](int64_t b) { return p.context_lens[b] < 0 ? 0 : p.context_lens[b]; };
  int64_t end = 0;
  p.indptr[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    requests[b] = open_bounded_request(p.tree, b, p.nodes);
    end += segment_bytes(requests[b].count, context_of(b), share);
    p.indptr[b + 1] = static_cast<int32_t>(end);
  }
  for_pieces(batch, threads_for(end, batch), [&](int64_t b) {
    write_segment(p.tree, requests[b], context_of(b), mask + p.indptr[b], p.indptr[b + 1] - p.indptr[b]);
  });
  if (p.bytes > end) std::memset(mask + end, 0, static_cast<size_t>(p.bytes - end));
}

}  // namespace

void to_dense_mask(const DenseMaskParams& p) {
  const int64_t size = p.nodes * p.nodes;
  if (size == 0) return;
  for_pieces(p.tree.batch, threads_for(p.tree.batch * size, p.tree.batch), [&](int64_t b) {
    const RequestNodes nodes = open_bounded_request(p.tree, b, p.nodes);
    write_rows(p.tree, nodes, p.nodes, p.nodes, reinterpret_cast<uint8_t*>(p.mask) + b * size,
               [](uint8_t* row, int32_t i) { row[i] = 1; });
  });
}

void to_packed_mask(const PackedMaskParams& p) {
  if (p.layout == MaskLayout::full) return pack_full(p);
  // The bytes of a word are in the order of its bits.
  const int64_t width = p.layout == MaskLayout::query ? (p.nodes + 7) / 8 : (p.nodes + 31) / 32 * 4;
  const int64_t size = p.nodes * width;
  if (size == 0) return;
  for_pieces(p.tree.batch, threads_for(p.tree.batch * size * 4, p.tree.batch), [&](int64_t b) {
    const RequestNodes nodes = open_bounded_request(p.tree, b, p.nodes);
    write_rows(p.tree, nodes, p.nodes, width, static_cast<uint8_t*>(p.mask) + b * size,
               [](uint8_t* row, int32_t i) { set_bit(row, i); });
  });
}

void to_links(const LinksParams& p) {
  for_pieces(p.tree.batch, threads_for(p.tree.batch * p.nodes * 40, p.tree.batch), [&](int64_t b) {
    const RequestNodes nodes = open_bounded_request(p.tree, b, p.nodes);
    for (int32_t i = 0; i < p.nodes; ++i) {
      const int64_t at = b * p.nodes + i;
      int64_t child = -1, sibling = -1, row = -1;
      if (i < nodes.count) {
        const int32_t end = end_of(p.tree, nodes, i), parent = parent_of(p.tree, nodes, i);
        if (i + 1 < end) child = i + 1;
        if (parent >= 0 && end < end_of(p.tree, nodes, parent)) sibling = end;
        row = nodes.first + i;
      }
      p.first_child.set(at, child);
      p.next_sibling.set(at, sibling);
      p.retrieve_index.set(at, row);
    }
  });
}

void to_paths(const PathsParams& p) {
  const int64_t size = p.nodes * p.width;
  for_pieces(p.tree.batch, threads_for(p.tree.batch * size * 4, p.tree.batch), [&](int64_t b) {
    const RequestNodes nodes = open_bounded_request(p.tree, b, p.nodes);
    int32_t* paths = p.paths + b * size;
    if (size > 0) std::memset(paths, 0xff, static_cast<size_t>(size) * sizeof(int32_t));
    int32_t count = 0;
    for (int32_t i = 0; i < nodes.count; ++i) {
      if (nodes.count > 1 && end_of(p.tree, nodes, i) != i + 1) continue;  // of a root alone `ends` may say anything
      int32_t* path = paths + count++ * p.width;
      for (int32_t j = i, depth = i == 0 ? 0 : p.tree.depths[nodes.first + i]; depth >= 0; --depth) {
        path[depth] = j;
        j = parent_of(p.tree, nodes, j);
      }
    }
    p.num_paths[b] = count;
  });
}

SPECDEC_ISA_END
