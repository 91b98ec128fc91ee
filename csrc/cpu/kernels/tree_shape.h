// SPDX-License-Identifier: Apache-2.0
// What the builders share: a tree whose nodes come in a topological order, in depth-first pre-order.
#pragma once

#include "../../common/status.h"
#include "../../common/tree_params.h"
#include "../isa.h"

SPECDEC_ISA_BEGIN

// The tree of one request while it is built.
struct Shape {
  int32_t count = 0;
  int32_t parent[kMaxTreeNodes];  // -1 for node 0, else below the node's own index
  int32_t place[kMaxTreeNodes];   // in pre-order, siblings by index
  int32_t depth[kMaxTreeNodes];
  int32_t end[kMaxTreeNodes];  // by node, in places
};

// Fills in what follows from the parents. Sizes of subtrees are summed from the last node on; then a node stands behind
// its parent and the subtrees of the siblings before it.
static inline void lay_out(Shape& shape) {
  int32_t next[kMaxTreeNodes];  // first the size of the subtree, then the place of the next child
  const int32_t count = shape.count;
  for (int32_t i = 0; i < count; ++i) next[i] = 1;
  for (int32_t i = count - 1; i > 0; --i) next[shape.parent[i]] += next[i];
  for (int32_t i = 0; i < count; ++i) {
    const int32_t parent = shape.parent[i], size = next[i];
    int32_t place = 0, depth = 0;
    if (i > 0) {
      place = next[parent];
      next[parent] += size;
      depth = shape.depth[parent] + 1;
    }
    shape.place[i] = place;
    shape.depth[i] = depth;
    shape.end[i] = place + size;
    next[i] = place + 1;
  }
}

// Writes a request of a new tree: the nodes, whose tokens `token_of` names, and padding.
template <class TokenOf>
static inline void write_request(const NewTree& tree, int64_t request, const Shape& shape, const TokenOf& token_of) {
  const int64_t first = request * tree.max_nodes;
  for (int32_t i = 0; i < shape.count; ++i) {
    const int64_t row = first + shape.place[i];
    tree.tokens.set(row, token_of(i));
    tree.parents[row] = i == 0 ? -1 : shape.place[shape.parent[i]];
    tree.depths[row] = shape.depth[i];
    tree.ends[row] = shape.end[i];
  }
  for (int64_t row = first + shape.count; row < first + tree.max_nodes; ++row) {
    tree.tokens.set(row, -1);
    tree.parents[row] = -1;
    tree.depths[row] = 0;
    tree.ends[row] = 0;
  }
}

static inline void write_offsets(const NewTree& tree, int64_t batch) {
  for (int64_t b = 0; b <= batch; ++b) tree.cu_nodes[b] = static_cast<int32_t>(b * tree.max_nodes);
}

SPECDEC_ISA_END
