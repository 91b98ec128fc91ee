// SPDX-License-Identifier: Apache-2.0
// What a step of verification must expect, in closed form (python_ref/ops/expectation.py says how).
//
// Who does what: as in verify.cpp. Memory traffic: the rows of all inner nodes that any rule may visit, once; again
// under filters; and both rows once per child and rule.
#include <algorithm>
#include <cstring>

#include "../../common/bound.h"
#include "parallel.h"
#include "verify_request.h"

SPECDEC_ISA_BEGIN
namespace {

// The present children of a node that count, and their law.
struct Children {
  std::vector<int32_t> nodes;
  std::vector<int64_t> tokens;
  const Law* q = nullptr;
  int32_t sampled = -1;  // index of the last child of all, if it is present
};

struct Sums {
  const double* of_set;
  double operator()(int set) const { return of_set[set]; }
};

// Of each node: with which probability it is visited under the top-down rules, and its budget under the bottom-up one.
struct Means {
  std::vector<double> token, plus_one, budget, left;

  void reset(size_t count) {
    for (auto* column : {&token, &plus_one, &budget, &left}) column->assign(count, 0.0);
    token[0] = plus_one[0] = budget[0] = 1.0;
  }
};

class Expectation {
 public:
  Expectation(Request& request, Means& means)
      : request_(request), means_(means), visit_(request.space.visit(0)), law_(visit_.target) {}

  void run(const ExpectParams& e) {
    const int64_t limit = request_.call.limit(request_.index), b = request_.index;
    e.token[b] = e.traversal[b] = e.greedy_plus_one[b] = e.bound[b] = 0.0f;
    if (request_.nodes.count == 0 || limit <= 0) return;
    if (is_greedy(request_.settings)) {
      const int64_t length = argmax_length(std::max<int64_t>(limit, 2));  // the bound knows no limit
      e.token[b] = e.traversal[b] = e.greedy_plus_one[b] = static_cast<float>(std::min(length, limit));
      e.bound[b] = length > 1 ? 1.0f : 0.0f;
      return;
    }
    const int32_t count = request_.nodes.count;
    means_.reset((size_t)count);
    double best = 0.0;
    for (int32_t v = 0; v < count; ++v) {
      const size_t i = (size_t)v;
      means_.left[i] = means_.budget[i];
      const bool met = means_.token[i] > 0 || means_.plus_one[i] > 0 || means_.budget[i] > 0;
      if (!met || request_.first_child(v) == request_.end(v)) continue;
      request_.read(v, law_);
      if (law_.dead()) continue;
      find_children(v);
      if (v == 0) best = bound();
      top_down(v);
      plus_one(v);
      bottom_up(v);
    }
    means_.left[0] = 1.0;
    double token = 0.0, plus_one = 0.0, traversal = 0.0, going_on = 1.0;
    for (int32_t v = 0; v < count; ++v) {
      if (request_.depth(v) >= limit) continue;
      token += means_.token[(size_t)v];
      plus_one += means_.plus_one[(size_t)v];
    }
    // In post-order.
    order_.resize((size_t)count);
    for (int32_t v = 1; v < count; ++v) order_[(size_t)(request_.end(v) - 1 - request_.depth(v))] = v;
    order_[(size_t)count - 1] = 0;  // whose end is anything where it stands alone
    for (const int32_t v : order_) {
      const int64_t length = std::min<int64_t>(request_.depth(v) + 1, limit);
      traversal += going_on * means_.left[(size_t)v] * (double)length;
      going_on *= 1.0 - means_.left[(size_t)v];
    }
    e.token[b] = static_cast<float>(token);
    e.traversal[b] = static_cast<float>(traversal);
    e.greedy_plus_one[b] = static_cast<float>(plus_one);
    e.bound[b] = static_cast<float>(best);
  }

 private:
  int64_t argmax_length(int64_t limit) {
    int64_t length = 0;
    for (int32_t node = 0; node >= 0 && length < limit; ++length) {
      request_.read(node, law_);
      node = law_.dead() ? -1 : child_with_token(request_.call.tree, request_.nodes, node, best_id(law_));
    }
    return length;
  }

  void find_children(int32_t v) {
    children_.nodes.clear();
    children_.tokens.clear();
    children_.sampled = -1;
    if (!request_.read_drafts(v, visit_.draft, &children_.q)) return;
    const int32_t end = request_.end(v);
    for (int32_t child = request_.first_child(v); child < end; child = request_.next_child(v, child)) {
      if (request_.call.tree.ends[request_.owner(child)] >= end) children_.sampled = (int32_t)children_.nodes.size();
      children_.nodes.push_back(child);
      children_.tokens.push_back(request_.token(child));
    }
  }

  void top_down(int32_t v) {
    Residual& left = visit_.residual;
    left.begin(law_, children_.q, request_.p.replacement, request_.threads);
    double here = means_.token[(size_t)v];
    for (size_t i = 0; i < children_.nodes.size() && here > 0; ++i) {
      const double accepted = left.handed_down(children_.tokens[i]);
      means_.token[(size_t)children_.nodes[i]] = here * accepted;
      here *= 1.0 - accepted;
      if (!left.reject(children_.tokens[i])) break;
    }
  }

  void plus_one(int32_t v) {
    double here = means_.plus_one[(size_t)v];
    if (!(here > 0)) return;
    Residual& left = visit_.residual;
    left.begin(law_, children_.q, false, request_.threads);
    const int32_t sampled = children_.sampled;
    if (sampled >= 0) {
      std::vector<int64_t>& chosen = request_.space.ids;
      chosen = children_.tokens;
      chosen.erase(chosen.begin() + sampled);
      left.exclude(chosen);
      const int64_t token = children_.tokens[(size_t)sampled];
      const double accepted = left.handed_down(token);
      means_.plus_one[(size_t)children_.nodes[(size_t)sampled]] = here * accepted;
      here *= 1.0 - accepted;
      if (!left.reject(token)) return;
    }
    for (size_t i = 0; i < children_.nodes.size(); ++i) {
      if ((int32_t)i == sampled || earlier(i, sampled)) continue;
      means_.plus_one[(size_t)children_.nodes[i]] = here * left.target(children_.tokens[i]);
    }
  }

  // Whether another chosen child before the i-th holds its token.
  bool earlier(size_t i, int32_t sampled) const {
    for (size_t j = 0; j < i; ++j) {
      if ((int32_t)j != sampled && children_.tokens[j] == children_.tokens[i]) return true;
    }
    return false;
  }

  void bottom_up(int32_t v) {
    Residual& left = visit_.residual;
    if (!(means_.budget[(size_t)v] > 0)) return;
    left.begin(law_, children_.q, request_.p.replacement, request_.threads, means_.budget[(size_t)v]);
    for (size_t i = 0; i < children_.nodes.size(); ++i) {
      means_.budget[(size_t)children_.nodes[i]] = left.handed_down(children_.tokens[i]);
      if (!left.reject(children_.tokens[i])) break;
    }
    means_.left[(size_t)v] = left.budget();
  }

  double bound() {
    if (children_.nodes.empty()) return 0.0;
    const size_t number = children_.nodes.size();
    if (children_.q == nullptr) {
      double mass = 0.0;
      for (size_t i = 0; i < number; ++i) {
        const bool again = std::find(children_.tokens.begin(), children_.tokens.begin() + (ptrdiff_t)i,
                                     children_.tokens[i]) != children_.tokens.begin() + (ptrdiff_t)i;
        if (!again) mass += law_.probability(children_.tokens[i]);
      }
      return std::min(mass, 1.0);
    }
    const Law& q = *children_.q;
    if (q.dead()) return 1.0;  // drafts that cannot have been drawn are taken wherever p is not 0
    Histogram sets;
    if (law_.is_short || q.is_short) {
      // Of the longer law only what the shorter one keeps is looked at; the rest lies in the first set, or in none.
      const bool by_p = law_.is_short;
      const Law& listed = by_p ? law_ : q;
      double p_seen = 0.0, q_seen = 0.0;
      for (int i = 0; i < listed.count; ++i) {
        const double p = law_.probability(listed.ids[i]), share = q.probability(listed.ids[i]);
        sets.add(bound_set(p, share), p, share);
        p_seen += p;
        q_seen += share;
      }
      sets.q[0] += by_p ? std::max(1.0 - q_seen, 0.0) : 0.0;
      sets.p[kBoundSets] += by_p ? 0.0 : std::max(1.0 - p_seen, 0.0);
    } else {
      for (int64_t block = 0; block < law_.source.blocks(); ++block) add_block(block, q, sets);
    }
    double tops[kBoundTops] = {};
    const int most = request_.p.replacement ? 0 : std::min<int>((int)number - 1, kBoundTops);
    const int known = largest_shares(q, most, tops);
    return bound_of_sets(Sums{sets.p}, Sums{sets.q}, (int64_t)number, tops, known);
  }

  // Masses of the ids that a set adds to the one before it; the last is in no set.
  struct Histogram {
    double p[kBoundSets + 1] = {}, q[kBoundSets + 1] = {};

    void add(int set, double p_share, double q_share) {
      p[set] += p_share;
      q[set] += q_share;
    }

    // `bound_set` in single precision: j = 4 e and one for each quarter passed.
    static int set_of(float p_here, float q_here) {
      if (!(p_here > 0.0f)) return 0;
      if (!(q_here > 0.0f)) return kBoundSets;
      const float ratio = p_here / q_here;
      if (!(ratio > 0x1p-8f)) return 0;
      if (!(ratio <= 0x1p8f)) return kBoundSets;
      uint32_t bits;
      memcpy(&bits, &ratio, sizeof(bits));
      const int exponent = (int)(bits >> 23) - 127;
      const uint32_t mantissa = bits & 0x7fffffu;
      const int passed = (mantissa > 0) + (mantissa > 0x1837f0u) + (mantissa > 0x3504f3u) + (mantissa > 0x5744fcu);
      return 4 * exponent + passed + kBoundSteps;
    }
  };

  void add_block(int64_t index, const Law& q, Histogram& sets) const {
    alignas(64) float buffer[kBlock], ours[kBlock], theirs[kBlock];
    const Block p_block = load_block(law_.source, index, buffer);
    weigh_block(law_, index, p_block, law_.max, ours);
    const Block q_block = load_block(q.source, index, buffer);
    weigh_block(q, index, q_block, q.max, theirs);
    const double p_scale = 1.0 / law_.total, q_scale = 1.0 / q.total;
    for (int i = 0; i < p_block.count; ++i) {
      const double p = ours[i] * p_scale, share = theirs[i] * q_scale;
      sets.add(Histogram::set_of((float)p, (float)share), p, share);
    }
  }

  // The sums of the largest 1, 2, .. probabilities of a law; how many there are.
  static int largest_shares(const Law& q, int most, double* sums) {
    if (most <= 0) return 0;
    int64_t ids[kBoundTops];
    const int found = best_ids(q, most, ids);
    double sum = 0.0;
    for (int i = 0; i < found; ++i) sums[i] = sum += q.probability(ids[i]);
    return found;
  }

  Request& request_;
  Means& means_;
  Visit& visit_;
  Law& law_;
  Children children_;
  std::vector<int32_t> order_;
};

}  // namespace

void verify_expect(const ExpectParams& e) {
  const int64_t vocab = e.verify.call.logits.columns;
  spread(e.verify.call.tree.batch, vocab * (int64_t)sizeof(float), vocab / kBlock, [&](int64_t b, int threads) {
    Request request(e.verify, b, threads, workspace_of_thread());
    Means means;
    Expectation(request, means).run(e);
  });
}

SPECDEC_ISA_END
