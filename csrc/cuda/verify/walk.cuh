// SPDX-License-Identifier: Apache-2.0
// The top-down rules on a GPU, in two launches and without a wait between blocks; bottom_up.cuh has the others.
//
// 1. One block per request looks at its tree and clears its outputs.
// 2. Teams decide nodes (decide.cuh). Where requests fill the GPU, there is one team per request, which walks down its
//    tree. Where they do not, a request has several, each with every n-th node: who has decided the node that the walk
//    has come to writes it out and goes on through nodes that are decided already, and a node that the walk has passed
//    by is not looked at.
//
// Whether a node is decided before it is known to be visited changes the time, not the result.
//
// Memory traffic: the rows of visited nodes once where they fit into the team's shared memory, and those of some
// others where the GPU had nothing better to do. Workspace: 28 bytes per node, 16 per request. Deterministic,
// independent of the batch and of the size and number of the teams; no host synchronisation.
#pragma once

#include "bottom_up.cuh"
#include "decide.cuh"

namespace specdec::cuda {

inline constexpr int kMaxTeams = 64;  // of one request

struct NodeRecord {
  int32_t state;  // 0: not decided, 1: decided, 2: written out
  Decision decision;
};

struct RequestRecord {
  int64_t first;
  int32_t count;
  int32_t next;  // the node that the walk has come to; -1: it has ended
};

struct VerifyWorkspace {
  RequestRecord* requests;  // [batch]
  NodeRecord* nodes;        // [total]
  int32_t* irregular;       // whether offsets are not in order
  // Of any rule.
  static int64_t bytes(int64_t batch, int64_t total) {
    const int64_t bytes =
        batch * static_cast<int64_t>(sizeof(RequestRecord)) + total * static_cast<int64_t>(sizeof(NodeRecord)) + 16;
    const int64_t bottom_up = BottomUpWorkspace::bytes(batch, total);
    return bytes > bottom_up ? bytes : bottom_up;
  }
  static VerifyWorkspace carve(void* memory, int64_t batch, int64_t total) {
    VerifyWorkspace w;
    w.requests = static_cast<RequestRecord*>(memory);
    w.nodes = reinterpret_cast<NodeRecord*>(w.requests + batch);
    w.irregular = reinterpret_cast<int32_t*>(w.nodes + total);
    return w;
  }
};

struct WalkParams {
  VerifyParams verify;
  VerifyWorkspace space;
  Layout layout;
  int teams = 1;       // of each request
  bool drawn = false;  // some drafts may have been drawn
};

[[maybe_unused]] static __global__ void __launch_bounds__(kPrepareThreads)
    prepare_walk_kernel(const __grid_constant__ WalkParams p) {
  const int64_t b = blockIdx.x;
  if (b == 0) {
    const bool wrong = is_irregular(p.verify.call.tree);
    if (threadIdx.x == 0) *p.space.irregular = wrong ? 1 : 0;
  }
  const RequestNodes nodes = begin_request(p.verify.call, b);
  for (int64_t i = threadIdx.x; i < nodes.count; i += blockDim.x) p.space.nodes[nodes.first + i].state = 0;
  if (threadIdx.x == 0) p.space.requests[b] = {nodes.first, nodes.count, nodes.count > 0 ? 0 : -1};
}

// Writes out a visited node; by one thread. Returns the node that is visited next, -1 if there is none.
__device__ inline int32_t write_visited(const VerifyCall& call, int64_t request, const RequestNodes& nodes,
                                        int32_t node, const Decision& decision) {
  const int64_t depth = node == 0 ? 0 : call.tree.depths[nodes.first + node];
  const int64_t at = request * call.width() + depth;
  call.out_tokens.set(at, decision.token);
  call.path[at] = node;
  if (call.logprobs_mode != Logprobs::none) {
    call.logprobs[at] = decision.logprob;
    call.lse[at] = decision.lse;
  }
  if (call.divergence != nullptr) call.divergence[at] = decision.divergence;
  call.status[request] |= decision.status;
  const bool last = decision.child < 0 || depth + 1 >= call.limit(request);
  if (last) call.num_tokens[request] = static_cast<int32_t>(depth + 1);
  return last ? -1 : decision.child;
}

// The team has decided `node`: if the walk waits for it, write out what can be written. Of two that meet at a node, one
// that has just decided it and one that has just come to it, at least one sees what the other has done, and one of them
// takes the node.
__device__ inline void advance(const WalkParams& p, int64_t request, const RequestNodes& nodes, int32_t node,
                               const Decision& decision) {
  NodeRecord* records = p.space.nodes + nodes.first;
  RequestRecord& record = p.space.requests[request];
  records[node].decision = decision;
  __threadfence();
  atomicExch(&records[node].state, 1);
  __threadfence();
  if (atomicAdd(&record.next, 0) != node) return;
  while (atomicCAS(&records[node].state, 1, 2) == 1) {
    __threadfence();
    const volatile Decision& visible = records[node].decision;
    const Decision taken{visible.token,   visible.child, visible.status,
                         visible.logprob, visible.lse,   visible.divergence};
    node = write_visited(p.verify.call, request, nodes, node, taken);
    __threadfence();
    atomicExch(&record.next, node);
    if (node < 0) return;
    __threadfence();
  }
}

template <Rule kRule>
__global__ void SPECDEC_TEAM_BOUNDS walk_kernel(const __grid_constant__ WalkParams p) {
  auto& shared = shared_storage<VerifyStorage>();
  Team team(shared.team);
  const VerifyMemory memory =
      VerifyMemory::carve(reinterpret_cast<unsigned char*>(&shared) + sizeof(VerifyStorage), kRule, p.drawn, p.layout);
  const VerifyCall& call = p.verify.call;
  const TreeView& tree = call.tree;
  // The first teams of all requests come first, with the nodes that are surely visited.
  const int64_t request = team.index() % tree.batch;
  const int64_t mine = team.index() / tree.batch;
  // Requests whose offsets are not in order may share rows, and so records: each is walked down by one team.
  const bool alone = p.teams == 1 || *p.space.irregular != 0;
  if (alone && mine > 0) return;
  RequestNodes nodes;
  nodes.first = p.space.requests[request].first;
  nodes.count = p.space.requests[request].count;
  Decider<kRule> decider(team, shared, memory, p.layout, p.verify, request, nodes);
  if (alone) {
    int32_t node = p.space.requests[request].next;
    while (node >= 0) {
      const Decision decision = decider.at(node);
      int32_t next = -1;
      if (team.leads()) next = write_visited(call, request, nodes, node, decision);
      node = team.publish(next, team.leads());
    }
    team.sync();
    return;
  }
  for (int64_t node = mine; node < nodes.count; node += p.teams) {
    int32_t next = 0;
    if (team.leads()) next = atomicAdd(&p.space.requests[request].next, 0);
    next = team.publish(next, team.leads());
    if (next < 0) break;
    if (node < next) {  // on to the first of this team's nodes that may still be visited
      node += (next - node - 1) / p.teams * p.teams;
      continue;
    }
    if (node > next && node >= end_of(tree, nodes, next)) break;
    if (node > 0 && tree.depths[nodes.first + node] >= call.limit(request)) continue;
    const Decision decision = decider.at(static_cast<int32_t>(node));
    if (team.leads()) advance(p, request, nodes, static_cast<int32_t>(node), decision);
  }
  team.sync();
}

// How many teams a request gets: as many as the GPU runs at a time, so that nobody decides nodes before the teams of
// those above them have started, and not more than it has nodes.
inline int teams_of_request(const TreeView& tree, int64_t at_once) {
  const int64_t nodes = (tree.total + tree.batch - 1) / tree.batch;
  int64_t teams = at_once / tree.batch;
  teams = teams < nodes ? teams : nodes;
  teams = teams < kMaxTeams ? teams : kMaxTeams;
  return static_cast<int>(teams < 1 ? 1 : teams);
}

template <Rule kRule>
cudaError_t launch_walk(const VerifyParams& p, void* workspace, cudaStream_t stream) {
  const TreeView& tree = p.call.tree;
  if (tree.batch == 0) return cudaSuccess;
  WalkParams walk;
  walk.verify = p;
  walk.space = VerifyWorkspace::carve(workspace, tree.batch, tree.total);
  walk.drawn = may_be_drawn(p);
  const auto bytes_of = [&](const Layout& layout) {
    return static_cast<int64_t>(sizeof(VerifyStorage)) + VerifyMemory::bytes(kRule, walk.drawn, layout);
  };
  const auto kernel = walk_kernel<kRule>;
  walk.layout = choose_layout(kernel, p.call.logits.columns, bytes_of);
  const int64_t bytes = bytes_of(walk.layout);
  walk.teams = teams_of_request(tree, clusters_at_once(kernel, team_launch(walk.layout, 1, bytes, stream)));
  const cudaError_t error =
      launch(prepare_walk_kernel, {static_cast<unsigned>(tree.batch), kPrepareThreads, 0, stream}, walk);
  if (error != cudaSuccess || tree.total == 0) return error;
  return launch(kernel, team_launch(walk.layout, tree.batch * walk.teams, bytes, stream), walk);
}

inline cudaError_t launch_verify(const VerifyParams& p, void* workspace, cudaStream_t stream) {
  switch (p.rule) {
    case Rule::greedy:
      return launch_walk<Rule::greedy>(p, workspace, stream);
    case Rule::match:
      return launch_walk<Rule::match>(p, workspace, stream);
    case Rule::rejection:
      return launch_walk<Rule::rejection>(p, workspace, stream);
    case Rule::bottom_up:
      return launch_bottom_up<Rule::bottom_up>(p, workspace, stream);
    case Rule::greedy_plus_one:
      return launch_walk<Rule::greedy_plus_one>(p, workspace, stream);
    case Rule::threshold:
      return launch_walk<Rule::threshold>(p, workspace, stream);
    case Rule::typical:
      return launch_bottom_up<Rule::typical>(p, workspace, stream);
    case Rule::relaxed:
      return launch_walk<Rule::relaxed>(p, workspace, stream);
    case Rule::synthetic:
      return launch_walk<Rule::synthetic>(p, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace specdec::cuda
