// SPDX-License-Identifier: Apache-2.0
// The law that is left to be emitted after drafts were rejected, as a fold over scalars: with p the target's law, q
// that of the drafts, and c_1 .. c_k the rejected ones,
//
//     w(x) = p(x);   for j < k:   w(x) = max(w(x) - q_j(x), 0) / S_j
//
// where S_j is the sum of the numerators, and q_j is q (drawn with replacement), q without c_1 .. c_j and normalised
// (without), or 1 at c_j (a deterministic draft). Nothing of the size of the vocabulary is stored: a block of w is
// computed from the rows when it is needed. The mass of q without c_1 .. c_j is summed anew: the difference of two sums
// is nothing but rounding where the drafter was sure.
#pragma once

#include "draw.h"

SPECDEC_ISA_BEGIN

class Residual {
 public:
  // `q` is null for deterministic drafts. Neither law may be at temperature 0 or dead (q may be dead: it is 0 then).
  void begin(const Law& p, const Law* q, bool replacement, int threads);

  // What is left at an id, and what the next draft was drawn with.
  double target(int64_t id) const { return fold(p_->probability(id), id); }
  double draft(int64_t id) const;

  // Adds a rejected draft. False if nothing is left to be emitted.
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
  double q_left_ = 1.0;            // weights of q, relative to its maximum, that were not drawn yet
  std::vector<int64_t> rejected_;  // in order
  std::vector<double> q_rest_;     // per rejected draft: the weights of q that it was drawn from
  std::vector<double> inverse_;    // per rejected draft: 1 / S
  std::vector<double> masses_;     // of the blocks (dense)
  std::vector<double> values_;     // of the ids (short)
};

SPECDEC_ISA_END
