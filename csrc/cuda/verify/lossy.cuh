// SPDX-License-Identifier: Apache-2.0
// The steps of the lossy rules that decide at a node at once; common/verify_call.h has their scalars.
#pragma once

#include "../sampling/describe.cuh"
#include "node.cuh"

namespace specdec::cuda {

class LossySteps : public NodeLaws {
 public:
  using NodeLaws::NodeLaws;

 protected:
  __device__ Step follow(int32_t node, int64_t token) const {
    if (token < 0) return {-1, -1};
    return {token, child_with(node, token)};
  }

  __device__ Step above_thresholds(int32_t node) {
    const int32_t end = this->end(node), first = first_child(node);
    const double u = first < end ? coin(node, first) : 0.0;
    ThresholdSum sum;
    Step step{-1, -1};
    int count = 0;
    for (int32_t child = first; child < end && count < kMaxRejected; child = next_child(node, child)) {
      if (child_with(node, token(child)) != child) continue;  // of equal siblings the first counts
      ++count;
      if (sum.offer(p_, law_.probability(token(child)), u)) step = {token(child), child};
      if (sum.sure) break;
    }
    step.divergence = sum.divergence;
    if (step.child >= 0) return step;
    Residual residual(team_, shared_.bins, *memory_.residual, memory_.left, law_, nullptr, true);
    for (int32_t child = first; child < end && !residual.is_full(); child = next_child(node, child)) {
      if (residual.holds(token(child))) continue;
      if (residual.reject(token(child))) continue;
      step.token = fall_back(node);
      return step;
    }
    step.token = draw_residual(node, residual);
    return step;
  }

  // p is the softmax over the allowed ids, for which the row is weighed once a child asks for it.
  __device__ Step near_the_best(int32_t node) {
    const int32_t end = this->end(node);
    const int64_t best = best_id(team_, law_);
    if (p_.relax && !p_.relax[request_]) return follow(node, best);
    bool weighed = false;
    for (int32_t child = first_child(node); child < end; child = next_child(node, child)) {
      const int64_t id = token(child);
      if (id == best) return {id, child};
      if (!weighed) {
        law_.settings.temperature = 1.0f;
        weigh_again(team_, law_);
        weighed = true;
      }
      const double mine = law_.probability(id);
      if (!(mine > 0.0) || law_.probability(best) - mine > p_.delta) continue;
      if (rank_of(team_, law_, id) < p_.top_k) return {id, child, 1.0};
    }
    return {best, -1};
  }

  __device__ Step at_given_rates(int32_t node) {
    const int32_t child = first_child(node);
    const bool greedy = is_greedy(settings_);
    double divergence = 0.0;
    if (child < end(node)) {
      const int64_t id = token(child);
      const double rate = clamp_rate(p_.rates[depth(node)]);
      const double likely = !greedy ? law_.probability(id) : id == best_id(team_, law_) ? 1.0 : 0.0;
      divergence = rate * (1.0 - likely);
      if (accepts(rate, 1.0, coin(node, child))) return {id, child, divergence};
    }
    return {greedy ? best_id(team_, law_) : plain_draw(node), -1, divergence};
  }
};

}  // namespace specdec::cuda
