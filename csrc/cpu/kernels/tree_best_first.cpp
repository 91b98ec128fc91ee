// SPDX-License-Identifier: Apache-2.0
// best_first: of the nodes of one depth, a child of rank k comes before its next sibling, and before the child of rank
// k of the next parent. So the nodes that have been chosen form a staircase, and only those at its corners can be the
// next: their keys, a few dozen at most, are kept in order. Laws are read only as far as nodes are taken. Requests are
// spread over threads; a total budget is a selection among the keys of all requests in between.
#include <algorithm>
#include <memory>
#include <vector>

#include "parallel.h"
#include "tree.h"
#include "tree_shape.h"

SPECDEC_ISA_BEGIN
namespace {

// Keys in ascending order; a new one goes in from the end, for it is large.
class Front {
 public:
  void clear() { first_ = after_ = 0; }
  bool empty() const { return first_ == after_; }
  uint64_t take() { return keys_[first_++]; }
  void insert(uint64_t key) {
    int32_t at = after_++;
    for (; at > first_ && keys_[at - 1] > key; --at) keys_[at] = keys_[at - 1];
    keys_[at] = key;
  }

 private:
  int32_t first_ = 0;
  int32_t after_ = 0;
  uint64_t keys_[2 * kMaxTreeNodes];  // every node is inserted once, and at most one child of a node is left over
};

// A rank that is present.
struct Rank {
  float log_prob;
  int32_t token;
};

// The laws of one request: of each depth the ranks that are present, read as far as they are asked for.
class Laws {
 public:
  void open(const BestFirstParams& p, int64_t b, int64_t most) {
    p_ = &p;
    log_probs_ = p.log_probs + b * p.log_prob_strides[0];
    token_ids_ = static_cast<const char*>(p.token_ids) + b * p.token_id_strides[0] * (p.wide ? 8 : 4);
    const int64_t depth = std::min(p.depth, most), width = std::min(p.ranks, most);
    if (depth * width > capacity_) {
      capacity_ = depth * width;
      ranks_.reset(new Rank[static_cast<size_t>(capacity_)]);
    }
    laws_.resize(static_cast<size_t>(depth + 1));
    for (int64_t d = 0; d < depth; ++d) laws_[d] = {ranks_.get() + d * width, 0, 0, 0.0f};
    laws_[depth] = {nullptr, 0, p.ranks, 0.0f};  // below the last depth is nothing
  }

  // The k-th rank that is present at a depth from 1 on, which is at most one below those that have been found; k does
  // not skip one. Null if there is none.
  const Rank* find(int32_t depth, int32_t k) {
    Law& law = laws_[depth - 1];
    return k < law.found || read_on(law, depth - 1) ? law.ranks + k : nullptr;
  }

 private:
  struct Law {
    Rank* ranks;
    int32_t found;  // of those before `next`
    int64_t next;   // to be read
    float least;    // the running minimum
  };

  __attribute__((noinline)) bool read_on(Law& law, int64_t row) {
    while (law.next < p_->ranks && law.least != kAbsent) {
      const int64_t rank = law.next++;
      law.least = safe_log_prob(law.least, log_probs_[row * p_->log_prob_strides[1] + rank * p_->log_prob_strides[2]]);
      const int64_t at = row * p_->token_id_strides[1] + rank * p_->token_id_strides[2];
      const int64_t id = p_->wide ? reinterpret_cast<const int64_t*>(token_ids_)[at]
                                  : reinterpret_cast<const int32_t*>(token_ids_)[at];
      if (law.least == kAbsent || !is_token(id)) continue;
      law.ranks[law.found++] = {law.least, static_cast<int32_t>(id)};
      return true;
    }
    return false;
  }

  const BestFirstParams* p_ = nullptr;
  const float* log_probs_ = nullptr;
  const char* token_ids_ = nullptr;
  std::vector<Law> laws_;
  std::unique_ptr<Rank[]> ranks_;  // not cleared
  int64_t capacity_ = 0;
};

// A node that has been chosen, and its neighbours among those of its depth: -1 if there is none.
struct Node {
  float score;
  int32_t depth;
  int32_t before;
  int32_t behind;
  int32_t children;  // that have been chosen
};

struct Scratch {
  Front front;
  Node node[kMaxTreeNodes];
  int32_t last[kMaxTreeNodes];  // node of each depth
  Laws laws;
};

Scratch& scratch_of_thread() {
  static thread_local std::unique_ptr<Scratch> scratch;  // only for the instruction set that is in use
  if (scratch == nullptr) scratch = std::make_unique<Scratch>();
  return *scratch;
}

// Where the nodes of one request below its root are noted, in the order in which they are chosen.
struct Chosen {
  uint64_t* key;  // parent_of_key: 0 is the root, i + 1 is entry i
  int32_t* token;
};

// The first `most` nodes below the root; how many there are.
int32_t choose(const BestFirstParams& p, int64_t b, int64_t most, const Chosen& to) {
  if (most < 1) return 0;
  Scratch& scratch = scratch_of_thread();
  Front& front = scratch.front;
  Laws& laws = scratch.laws;
  Node* node = scratch.node;
  laws.open(p, b, most);
  front.clear();
  for (int64_t d = 0; d <= std::min(p.depth, most); ++d) scratch.last[d] = -1;
  int32_t count = 0;
  // Child k of a node, if it exists.
  const auto offer = [&](int32_t parent, int32_t k) {
    const Node& above = node[parent];
    const Rank* rank = laws.find(above.depth + 1, k);
    if (rank == nullptr) return;
    const float total = above.score + rank->log_prob;
    if (total != kAbsent) front.insert(best_first_key(total, above.depth + 1, parent, k));
  };
  node[0] = {0.0f, 0, -1, -1, 0};
  offer(0, 0);
  while (!front.empty()) {
    const uint64_t key = front.take();
    const int32_t depth = depth_of_key(key), parent = parent_of_key(key), k = rank_of_key(key);
    to.key[count] = key;
    to.token[count] = laws.find(depth, k)->token;
    if (++count == most) break;
    int32_t& last = scratch.last[depth];
    node[count] = {score_of_key(key), depth, last, -1, 0};
    if (last >= 0) node[last].behind = count;
    last = count;
    Node& above = node[parent];
    above.children = k + 1;
    // What has become a corner: the next sibling, the same rank of the next parent, the first child.
    if (above.before < 0 || node[above.before].children > k + 1) offer(parent, k + 1);
    if (above.behind >= 0 && node[above.behind].children == k) offer(above.behind, k);
    if (node[count].before < 0 || node[node[count].before].children > 0) offer(count, 0);
  }
  return count;
}

bool is_live(const BestFirstParams& p, int64_t b) {
  return budget_of(p.budgets, p.tree.max_nodes, b) > 0 && is_token(p.root_tokens[b]);
}

void write(const BestFirstParams& p, int64_t b, const Chosen& chosen, int32_t count) {
  Shape shape;
  p.tree.status[b] = 0;
  if (is_live(p, b)) {
    shape.count = count + 1;
    shape.parent[0] = -1;
    for (int32_t i = 1; i <= count; ++i) shape.parent[i] = parent_of_key(chosen.key[i - 1]);
    lay_out(shape);
  }
  const int64_t root = p.root_tokens[b];
  write_request(p.tree, b, shape, [&](int32_t i) { return i == 0 ? root : chosen.token[i - 1]; });
  if (p.scores == nullptr) return;
  float* scores = p.scores + b * p.tree.max_nodes;
  for (int32_t i = 0; i < shape.count; ++i) scores[shape.place[i]] = i == 0 ? 0.0f : score_of_key(chosen.key[i - 1]);
  for (int64_t i = shape.count; i < p.tree.max_nodes; ++i) scores[i] = kAbsent;
}

uint64_t batch_key_of(uint64_t key) { return batch_key(score_of_key(key), depth_of_key(key)); }

// Of the nodes that all requests would take, in the order of each, the first `left` are kept: shortens the counts.
void share(const std::vector<uint64_t>& keys, int64_t stride, std::vector<int32_t>& counts, int64_t left) {
  struct Before {
    bool operator()(uint64_t a, uint64_t b) const { return a < b; }
  };
  std::vector<uint64_t> all;
  for (size_t b = 0; b < counts.size(); ++b) {
    for (int32_t i = 0; i < counts[b]; ++i) all.push_back(batch_key_of(keys[b * stride + i]));
  }
  if (static_cast<int64_t>(all.size()) <= left) return;
  if (left <= 0) {
    std::fill(counts.begin(), counts.end(), 0);
    return;
  }
  std::nth_element(all.begin(), all.begin() + (left - 1), all.end(), Before());
  const uint64_t last = all[left - 1];  // the lower requests get those with this key
  std::vector<int32_t> before(counts.size());
  for (size_t b = 0; b < counts.size(); ++b) {
    while (before[b] < counts[b] && batch_key_of(keys[b * stride + before[b]]) < last) ++before[b];
    left -= before[b];
  }
  for (size_t b = 0; b < counts.size(); ++b) {
    int32_t taken = before[b];
    while (left > 0 && taken < counts[b] && batch_key_of(keys[b * stride + taken]) == last) {
      ++taken;
      --left;
    }
    counts[b] = taken;
  }
}

}  // namespace

void best_first(const BestFirstParams& p) {
  write_offsets(p.tree, p.batch);
  const int64_t nodes = p.tree.max_nodes;
  const int threads = threads_for(p.batch * nodes * 256, p.batch);
  const auto most_of = [&](int64_t b) { return is_live(p, b) ? budget_of(p.budgets, nodes, b) - 1 : 0; };
  if (p.total_budget < 0) {
    for_pieces(p.batch, threads, [&](int64_t b) {
      uint64_t keys[kMaxTreeNodes];
      int32_t tokens[kMaxTreeNodes];
      const Chosen chosen{keys, tokens};
      write(p, b, chosen, choose(p, b, most_of(b), chosen));
    });
    return;
  }
  std::vector<uint64_t> keys(static_cast<size_t>(p.batch * nodes));
  std::vector<int32_t> tokens(keys.size()), counts(static_cast<size_t>(p.batch));
  const auto of = [&](int64_t b) { return Chosen{keys.data() + b * nodes, tokens.data() + b * nodes}; };
  for_pieces(p.batch, threads, [&](int64_t b) { counts[b] = choose(p, b, most_of(b), of(b)); });
  int64_t left = p.total_budget;
  for (int64_t b = 0; b < p.batch; ++b) left -= is_live(p, b);
  share(keys, nodes, counts, left);
  for_pieces(p.batch, threads, [&](int64_t b) { write(p, b, of(b), counts[b]); });
}

SPECDEC_ISA_END
