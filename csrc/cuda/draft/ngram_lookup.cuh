// SPDX-License-Identifier: Apache-2.0
// ngram_lookup: what followed an earlier occurrence of the last n tokens, for the largest n in [min_n, max_n] that has
// one; among its occurrences the most recent one with `num` tokens after it, else the earliest. One block per request,
// one launch: every thread measures the matches that end at its places, and the best place of all is the largest of
// (n, is long enough, the later one if it is, the earlier one if not).
#pragma once

#include "../../common/draft_params.h"
#include "../team.cuh"

namespace specdec::cuda {

inline constexpr int kNgramThreads = kMaxWarps * kWarp;

struct NgramStorage {
  TeamStorage team;
};

// An occurrence that ends at `end`; n 0: none.
struct Occurrence {
  int32_t n;
  int32_t full;
  int64_t end;
};

struct BetterOccurrence {
  __device__ Occurrence operator()(const Occurrence& a, const Occurrence& b) const {
    if (a.n != b.n) return a.n > b.n ? a : b;
    if (a.full != b.full) return a.full > b.full ? a : b;
    return (a.full != 0) == (a.end > b.end) ? a : b;
  }
};

template <class Token>
__device__ inline void look_up(const NgramParams& p, Team& team, int64_t b) {
  Token* drafts = static_cast<Token*>(p.drafts) + b * p.num;
  const Token* text = static_cast<const Token*>(p.history) + b * p.row_stride;
  int64_t length = p.active && !p.active[b] ? 0 : p.lengths[b];
  length = length < 0 ? 0 : length > p.columns ? p.columns : length;
  const int64_t most = p.max_n < length - 1 ? p.max_n : length - 1;
  Occurrence best{0, 0, 0};
  if (most >= p.min_n) {
    const Token last = text[length - 1];
    for (int64_t end = length - 1 - static_cast<int64_t>(threadIdx.x); end >= p.min_n; end -= blockDim.x) {
      if (text[end - 1] != last) continue;
      int64_t n = 1;
      while (n < most && n < end && text[end - 1 - n] == text[length - 1 - n]) ++n;
      if (n >= p.min_n) best = BetterOccurrence()(best, {static_cast<int32_t>(n), length - end >= p.num, end});
    }
  }
  best = team.reduce(best, Occurrence{0, 0, 0}, BetterOccurrence());
  const int64_t after = length - best.end;
  const int64_t count = best.n == 0 ? 0 : after < p.num ? after : p.num;
  for (int64_t i = threadIdx.x; i < p.num; i += blockDim.x) {
    drafts[i] = i < count ? text[best.end + i] : static_cast<Token>(-1);
  }
  if (threadIdx.x == 0) p.counts[b] = static_cast<int32_t>(count);
}

[[maybe_unused]] static __global__ void __launch_bounds__(kNgramThreads)
    ngram_lookup_kernel(const __grid_constant__ NgramParams p) {
  auto& shared = shared_storage<NgramStorage>();
  Team team(shared.team);
  if (p.wide) {
    look_up<int64_t>(p, team, blockIdx.x);
  } else {
    look_up<int32_t>(p, team, blockIdx.x);
  }
}

inline cudaError_t launch_ngram_lookup(const NgramParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  // Short histories need few threads.
  int64_t warps = (p.columns + kWarp - 1) / kWarp;
  warps = warps < 1 ? 1 : warps > kMaxWarps ? kMaxWarps : warps;
  return launch(ngram_lookup_kernel,
                {static_cast<unsigned>(p.batch), static_cast<unsigned>(warps * kWarp), sizeof(NgramStorage), stream},
                p);
}

}  // namespace specdec::cuda
