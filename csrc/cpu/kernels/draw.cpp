// SPDX-License-Identifier: Apache-2.0
// Who does what: one thread draws. Memory traffic of a draw: the masses of the blocks and one block of the row; of
// arrivals the whole row.
#include "draw.h"

#include <algorithm>

SPECDEC_ISA_BEGIN
namespace {

bool is_removed(const Law& law, int64_t id) {
  return std::find(law.removed.begin(), law.removed.end(), id) != law.removed.end();
}

// The race inside a block of ids of a listed source, whose ids lie anywhere in the row.
int64_t race_listed(const Law& law, const Place& place, int64_t winner_block) {
  alignas(64) float buffer[kBlock];
  Winner winner;
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] < law.cut.logit) continue;
    const Block block = load_block(law.source, b, buffer);
    for (int i = 0; i < block.count; ++i) {
      const int64_t id = law.source.id(b * kBlock + i);
      if (id < 0 || id / kBlock != winner_block || is_removed(law, id)) continue;
      const double weight = law.weight(block.logits[i], id);
      if (weight > 0) winner.offer(exponential_of_id(place, id) / weight, id);
    }
  }
  return winner.id;
}

struct Arrival {
  double score;
  int64_t id;
};

struct Sooner {
  bool operator()(const Arrival& a, const Arrival& b) const {
    return a.score < b.score || (a.score == b.score && a.id < b.id);
  }
};

// The first arrivals so far; the last of them is on top.
class Queue {
 public:
  explicit Queue(int most) : most_(most) {}
  bool full() const { return size_ == most_; }
  double last() const { return heap_[0].score; }
  void offer(double score, int64_t id) {
    const Arrival arrival{score, id};
    if (full()) {
      if (!Sooner()(arrival, heap_[0])) return;
      std::pop_heap(heap_, heap_ + size_, Sooner());
    } else {
      ++size_;
    }
    heap_[size_ - 1] = arrival;
    std::push_heap(heap_, heap_ + size_, Sooner());
  }
  int take(int64_t* to) {
    std::sort_heap(heap_, heap_ + size_, Sooner());
    for (int i = 0; i < size_; ++i) to[i] = heap_[i].id;
    return size_;
  }

 private:
  int most_, size_ = 0;
  Arrival heap_[kMaxDraws];
};

// E / w has the order of log2 E - log2 w, in which weights of any size can be compared.
void arrivals_of_block(const Law& law, const Place& place, int64_t index, Queue& queue) {
  alignas(64) float buffer[kBlock];
  const int64_t first = index * kBlock;
  const Block block = load_block(law.source, index, buffer);  // padded to a multiple of kNoiseIds
  const float* logits = block.logits;
  const int count = block.count;
  const Weigher weigher(law.settings.temperature);
  const bool extreme = weigher.extreme();
  const F16 most = broadcast(law.max), least = broadcast(law.cut.logit), late = broadcast(__builtin_inff());
  for (int i = 0; i < count; i += kNoiseIds) {
    alignas(64) uint32_t noise[kNoiseIds];
    noise_of_ids(place, first + i, noise);
    // Room for what the estimates are off: two units in the last place of log2 w and of log2 E.
    float limit = __builtin_inff();
    if (queue.full()) {
      const double last = queue.last() <= 0x1.fffffffffffffp1023 ? log_double(queue.last()) * kLog2E : 1100.0;
      limit = (float)(last + 2e-3 + 1e-6 * (last < 0 ? -last : last));
    }
    for (int j = i; j < i + kNoiseIds; j += kLanes) {
      const U16 words = load_as<U16>(noise + j - i);
      const F16 values = load(logits + j);
      const F16 weight = extreme ? weigher.log2_exactly(values, law.max) : weigher.log2_of(values, most);
      F16 score = log2_lanes(exponential_lanes(words)) - weight;
      score = select(values >= least, score, late);
      if (queue.full() && !any(score <= broadcast(limit))) continue;
      alignas(64) float scores[kLanes];
      store(scores, score);
      for (int k = 0; k < kLanes; ++k) {
        if (!(scores[k] <= limit) || j + k >= count) continue;
        const int64_t id = first + j + k;
        const double weight = law.weight(logits[j + k], id);
        if (weight > 0 && !is_removed(law, id)) queue.offer(exponential_of_id(place, id) / weight, id);
      }
    }
  }
}

}  // namespace

int64_t race_of_blocks(const Place& place, const std::vector<double>& masses) {
  Winner winner;
  for (size_t b = 0; b < masses.size(); ++b) {
    if (masses[b] > 0) winner.offer(block_exponential(place, (int64_t)b) / masses[b], (int64_t)b);
  }
  return winner.id;
}

int race_list(const Place& place, const int32_t* ids, const double* weights, int count) {
  Winner block;
  int begin = 0, end = 0;
  for (int i = 0; i < count;) {
    const int64_t here = ids[i] / kBlock;
    double mass = 0.0;
    int j = i;
    for (; j < count && ids[j] / kBlock == here; ++j) mass += weights[j];
    if (mass > 0) {
      const double score = i == 0 && j == count ? 0.0 : block_exponential(place, here) / mass;
      block.offer(score, here);
      if (block.id == here) {
        begin = i;
        end = j;
      }
    }
    i = j;
  }
  Winner winner;
  int index = -1;
  for (int i = begin; i < end; ++i) {
    if (!(weights[i] > 0)) continue;
    const uint32_t word = words_at(place, static_cast<uint32_t>(ids[i] / 4)).word[ids[i] % 4];
    // E(r) is at least (r + 0.5) 2^-32: most ids are too late without a logarithm.
    if (index >= 0 && (word + 0.5) * 0x1p-32 > winner.score * weights[i]) continue;
    winner.offer(exponential(word) / weights[i], ids[i]);
    if (winner.id == ids[i]) index = i;
  }
  return index;
}

int64_t draw(const Law& law, const Place& place) {
  if (law.is_short) {
    double weights[kShort];
    exact_weights(law, weights);
    const int index = race_list(place, law.ids.data(), weights, law.count);
    return index < 0 ? -1 : law.ids[index];
  }
  const int64_t winner = race_of_blocks(place, law.block_mass);
  if (winner < 0) return -1;
  if (law.source.listed()) return race_listed(law, place, winner);
  alignas(64) float buffer[kBlock], weights[kBlock];
  const Block block = load_block(law.source, winner, buffer);
  weigh_block(law, winner, block, law.block_max[winner], weights);
  return race_block(place, winner * kBlock, weights, block.count,
                    [&](int i) { return weights[i] > 0 ? law.weight(block.logits[i], winner * kBlock + i) : 0.0; });
}

int arrivals(const Law& law, const Place& place, int num, int64_t* to) {
  Queue queue(num);
  if (law.is_short) {
    for (int i = 0; i < law.count; ++i) {
      const double weight = is_removed(law, law.ids[i]) ? 0.0 : law.weight(law.logits[i], law.ids[i]);
      if (weight > 0) queue.offer(exponential_of_id(place, law.ids[i]) / weight, law.ids[i]);
    }
    return queue.take(to);
  }
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] < law.cut.logit) continue;
    if (!law.source.listed()) {
      arrivals_of_block(law, place, b, queue);
      continue;
    }
    alignas(64) float buffer[kBlock];
    const Block block = load_block(law.source, b, buffer);
    for (int i = 0; i < block.count; ++i) {
      const int64_t id = law.source.id(b * kBlock + i);
      const double weight = id < 0 || is_removed(law, id) ? 0.0 : law.weight(block.logits[i], id);
      if (weight > 0) queue.offer(exponential_of_id(place, id) / weight, id);
    }
  }
  return queue.take(to);
}

SPECDEC_ISA_END
