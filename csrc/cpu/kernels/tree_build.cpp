// SPDX-License-Identifier: Apache-2.0
// from_parents: a pass over the parents checks them, two more give every node its place.
// from_beams: candidates are merged by a hash of (canonical parent, token), keys are selected and sorted.
// Both: requests are spread over threads, O(nodes) memory per thread, each integer is read and written once.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "parallel.h"
#include "tree.h"
#include "tree_shape.h"

SPECDEC_ISA_BEGIN
namespace {

// ---- from_parents ----
void pad(const FromParentsParams& p, int64_t row, int64_t slot) {
  p.tokens.set(row, -1);
  p.parents[row] = -1;
  p.depths[row] = 0;
  p.ends[row] = 0;
  p.order[row] = row;
  if (p.slots != nullptr) p.slots[row] = static_cast<int32_t>(slot);
}

// Reads and checks the parents of the live rows; whether they are a tree.
bool read_parents(const FromParentsParams& p, int64_t first, int64_t live, Shape& shape) {
  if (live > p.max_nodes) return false;
  shape.count = static_cast<int32_t>(live);
  for (int32_t i = 0; i < shape.count; ++i) {
    const int64_t parent = p.given_parents[first + i];
    if (i == 0 ? parent != -1 : parent < 0 || parent >= i) return false;
    shape.parent[i] = static_cast<int32_t>(parent);
    shape.depth[i] = i == 0 ? 0 : shape.depth[parent] + 1;
    if (shape.depth[i] > p.max_depth) return false;
  }
  return true;
}

void build_from_parents(const FromParentsParams& p, int64_t b, const RequestRows& rows) {
  const int64_t first = rows.first, count = rows.after - first;
  Shape shape;
  bool wrong = !rows.sound;
  if (rows.sound) {
    const int64_t live = p.lengths ? p.lengths[b] : count;
    wrong = live < 0 || live > count || !read_parents(p, first, live, shape);
    if (wrong) {
      shape.count = count > 0 && p.max_nodes > 0 ? 1 : 0;
      shape.parent[0] = -1;
    }
    lay_out(shape);
  }
  p.status[b] = wrong ? kStatusMalformed : 0;
  for (int32_t i = 0; i < shape.count; ++i) {
    const int64_t row = first + shape.place[i];
    p.tokens.set(row, p.given_tokens[first + i]);
    p.parents[row] = i == 0 ? -1 : shape.place[shape.parent[i]];
    p.depths[row] = shape.depth[i];
    p.ends[row] = shape.end[i];
    p.order[row] = first + i;
    if (p.slots != nullptr) p.slots[row] = i;
  }
  for (int64_t i = shape.count; i < count; ++i) pad(p, first + i, i);
}

// ---- from_beams ----

// The candidates of one request.
class Pool {
 public:
  // Reads them; whether the parent of one was out of range.
  bool read(const FromBeamsParams& p, int64_t b, int64_t length) {
    reserve(length);
    const IndexView tokens = p.pool_tokens.row(b), parents = p.pool_parents.row(b);
    const float* scores = p.scores + b * p.score_row_stride;
    bool wrong = false;
    kept_ = 0;
    for (int32_t i = 0; i < length; ++i) {
      const float score = safe_score(scores[i * p.score_column_stride]);
      const int64_t token = tokens[i], parent = parents[i];
      same_[i] = kGone;
      if (score == kAbsent || !is_token(token)) continue;
      if (parent < -1 || parent >= i) {
        wrong = true;
        continue;
      }
      const int32_t above = parent < 0 ? kRoot : same_[parent];
      if (above == kGone) continue;
      const int32_t depth = above == kRoot ? 1 : depth_[above] + 1;
      if (depth > p.max_depth) continue;
      same_[i] = find(i, above, static_cast<int32_t>(token));
      if (same_[i] != i) {
        score_[same_[i]] = std::max(score_[same_[i]], score);
        continue;
      }
      parent_[i] = above;
      token_[i] = static_cast<int32_t>(token);
      depth_[i] = depth;
      score_[i] = score;
      canonical_[kept_++] = i;
    }
    for (int32_t k = 0; k < kept_; ++k) {
      const int32_t i = canonical_[k];
      if (parent_[i] != kRoot) score_[i] = std::min(score_[i], score_[parent_[i]]);
      key_[k] = beam_key(score_[i], depth_[i], i);
    }
    return wrong;
  }

  // The best `most` candidates in order, as nodes 1, 2, ... of a shape; `index` gets the candidate of each.
  void choose(int64_t most, Shape& shape, int32_t* index) {
    const int32_t count = static_cast<int32_t>(std::min<int64_t>(most, kept_));
    if (count < kept_) std::nth_element(key_, key_ + count, key_ + kept_, Before());
    std::sort(key_, key_ + count, Before());
    shape.count = count + 1;
    shape.parent[0] = index[0] = -1;
    for (int32_t k = 1; k <= count; ++k) {
      const int32_t i = index_of_beam_key(key_[k - 1]);
      index[k] = i;
      node_[i] = k;
      shape.parent[k] = parent_[i] == kRoot ? 0 : node_[parent_[i]];  // which has come before
    }
  }

  int32_t token(int32_t i) const { return token_[i]; }

 private:
  static constexpr int32_t kRoot = -1, kGone = -2, kFree = -1;
  struct Before {
    bool operator()(uint64_t a, uint64_t b) const { return a < b; }
  };

  void reserve(int64_t length) {
    slots_ = 16;
    while (slots_ < 2 * length) slots_ *= 2;
    std::memset(table_, 0xff, static_cast<size_t>(slots_) * sizeof(table_[0]));
  }

  // The candidate with this parent and token that came first: `i`, if there is none yet.
  int32_t find(int32_t i, int32_t parent, int32_t token) {
    const uint64_t key = static_cast<uint64_t>(parent + 1) << 32 | static_cast<uint32_t>(token);
    uint64_t at = key * 0x9e3779b97f4a7c15ull >> 32;
    for (;; ++at) {  // the table is never full
      int32_t& entry = table_[at & static_cast<uint64_t>(slots_ - 1)];
      if (entry == kFree) return entry = i;
      if (parent_[entry] == parent && token_[entry] == token) return entry;
    }
  }

  int32_t kept_ = 0;
  int64_t slots_ = 0;
  int32_t same_[kMaxPool];    // the candidate that stands for this one
  int32_t parent_[kMaxPool];  // what follows: of those that stand for themselves
  int32_t token_[kMaxPool];
  int32_t depth_[kMaxPool];
  float score_[kMaxPool];
  int32_t node_[kMaxPool];
  int32_t canonical_[kMaxPool];
  uint64_t key_[kMaxPool];
  int32_t table_[2 * kMaxPool];
};

void build_from_beams(const FromBeamsParams& p, int64_t b, Pool& pool) {
  const int64_t budget = budget_of(p.budgets, p.tree.max_nodes, b), root = p.root_tokens[b];
  int32_t* order = p.order + b * p.tree.max_nodes;
  int32_t index[kMaxTreeNodes];
  Shape shape;
  p.tree.status[b] = 0;
  if (budget > 0 && is_token(root)) {
    int64_t length = p.lengths ? p.lengths[b] : p.pool;
    bool wrong = length < 0 || length > p.pool;
    if (wrong) length = 0;
    wrong |= pool.read(p, b, length);
    pool.choose(budget - 1, shape, index);
    lay_out(shape);
    if (wrong) p.tree.status[b] = kStatusMalformed;
  }
  write_request(p.tree, b, shape, [&](int32_t i) { return i == 0 ? root : pool.token(index[i]); });
  for (int32_t i = 0; i < shape.count; ++i) order[shape.place[i]] = index[i];
  for (int64_t i = shape.count; i < p.tree.max_nodes; ++i) order[i] = -1;
}

}  // namespace

void from_parents(const FromParentsParams& p) {
  int64_t largest = bounded_offset(0, p.cu_nodes[0], p.total);
  for (int64_t row = 0; row < largest; ++row) pad(p, row, 0);
  const int threads = threads_for(p.total * 32, p.batch);
  if (threads == 1) {
    for (int64_t b = 0; b < p.batch; ++b) {
      const RequestRows rows = rows_of_request(p, b, largest);
      build_from_parents(p, b, rows);
      largest = rows.after;
    }
  } else {
    std::vector<RequestRows> rows(static_cast<size_t>(p.batch));
    for (int64_t b = 0; b < p.batch; ++b) {
      rows[b] = rows_of_request(p, b, largest);
      largest = rows[b].after;
    }
    for_pieces(p.batch, threads, [&](int64_t b) { build_from_parents(p, b, rows[b]); });
  }
  for (int64_t row = largest; row < p.total; ++row) pad(p, row, 0);
}

void from_beams(const FromBeamsParams& p) {
  write_offsets(p.tree, p.batch);
  static thread_local std::unique_ptr<Pool> mine;  // only for the instruction set that is in use
  for_pieces(p.batch, threads_for(p.batch * (p.pool * 128 + p.tree.max_nodes * 32), p.batch), [&](int64_t b) {
    if (mine == nullptr) mine = std::make_unique<Pool>();
    build_from_beams(p, b, *mine);
  });
}

SPECDEC_ISA_END
