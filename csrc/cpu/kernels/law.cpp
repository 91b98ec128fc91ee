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
  law.block_nan.assign(blocks, 0);
  for_pieces(blocks, threads, [&](int64_t b) {
    alignas(64) float buffer[kBlock];
    const Block block = load_block(source, b, weigher != nullptr ? buffer : nullptr);
    law.block_nan[b] = block.nan;
    law.block_max[b] = block.max;
    if (lanes) store(law.lane_max.data() + b * kLanes, block.lane_max);
    if (weigher != nullptr) {
      const Bytes next = bytes_of(source, b + 1);
      law.block_mass[b] =
          block.max == kNothing ? 0.0 : weigher->sum(block.logits, block.count, block.max, next.data, next.size);
    }
  });
  law.nan = std::find(law.block_nan.begin(), law.block_nan.end(), 1) != law.block_nan.end();
  if (source.column_of) law.nan = has_nan(source);  // also where no target id stands
  law.max = kNothing;
  for (const float value : law.block_max) law.max = value > law.max ? value : law.max;
}

// A listed source keeps masses by blocks of ids, which lie anywhere in the row.
void add_by_id(Law& law, int64_t block, const float* weights, double scale, int count) {
  for (int i = 0; i < count; ++i) {
    if (weights[i] > 0) law.block_mass[law.source.id(block * kBlock + i) / kBlock] += weights[i] * scale;
  }
}

bool contains(const std::vector<int64_t>& ids, int64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

// Sets the weights of some ids of a block to zero.
void clear(const Law& law, int64_t index, int count, const std::vector<int64_t>& ids, float* weights) {
  const int64_t first = index * kBlock;
  for (const int64_t id : ids) {
    if (law.source.listed()) {
      for (int i = 0; i < count; ++i) {
        if (law.source.id(first + i) == id) weights[i] = 0.0f;
      }
    } else if (id >= first && id < first + count) {
      weights[id - first] = 0.0f;
    }
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
    if (value > kNothing) value = (float)(((double)value - reference) / temperature_ * kLog2E);
  }
  return load(values);
}

void Weigher::weigh(const float* logits, int count, float reference, float* to) const {
  if (extreme()) {
    for (int i = 0; i < count; i += kLanes) store(to + i, exp2_lanes(log2_exactly(load(logits + i), reference)));
    return;
  }
  const F16 most = broadcast(reference);
  for (int i = 0; i < count; i += kLanes) store(to + i, exp2_lanes(log2_of(load(logits + i), most)));
}

// Two runs of sixteen lanes each. What underflows counts as 2^-126: not enough to be seen, and cheaper than nothing.
float Weigher::sum(const float* logits, int count, float reference, const char* ahead, int ahead_bytes) const {
  if (extreme()) {
    alignas(64) float weights[kBlock];
    weigh(logits, count, reference, weights);
    return sum_block(weights, count);
  }
  const F16 most = broadcast(reference);
  const F16 least = broadcast(-126.0f);
  F16 even = broadcast(0.0f), odd = broadcast(0.0f);
  const int step = ahead_bytes / (kBlock / (2 * kLanes));
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    for (int line = 0; line < step; line += 64) __builtin_prefetch(ahead + line);
    ahead += step;
    even = even + exp2_in_range(max(log2_of(load(logits + i), most), least));
    odd = odd + exp2_in_range(max(log2_of(load(logits + i + kLanes), most), least));
  }
  for (; i < count; i += kLanes) even = even + exp2_in_range(max(log2_of(load(logits + i), most), least));
  return specdec::cpu::SPECDEC_ISA::sum(even + odd);
}

float sum_block(const float* weights, int count) {
  F16 even = broadcast(0.0f), odd = broadcast(0.0f);
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    even = even + load(weights + i);
    odd = odd + load(weights + i + kLanes);
  }
  for (; i < count; i += kLanes) even = even + load(weights + i);
  return sum(even + odd);
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

void weigh_block(const Law& law, int64_t index, const Block& block, float reference, float* weights) {
  const int64_t first = index * kBlock;
  const float* logits = block.logits;
  const int count = block.count;
  Weigher(law.settings.temperature).weigh(logits, count, reference, weights);
  if (law.cut.logit > -kLargest) {
    const F16 least = broadcast(law.cut.logit);
    for (int i = 0; i < count; i += kLanes) store(weights + i, keep(load(logits + i) >= least, load(weights + i)));
  }
  if (law.cut.id != kLastId) {
    for (int i = 0; i < count; ++i) {
      if (logits[i] == law.cut.logit && law.source.id(first + i) > law.cut.id) weights[i] = 0.0f;
    }
  }
  clear(law, index, count, law.removed, weights);
}

void find_masses(Law& law) {
  const Source& source = law.source;
  const bool listed = source.listed();
  law.block_mass.assign(listed ? id_blocks(source) : source.blocks(), 0.0);
  if (!law.dead()) {
    alignas(64) float buffer[kBlock], weights[kBlock];
    for (int64_t b = 0; b < source.blocks(); ++b) {
      if (law.block_max[b] == kNothing || law.block_max[b] < law.cut.logit) continue;
      const Block block = load_block(source, b, buffer);
      weigh_block(law, b, block, law.block_max[b], weights);
      const double scale = weight_of(law.block_max[b], law.max, law.settings.temperature);
      if (listed) {
        add_by_id(law, b, weights, scale, block.count);
      } else {
        law.block_mass[b] = sum_block(weights, block.count) * scale;
      }
    }
  }
  law.total = 0.0;
  for (const double mass : law.block_mass) law.total += mass;
}

float largest_without(const Law& law, int64_t index, const Block& block, const std::vector<int64_t>& ids) {
  float largest = kNothing;
  for (int i = 0; i < block.count; ++i) {
    const float logit = block.logits[i];
    if (!(logit > largest)) continue;
    const int64_t id = law.source.id(index * kBlock + i);
    if (is_kept(law.cut, logit, id) && !contains(ids, id)) largest = logit;
  }
  return largest;
}

double mass_without(const Law& law, int64_t index, const std::vector<int64_t>& ids) {
  alignas(64) float buffer[kBlock], weights[kBlock];
  const Block block = load_block(law.source, index, buffer);
  const float largest = largest_without(law, index, block, ids);
  if (largest == kNothing) return 0.0;
  weigh_block(law, index, block, largest, weights);
  clear(law, index, block.count, ids, weights);
  return sum_block(weights, block.count) * weight_of(largest, law.max, law.settings.temperature);
}

void remove(Law& law, int64_t id) {
  law.removed.push_back(id);
  if (law.is_short) return;
  alignas(64) float buffer[kBlock];
  const bool listed = law.source.listed();
  const int64_t first = listed ? 0 : id / kBlock, last = listed ? law.source.blocks() - 1 : first;
  for (int64_t b = first; b <= last; ++b) {
    law.block_max[b] = largest_without(law, b, load_block(law.source, b, buffer), law.removed);
  }
  if (listed) return find_masses(law);
  law.block_mass[first] = mass_without(law, first, law.removed);
}

void exact_weights(const Law& law, double* to) {
  for (int i = 0; i < law.count; ++i) {
    to[i] = contains(law.removed, law.ids[i]) ? 0.0 : law.weight(law.logits[i], law.ids[i]);
  }
}

// log(sum w) - sum(w log w) / sum w, where log w = (l - max) / T; what underflows counts as 0.
double entropy(const Law& law, int threads) {
  const double per_unit = 1.0 / law.settings.temperature;
  double sum = 0.0;
  if (law.is_short) {
    for (int i = 0; i < law.count; ++i) {
      const double w = law.weight(law.logits[i], law.ids[i]);
      if (w > 0) sum += w * (((double)law.max - law.logits[i]) * per_unit);
    }
  } else {
    const bool extreme = Weigher(law.settings.temperature).extreme();  // differences may overflow single precision
    std::vector<double> sums((size_t)law.source.blocks(), 0.0);
    for_pieces(law.source.blocks(), threads, [&](int64_t b) {
      if (law.block_max[(size_t)b] == kNothing || law.block_max[(size_t)b] < law.cut.logit) return;
      alignas(64) float buffer[kBlock], weights[kBlock];
      const Block block = load_block(law.source, b, buffer);
      weigh_block(law, b, block, law.max, weights);
      if (extreme) {
        double& part = sums[(size_t)b];
        for (int i = 0; i < block.count; ++i) {
          if (weights[i] > 0) part += weights[i] * (((double)law.max - block.logits[i]) * per_unit);
        }
        return;
      }
      const F16 zero = broadcast(0.0f), most = broadcast(law.max);
      F16 total = zero;
      for (int i = 0; i < block.count; i += kLanes) {
        const F16 w = load(weights + i);
        total = total + keep(w > zero, w * (most - load(block.logits + i)));
      }
      sums[(size_t)b] = specdec::cpu::SPECDEC_ISA::sum(total) * per_unit;
    });
    for (const double part : sums) sum += part;
  }
  const double nats = log_double(law.total) + sum / law.total;
  return nats > 0.0 ? nats : 0.0;
}

int64_t rank_of(const Law& law, int64_t id, int64_t most) {
  alignas(64) float buffer[kBlock];
  const float logit = logit_of(law.source, id);
  int64_t rank = 0;
  for (int64_t b = 0; b < law.source.blocks() && rank < most; ++b) {
    if (law.block_max[(size_t)b] < logit) continue;
    const Block block = load_block(law.source, b, buffer);
    for (int i = 0; i < block.count; ++i) rank += is_better(block.logits[i], b * kBlock + i, logit, id);
  }
  return rank < most ? rank : most;
}

int64_t best_id(const Law& law) {
  if (law.dead()) return -1;
  int64_t best = kLastId;
  alignas(64) float buffer[kBlock];
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] != law.max) continue;
    const Block block = load_block(law.source, b, buffer);
    for (int i = 0; i < block.count; ++i) {
      if (block.logits[i] == law.max) best = std::min(best, law.source.id(b * kBlock + i));
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
    alignas(64) float buffer[kBlock];
    for (int64_t b = 0; b < law.source.blocks(); ++b) {
      if (law.block_max[b] == kNothing || (size == num && law.block_max[b] < heap[0].logit)) continue;
      const Block block = load_block(law.source, b, buffer);
      const float* logits = block.logits;
      for (int i = 0; i < block.count; i += kLanes) {
        const F16 least = broadcast(size == num ? heap[0].logit : -kLargest);
        if (!any(load(logits + i) >= least)) continue;
        for (int j = i; j < i + kLanes && j < block.count; ++j) {
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
