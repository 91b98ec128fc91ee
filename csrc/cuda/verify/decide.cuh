// SPDX-License-Identifier: Apache-2.0
// What a top-down rule decides at one node of a tree: a token, and the child that holds it. That depends on the node's
// rows and its children alone, so that all nodes can be decided at the same time, whether they are visited or not.
#pragma once

#include "lossy.cuh"

namespace specdec::cuda {

// Of one node: the token that is emitted after it, and which child is visited next.
struct Decision {
  int32_t token;  // -1: dead end
  int32_t child;  // -1: none
  int32_t status;
  float logprob;
  float lse;
  float divergence;
};

template <Rule kRule>
class Decider : public LossySteps {
 public:
  using LossySteps::LossySteps;

  // For all threads of the team together.
  __device__ Decision at(int32_t node) {
    status_ = 0;
    read<kRule == Rule::greedy || kRule == Rule::relaxed>(node);
    const Step step = law_.dead() ? Step{-1, -1} : decide(node);
    if (step.token < 0) status_ |= kStatusDeadEnd;
    Score scored{0.0f, 0.0f};
    if (wants_scores()) {
      const Scale relative = step.token < 0 ? Scale{} : scale();
      scored = score(step.token, relative, shared_.target, shared_.raw);
    }
    return {static_cast<int32_t>(step.token),   step.child, status_, scored.logprob, scored.lse,
            static_cast<float>(step.divergence)};
  }

 private:
  __device__ Step decide(int32_t node) {
    if constexpr (kRule == Rule::relaxed) return near_the_best(node);
    if constexpr (kRule == Rule::synthetic) return at_given_rates(node);
    if (is_greedy(settings_)) return follow(node, best_id(team_, law_));
    if constexpr (kRule == Rule::match) return follow(node, plain_draw(node));
    if constexpr (kRule == Rule::rejection) return accept_or_reject(node);
    if constexpr (kRule == Rule::greedy_plus_one) return sampled_or_chosen(node);
    if constexpr (kRule == Rule::threshold) return above_thresholds(node);
    return {-1, -1};
  }

  __device__ Residual residual_of(Law* draft) {
    return Residual(team_, shared_.bins, *memory_.residual, memory_.left, law_, draft, p_.replacement);
  }
  __device__ bool is_accepted(const Residual& residual, int32_t node, int32_t child) const {
    return accepts(residual.target(token(child)), residual.draft(token(child)), coin(node, child));
  }

  __device__ Step accept_or_reject(int32_t node) {
    const int32_t end = this->end(node);
    int32_t child = first_child(node);
    Law draft;
    bool drawn = false;
    if (child < end && !find_draft_law(node, draft, drawn)) child = end;
    Residual residual = residual_of(drawn ? &draft : nullptr);
    for (; child < end && !residual.is_full(); child = next_child(node, child)) {
      if (is_accepted(residual, node, child)) return {token(child), child};
      if (!residual.reject(token(child))) return {fall_back(node), -1};
    }
    return {draw_residual(node, residual), -1};
  }

  __device__ Step sampled_or_chosen(int32_t node) {
    const int32_t end = this->end(node);
    int32_t first = first_child(node);
    Law draft;
    bool drawn = false;
    if (first < end && !find_draft_law(node, draft, drawn)) first = end;
    const int32_t sampled = sampled_child(node, first);
    Residual residual = residual_of(drawn ? &draft : nullptr);
    if (sampled >= 0) {
      for (int32_t child = first; child < sampled; child = next_child(node, child)) residual.exclude(token(child));
      if (is_accepted(residual, node, sampled)) return {token(sampled), sampled};
      if (!residual.reject(token(sampled))) return {fall_back(node), -1};
    }
    const int64_t drawn_token = draw_residual(node, residual);
    for (int32_t child = first; child < end; child = next_child(node, child)) {
      if (child != sampled && token(child) == drawn_token) return {drawn_token, child};
    }
    return {drawn_token, -1};
  }
};

}  // namespace specdec::cuda
