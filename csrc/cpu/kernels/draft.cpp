// SPDX-License-Identifier: Apache-2.0
// ngram_lookup: what followed an earlier occurrence of the last n tokens, for the largest n in [min_n, max_n] that has
// one; among its occurrences the most recent one with `num` tokens after it, else the earliest. One scan of the history
// from right to left finds, for every n at once, the first occurrence of either kind: at each place the length of the
// match with the suffix is compared backwards, up to max_n tokens. Requests are spread over threads.
#include "draft.h"

SPECDEC_ISA_BEGIN

namespace {

template <class Token>
int64_t match_length(const Token* text, int64_t length, int64_t end, int64_t most) {
  int64_t n = 0;
  while (n < most && n < end && text[end - 1 - n] == text[length - 1 - n]) ++n;
  return n;
}

// The end of the occurrence to continue from, for the largest n in [low, high] that has one; -1 if there is none.
template <class Token>
int64_t find(const Token* text, int64_t length, int64_t low, int64_t high, int64_t num) {
  int64_t best_n = low - 1;  // the largest n that has an occurrence so far
  int64_t end_of_best = -1;
  bool full = false;  // whether that occurrence has `num` tokens after it
  for (int64_t end = length - 1; end >= low; --end) {
    if (text[end - 1] != text[length - 1]) continue;
    const int64_t n = match_length(text, length, end, high);
    if (n < low) continue;
    if (n > best_n) {
      best_n = n;
      end_of_best = end;
      full = length - end >= num;
    } else if (n == best_n && !full) {
      // An earlier occurrence has the longer continuation; the first one that is long enough is the most recent such.
      end_of_best = end;
      full = length - end >= num;
    }
    if (full && best_n == high) break;
  }
  return end_of_best;
}

template <class Token>
void lookup(const NgramParams& p, int64_t b) {
  Token* drafts = static_cast<Token*>(p.drafts) + b * p.num;
  int64_t count = 0;
  if (!p.active || p.active[b]) {
    int64_t length = p.lengths[b];
    length = length < 0 ? 0 : length > p.columns ? p.columns : length;
    const Token* text = static_cast<const Token*>(p.history) + b * p.row_stride;
    const int64_t high = p.max_n < length - 1 ? p.max_n : length - 1;
    const int64_t end = high >= p.min_n ? find(text, length, p.min_n, high, p.num) : -1;
    if (end >= 0) {
      count = length - end < p.num ? length - end : p.num;
      for (int64_t i = 0; i < count; ++i) drafts[i] = text[end + i];
    }
  }
  for (int64_t i = count; i < p.num; ++i) drafts[i] = -1;
  p.counts[b] = static_cast<int32_t>(count);
}

}  // namespace

void ngram_lookup(const NgramParams& p) {
#pragma omp parallel for schedule(dynamic) if (p.batch > 1 && p.batch * p.columns > 16384)
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.wide) {
      lookup<int64_t>(p, b);
    } else {
      lookup<int32_t>(p, b);
    }
  }
}

SPECDEC_ISA_END
