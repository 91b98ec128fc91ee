// SPDX-License-Identifier: Apache-2.0
// The rules that go down the tree of each request: at a node one token is decided. Either it is that of a child, which
// is then visited, or it is the request's last token.
//
// Who does what: requests are spread over threads; where they are fewer than the threads, requests come one after the
// other and the blocks of their rows are spread. Memory traffic: the rows of visited nodes, once; again under filters,
// and for a draft that comes to nothing. Deterministic, independent of the batch and of the number of threads.
#include "verify.h"

#include <algorithm>

#include "parallel.h"
#include "verify_request.h"

SPECDEC_ISA_BEGIN
namespace {

struct Step {
  int64_t token;
  int32_t child;  // visited next; -1: none
  double divergence = 0.0;
};

class Decider {
 public:
  Decider(Request& request) : request_(request), p_(request.p), visit_(request.space.visit(0)), law_(visit_.target) {}

  Step at(int32_t node) {
    request_.read(node, law_);
    if (law_.dead()) return {-1, -1};
    if (p_.rule == Rule::synthetic) return at_given_rates(node);
    if (p_.rule == Rule::relaxed) return near_the_best(node);
    if (is_greedy(request_.settings)) return follow(node, best_id(law_));
    switch (p_.rule) {
      case Rule::rejection:
        return accept_or_reject(node);
      case Rule::greedy_plus_one:
        return sampled_or_chosen(node);
      case Rule::threshold:
        return above_thresholds(node);
      default:
        return follow(node, request_.plain_draw(law_, node));
    }
  }

  const Law& law() const { return law_; }

 private:
  Step follow(int32_t node, int64_t token) const {
    if (token < 0) return {-1, -1};
    return {token, child_with_token(request_.call.tree, request_.nodes, node, token)};
  }

  // Begins with the children of a node: the first that counts.
  int32_t begin(int32_t node) {
    const Law* q = nullptr;
    int32_t child = request_.first_child(node);
    if (child < request_.end(node) && !request_.read_drafts(node, visit_.draft, &q)) child = request_.end(node);
    visit_.residual.begin(law_, q, p_.replacement, request_.threads);
    return child;
  }

  Step accept_or_reject(int32_t node) {
    for (int32_t child = begin(node); child < request_.end(node); child = request_.next_child(node, child)) {
      const int64_t token = request_.token(child);
      if (is_accepted(node, child)) return {token, child};
      if (!visit_.residual.reject(token)) return {fall_back(node), -1};
    }
    return {draw_residual(node), -1};
  }

  // The last child was drawn from q without the others, which were chosen.
  Step sampled_or_chosen(int32_t node) {
    const int32_t end = request_.end(node), first = begin(node);
    int32_t sampled = -1;
    std::vector<int64_t>& chosen = request_.space.ids;
    chosen.clear();
    for (int32_t child = first; child < end; child = request_.next_child(node, child)) {
      if (request_.call.tree.ends[request_.owner(child)] >= end) {
        sampled = child;
      } else {
        chosen.push_back(request_.token(child));
      }
    }
    if (sampled >= 0) {
      const int64_t token = request_.token(sampled);
      visit_.residual.exclude(chosen);
      if (is_accepted(node, sampled)) return {token, sampled};
      if (!visit_.residual.reject(token)) return {fall_back(node), -1};
    }
    const int64_t token = draw_residual(node);
    for (int32_t child = first; child < end; child = request_.next_child(node, child)) {
      if (child != sampled && request_.token(child) == token) return {token, child};
    }
    return {token, -1};
  }

  bool is_accepted(int32_t node, int32_t child) const {
    const int64_t token = request_.token(child);
    return accepts(visit_.residual.target(token), visit_.residual.draft(token), request_.coin(node, child));
  }

  int64_t draw_residual(int32_t node) {
    const int64_t token = visit_.residual.draw(request_.place(node, Stream::residual, node));
    return token < 0 ? fall_back(node) : token;
  }

  // Nothing is left of the target's law, which exact arithmetic does not know: draw from the law itself.
  int64_t fall_back(int32_t node) {
    request_.status |= kStatusFallback;
    return draw(law_, request_.place(node, Stream::residual, node));
  }

  // ---- lossy rules -------------------------------------------------------------------------------------------------

  Step above_thresholds(int32_t node) {
    const int32_t end = request_.end(node), first = request_.first_child(node);
    std::vector<int64_t>& seen = request_.space.ids;
    seen.clear();
    ThresholdSum sum;
    Step step{-1, -1};
    for (int32_t child = first; child < end; child = request_.next_child(node, child)) {
      const int64_t token = request_.token(child);
      if (std::find(seen.begin(), seen.end(), token) != seen.end()) continue;  // of equal siblings the first counts
      seen.push_back(token);
      if (sum.offer(p_, law_.probability(token), request_.coin(node, first))) step = {token, child};
      if (sum.sure) break;
    }
    step.divergence = sum.divergence;
    if (step.child >= 0) return step;
    visit_.residual.begin(law_, nullptr, true, request_.threads);
    for (const int64_t token : seen) {
      if (!visit_.residual.reject(token)) {
        step.token = fall_back(node);
        return step;
      }
    }
    step.token = draw_residual(node);
    return step;
  }

  // p is the softmax over the allowed ids.
  Step near_the_best(int32_t node) {
    const int64_t best = best_id(law_);
    if (p_.relax && !p_.relax[request_.index]) return follow(node, best);
    Law& softmax = visit_.draft;
    bool scanned = false;
    for (int32_t child = request_.first_child(node); child < request_.end(node);
         child = request_.next_child(node, child)) {
      const int64_t token = request_.token(child);
      if (token == best) return {token, child};
      if (!scanned) scan_law(softmax, law_.source, 1.0f, request_.threads);
      scanned = true;
      const double mine = softmax.probability(token);
      if (!(mine > 0.0) || softmax.probability(best) - mine > p_.delta) continue;
      if (rank_of(law_, token, p_.top_k) < p_.top_k) return {token, child, 1.0};
    }
    return {best, -1};
  }

  Step at_given_rates(int32_t node) {
    const int32_t child = request_.first_child(node);
    double divergence = 0.0;
    if (child < request_.end(node)) {
      const int64_t token = request_.token(child);
      const double rate = clamp_rate(p_.rates[request_.depth(node)]);
      const bool greedy = is_greedy(request_.settings);
      divergence = rate * (1.0 - (greedy ? token == best_id(law_) : law_.probability(token)));
      if (accepts(rate, 1.0, request_.coin(node, child))) return {token, child, divergence};
    }
    const bool greedy = is_greedy(request_.settings);
    return {greedy ? best_id(law_) : request_.plain_draw(law_, node), -1, divergence};
  }

  Request& request_;
  const VerifyParams& p_;
  Visit& visit_;
  Law& law_;
};

void verify_top_down(Request& request) {
  const int64_t limit = request.call.limit(request.index);
  Decider decider(request);
  int32_t node = request.nodes.count > 0 ? 0 : -1;
  while (node >= 0 && request.emitted < limit) {
    const Step step = decider.at(node);
    request.emit(step.token, node, decider.law(), step.divergence);
    node = step.child;
  }
}

}  // namespace

void verify(const VerifyParams& p) {
  const int64_t vocab = p.call.logits.columns;
  spread(p.call.tree.batch, vocab * (int64_t)sizeof(float), vocab / kBlock, [&](int64_t b, int threads) {
    Request request(p, b, threads, workspace_of_thread());
    const bool deep = !is_greedy(request.settings);
    if (p.rule == Rule::bottom_up && deep) {
      verify_bottom_up(request);
    } else if (p.rule == Rule::typical && deep) {
      verify_typical(request);
    } else {
      verify_top_down(request);
    }
    request.finish();
  });
}

SPECDEC_ISA_END
