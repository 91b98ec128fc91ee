// SPDX-License-Identifier: Apache-2.0
// What lossy rules ask of a law: its entropy, and where an id stands in its order.
#pragma once

#include "law.cuh"

namespace specdec::cuda {

// In nats, of a law at a temperature above 0 that is not dead: log(sum w) - sum(w log w) / sum w. A block's sum is
// found relative to its own maximum. The sums wait where the masses are, which are found again from what is known of
// the blocks.
SPECDEC_STEP double entropy(Team& team, Law& law) {
  const Weigher weigher(law.settings.temperature);
  const float temperature = law.settings.temperature;
  double* sums = team.first(law.memory.mass);
  for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
    const BlockStat stat = law.memory.stats[own];
    // A block so far below the best that its mass is 0 adds nothing: logarithms may be infinite there.
    const double scale = stat.sum > 0.0f ? weight_of(stat.max, law.max, temperature) : 0.0;
    float mine = 0.0f;
    if (scale > 0.0) {
      const int count = law.source->length(block);
      const auto add_up = [&](const auto& weight_of_logit) {
        for (int i = team.lane(); i < count; i += kWarp) {
          const float logit = buffer[i];
          if (!is_kept(law.cut, logit, law.source->id(block * kBlock + i))) continue;
          const float weight = weight_of_logit(logit);
          if (weight > 0.0f) mine -= weight * weigher.log2_of(logit, law.max);
        }
      };
      if (weigher.is_extreme()) {
        add_up([&](float logit) { return weigher.exactly(logit, stat.max); });
      } else {
        add_up([&](float logit) { return weigher.fast(logit, stat.max); });
      }
    }
    mine = warp_reduce(mine, [](float a, float b) { return a + b; });
    if (team.lane() != 0) return;
    sums[block] = mine * scale;
  });
  team.sync();
  double sum = 0.0;
  if (team.leads()) {
    for (int64_t b = 0; b < law.source->blocks(); ++b) sum += law.memory.mass[b];
  }
  sum = team.publish(sum, team.leads());
  find_masses(team, law);
  const double nats = log_double(law.total) + sum / kLog2E / law.total;
  return nats > 0.0 ? nats : 0.0;
}

// How many ids of a scanned row come before one that has a logit in it.
SPECDEC_STEP int64_t rank_of(Team& team, const Law& law, int64_t id) {
  struct Count {
    int64_t ids;
  };
  const float than = logit_of(*law.source, id);
  Count mine{0};
  for_blocks(team, law, [&](int own, int64_t block, float* buffer) {
    if (law.memory.stats[own].max < than) return;
    const int count = law.source->length(block);
    for (int i = team.lane(); i < count; i += kWarp) {
      mine.ids += buffer[i] > than || (buffer[i] == than && block * kBlock + i < id);
    }
  });
  return team.reduce(mine, Count{0}, [](const Count& a, const Count& b) { return Count{a.ids + b.ids}; }).ids;
}

}  // namespace specdec::cuda
