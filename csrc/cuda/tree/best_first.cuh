// SPDX-License-Identifier: Apache-2.0
// best_first, level by level. One block per request keeps the first nodes of all levels so far, in order, in shared
// memory. Of the next level only those candidates count that may be among the first n and come before the n-th node so
// far. Child r of the i-th node of the level above cannot be if (i + 1) * (r + 2) + depth - 2 > n: before it come i + 1
// parents, an ancestor on each level above them, and the (i + 1) * (r + 1) - 1 candidates that are as good in both.
// What is left, a few dozen as a rule, is merged with the nodes so far.
//
// Of each depth the nodes that stay are the first of it, so that the place among them names a parent for good.
//
// One launch. With a total budget two: every block finds out by bisection how many of its nodes are among the first of
// all requests. Laws are read once, as far as there may be nodes; where those of all levels do not fit into shared
// memory, twice. Workspace of a total budget: 12 bytes per node and 4 per request.
#pragma once

#include "layout.cuh"

namespace specdec::cuda {

inline constexpr int kBestKeys = 2 * kMaxTreeNodes;  // nodes and candidates that are merged at a time
inline constexpr int kKeptRanks = 6144;              // of all levels, that stay in shared memory
inline constexpr int kProbes = 8;                    // of one step of the bisection

struct LevelStorage {
  float above[kMaxTreeNodes];     // scores of the parents
  int32_t offset[kMaxTreeNodes];  // of the candidates of each
};

struct BestFirstStorage {
  ScanStorage scan;
  uint64_t key[kBestKeys];
  union {
    LevelStorage level;
    LayoutStorage layout;
    int32_t before[kProbes];
  };
};

// What requests with a total budget leave for the second launch.
struct BestFirstWorkspace {
  uint64_t* keys = nullptr;   // [batch, max_nodes]
  int32_t* tokens = nullptr;  // [batch, max_nodes]
  int32_t* counts = nullptr;  // [batch]: nodes below the root, -1 if the request is idle

  static int64_t bytes(const BestFirstParams& p) {
    return p.total_budget < 0 ? 0 : p.batch * p.tree.max_nodes * 12 + p.batch * 4;
  }
  static BestFirstWorkspace carve(void* memory, const BestFirstParams& p) {
    BestFirstWorkspace w;
    if (p.total_budget < 0) return w;
    w.keys = static_cast<uint64_t*>(memory);
    w.tokens = reinterpret_cast<int32_t*>(w.keys + p.batch * p.tree.max_nodes);
    w.counts = w.tokens + p.batch * p.tree.max_nodes;
    return w;
  }
};

struct BestFirstCall {
  BestFirstParams params;
  BestFirstWorkspace space;
  int32_t width = 0;   // ranks of a level that can matter
  int32_t levels = 0;  // that can be reached
  bool kept = false;   // whether shared memory has room for the laws of all levels, or for one

  SPECDEC_HD int32_t slots() const { return kept ? levels : 1; }
  SPECDEC_HD int64_t law_bytes() const { return slots() * (8ll * width + 4); }
};

// The laws of one request in shared memory: of each depth the first ranks that are present.
class BestFirstLaws {
 public:
  __device__ BestFirstLaws(const BestFirstCall& call, void* memory, int64_t b, int most)
      : call_(call), b_(b), width_(most < call.width ? most : call.width) {
    log_probs_ = static_cast<float*>(memory);
    ids_ = reinterpret_cast<int32_t*>(log_probs_ + static_cast<int64_t>(call.slots()) * call.width);
    found_ = ids_ + static_cast<int64_t>(call.slots()) * call.width;
    levels_ = most < call.levels ? most : call.levels;
    if (!call.kept) return;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    for (int depth = 1 + static_cast<int>(threadIdx.x) / kWarp; depth <= levels_; depth += warps) load(depth);
    __syncthreads();
  }

  __device__ int levels() const { return levels_; }

  // Makes a depth the current one; for all threads.
  __device__ void open(int depth) const {
    if (call_.kept) return;
    __syncthreads();
    if (threadIdx.x < kWarp) load(depth);
    __syncthreads();
  }
  // Of the current depth.
  __device__ int ranks(int depth) const { return found_[slot(depth)]; }
  __device__ float log_prob(int depth, int rank) const { return log_probs_[slot(depth) * call_.width + rank]; }
  __device__ int32_t id(int depth, int rank) const { return ids_[slot(depth) * call_.width + rank]; }

 private:
  __device__ __forceinline__ int slot(int depth) const { return call_.kept ? depth - 1 : 0; }

  // By one warp, 32 ranks at a time.
  __device__ void load(int depth) const {
    const BestFirstParams& p = call_.params;
    const float* log_probs = p.log_probs + b_ * p.log_prob_strides[0] + (depth - 1) * p.log_prob_strides[1];
    const int64_t ids = b_ * p.token_id_strides[0] + (depth - 1) * p.token_id_strides[1];
    const int lane = static_cast<int>(threadIdx.x) % kWarp, to = slot(depth) * call_.width;
    int found = 0;
    float least = 0.0f;
    for (int64_t base = 0; found < width_ && base < p.ranks && least != kAbsent;) {
      const int64_t step = width_ - found < kWarp ? width_ - found : kWarp, rank = base + lane;
      float safe = INFINITY;
      int64_t id = -1;
      if (lane < step && rank < p.ranks) {
        safe = safe_score(log_probs[rank * p.log_prob_strides[2]]);
        const int64_t at = ids + rank * p.token_id_strides[2];
        id = p.wide ? static_cast<const int64_t*>(p.token_ids)[at] : static_cast<const int32_t*>(p.token_ids)[at];
      }
      safe = fminf(safe, least);
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const float before = __shfl_up_sync(~0u, safe, offset);
        if (lane >= offset) safe = fminf(safe, before);
      }
      const bool present = is_token(id) && safe != kAbsent;
      const unsigned lanes = __ballot_sync(~0u, present);
      if (present) {
        const int place = to + found + __popc(lanes & ((1u << lane) - 1));
        log_probs_[place] = safe;
        ids_[place] = static_cast<int32_t>(id);
      }
      found += __popc(lanes);
      least = __shfl_sync(~0u, safe, kWarp - 1);
      base += step;
    }
    if (lane == 0) found_[slot(depth)] = found;
  }

  const BestFirstCall& call_;
  int64_t b_;
  int width_, levels_;
  float* log_probs_;
  int32_t* ids_;
  int32_t* found_;
};

// Puts keys[count, count + more), in any order, among keys[0, count), which are in order; the first `most` of all are
// in order then. How many there are. For all threads, to which the keys must be visible before.
SPECDEC_STEP int merge_keys(uint64_t* keys, int count, int more, int most) {
  const int all = count + more, threads = static_cast<int>(blockDim.x);
  if (more > 0 && all <= threads && all * more <= kComparisons * threads) {
    const int group = group_size(all);
    const int item = static_cast<int>(threadIdx.x) / group, part = static_cast<int>(threadIdx.x) % group;
    const uint64_t mine = item < all ? keys[item] : 0;
    int smaller = 0;
    if (item < all) {
#pragma unroll 4
      for (int j = count + part; j < all; j += group) smaller += keys[j] < mine;
    }
    smaller = sum_of_group(smaller, group);
    int low = item, high = item;  // of the nodes so far
    if (item >= count) {
      low = 0;
      high = count;
    }
    while (low < high) {
      const int middle = (low + high) / 2;
      if (keys[middle] < mine) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    __syncthreads();
    if (item < all && part == 0 && smaller + low < most) keys[smaller + low] = mine;
    __syncthreads();
  } else if (more > 0) {
    sort_keys(keys, all);
  }
  return all < most ? all : most;
}

// Children of parent i that may matter, by what is known without their scores; from depth 2 on.
__device__ __forceinline__ int children_in_reach(int i, int depth, int ranks, int most) {
  const int children = (most - (depth - 2)) / (i + 1) - 1;
  return children < 0 ? 0 : children < ranks ? children : ranks;
}

// Those of them that come before the last of the nodes so far.
__device__ inline int children_that_matter(const BestFirstLaws& laws, float above, int i, int depth, int most,
                                           uint64_t last) {
  int low = 0, high = children_in_reach(i, depth, laws.ranks(depth), most);
  while (low < high) {
    const int r = (low + high) / 2;
    const float score = above + laws.log_prob(depth, r);
    if (score != kAbsent && best_first_key(score, depth, i, r) < last) {
      low = r + 1;
    } else {
      high = r;
    }
  }
  return low;
}

// The last of `count` offsets that is at most `at`.
__device__ inline int owner_of(const int32_t* offset, int count, int at) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (offset[middle] <= at ? low : high) = middle;
  }
  return low;
}

// The first `most` nodes below the root as keys, in order; how many there are. For all threads, of which there are more
// than `most`.
__device__ inline int choose_nodes(const BestFirstLaws& laws, BlockScan& scan, BestFirstStorage& shared, int ranks,
                                   int most) {
  LevelStorage& level = shared.level;
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (laws.levels() == 0) return 0;
  // Where every thread can have one child of one parent for good, it has that one.
  const int reach = t < most ? children_in_reach(t, 2, ranks, most) : 0;
  const Prefix place = scan.sum(reach);
  const bool fits = place.all <= threads;
  level.offset[t] = place.before;
  laws.open(1);
  int count = laws.ranks(1);
  count = count < most ? count : most;
  if (t < count) shared.key[t] = best_first_key(0.0f + laws.log_prob(1, t), 1, 0, t);
  __syncthreads();
  const int own = t < place.all ? owner_of(level.offset, most, t) : most;
  const int own_rank = t < place.all ? t - level.offset[own] : 0;
  for (int depth = 2; depth <= laws.levels(); ++depth) {
    const bool is_parent = t < count && depth_of_key(shared.key[t]) == depth - 1;
    const Prefix parents = scan.count(is_parent);
    if (parents.all == 0) break;
    if (is_parent) level.above[parents.before] = score_of_key(shared.key[t]);
    laws.open(depth);
    __syncthreads();
    const uint64_t last = count == most ? shared.key[most - 1] : kLastKey;
    if (fits) {
      uint64_t key = kLastKey;
      if (own < parents.all && own_rank < laws.ranks(depth)) {
        const float score = level.above[own] + laws.log_prob(depth, own_rank);
        if (score != kAbsent) key = best_first_key(score, depth, own, own_rank);
      }
      const Prefix candidates = scan.count(key < last);
      if (key < last) shared.key[count + candidates.before] = key;
      __syncthreads();
      count = merge_keys(shared.key, count, candidates.all, most);
      continue;
    }
    int children = 0;
    if (t < parents.all) children = children_that_matter(laws, level.above[t], t, depth, most, last);
    const Prefix candidates = scan.sum(children);
    if (t < parents.all) level.offset[t] = candidates.before;
    __syncthreads();
    for (int base = 0; base < candidates.all;) {
      int step = kBestKeys / 2 < threads ? kBestKeys / 2 : threads;
      step = candidates.all - base < step ? candidates.all - base : step;
      if (t < step) {
        const int parent = owner_of(level.offset, parents.all, base + t), r = base + t - level.offset[parent];
        shared.key[count + t] = best_first_key(level.above[parent] + laws.log_prob(depth, r), depth, parent, r);
      }
      __syncthreads();
      count = merge_keys(shared.key, count, step, most);
      base += step;
    }
  }
  return count;
}

// The token of the node whose key is `key`, for each thread that has one; for all threads.
__device__ inline int32_t token_of(const BestFirstCall& call, const BestFirstLaws& laws, BlockScan& scan, bool has_one,
                                   uint64_t key) {
  const int depth = has_one ? depth_of_key(key) : 0, rank = has_one ? rank_of_key(key) : 0;
  if (call.kept) return has_one ? laws.id(depth, rank) : -1;
  const int deepest = scan.largest(depth);
  int32_t token = -1;
  for (int d = 1; d <= deepest; ++d) {
    laws.open(d);
    if (d == depth) token = laws.id(d, rank);
  }
  return token;
}

// Writes a request of `count` nodes below the root (-1: idle). Thread i brings the token of node i, whose key is
// shared.key[i - 1].
__device__ inline void write_nodes(const BestFirstParams& p, int64_t b, BestFirstStorage& shared, int count,
                                   int64_t token) {
  LayoutStorage& layout = shared.layout;
  const int i = static_cast<int>(threadIdx.x), nodes = static_cast<int>(p.tree.max_nodes);
  const bool below = i > 0 && i <= count, live = i <= count;
  const uint64_t key = below ? shared.key[i - 1] : 0;
  const int depth = below ? depth_of_key(key) : 0;
  Placed placed;
  if (count >= 0) {
    // By depth: the k-th of a depth is entry first[depth] + k.
    int32_t* first = layout.column[0];
    __syncthreads();
    if (live) layout.key[i] = static_cast<uint32_t>(depth) << 16 | static_cast<uint32_t>(i);
    __syncthreads();
    sort_keys(layout.key, count + 1);
    if (live) {
      const uint32_t own = layout.key[i] >> 16;
      if (i == 0 || layout.key[i - 1] >> 16 != own) first[own] = i;
    }
    __syncthreads();
    int parent = -1;
    if (below) parent = static_cast<int>(layout.key[first[depth - 1] + parent_of_key(key)] & 0xffff);
    placed = lay_out(layout, count + 1, parent);
  }
  if (i == 0) p.tree.status[b] = 0;
  if (i >= nodes) return;
  const int64_t row = b * nodes + (live ? placed.place : i);
  write_row(p.tree, row, live, placed, i == 0 ? p.root_tokens[b] : token);
  if (p.scores != nullptr) p.scores[row] = !live ? kAbsent : i == 0 ? 0.0f : score_of_key(key);
}

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    best_first_kernel(const __grid_constant__ BestFirstCall call) {
  auto& shared = shared_storage<BestFirstStorage>();
  const BestFirstParams& p = call.params;
  BlockScan scan(shared.scan);
  const int64_t b = blockIdx.x, nodes = p.tree.max_nodes;
  write_offsets(p.tree, p.batch, b);
  if (b >= p.batch) return;
  const int i = static_cast<int>(threadIdx.x);
  const int64_t budget = budget_of(p.budgets, nodes, b);
  int count = -1;
  int32_t token = -1;
  if (budget > 0 && is_token(p.root_tokens[b])) {
    const int most = static_cast<int>(budget - 1);
    const BestFirstLaws laws(call, &shared + 1, b, most);
    const int ranks = most < call.width ? most : call.width;
    count = choose_nodes(laws, scan, shared, ranks, most);
    const bool below = i > 0 && i <= count;
    token = token_of(call, laws, scan, below, below ? shared.key[i - 1] : 0);
  }
  if (p.total_budget < 0) {
    write_nodes(p, b, shared, count, token);
    return;
  }
  if (i == 0) call.space.counts[b] = count;
  if (i > 0 && i <= count) {
    call.space.keys[b * nodes + i - 1] = shared.key[i - 1];
    call.space.tokens[b * nodes + i - 1] = token;
  }
}

__device__ inline uint64_t batch_key_of(uint64_t key) { return batch_key(score_of_key(key), depth_of_key(key)); }

// How many of the nodes of request b, in order, are among the first `left` of those of all requests. For all threads.
__device__ inline int nodes_that_stay(const BestFirstCall& call, int64_t b, BestFirstStorage& shared, int64_t left) {
  const BestFirstWorkspace& space = call.space;
  const int64_t nodes = call.params.tree.max_nodes, batch = call.params.batch;
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const uint64_t* own = space.keys + b * nodes;
  int low = 0, high = space.counts[b] > 0 ? space.counts[b] : 0;  // the first `low` stay, those from `high` on do not
  while (low < high) {
    const int probes = high - low < kProbes ? high - low : kProbes;
    const auto place_of = [&](int probe) {
      return low + static_cast<int>((probe + 1ll) * (high - low) / (probes + 1));
    };
    if (t < probes) shared.before[t] = place_of(t);
    __syncthreads();
    for (int64_t work = t; work < probes * batch; work += threads) {
      const int probe = static_cast<int>(work / batch);
      const int64_t other = work % batch;
      if (other == b) continue;
      const uint64_t key = batch_key_of(own[place_of(probe)]);
      const uint64_t* theirs = space.keys + other * nodes;
      int from = 0, to = space.counts[other];
      while (from < to) {
        const int middle = (from + to) / 2;
        const uint64_t their = batch_key_of(theirs[middle]);
        if (their < key || (their == key && other < b)) {
          from = middle + 1;
        } else {
          to = middle;
        }
      }
      if (from > 0) atomicAdd(&shared.before[probe], from);
    }
    __syncthreads();
    int stay = 0;
    while (stay < probes && shared.before[stay] < left) ++stay;
    const int after = stay < probes ? place_of(stay) : high;
    if (stay > 0) low = place_of(stay - 1) + 1;
    high = after;
    __syncthreads();
  }
  return low;
}

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    share_budget_kernel(const __grid_constant__ BestFirstCall call) {
  auto& shared = shared_storage<BestFirstStorage>();
  const BestFirstParams& p = call.params;
  BlockScan scan(shared.scan);
  const int64_t b = blockIdx.x, nodes = p.tree.max_nodes;
  const int i = static_cast<int>(threadIdx.x);
  int32_t live = 0;
  for (int64_t k = i; k < p.batch; k += blockDim.x) live += call.space.counts[k] >= 0;
  const int64_t left = p.total_budget - scan.sum(live).all;
  int count = call.space.counts[b];
  if (count > 0) count = nodes_that_stay(call, b, shared, left);
  if (i < count) shared.key[i] = call.space.keys[b * nodes + i];
  __syncthreads();
  const int64_t token = i > 0 && i <= count ? call.space.tokens[b * nodes + i - 1] : -1;
  write_nodes(p, b, shared, count, token);
}

inline cudaError_t launch_best_first(const BestFirstParams& p, void* workspace, cudaStream_t stream) {
  const int64_t nodes = p.tree.max_nodes, most = nodes > 1 ? nodes - 1 : 0;
  BestFirstCall call;
  call.params = p;
  call.space = BestFirstWorkspace::carve(workspace, p);
  call.width = static_cast<int32_t>(p.ranks < most ? p.ranks : most);
  call.levels = static_cast<int32_t>(p.depth < most ? p.depth : most);
  call.kept = static_cast<int64_t>(call.levels) * call.width <= kKeptRanks && call.levels <= kKeptRanks;
  // Up to 128 nodes there are about as many children in reach of all parents as threads.
  const Launch how{blocks_of_requests(p.batch), static_cast<unsigned>(block_threads(4 * nodes)),
                   sizeof(BestFirstStorage) + static_cast<size_t>(call.law_bytes()), stream};
  const cudaError_t error = launch(best_first_kernel, how, call);
  if (error != cudaSuccess || p.total_budget < 0 || p.batch == 0) return error;
  return launch(share_budget_kernel,
                {blocks_of_requests(p.batch), static_cast<unsigned>(block_threads(nodes < 256 ? 256 : nodes)),
                 sizeof(BestFirstStorage), stream},
                call);
}

}  // namespace specdec::cuda
