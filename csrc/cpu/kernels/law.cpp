// SPDX-License-Identifier: Apache-2.0
// Who does what: blocks are spread over threads, each block is summed by one thread, and the sums of the blocks are
// added in ascending order, so that the result does not depend on the number of threads.
//
// Memory traffic: one read of the row; what is done twice to a block is done while it lies in the first cache level.
#include "law.h"

#include <algorithm>

#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr float kNothing = -__builtin_inff();

// Sum of the weights of a block relative to its own maximum. Two runs hide the latency of the additions.
float sum_exponentials(const Weigher& weigher, const float* logits, int count, float reference) {
  F16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  int i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] = sums[j] + weigher.lanes(load(logits + i + j * kLanes), reference);
  }
  for (int j = 0; i < count; i += kLanes, ++j) sums[j] = sums[j] + weigher.lanes(load(logits + i), reference);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

struct Ranked {
  float logit;
  int64_t id;
};

struct Better {
  bool operator()(const Ranked& a, const Ranked& b) const { return is_better(a.logit, a.id, b.logit, b.id); }
};

void scan(Law& law, const Source& source, const Weigher* weigher, int threads, bool lanes) {
  const int64_t blocks = source.blocks();
  law.source = source;
  law.cut = no_cut();
  law.is_short = false;
  law.removed.clear();
  law.block_max.resize(blocks);
  if (lanes) law.lane_max.resize(blocks * kLanes);
  if (weigher != nullptr) law.block_mass.resize(blocks);
  int nan = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(| : nan)
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(64) float logits[kBlock];
    const BlockFacts facts = load_block(source, b, logits);
    nan |= facts.nan;
    law.block_max[b] = facts.max;
    if (lanes) store(law.lane_max.data() + b * kLanes, facts.lane_max);
    if (weigher != nullptr) {
      law.block_mass[b] = facts.max == kNothing ? 0.0 : sum_exponentials(*weigher, logits, facts.count, facts.max);
    }
  }
  law.nan = nan != 0;
  if (source.column_of) law.nan = has_nan(source);  // also where no target id stands
  law.max = kNothing;
  for (const float value : law.block_max) law.max = value > law.max ? value : law.max;
}

// A listed source keeps masses by blocks of ids, which lie anywhere in the row.
void add_by_id(Law& law, int64_t block, const float* weights, int count) {
  for (int i = 0; i < count; ++i) {
    if (weights[i] > 0) law.block_mass[law.source.id(block * kBlock + i) / kBlock] += weights[i];
  }
}

int64_t id_blocks(const Source& source) {
  int64_t last = -1;
  for (int64_t i = 0; i < source.entries; ++i) last = std::max(last, source.id(i));
  return last / kBlock + 1;
}

}  // namespace

F16 Weigher::log2_exactly(const F16& logits, float reference) const {
  float values[kLanes];
  store(values, logits);
  for (float& value : values) {
    if (value > kNothing) value = (float)(((double)value - reference) / temperature * kLog2E);
  }
  return load(values);
}

float sum_block(const float* weights, int count) {
  F16 sums[4] = {broadcast(0.0f), broadcast(0.0f), broadcast(0.0f), broadcast(0.0f)};
  for (int i = 0, j = 0; i < count; i += kLanes, j = (j + 1) % 4) sums[j] = sums[j] + load(weights + i);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void scan_maxima(Law& law, const Source& source, int threads, bool lanes) {
  scan(law, source, nullptr, threads, lanes);
}

void scan_law(Law& law, const Source& source, float temperature, int threads, bool lanes) {
  law.settings.temperature = temperature;
  if (source.listed()) {
    scan(law, source, nullptr, threads, lanes);
    find_masses(law);
    return;
  }
  const Weigher weigher(temperature);
  scan(law, source, &weigher, threads, lanes);
  law.total = 0.0;
  for (int64_t b = 0; b < source.blocks(); ++b) {
    if (law.block_mass[b] > 0) law.block_mass[b] *= weight_of(law.block_max[b], law.max, temperature);
    law.total += law.block_mass[b];
  }
}

void find_law(Law& law, const Source& source, const Settings& settings, int threads) {
  law.settings = settings;
  if (has_filter(settings)) {
    find_filtered_law(law, source, threads);
  } else {
    scan_law(law, source, settings.temperature, threads);
  }
}

void weigh_block(const Law& law, int64_t block, const float* logits, int count, float reference, float* weights) {
  const Weigher weigher(law.settings.temperature);
  const F16 least = broadcast(law.cut.logit);
  const int64_t first = block * kBlock;
  for (int i = 0; i < count; i += kLanes) {
    const F16 values = load(logits + i);
    store(weights + i, keep(values >= least, weigher.lanes(values, reference)));
  }
  if (law.cut.id != kLastId) {
    for (int i = 0; i < count; ++i) {
      if (logits[i] == law.cut.logit && law.source.id(first + i) > law.cut.id) weights[i] = 0.0f;
    }
  }
  for (const int64_t id : law.removed) {
    if (law.source.listed()) {
      for (int i = 0; i < count; ++i) {
        if (law.source.id(first + i) == id) weights[i] = 0.0f;
      }
    } else if (id >= first && id < first + count) {
      weights[id - first] = 0.0f;
    }
  }
}

void find_masses(Law& law) {
  const Source& source = law.source;
  const bool listed = source.listed();
  law.block_mass.assign(listed ? id_blocks(source) : source.blocks(), 0.0);
  if (!law.dead()) {
    alignas(64) float logits[kBlock], weights[kBlock];
    for (int64_t b = 0; b < source.blocks(); ++b) {
      if (law.block_max[b] < law.cut.logit) continue;
      const int count = load_block(source, b, logits).count;
      weigh_block(law, b, logits, count, law.max, weights);
      if (listed) {
        add_by_id(law, b, weights, count);
      } else {
        law.block_mass[b] = sum_block(weights, count);
      }
    }
  }
  law.total = 0.0;
  for (const double mass : law.block_mass) law.total += mass;
}

void remove(Law& law, int64_t id) {
  law.removed.push_back(id);
  if (law.is_short) {
    for (int i = 0; i < law.count; ++i) {
      if (law.ids[i] == id) law.weights[i] = 0.0f;
    }
    return;
  }
  if (law.source.listed()) return find_masses(law);
  alignas(64) float logits[kBlock], weights[kBlock];
  const int64_t block = id / kBlock;
  const int count = load_block(law.source, block, logits).count;
  weigh_block(law, block, logits, count, law.max, weights);
  law.block_mass[block] = sum_block(weights, count);
}

int64_t best_id(const Law& law) {
  if (law.dead()) return -1;
  int64_t best = kLastId;
  alignas(64) float logits[kBlock];
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] != law.max) continue;
    const int count = load_block(law.source, b, logits).count;
    for (int i = 0; i < count; ++i) {
      if (logits[i] == law.max) best = std::min(best, law.source.id(b * kBlock + i));
    }
    if (!law.source.listed()) break;  // ids ascend
  }
  return best;
}

int best_ids(const Law& law, int num, int64_t* to) {
  // A heap whose top is the worst of the best so far.
  Ranked heap[kMaxDraws];
  int size = 0;
  const auto offer = [&](float logit, int64_t id) {
    const Ranked entry{logit, id};
    if (size == num && !Better()(entry, heap[0])) return;
    if (size == num) {
      std::pop_heap(heap, heap + size, Better());
    } else {
      ++size;
    }
    heap[size - 1] = entry;
    std::push_heap(heap, heap + size, Better());
  };
  if (law.is_short) {
    for (int i = 0; i < law.count; ++i) offer(law.logits[i], law.ids[i]);
  } else {
    alignas(64) float logits[kBlock];
    for (int64_t b = 0; b < law.source.blocks(); ++b) {
      if (law.block_max[b] == kNothing || (size == num && law.block_max[b] < heap[0].logit)) continue;
      const int count = load_block(law.source, b, logits).count;
      for (int i = 0; i < count; i += kLanes) {
        const F16 least = broadcast(size == num ? heap[0].logit : -kLargest);
        if (!any(load(logits + i) >= least)) continue;
        for (int j = i; j < i + kLanes && j < count; ++j) {
          const int64_t id = law.source.id(b * kBlock + j);
          if (is_kept(law.cut, logits[j], id)) offer(logits[j], id);
        }
      }
    }
  }
  std::sort_heap(heap, heap + size, Better());
  int found = 0;
  for (int i = 0; i < size; ++i) {
    if (is_greedy(law.settings) || law.weight(heap[i].logit, heap[i].id) > 0) to[found++] = heap[i].id;
  }
  return found;
}

SPECDEC_ISA_END
