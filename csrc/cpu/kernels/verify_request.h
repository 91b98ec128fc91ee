// SPDX-License-Identifier: Apache-2.0
// One request under verification on the CPU: what its rows are, and where its decisions go. The rules are in verify.cpp
// (decided at each node at once) and verify_deep.cpp (decided once what lies below is known).
#pragma once

#include <memory>
#include <vector>

#include "residual.h"
#include "verify.h"

SPECDEC_ISA_BEGIN

// A node that is looked at: its laws, and what is left of them.
struct Visit {
  int32_t node = 0;
  int32_t child = 0;  // the next to be tried; the end of the subtree if there is none
  bool read = false;  // whether `target` is the law of the node's row
  Law target, draft;
  Residual residual;
};

// What one thread needs; its size does not depend on the vocabulary, but for a few numbers per 4,096 ids. It is made by
// the first call and kept; only for the instruction set that is in use.
struct Workspace {
  std::vector<std::unique_ptr<Visit>> visits;  // of the nodes of a path
  Law raw;
  std::vector<int64_t> ids;
  std::vector<char> passed;

  Visit& visit(size_t depth) {
    while (visits.size() <= depth) visits.push_back(std::make_unique<Visit>());
    return *visits[depth];
  }
};

Workspace& workspace_of_thread();

class Request {
 public:
  Request(const VerifyParams& p, int64_t request, int threads, Workspace& space)
      : p(p), call(p.call), index(request), threads(threads), space(space), settings(p.settings_of(request)) {
    if (call.active && !call.active[request]) return;
    nodes = open_request(call.tree, request);
    if (nodes.malformed) status |= kStatusMalformed;
  }

  int64_t owner(int32_t node) const { return nodes.first + node; }
  int64_t token(int32_t node) const { return call.tree.tokens[owner(node)]; }
  int64_t vocab() const { return call.logits.columns; }
  // A root that stands alone in a malformed tree has depth 0, whatever is written there.
  int64_t depth(int32_t node) const { return node == 0 ? 0 : call.tree.depths[owner(node)]; }
  int32_t end(int32_t node) const { return end_of(call.tree, nodes, node); }
  int32_t first_child(int32_t node) const { return present_child(call.tree, nodes, node, node + 1, vocab()); }
  int32_t next_child(int32_t node, int32_t child) const {
    return present_child(call.tree, nodes, node, call.tree.ends[owner(child)], vocab());
  }
  // Where noise lies that is met at a node.
  Place place(int32_t node, Stream stream, int64_t counted_node) const {
    return make_place(p.sampling.seed[index], position(node), stream, depth(node), counted_node, 0);
  }
  double coin(int32_t parent, int32_t child) const { return coin_at(place(parent, Stream::coin, child)); }
  // The token that plain decoding draws after a node.
  int64_t plain_draw(const Law& law, int32_t node) const {
    return draw(law, make_place(p.sampling.seed[index], position(node), Stream::target, 0, 0, 0));
  }

  // Reads the row of a node; of a greedy request only the maxima.
  void read(int32_t node, Law& law);

  // The law that the children of a node were drawn from, in `draft`; `q` becomes null if they are deterministic. False
  // if its row is out of range: the children count as absent.
  bool read_drafts(int32_t node, Law& draft, const Law** q);

  // Writes the token decided at a node with that law (which a dead end has not); the rest of the row at the end.
  void emit(int64_t token, int32_t node, const Law& law, double divergence = 0.0);
  void finish();

  const VerifyParams& p;
  const VerifyCall& call;
  const int64_t index;
  const int threads;
  Workspace& space;
  const Settings settings;
  RequestNodes nodes;
  int32_t status = 0;
  int64_t emitted = 0;

 private:
  int64_t position(int32_t node) const { return p.context_lens[index] + depth(node) + 1; }
  void score(int64_t token, const Law& law, double* logprob, double* lse) const;
};

// verify_deep.cpp
void verify_bottom_up(Request& request);
void verify_typical(Request& request);

SPECDEC_ISA_END
