// SPDX-License-Identifier: Apache-2.0
// What is left to be emitted at a node while its children are tried, as a fold over scalars: with p the target's law, q
// that of the drafts, a_0 the budget with which the node is visited (1 unless the rule is a bottom-up one), and
// c_1 .. c_k the drafts that came to nothing,
//
//     w(x) = a_0 p(x);   for j < k:   w(x) = max(w(x) - q_j(x), 0) / D_j,   D_j = S_j + 1 - a_j,   a_{j+1} = S_j / D_j
//
// where S_j is the sum of the numerators, and q_j is q (drawn with replacement), q without c_1 .. c_j and normalised
// (without), or 1 at c_j (a deterministic draft). w sums to the budget that is left; python_ref/ops/residual.py says
// why. Nothing of the size of the vocabulary is stored: a block of w is computed from the rows when it is needed. The
// mass of q without some ids is summed anew: the difference of two sums is nothing but rounding where the drafter was
// sure.
#pragma once

#include "draw.h"

SPECDEC_ISA_BEGIN

class Residual {
 public:
  // `q` is null for deterministic drafts. Neither law may be at temperature 0 or dead (q may be dead: it is 0 then).
  void begin(const Law& p, const Law* q, bool replacement, int threads, double budget = 1.0);

  // Says that the next draft was drawn from q without these ids.
  void exclude(const std::vector<int64_t>& ids);

  // What is left at an id, and what the next draft was drawn with.
  double target(int64_t id) const { return fold(first_budget_ * p_->probability(id), id); }
  double draft(int64_t id) const;

  // The budget that the next draft is visited with.
  double handed_down(int64_t id) const {
    const double w = target(id), q = draft(id);
    return !(w > 0.0) ? 0.0 : w >= q ? 1.0 : w / q;
  }
  // The budget that is left.
  double budget() const { return budget_; }

  // Adds a draft that came to nothing. False if nothing is left to be emitted although the budget is 1.
  bool reject(int64_t id);

  // An id of the law that is left; -1 if there is none.
  int64_t draw(const Place& place) const;

 private:
  bool is_rejected(int64_t id, size_t among) const;
  double fold(double w, int64_t id) const;
  double drafts_left() const;
  double sum_short();
  double sum_dense();
  int fill_block(int64_t block, float* weights) const;

  const Law* p_ = nullptr;
  const Law* q_ = nullptr;
  bool replacement_ = false;
  int threads_ = 1;
  double first_budget_ = 1.0, budget_ = 1.0;
  double q_left_ = 1.0;            // weights of q, relative to its maximum, that were not drawn yet
  std::vector<int64_t> rejected_;  // in order; the excluded ids are as if they had been drawn from endless weights
  std::vector<double> q_rest_;     // per rejected draft: the weights of q that it was drawn from
  std::vector<double> inverse_;    // per rejected draft: 1 / D
  std::vector<double> masses_;     // of the blocks (dense)
  std::vector<double> values_;     // of the ids (short)
};

SPECDEC_ISA_END
