// SPDX-License-Identifier: Apache-2.0
// sample: one token per request from its processed law. draft: the children of one node per row. One team per row.
//
// Memory traffic: one read of the rows where they fit into the team's shared memory; else another one per pass (filters
// and drafts without replacement take several). No workspace. Deterministic, independent of the batch and of the size
// of the teams; no host synchronisation.
#pragma once

#include "../../common/sample_params.h"
#include "../sampling/arrivals.cuh"
#include "../sampling/describe.cuh"

namespace specdec::cuda {

struct SampleStorage {
  TeamStorage team;
  BinStorage bins;
  Source source;
};

struct DraftStorage : SampleStorage {
  GatherStorage gathered;
  int64_t drafts[kMaxDraws];  // in the team's first block
};

template <class Params>
struct RowsCall {
  Params params;
  Layout layout;
};

[[maybe_unused]] static __global__ void SPECDEC_TEAM_BOUNDS
sample_kernel(const __grid_constant__ RowsCall<SampleParams> call) {
  auto& shared = shared_storage<SampleStorage>();
  Team team(shared.team);
  const SampleParams& p = call.params;
  const int64_t b = team.index();
  int64_t token = -1;
  int32_t status = 0;
  if (!p.active || p.active[b]) {
    unsigned char* memory = reinterpret_cast<unsigned char*>(&shared) + sizeof(SampleStorage);
    if (threadIdx.x == 0) {
      shared.source = row_source(p.logits, b);
      shared.source.mask = p.mask.of(b);
    }
    __syncthreads();
    Law law;
    law.source = &shared.source;
    law.memory = LawMemory::carve(memory, call.layout, 0);
    law.layout = call.layout;
    law.settings = p.sampling.of(b);
    if (is_greedy(law.settings)) {
      scan<false>(team, law);
      token = best_id(team, law);
    } else {
      find_law(team, shared.bins, law);
      if (!law.dead()) {
        token = draw(team, shared.bins, law, make_place(p.sampling.seed[b], p.positions[b], Stream::target, 0, 0, 0));
      }
    }
    status = (law.nan ? kStatusNan : 0) | (token < 0 ? kStatusDeadEnd : 0);
  }
  if (team.leads()) {
    p.tokens.set(b, token);
    p.status[b] = status;
  }
  team.sync();
}

// The children of one node, in the list of the team's first block; how many there are. For all threads.
__device__ inline int children(const DraftParams& p, Team& team, DraftStorage& shared, Law& law, int64_t r,
                               int64_t request) {
  const Settings settings = law.settings;
  if (law.dead()) return 0;
  if (is_greedy(settings)) return best_ids(team, shared.bins, shared.gathered, law, p.num, shared.drafts);
  int count = 0;
  if (p.top > 0) {
    count = best_ids(team, shared.bins, shared.gathered, law, p.top, shared.drafts);
    for (int i = 0; i < count; ++i) remove(team, law, team.first(shared.drafts)[i]);
  }
  const int64_t seed = p.sampling.seed[request], position = p.positions[r];
  const int64_t depth = p.depths ? p.depths[r] : 0, node = p.nodes ? p.nodes[r] : 0;
  const int left = p.num - count;
  if (left == 0) return count;
  if (!p.replacement && !p.coupled) {
    const Place place = make_place(seed, position, Stream::draft, depth, node, 0);
    return count + arrivals(team, shared.bins, shared.gathered, law, place, left, shared.drafts + count);
  }
  for (int k = 0; k < left; ++k) {
    const Place place = p.coupled ? make_place(seed, position, Stream::target, 0, 0, 0)
                                  : make_place(seed, position, Stream::draft, depth, node, k);
    const int64_t id = draw(team, shared.bins, law, place);
    if (id < 0) break;
    if (team.leads()) shared.drafts[count] = id;
    ++count;
    if (p.coupled && k + 1 < left) remove(team, law, id);
  }
  return count;
}

// Whether drafting ends at a law that is not dead, by its largest probability (the best weight is 1) and its entropy.
__device__ inline bool is_stopped(const DraftParams& p, Team& team, Law& law, int64_t r, int64_t request) {
  const bool wants_entropy = p.certainty != nullptr || p.stops.max_entropy;
  const double confidence = 1.0 / law.total, nats = wants_entropy ? entropy(team, law) : 0.0;
  if (p.certainty != nullptr && team.leads()) {
    p.certainty[2 * r] = static_cast<float>(confidence);
    p.certainty[2 * r + 1] = static_cast<float>(nats);
  }
  return p.stops.is_unlikely(request, confidence) || p.stops.is_uncertain(request, nats);
}

[[maybe_unused]] static __global__ void SPECDEC_TEAM_BOUNDS
draft_kernel(const __grid_constant__ RowsCall<DraftParams> call) {
  auto& shared = shared_storage<DraftStorage>();
  Team team(shared.team);
  const DraftParams& p = call.params;
  const int64_t r = team.index();
  const int64_t request = p.requests ? p.requests[r] : r;
  int count = 0;
  int32_t status = request == -1 ? 0 : kStatusMalformed;
  bool described = false;
  if (request >= 0 && request < p.batch) {
    unsigned char* memory = reinterpret_cast<unsigned char*>(&shared) + sizeof(DraftStorage);
    if (threadIdx.x == 0) {
      shared.source = row_source(p.logits, r);
      shared.source.mask = p.mask.of(r);
      shared.source.id_of = p.draft_to_target;
    }
    __syncthreads();
    Law law;
    law.source = &shared.source;
    law.memory = LawMemory::carve(memory, call.layout, kMaxDraws);
    law.layout = call.layout;
    law.settings = p.sampling.of(request);
    const Settings settings = law.settings;
    if (!is_greedy(settings)) {
      find_law(team, shared.bins, law);
    } else if (p.looks_at_laws()) {
      law.settings = Settings();
      scan<true>(team, law);
    } else {
      scan<false>(team, law);
    }
    described = p.looks_at_laws() && !law.dead();
    const bool stopped = described && is_stopped(p, team, law, r, request);
    law.settings = settings;
    if (!stopped) count = children(p, team, shared, law, r, request);
    status = (law.nan ? kStatusNan : 0) | (law.dead() ? kStatusDeadEnd : 0);
  }
  if (p.certainty != nullptr && !described && team.leads()) p.certainty[2 * r] = p.certainty[2 * r + 1] = 0.0f;
  if (team.rank() == 0) {
    __syncthreads();
    int64_t* drafts = p.drafts + r * p.drafts_stride;
    for (int i = static_cast<int>(threadIdx.x); i < p.num; i += static_cast<int>(blockDim.x)) {
      drafts[i] = i < count ? shared.drafts[i] : -1;
    }
    if (threadIdx.x == 0) p.status[r] = status;
  }
  team.sync();
}

inline cudaError_t launch_sample(const SampleParams& p, cudaStream_t stream) {
  if (p.logits.rows == 0) return cudaSuccess;
  const auto bytes_of = [](const Layout& layout) {
    return static_cast<int64_t>(sizeof(SampleStorage)) + LawMemory::bytes(layout, 0);
  };
  const RowsCall<SampleParams> call{p, choose_layout(sample_kernel, p.logits.columns, bytes_of)};
  return launch(sample_kernel, team_launch(call.layout, p.logits.rows, bytes_of(call.layout), stream), call);
}

inline cudaError_t launch_draft(const DraftParams& p, cudaStream_t stream) {
  if (p.logits.rows == 0) return cudaSuccess;
  const auto bytes_of = [](const Layout& layout) {
    return static_cast<int64_t>(sizeof(DraftStorage)) + LawMemory::bytes(layout, kMaxDraws);
  };
  const RowsCall<DraftParams> call{p, choose_layout(draft_kernel, p.logits.columns, bytes_of)};
  return launch(draft_kernel, team_launch(call.layout, p.logits.rows, bytes_of(call.layout), stream), call);
}

}  // namespace specdec::cuda
