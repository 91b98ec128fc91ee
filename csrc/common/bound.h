// SPDX-License-Identifier: Apache-2.0
// The bound of verify.expect, from sums over the sets of ids with p <= 2^(j/4) q: python_ref/ops/expectation.py says
// what it is.
#pragma once

#include "views.h"

namespace specdec {

inline constexpr int kBoundSteps = 32;  // j runs from -kBoundSteps to kBoundSteps
inline constexpr int kBoundSets = 2 * kBoundSteps + 1;
inline constexpr int kBoundTops = 16;  // so many of the largest probabilities of q are taken into account

SPECDEC_SHARED double bound_ratio(int set) {
  constexpr double kRoots[4] = {1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429};
  const int quarters = set - kBoundSteps, whole = quarters >> 2;
  const double power = whole >= 0 ? static_cast<double>(1 << whole) : 1.0 / static_cast<double>(1 << -whole);
  return kRoots[quarters & 3] * power;
}

// The first set, which is the smallest, that an id of these probabilities lies in; kBoundSets if it lies in none.
SPECDEC_SHARED int bound_set(double p, double q) {
  int below = -1, at = kBoundSets;
  while (at - below > 1) {
    const int middle = (below + at) / 2;
    (p <= bound_ratio(middle) * q ? at : below) = middle;
  }
  return at;
}

// The bound of `number` drafts, from what p_of(set) and q_of(set) give: the sums over the ids of which each set is the
// first, and over those in none. The drafts were drawn from q, each but the first without ids of at most tops[0],
// tops[1], .. tops[known - 1] together, and beyond these of as much again as the last of them was; with replacement
// `known` is 0. What q leaves beside the tops may be tiny, so all is relative to the sums over all ids, whatever
// rounding these have met.
template <class Sums>
SPECDEC_SHARED double bound_of_sets(const Sums& p_of, const Sums& q_of, int64_t number, const double* tops, int known) {
  double p_all = 0.0, q_all = 0.0, p = 0.0, q = 0.0, least = 1.0;
  for (int set = 0; set <= kBoundSets; ++set) {
    p_all += p_of(set);
    q_all += q_of(set);
  }
  const double last = known > 1 ? tops[known - 1] - tops[known - 2] : known > 0 ? tops[0] : 0.0;
  for (int set = 0; set < kBoundSets; ++set) {
    p += p_of(set) / p_all;
    q += q_of(set) / q_all;
    double together = 1.0;
    for (int64_t k = 0; k < number && together > 0.0; ++k) {
      const double sum = k == 0 || known == 0 ? 0.0 : k <= known ? tops[k - 1] : tops[known - 1] + (k - known) * last;
      const double gone = sum / q_all;
      together *= gone < 1.0 && q > gone ? (q - gone) / (1.0 - gone) : 0.0;
    }
    least = 1.0 + p - together < least ? 1.0 + p - together : least;
  }
  return least > 0.0 ? least : 0.0;
}

}  // namespace specdec
