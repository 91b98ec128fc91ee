// SPDX-License-Identifier: Apache-2.0
// expand: one team per row finds the sum of the row and its best ids; then one block per request sorts the scores of
// all children. Two launches, no workspace: the second one reads the scores that the first one wrote.
//
// Memory traffic: one read of the rows of beams that exist, where they fit into the team's shared memory.
// Deterministic, independent of the batch and of the size of the teams.
#pragma once

#include "../../common/draft_params.h"
#include "../block.cuh"
#include "../sampling/arrivals.cuh"
#include "../sampling/describe.cuh"

namespace specdec::cuda {

static_assert(kMaxExpand <= kMaxDraws && kMaxExpand * kMaxExpand <= 4 * kMaxBlockThreads);

struct ExpandStorage {
  TeamStorage team;
  BinStorage bins;
  Source source;
  GatherStorage gathered;
  int64_t ids[kMaxExpand];  // in the team's first block
};

struct ExpandCall {
  ExpandParams params;
  Layout layout;
};

[[maybe_unused]] static __global__ void SPECDEC_TEAM_BOUNDS
expand_rows_kernel(const __grid_constant__ ExpandCall call) {
  auto& shared = shared_storage<ExpandStorage>();
  Team team(shared.team);
  const ExpandParams& p = call.params;
  const int64_t r = team.index(), b = r / p.width, w = r % p.width;
  float above = 0.0f;
  if (p.scores != nullptr) above = safe_score(p.scores[b * p.score_row_stride + w * p.score_column_stride]);
  int count = 0;
  Law law;
  if (above != kAbsent) {
    if (threadIdx.x == 0) shared.source = row_source(p.logits, r);
    __syncthreads();
    unsigned char* memory = reinterpret_cast<unsigned char*>(&shared) + sizeof(ExpandStorage);
    law.source = &shared.source;
    law.memory = LawMemory::carve(memory, call.layout, 0);
    law.layout = call.layout;
    law.settings = Settings();
    scan<true>(team, law);
    const bool stopped = p.stops.max_entropy && !law.dead() && p.stops.is_uncertain(b, entropy(team, law));
    law.settings.temperature = 0.0f;  // the best ids, however small their weights
    if (!law.dead() && !stopped) {
      count = best_ids(team, shared.bins, shared.gathered, law, static_cast<int>(p.num), shared.ids);
    }
  }
  if (team.rank() == 0) {
    __syncthreads();
    const double log_sum = count > 0 ? log_double(law.total) : 0.0;
    for (int j = static_cast<int>(threadIdx.x); j < p.num; j += static_cast<int>(blockDim.x)) {
      int64_t token = -1;
      float score = kAbsent;
      if (j < count) {
        const int64_t id = shared.ids[j];
        const float logit = logit_of(shared.source, id);
        score = child_score(above, logit, law.max, log_sum);
        token = p.draft_to_target ? p.draft_to_target[id] : id;
        const bool unlikely =
            p.stops.min_confidence && p.stops.is_unlikely(b, weight_of(logit, law.max, 1.0f) / law.total);
        if (unlikely || !is_token(token) || score == kAbsent) {
          token = -1;
          score = kAbsent;
        }
      }
      p.tokens[r * p.num + j] = token;
      p.child_scores[r * p.num + j] = score;
    }
  }
  team.sync();
}

struct BeamsStorage {
  ScanStorage scan;
  uint64_t key[kMaxExpand * kMaxExpand];
};

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    choose_beams_kernel(const __grid_constant__ ExpandParams p) {
  auto& shared = shared_storage<BeamsStorage>();
  BlockScan scan(shared.scan);
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int columns = static_cast<int>(p.width * p.num);
  const float* scores = p.child_scores + blockIdx.x * columns;
  int count = 0;
  for (int base = 0; base < columns; base += threads) {
    const float score = base + t < columns ? scores[base + t] : kAbsent;
    const Prefix place = scan.count(score != kAbsent);
    if (score != kAbsent) shared.key[count + place.before] = child_key(score, base + t);
    count += place.all;
  }
  __syncthreads();
  sort_keys(shared.key, count);
  for (int j = t; j < p.beams; j += threads) {
    p.beam_columns[blockIdx.x * p.beams + j] = j < count ? static_cast<int32_t>(shared.key[j] & 0xffffffffu) : -1;
  }
}

inline cudaError_t launch_expand(const ExpandParams& p, cudaStream_t stream) {
  if (p.batch == 0) return cudaSuccess;
  if (p.logits.rows > 0) {
    const auto bytes_of = [](const Layout& layout) {
      return static_cast<int64_t>(sizeof(ExpandStorage)) + LawMemory::bytes(layout, 0);
    };
    const ExpandCall call{p, choose_layout(expand_rows_kernel, p.logits.columns, bytes_of)};
    const cudaError_t error =
        launch(expand_rows_kernel, team_launch(call.layout, p.logits.rows, bytes_of(call.layout), stream), call);
    if (error != cudaSuccess) return error;
  }
  const unsigned threads = static_cast<unsigned>(block_threads(p.width * p.num));
  return launch(choose_beams_kernel, {static_cast<unsigned>(p.batch), threads, sizeof(BeamsStorage), stream}, p);
}

}  // namespace specdec::cuda
