// SPDX-License-Identifier: Apache-2.0
// The rules on a GPU that decide a node once what lies below it is known: block and traversal verification, and typical
// acceptance. No block waits for another.
//
// What a node hands down depends on its budget and its rows alone, not on what becomes of its children: so laws go down
// the tree, and nothing goes up but where the path ends. Of the nodes that may be that one, each has a key, and the
// least key of a request wins: place in post-order for the bottom-up rule, whose path ends at the first node with a
// coin below what its children have left of its budget; depth descending, then index, for typical acceptance and for
// requests at temperature 0, whose argmax alone is handed down to.
//
// 1. One block per request looks at its tree and clears its outputs.
// 2. Where requests do not fill the GPU and their trees are wider than chains, one launch per depth: as many teams as
//    the GPU runs at a time visit the nodes that the launch before has put into a queue, of all requests together.
// 3. One team per request: without 2, it visits the nodes in the order of their indices, a parent before its children.
//    Then it draws the last token, for which it goes through the children of that node once more, and writes all out.
//
// A node is visited if something was handed down to it and it has children; one that comes after the end of the path as
// known so far is passed over. Which of those behind the end were visited in vain depends on the order of teams, and so
// the status speaks only of those before it, which always are.
//
// Memory traffic: the rows of visited nodes once where they fit into the team's shared memory, those of the last node
// twice; log-probabilities of raw logits take another read of the target's. Workspace: 40 bytes per node, 24 per
// request. Deterministic, independent of the batch and of the size and number of the teams; no host synchronisation.
#pragma once

#include "../sampling/describe.cuh"
#include "begin.cuh"
#include "node.cuh"

namespace specdec::cuda {

// What is known of a node.
struct VisitRecord {
  double budget;  // handed down; of typical acceptance the probability; 0: nothing
  // Of its visit.
  double log_sum;
  float max;
  int32_t status;
};

struct PathRecord {
  int64_t first;
  unsigned long long last;  // the least key of a node that may be the last, its index in the lower half
  int32_t count;
  int32_t pad;
};

inline constexpr unsigned long long kRootIsLast = 0xffffffff00000000ull;

struct Pending {
  int32_t request, node;
};

struct BottomUpWorkspace {
  PathRecord* requests;  // [batch]
  VisitRecord* nodes;    // [total]
  Pending* queue;        // [2, total]: those of depth d in row d % 2
  unsigned* pending;     // [3]: how many of depth d, at d % 3
  int32_t* irregular;    // whether offsets are not in order

  static int64_t bytes(int64_t batch, int64_t total) {
    return batch * static_cast<int64_t>(sizeof(PathRecord)) +
           total * static_cast<int64_t>(sizeof(VisitRecord) + 2 * sizeof(Pending)) + 16;
  }
  static BottomUpWorkspace carve(void* memory, int64_t batch, int64_t total) {
    BottomUpWorkspace w;
    w.requests = static_cast<PathRecord*>(memory);
    w.nodes = reinterpret_cast<VisitRecord*>(w.requests + batch);
    w.queue = reinterpret_cast<Pending*>(w.nodes + total);
    w.pending = reinterpret_cast<unsigned*>(w.queue + 2 * total);
    w.irregular = reinterpret_cast<int32_t*>(w.pending + 3);
    return w;
  }
};

struct BottomUpParams {
  VerifyParams verify;
  BottomUpWorkspace space;
  Layout layout;
  bool drawn = false;      // some drafts may have been drawn
  bool by_depth = false;   // one launch per depth
  int64_t depth_now = -1;  // -1: the last launch
};

__device__ inline void clear_visits(VisitRecord* nodes, int32_t count, int thread, int threads) {
  for (int32_t i = thread; i < count; i += threads) nodes[i] = {i == 0 ? 1.0 : 0.0, 0.0, 0.0f, 0};
}

[[maybe_unused]] static __global__ void __launch_bounds__(kPrepareThreads)
    prepare_bottom_up_kernel(const __grid_constant__ BottomUpParams p) {
  const int64_t b = blockIdx.x;
  if (b == 0) {
    const bool wrong = is_irregular(p.verify.call.tree);
    if (threadIdx.x == 0) *p.space.irregular = wrong ? 1 : 0;
    if (threadIdx.x < 3) p.space.pending[threadIdx.x] = 0;
  }
  const RequestNodes nodes = begin_request(p.verify.call, b);
  clear_visits(p.space.nodes + nodes.first, nodes.count, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x));
  if (threadIdx.x == 0) p.space.requests[b] = {nodes.first, kRootIsLast, nodes.count, 0};
}

// A node to be visited, or the last one.
struct Task {
  double budget;
  int32_t request, node;  // node -1: none
};

template <Rule kRule>
class Visitor : public NodeLaws {
 public:
  __device__ Visitor(Team& team, VerifyStorage& shared, const VerifyMemory& memory, const BottomUpParams& p,
                     int64_t request)
      : NodeLaws(team, shared, memory, p.layout, p.verify, request,
                 {p.space.requests[request].first, p.space.requests[request].count, false}),
        space_(p.space),
        record_(p.space.requests[request]),
        visits_(p.space.nodes + nodes_.first),
        depth_now_(p.depth_now) {}

  // Whether a node is to be visited, as far as is known now; by any thread. A walk to the argmax ends with its limit.
  __device__ bool is_due(int32_t node) const {
    if (node >= nodes_.count || !(visits_[node].budget > 0.0) || first_child(node) >= end(node)) return false;
    return ends_in_post_order() ? node < end(last()) : !is_greedy(settings_) || depth(node) < p_.call.limit(request_);
  }

  __device__ double budget(int32_t node) const { return visits_[node].budget; }

  // ---- for all threads of the team together ------------------------------------------------------------------------

  __device__ void visit(const Task& task) {
    status_ = 0;
    read(task.node);
    const bool dead = law_.dead();
    double left = task.budget;
    if (!dead && is_greedy(settings_)) {
      const int32_t child = child_with(task.node, best_id(team_, law_));
      if (child >= 0 && team_.leads()) hand_down(child, 1.0);
    } else if (!dead && kRule == Rule::typical) {
      hand_down_to_likely(task.node);
    } else if (!dead) {
      Law draft;
      int32_t child;
      Residual residual = residual_at(task, draft, child);
      try_children(task.node, child, residual, [&](int32_t to, double budget) { hand_down(to, budget); });
      left = residual.budget();
    }
    const Scale relative = dead || !wants_scores() ? Scale{} : scale();
    if (!team_.leads()) return;
    if (ends_in_post_order()) offer_by_coin(task.node, left);
    VisitRecord& visit = visits_[task.node];
    visit.log_sum = relative.log_sum;
    visit.max = relative.max;
    visit.status = status_;
  }

  // Visits all nodes in the order of their indices.
  __device__ void walk() {
    for (int32_t node = 0;;) {
      Task task{0.0, static_cast<int32_t>(request_), -1};
      if (team_.rank() == 0 && team_.warp() == 0) task = next_task(node);
      task = team_.publish(task, team_.leads());
      if (task.node < 0) return;
      visit(task);
      node = task.node + 1;
    }
  }

  // Writes out the path to the last node, and draws the token after it.
  __device__ void finish() {
    struct Bits {
      int32_t met;
    };
    Task task{0.0, static_cast<int32_t>(request_), 0};
    if (team_.leads()) {
      task.node = last();
      task.budget = visits_[task.node].budget;
    }
    task = team_.publish(task, team_.leads());
    const int64_t length = depth(task.node) + 1, limit = p_.call.limit(request_);
    status_ = 0;
    int64_t drawn = -1;
    Score scored{0.0f, 0.0f};
    if (length <= limit) {
      drawn = last_token(task);
      if (drawn < 0) status_ |= kStatusDeadEnd;
      if (wants_scores()) {
        const Scale relative = drawn < 0 ? Scale{} : scale();
        scored = score(drawn, relative, shared_.target, shared_.raw);
      }
    }
    Bits bits{status_};
    const int32_t until = ends_in_post_order() ? end(task.node) : nodes_.count;
    for (int32_t i = team_.thread(); i < until; i += team_.threads()) bits.met |= visits_[i].status;
    bits = team_.reduce(bits, Bits{0}, [](const Bits& a, const Bits& b) { return Bits{a.met | b.met}; });
    if (!team_.leads()) return;
    const VerifyCall& call = p_.call;
    call.status[request_] |= bits.met;
    call.num_tokens[request_] = static_cast<int32_t>(length < limit ? length : limit);
    if (length <= limit) write(length - 1, task.node, drawn, scored);
    int32_t child = task.node;
    for (int64_t d = length - 2; d >= 0; --d) {
      const int32_t node = call.tree.parents[owner(child)];
      if (d < limit) {
        write(d, node, token(child), score_of_draft(node, token(child)));
        if (call.divergence != nullptr && kRule == Rule::typical && !is_greedy(settings_)) {
          call.divergence[request_ * call.width() + d] = static_cast<float>(1.0 - visits_[child].budget);
        }
      }
      child = node;
    }
  }

 private:
  __device__ bool ends_in_post_order() const { return kRule == Rule::bottom_up && !is_greedy(settings_); }

  // The last node, as far as is known now: others may be at it.
  __device__ int32_t last() const {
    return static_cast<int32_t>(*const_cast<const volatile unsigned long long*>(&record_.last));
  }
  __device__ void offer(int32_t node) const {
    const int64_t key = ends_in_post_order() ? end(node) - 1 - depth(node) : p_.call.width() - depth(node);
    atomicMin(&record_.last, static_cast<unsigned long long>(key) << 32 | static_cast<unsigned>(node));
  }
  __device__ void offer_by_coin(int32_t node, double left) const {
    if (node > 0 && accepts(left, 1.0, coin(p_.call.tree.parents[owner(node)], node))) offer(node);
  }

  // By the thread that leads. Of a node without children it is known at once whether the path may end there.
  __device__ void hand_down(int32_t child, double budget) const {
    if (!(budget > 0.0)) return;
    visits_[child].budget = budget;
    const bool inner = first_child(child) < end(child);
    if (!ends_in_post_order()) {
      offer(child);
    } else if (!inner) {
      offer_by_coin(child, budget);
    }
    if (!inner || depth_now_ < 0) return;
    const unsigned slot = atomicAdd(&space_.pending[(depth_now_ + 1) % 3], 1u);
    space_.queue[(depth_now_ + 1) % 2 * p_.call.tree.total + slot] = {static_cast<int32_t>(request_), child};
  }

  __device__ void hand_down_to_likely(int32_t node) {
    const double least = typical_threshold(p_, entropy(team_, law_));
    if (!team_.leads()) return;
    for (int32_t child = first_child(node); child < end(node); child = next_child(node, child)) {
      const double probability = law_.probability(token(child));
      if (probability > least) hand_down(child, probability);
    }
  }

  // A node with its budget before its children are tried, of which `child` is the first.
  __device__ Residual residual_at(const Task& task, Law& draft, int32_t& child) {
    bool drawn = false;
    child = first_child(task.node);
    if (child < end(task.node) && !find_draft_law(task.node, draft, drawn)) child = end(task.node);
    return Residual(team_, shared_.bins, *memory_.residual, memory_.left, law_, drawn ? &draft : nullptr,
                    p_.replacement, task.budget);
  }

  // By the team's first warp, for the thread that leads it, which has written what the others read.
  __device__ Task next_task(int32_t from) const {
    __syncwarp();
    Task task{0.0, static_cast<int32_t>(request_), -1};
    for (; from < nodes_.count; from += kWarp) {
      const unsigned due = __ballot_sync(~0u, is_due(from + team_.lane()));
      if (due == 0) continue;
      task.node = from + __ffs(static_cast<int>(due)) - 1;
      task.budget = visits_[task.node].budget;
      break;
    }
    return task;
  }

  __device__ int64_t last_token(const Task& task) {
    read(task.node);
    if (law_.dead()) return -1;
    if (is_greedy(settings_)) return best_id(team_, law_);
    if (kRule == Rule::typical) return plain_draw(task.node);
    Law draft;
    int32_t child;
    Residual residual = residual_at(task, draft, child);
    const bool some = try_children(task.node, child, residual, [](int32_t, double) {});
    return some ? draw_residual(task.node, residual) : fall_back(task.node);
  }

  __device__ Score score_of_draft(int32_t node, int64_t token) const {
    if (!wants_scores()) return {0.0f, 0.0f};
    const Source raw = row_source(p_.call.logits, p_.call.row_of(owner(node)));
    Source target = raw;
    target.mask = p_.call.mask.of(owner(node));
    return score(token, {visits_[node].log_sum, visits_[node].max}, target, raw);
  }

  __device__ void write(int64_t d, int32_t node, int64_t token, const Score& scored) const {
    const VerifyCall& call = p_.call;
    const int64_t at = request_ * call.width() + d;
    call.out_tokens.set(at, token);
    call.path[at] = node;
    if (!wants_scores()) return;
    call.logprobs[at] = scored.logprob;
    call.lse[at] = scored.lse;
  }

  const BottomUpWorkspace& space_;
  PathRecord& record_;
  VisitRecord* visits_;
  const int64_t depth_now_;
};

// The nodes of one depth, dealt to the teams in turn.
template <Rule kRule>
__device__ inline void visit_depth(Team& team, VerifyStorage& shared, const VerifyMemory& memory,
                                   const BottomUpParams& p) {
  const BottomUpWorkspace& space = p.space;
  const TreeView& tree = p.verify.call.tree;
  const bool root = p.depth_now == 0;
  const int64_t count = root ? tree.batch : static_cast<int64_t>(space.pending[p.depth_now % 3]);
  const int64_t teams = static_cast<int64_t>(gridDim.x) / team.size();
  if (team.leads() && team.index() == 0) space.pending[(p.depth_now + 2) % 3] = 0;  // the launch before has read it
  for (int64_t i = team.index(); i < count; i += teams) {
    Task task{0.0, 0, -1};
    if (team.leads()) {
      const Pending next = root ? Pending{static_cast<int32_t>(i), 0} : space.queue[p.depth_now % 2 * tree.total + i];
      const Visitor<kRule> visitor(team, shared, memory, p, next.request);
      task.request = next.request;
      if (visitor.is_due(next.node)) {
        task.node = next.node;
        task.budget = visitor.budget(next.node);
      }
    }
    task = team.publish(task, team.leads());
    if (task.node >= 0) Visitor<kRule>(team, shared, memory, p, task.request).visit(task);
  }
}

template <Rule kRule>
__global__ void SPECDEC_TEAM_BOUNDS bottom_up_kernel(const __grid_constant__ BottomUpParams p) {
  auto& shared = shared_storage<VerifyStorage>();
  Team team(shared.team);
  const VerifyMemory memory =
      VerifyMemory::carve(reinterpret_cast<unsigned char*>(&shared) + sizeof(VerifyStorage), kRule, p.drawn, p.layout);
  // Requests whose offsets are not in order may share rows, and so records: one team has them one after the other.
  const bool irregular = *p.space.irregular != 0;
  if (p.depth_now >= 0) {
    if (!irregular) visit_depth<kRule>(team, shared, memory, p);
  } else if (!irregular || team.index() == 0) {
    const int64_t end = irregular ? p.verify.call.tree.batch : team.index() + 1;
    for (int64_t request = team.index(); request < end; ++request) {
      const PathRecord& record = p.space.requests[request];
      if (record.count == 0) continue;
      Visitor<kRule> visitor(team, shared, memory, p, request);
      if (irregular) {
        clear_visits(p.space.nodes + record.first, record.count, team.thread(), team.threads());
        team.sync();
      }
      if (irregular || !p.by_depth) visitor.walk();
      visitor.finish();
      team.sync();
    }
  }
  team.sync();
}

template <Rule kRule>
cudaError_t launch_bottom_up(const VerifyParams& p, void* workspace, cudaStream_t stream) {
  const TreeView& tree = p.call.tree;
  if (tree.batch == 0) return cudaSuccess;
  BottomUpParams params;
  params.verify = p;
  params.space = BottomUpWorkspace::carve(workspace, tree.batch, tree.total);
  params.drawn = may_be_drawn(p);
  const auto bytes_of = [&](const Layout& layout) {
    return static_cast<int64_t>(sizeof(VerifyStorage)) + VerifyMemory::bytes(kRule, params.drawn, layout);
  };
  const auto kernel = bottom_up_kernel<kRule>;
  params.layout = choose_layout(kernel, p.call.logits.columns, bytes_of);
  const int64_t bytes = bytes_of(params.layout);
  const int64_t at_once = clusters_at_once(kernel, team_launch(params.layout, 1, bytes, stream));
  // As many nodes as depths are a chain, of which no two can be visited at the same time.
  params.by_depth = tree.total > tree.batch * p.call.width() && 2 * tree.batch <= at_once;
  cudaError_t error =
      launch(prepare_bottom_up_kernel, {static_cast<unsigned>(tree.batch), kPrepareThreads, 0, stream}, params);
  if (tree.total == 0) return error;
  for (int64_t d = 0; params.by_depth && d < tree.max_depth && error == cudaSuccess; ++d) {
    params.depth_now = d;
    const int64_t most = d == 0 ? tree.batch : tree.total;
    error = launch(kernel, team_launch(params.layout, most < at_once ? most : at_once, bytes, stream), params);
  }
  params.depth_now = -1;
  if (error != cudaSuccess) return error;
  return launch(kernel, team_launch(params.layout, tree.batch, bytes, stream), params);
}

#if !defined(SPECDEC_EMULATED)  // compiled beside the other rules, verify_bottom_up.cu
extern template cudaError_t launch_bottom_up<Rule::bottom_up>(const VerifyParams&, void*, cudaStream_t);
extern template cudaError_t launch_bottom_up<Rule::typical>(const VerifyParams&, void*, cudaStream_t);
#endif

}  // namespace specdec::cuda
