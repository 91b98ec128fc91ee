// SPDX-License-Identifier: Apache-2.0
// What a step of verification must expect, in closed form: python_ref/ops/expectation.py says how. Means go down the
// tree as probabilities and budgets do, so a team visits the nodes of its request in the order of their indices, a
// parent before its children, and finds at each what the three folds over its children hand down to them.
//
// Memory traffic: the rows of inner nodes that any rule may visit, once where they fit into the team's shared memory,
// and that of the drafts twice more where siblings were drawn without replacement. Workspace: 32 bytes per node.
// Deterministic, independent of the batch and of the size of the teams; no host synchronisation.
#pragma once

#include "../sampling/bound.cuh"
#include "begin.cuh"
#include "node.cuh"

namespace specdec::cuda {

// With which probability a node is visited, top-down and with one sampled child; its budget, bottom-up, and what its
// children leave of it. The thread that leads a team reads and writes them.
struct NodeMeans {
  double visited, plus_one, budget, left;
};

inline int64_t expect_bytes(int64_t total) { return total * static_cast<int64_t>(sizeof(NodeMeans)); }

struct ExpectCall {
  ExpectParams expect;
  NodeMeans* nodes;  // [total]
  Layout layout;
  bool drawn = false;  // some drafts may have been drawn
};

class Expectation : public NodeLaws {
 public:
  __device__ Expectation(Team& team, VerifyStorage& shared, const VerifyMemory& memory, const ExpectCall& call,
                         int64_t request, const RequestNodes& nodes)
      : NodeLaws(team, shared, memory, call.layout, call.expect.verify, request, nodes),
        expect_(call.expect),
        means_(call.nodes + nodes.first) {}

  // For all threads of the team together.
  __device__ void run() {
    if (nodes_.count == 0) return write(0.0, 0.0, 0.0, 0.0);
    if (is_greedy(settings_)) {
      const int64_t limit = p_.call.limit(request_), found = argmax_length(limit < 2 ? 2 : limit);
      const double length = static_cast<double>(found < limit ? found : limit);
      return write(length, length, length, found > 1 ? 1.0 : 0.0);  // the bound knows no limit
    }
    for (int32_t i = team_.thread(); i < nodes_.count; i += team_.threads()) {
      const double root = i == 0 ? 1.0 : 0.0;
      means_[i] = {root, root, root, root};
    }
    team_.sync();
    for (Visit visit{0.0, 0, 0};; ++visit.node) {
      visit = team_.publish(team_.leads() ? next_visit(visit.node) : visit, team_.leads());
      if (visit.node < 0) break;
      hand_down(visit);
    }
    if (team_.leads()) sum_up();
  }

 private:
  struct Visit {
    double budget;  // 0: the rule that has it does not come here
    int32_t node;   // -1: none
    int32_t plus_one;
  };

  __device__ int64_t argmax_length(int64_t limit) {
    int64_t length = 0;
    for (int32_t node = 0; node >= 0 && length < limit; ++length) {
      read(node);
      node = law_.dead() ? -1 : child_with(node, best_id(team_, law_));
    }
    return length;
  }

  __device__ Visit next_visit(int32_t from) const {
    for (int32_t node = from; node < nodes_.count; ++node) {
      const NodeMeans& m = means_[node];
      const bool met = m.visited > 0.0 || m.plus_one > 0.0 || m.budget > 0.0;
      if (met && first_child(node) < end(node)) return {m.budget, node, m.plus_one > 0.0 ? 1 : 0};
    }
    return {0.0, -1, 0};
  }

  __device__ void hand_down(const Visit& visit) {
    const int32_t node = visit.node;
    read(node);
    if (law_.dead()) return;
    Law draft;
    bool drawn = false;
    if (!find_draft_law(node, draft, drawn)) return;
    Law* q = drawn ? &draft : nullptr;
    if (node == 0) find_bound(q);
    NodeMeans& here = means_[node];
    double still = team_.leads() ? here.visited : 0.0;
    try_all(node, q, 1.0, [&](int32_t child, double accepted) {
      means_[child].visited = still * accepted;
      still *= 1.0 - accepted;
    });
    if (visit.plus_one != 0) try_sampled(node, q);
    if (!(visit.budget > 0.0)) return;
    const double left = try_all(node, q, visit.budget, [&](int32_t child, double budget) {
      means_[child].budget = means_[child].left = budget;
    });
    if (team_.leads() && node > 0) here.left = left;  // the path ends at the root if nowhere else
  }

  __device__ Residual residual_of(Law* q, bool replacement, double budget = 1.0) {
    if (q != nullptr) put_back(team_, *q);
    return Residual(team_, shared_.bins, *memory_.residual, memory_.left, law_, q, replacement, budget);
  }

  // What the children of a node leave of a budget.
  template <class Hand>
  __device__ double try_all(int32_t node, Law* q, double budget, const Hand& hand) {
    Residual residual = residual_of(q, p_.replacement, budget);
    try_children(node, first_child(node), residual, hand);
    return residual.budget();
  }

  // Of the children only the last one was drawn; what is left is drawn from then, and may be one of the others.
  __device__ void try_sampled(int32_t node, Law* q) {
    const int32_t first = first_child(node), sampled = sampled_child(node, first);
    Residual residual = residual_of(q, false);
    double still = team_.leads() ? means_[node].plus_one : 0.0;
    if (sampled >= 0) {
      for (int32_t i = first; i < sampled; i = next_child(node, i)) residual.exclude(token(i));
      if (team_.leads()) {
        const double accepted = residual.handed_down(token(sampled));
        means_[sampled].plus_one = still * accepted;
        still *= 1.0 - accepted;
      }
      if (!residual.reject(token(sampled))) return;
    }
    if (!team_.leads()) return;
    for (int32_t i = first; i < end(node); i = next_child(node, i)) {
      if (i == sampled || child_with(node, token(i)) != i) continue;  // of equal siblings the first counts
      means_[i].plus_one = still * residual.target(token(i));
    }
  }

  __device__ void find_bound(const Law* q) {
    int64_t number = 0;
    double mass = 0.0;
    for (int32_t i = first_child(0); i < end(0); i = next_child(0, i)) {
      ++number;
      if (q == nullptr && child_with(0, token(i)) == i) mass += law_.probability(token(i));
    }
    bound_ = mass < 1.0 ? mass : 1.0;
    if (q != nullptr) bound_ = bound_of_drafts(team_, shared_.bins, law_, *q, number, p_.replacement);
  }

  // ---- for the thread that leads -----------------------------------------------------------------------------------

  __device__ int32_t parent(int32_t node) const { return node == 0 ? -1 : p_.call.tree.parents[owner(node)]; }

  __device__ void sum_up() const {
    const int64_t limit = p_.call.limit(request_);
    double visited = 0.0, plus_one = 0.0, bottom_up = 0.0, going_on = 1.0;
    for (int32_t i = 0; i < nodes_.count; ++i) {
      if (depth(i) < limit) {
        visited += means_[i].visited;
        plus_one += means_[i].plus_one;
      }
      // Post-order: after a leaf come those of its ancestors whose subtrees end with it. The root is the last, whatever
      // its end says where it stands alone.
      for (int32_t v = i; v >= 0 && (v == 0 ? nodes_.count : end(v)) == i + 1; v = parent(v)) {
        const int64_t length = depth(v) + 1;
        bottom_up += going_on * means_[v].left * static_cast<double>(length < limit ? length : limit);
        going_on *= 1.0 - means_[v].left;
      }
    }
    write(visited, bottom_up, plus_one, bound_);
  }

  __device__ void write(double token, double traversal, double plus_one, double bound) const {
    if (!team_.leads()) return;
    expect_.token[request_] = static_cast<float>(token);
    expect_.traversal[request_] = static_cast<float>(traversal);
    expect_.greedy_plus_one[request_] = static_cast<float>(plus_one);
    expect_.bound[request_] = static_cast<float>(bound);
  }

  const ExpectParams& expect_;
  NodeMeans* means_;
  double bound_ = 0.0;
};

[[maybe_unused]] static __global__ void SPECDEC_TEAM_BOUNDS expect_kernel(const __grid_constant__ ExpectCall p) {
  auto& shared = shared_storage<VerifyStorage>();
  Team team(shared.team);
  const VerifyMemory memory = VerifyMemory::carve(reinterpret_cast<unsigned char*>(&shared) + sizeof(VerifyStorage),
                                                  Rule::rejection, p.drawn, p.layout);
  const VerifyCall& call = p.expect.verify.call;
  // Requests whose offsets are not in order may share rows, and so means: one team has them one after the other.
  const bool irregular = is_irregular(call.tree);
  const int64_t first = team.index(), end = irregular ? (first == 0 ? call.tree.batch : 0) : first + 1;
  for (int64_t request = first; request < end; ++request) {
    Expectation(team, shared, memory, p, request, live_nodes(call, request)).run();
    team.sync();
  }
  team.sync();
}

inline cudaError_t launch_expect(const ExpectParams& p, void* workspace, cudaStream_t stream) {
  const TreeView& tree = p.verify.call.tree;
  if (tree.batch == 0) return cudaSuccess;
  ExpectCall call;
  call.expect = p;
  call.nodes = static_cast<NodeMeans*>(workspace);
  call.drawn = may_be_drawn(p.verify);
  const auto bytes_of = [&](const Layout& layout) {
    return static_cast<int64_t>(sizeof(VerifyStorage)) + VerifyMemory::bytes(Rule::rejection, call.drawn, layout);
  };
  call.layout = choose_layout(expect_kernel, p.verify.call.logits.columns, bytes_of);
  return launch(expect_kernel, team_launch(call.layout, tree.batch, bytes_of(call.layout), stream), call);
}

}  // namespace specdec::cuda
