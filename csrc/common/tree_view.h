// SPDX-License-Identifier: Apache-2.0
// One request of a TokenTree as kernels see it: where its rows are, how many nodes live, and whether they are a tree.
#pragma once

#include <cstdint>

#include "views.h"

namespace specdec {

struct TreeView {
  Strided<const int32_t> cu_nodes;  // [batch + 1]
  IndexView tokens;                 // [total], as all that follow
  Strided<const int32_t> parents;
  Strided<const int32_t> depths;
  Strided<const int32_t> ends;
  int64_t batch = 0;
  int64_t total = 0;
  int64_t max_depth = 0;
};

struct RequestNodes {
  int64_t first = 0;       // row of the root
  int32_t count = 0;       // live nodes; 0: the request is idle or has no rows
  bool malformed = false;  // not a tree: `count` is 1 (the root alone), or 0 where not even a root can be read
};

// Whether rows [first, first + rows) hold a tree of ends[first] nodes in depth-first pre-order: the parent of node i is
// the first of i - 1 and its ancestors whose subtree reaches i, subtrees nest, and depths count up from 0 to at most
// max_depth. O(nodes): the climb to the parent is paid for by the nodes that it leaves.
SPECDEC_SHARED bool is_tree(const TreeView& tree, int64_t first, int64_t rows) {
  const int64_t count = tree.ends[first];
  if (count < 1 || count > rows || tree.parents[first] != -1 || tree.depths[first] != 0) return false;
  for (int64_t i = 1; i < count; ++i) {
    int64_t parent = i - 1;
    while (parent >= 0 && tree.ends[first + parent] <= i) parent = tree.parents[first + parent];
    if (parent < 0 || tree.parents[first + i] != parent) return false;
    const int32_t end = tree.ends[first + i], depth = tree.depths[first + i];
    if (end <= i || end > tree.ends[first + parent]) return false;
    if (depth != tree.depths[first + parent] + 1 || depth > tree.max_depth) return false;
  }
  return true;
}

SPECDEC_SHARED RequestNodes open_request(const TreeView& tree, int64_t request) {
  RequestNodes nodes;
  const int64_t first = tree.cu_nodes[request], after = tree.cu_nodes[request + 1];
  if (first < 0 || after < first || after > tree.total) {
    nodes.malformed = true;
    return nodes;
  }
  if (first == after || tree.ends[first] == 0) return nodes;
  nodes.first = first;
  nodes.malformed = !is_tree(tree, first, after - first);
  nodes.count = nodes.malformed ? 1 : tree.ends[first];
  return nodes;
}

// The end of a node's subtree; a root that stands alone has no children, whatever `ends` says.
SPECDEC_SHARED int32_t end_of(const TreeView& tree, const RequestNodes& nodes, int32_t node) {
  const int32_t end = tree.ends[nodes.first + node];
  return end < nodes.count ? end : nodes.count;
}

// The next child of `node` whose token is in [0, vocab), from local index `at` on (node + 1, or the end of a child);
// the end of the node's subtree if there is none.
SPECDEC_SHARED_CALL int32_t present_child(const TreeView& tree, const RequestNodes& nodes, int32_t node, int32_t at,
                                          int64_t vocab) {
  const int32_t end = end_of(tree, nodes, node);
  while (at < end) {
    const int64_t token = tree.tokens[nodes.first + at];
    if (token >= 0 && token < vocab) return at;
    at = tree.ends[nodes.first + at];
  }
  return end;
}

// The first present child of a node that holds `token`; -1 if there is none. Local indices. `count` bounds the subtree
// of a root that stands alone.
SPECDEC_SHARED_CALL int32_t child_with_token(const TreeView& tree, const RequestNodes& nodes, int32_t node,
                                             int64_t token) {
  const int32_t end = end_of(tree, nodes, node);
  for (int32_t child = node + 1; child < end; child = tree.ends[nodes.first + child]) {
    if (tree.tokens[nodes.first + child] == token) return child;
  }
  return -1;
}

}  // namespace specdec
