// SPDX-License-Identifier: Apache-2.0
// The rules of docs/verify.md as they are defined.
#pragma once

#include "slow_walk.h"

namespace specdec::testing {

// What is left of the target's law at a node while its children come to nothing. The node is visited with a budget a,
// and w is a P; docs/verify.md has the formulas.
struct Left {
  Mass w, q;
  bool sampled = false, replacement = false;
  bool exhausted = false;  // nothing is left, although the budget is 1
  double budget = 1.0, doubt = 0.0;

  Left(Mass p, double a, double a_doubt) : w(std::move(p)), budget(a), doubt(a_doubt) {
    for (size_t i = 0; i < w.w.size(); ++i) {
      w.doubt[i] = w.doubt[i] * a + w.w[i] * a_doubt;
      w.w[i] *= a;
    }
  }

  // What the next child, which holds `token`, was drawn from.
  Mass law_of_next(int64_t token) const {
    if (sampled) return q;
    Mass one{Doubles(w.w.size(), 0.0), Doubles(w.w.size(), 0.0)};
    one.w[token] = 1.0;
    return one;
  }
  double handed_down(int64_t token, double* its_doubt) const {
    const Mass law = law_of_next(token);
    const double p = w.w[token], from = law.w[token];
    if (!(from > 0)) {
      *its_doubt = law.doubt[token] > 0 || (w.doubt[token] > 0 && !(p > 0)) ? kInfinity : 0.0;
      return p > 0 ? 1.0 : 0.0;
    }
    const double ratio = p / from, slack = (w.doubt[token] + ratio * law.doubt[token]) / from;
    *its_doubt = ratio < 1 + slack ? slack : 0.0;
    return std::min(1.0, ratio);
  }
  void reject(int64_t token, Margin* margin) {
    const bool whole = !(budget < 1.0);
    w.subtract(law_of_next(token));
    const double total = std::accumulate(w.w.begin(), w.w.end(), 0.0);
    const double slack = std::accumulate(w.doubt.begin(), w.doubt.end(), 0.0);
    if (whole) margin->add(total / std::max(slack, 1e-300));  // where all that is left may be rounding
    if (!(total > 0)) {
      exhausted = whole;
      if (!whole) budget = 0.0, doubt = slack;
    } else {
      const double reached = total + (1.0 - budget), share = total / reached, unsure = slack + doubt;
      for (size_t i = 0; i < w.w.size(); ++i) {
        w.w[i] /= reached;
        w.doubt[i] = (w.doubt[i] + w.w[i] * unsure) / reached;
      }
      budget = share;
      doubt = whole ? 0.0 : (slack + share * unsure) / reached;
    }
    if (sampled && !replacement) {
      q.remove(token);
      q.normalise();
    }
  }
};

class SlowWalk : public SlowRequest {
 public:
  using SlowRequest::SlowRequest;

  Result run() {
    if (!open()) return result_;
    const bool deep = !greedy(settings_) && (c_.rule == Rule::bottom_up || c_.rule == Rule::typical);
    if (!deep) {
      top_down();
    } else if (c_.rule == Rule::bottom_up) {
      bottom_up();
    } else {
      typical();
    }
    return result_;
  }

 private:
  Margin& margin() { return result_.margin; }

  int64_t draw_plainly(int64_t node, const Row& row) {
    return draw_of(law_of(row.logits, settings_), plain_place(node), ids_, &margin());
  }
  int64_t draw_residual(int64_t node, const Mass& left) {
    return draw_of(left, place(node, Stream::residual, node), ids_, &margin());
  }
  bool toss_for(int64_t node, int64_t child, const Left& left) {
    const int64_t token = token_of(child);
    return toss(left.w, left.law_of_next(token), token, place(node, Stream::coin, child), &margin());
  }
  // The coin of a child against value / limit.
  bool toss_scalar(int64_t node, int64_t child, double value, double doubt, double limit) {
    return toss({{value}, {doubt}}, {{limit}, {0.0}}, 0, place(node, Stream::coin, child), &margin());
  }
  Left begin(int64_t node, const Row& row, double budget, double doubt, Ids* drafts) {
    Left left(law(row), budget, doubt);
    left.q = law_of_drafts(node, drafts, &left.sampled);
    left.replacement = c_.replacement;
    return left;
  }
  // From p, where nothing is left.
  int64_t fall_back(int64_t node, const Row& row) {
    result_.status |= kStatusFallback;
    margin().add(0.0);
    return draw_residual(node, law(row));
  }

  // ---- A token at a time ----

  void top_down() {
    int64_t node = 0;
    while (node >= 0 && !full()) {
      const Row row = read(node);
      int64_t child = -1;
      double divergence = 0.0;
      const int64_t token = best_of(row) < 0 ? -1 : decide(node, row, &child, &divergence);
      emit(node, row, token, divergence);
      node = child;
    }
  }

  int64_t decide(int64_t node, const Row& row, int64_t* child, double* divergence) {
    if (c_.rule == Rule::synthetic) return synthetic(node, row, child, divergence);
    if (c_.rule == Rule::relaxed) return relaxed(node, row, child, divergence);
    if (greedy(settings_)) return follow(node, best_of(row), child);
    if (c_.rule == Rule::rejection) return accept_or_reject(node, row, child);
    if (c_.rule == Rule::greedy_plus_one) return sampled_or_chosen(node, row, child);
    if (c_.rule == Rule::threshold) return threshold(node, row, child, divergence);
    return follow(node, draw_plainly(node, row), child);
  }

  int64_t follow(int64_t node, int64_t token, int64_t* child) const {
    for (const int64_t i : children(node)) {
      if (*child < 0 && token_of(i) == token) *child = i;
    }
    return token;
  }

  int64_t accept_or_reject(int64_t node, const Row& row, int64_t* child) {
    Ids drafts = children(node);
    Left left = begin(node, row, 1.0, 0.0, &drafts);
    for (const int64_t draft : drafts) {
      const int64_t token = token_of(draft);
      if (toss_for(node, draft, left)) {
        *child = draft;
        return token;
      }
      ++result_.rejections;
      left.reject(token, &margin());
      if (left.exhausted) return fall_back(node, row);
    }
    return draw_residual(node, left.w);
  }

  int64_t sampled_or_chosen(int64_t node, const Row& row, int64_t* child) {
    Ids drafts = children(node);
    Left left = begin(node, row, 1.0, 0.0, &drafts);
    const Ids all = children(node, true);
    const int64_t sampled = !drafts.empty() && drafts.back() == all.back() ? drafts.back() : -1;
    if (sampled >= 0) {
      drafts.pop_back();
      if (left.sampled) {
        for (const int64_t chosen : drafts) left.q.remove(token_of(chosen));
        left.q.normalise();
      }
      const int64_t token = token_of(sampled);
      if (toss_for(node, sampled, left)) {
        *child = sampled;
        return token;
      }
      ++result_.rejections;
      left.reject(token, &margin());
      if (left.exhausted) return fall_back(node, row);
    }
    const int64_t drawn = draw_residual(node, left.w);
    for (const int64_t chosen : drafts) {
      if (*child < 0 && token_of(chosen) == drawn) *child = chosen;
    }
    return drawn;
  }

  int64_t threshold(int64_t node, const Row& row, int64_t* child, double* divergence) {
    const Mass p = law(row);
    Ids tried;
    for (const int64_t i : children(node)) {
      const auto same = [&](int64_t other) { return token_of(other) == token_of(i); };
      if (std::none_of(tried.begin(), tried.end(), same)) tried.push_back(i);
    }
    *divergence = distance_of_thresholds(p, tried);
    double sum = 0.0, doubt = 0.0;
    for (const int64_t i : tried) {
      const double here = p.w[token_of(i)], unsure = p.doubt[token_of(i)];
      sum += here;
      doubt += unsure;
      if (!(here > 0)) {
        if (unsure > 0) margin().add(0.0);
        continue;
      }
      bool taken = toss_scalar(node, tried[0], sum, doubt, c_.accumulated);
      if (!taken) {
        margin().add(std::fabs(here - c_.single) / unsure);
        taken = here >= c_.single;
      }
      if (taken) {
        *child = i;
        return token_of(i);
      }
    }
    Mass rest = p;
    for (const int64_t i : tried) rest.remove(token_of(i));
    const double left = std::accumulate(rest.w.begin(), rest.w.end(), 0.0);
    const double slack = std::accumulate(rest.doubt.begin(), rest.doubt.end(), 0.0);
    if (!tried.empty()) margin().add(left / std::max(slack, 1e-300));
    ++result_.rejections;
    return left > 0 ? draw_residual(node, rest) : fall_back(node, row);
  }

  // Sum over all ids of how much more probable the rule makes them: the coin's part of each child in [0, 1), less p.
  double distance_of_thresholds(const Mass& p, const Ids& tried) const {
    double distance = 0.0, sum = 0.0, taken = 0.0;
    for (const int64_t i : tried) {
      const double here = p.w[token_of(i)];
      sum += here;
      const bool sure = here > 0 && here >= c_.single;
      const double upto = sure ? 1.0 : std::min(1.0, sum / c_.accumulated);
      distance += std::max(0.0, upto - taken - here);
      taken = upto;
      if (sure) break;
    }
    return distance;
  }

  int64_t relaxed(int64_t node, const Row& row, int64_t* child, double* divergence) {
    const Ids order = ranking(row.logits);
    const int64_t best = order[0];
    if (c_.some_relaxed && !c_.relax[b_]) return follow(node, best, child);
    Mass p = law_of(row.logits, Settings{});
    p.normalise();
    for (const int64_t i : children(node)) {
      const int64_t token = token_of(i);
      if (token != best) {
        const int64_t rank = std::find(order.begin(), order.end(), token) - order.begin();
        if (rank >= c_.top_k || !(p.w[token] > 0)) continue;
        const double gap = p.w[best] - p.w[token];
        if (row.logits[token] < row.logits[best]) {
          margin().add(std::fabs(gap - c_.delta) / (p.doubt[best] + p.doubt[token]));
        }
        if (gap > c_.delta) {
          ++result_.rejections;
          continue;
        }
      }
      *divergence = token != best;
      *child = i;
      return token;
    }
    return best;
  }

  int64_t synthetic(int64_t node, const Row& row, int64_t* child, double* divergence) {
    const Ids drafts = children(node);
    if (!drafts.empty()) {
      const int64_t token = token_of(drafts[0]);
      const float given = c_.rates[static_cast<size_t>(depth(node))];
      const double rate = given > 0 ? std::min<double>(given, 1.0) : 0.0;
      const double likely = greedy(settings_) ? token == best_of(row) : law(row).w[token];
      *divergence = rate * (1.0 - likely);
      if (toss_scalar(node, drafts[0], rate, 0.0, 1.0)) {
        *child = drafts[0];
        return token;
      }
      ++result_.rejections;
    }
    return greedy(settings_) ? best_of(row) : draw_plainly(node, row);
  }

  // ---- What lies below comes first ----

  void bottom_up() {
    settle(0, 1.0, 0.0);
    for (size_t i = 0; i + 1 < ends_.size() && !full(); ++i) {
      emit(ends_[i].node, read(ends_[i].node), token_of(ends_[i + 1].node));
    }
    if (full()) return;
    const End& end = ends_.back();
    const Row row = read(end.node);
    int64_t token = -1;
    if (best_of(row) >= 0) {
      token =
          end.left.exhausted ? fall_back(end.node, row) : draw_residual(end.node, end.tried ? end.left.w : law(row));
    }
    emit(end.node, row, token);
  }

  // Whether the path goes through a node that is visited with a budget; its part of the path is at the end of `ends_`.
  bool settle(int64_t node, double budget, double doubt) {
    Ids drafts = children(node);
    const bool looked = !drafts.empty();
    const Row row = looked ? read(node) : Row{Doubles(ids_.size(), -kInfinity), {}};
    if (best_of(row) < 0) drafts.clear();
    const bool tried = !drafts.empty();
    Left left = begin(node, row, budget, doubt, &drafts);
    const size_t place_in_path = ends_.size();
    ends_.push_back({node, left, tried});
    for (const int64_t child : drafts) {
      double its_doubt = 0.0;
      const double its_budget = left.handed_down(token_of(child), &its_doubt);
      if (its_budget > 0) {
        if (settle(child, its_budget, its_doubt)) return true;
      } else if (its_doubt > 0) {
        margin().add(0.0);
      }
      ++result_.rejections;
      left.reject(token_of(child), &margin());
      if (left.exhausted) break;
    }
    ends_[place_in_path].left = left;
    const int64_t parent = c_.trees.parents[nodes_.first + node];
    if (node == 0 || toss_scalar(parent, node, left.budget, left.doubt, 1.0)) return true;
    ends_.resize(place_in_path, {0, left, false});
    return false;
  }

  void typical() {
    std::vector<char> passed(static_cast<size_t>(nodes_.count), 0);
    passed[0] = 1;
    int64_t deepest = 0;
    for (int64_t node = 0; node < nodes_.count; ++node) {
      if (!passed[static_cast<size_t>(node)]) continue;
      if (depth(node) > depth(deepest)) deepest = node;
      const Ids drafts = children(node);
      if (drafts.empty()) continue;
      const Mass p = law(read(node));
      if (!p.any()) continue;
      double entropy = 0.0;
      for (const double w : p.w) entropy -= w > 0 ? w * std::log(w) : 0.0;
      const double least = std::min(c_.epsilon, c_.delta * std::exp(-entropy));
      const double slack = least < c_.epsilon ? (1.0 + entropy) * least : 0.0;
      for (const int64_t i : drafts) {
        const double has = p.w[token_of(i)], unsure = p.doubt[token_of(i)] + slack;
        if (unsure > 0) margin().add(std::fabs(has - least) / unsure);
        passed[static_cast<size_t>(i)] = has > least;
        result_.rejections += !(has > least);
      }
    }
    Ids path{deepest};
    while (path[0] != 0) path.insert(path.begin(), c_.trees.parents[nodes_.first + path[0]]);
    for (size_t i = 0; i < path.size() && !full(); ++i) {
      const Row row = read(path[i]);
      if (i + 1 < path.size()) {
        const int64_t token = token_of(path[i + 1]);
        emit(path[i], row, token, 1.0 - law(row).w[token]);
      } else {
        emit(path[i], row, best_of(row) < 0 ? -1 : draw_plainly(path[i], row));
      }
    }
  }

  struct End {
    int64_t node;
    Left left;
    bool tried;  // whether `left` is that of the node's law
  };
  std::vector<End> ends_;  // the path that is looked at
};

}  // namespace specdec::testing
