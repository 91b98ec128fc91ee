// SPDX-License-Identifier: Apache-2.0
// expand: one pass over a row finds its sum and the maximum of every sixteenth of each block. The `num`-th largest of
// these maxima is a lower bound of the `num`-th best logit, so that only the blocks which reach it are looked at again,
// at most `num` of them but for ties. Rows are spread over threads; where they are fewer than the threads, rows come
// one after the other and their blocks are spread.
#include <algorithm>
#include <memory>

#include "draft.h"
#include "law.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr float kNothing = -__builtin_inff();

struct Child {
  float logit;
  int64_t id;
};

struct Better {
  bool operator()(const Child& a, const Child& b) const { return is_better(a.logit, a.id, b.logit, b.id); }
};

// What a thread works with.
struct Scratch {
  Law law;
  std::vector<float> maxima;
};

Scratch& scratch_of_thread() {
  static thread_local std::unique_ptr<Scratch> scratch;  // only for the instruction set that is in use
  if (scratch == nullptr) scratch = std::make_unique<Scratch>();
  return *scratch;
}

// No logit that belongs to the `num` best is smaller.
float least_of_best(Scratch& scratch, int num) {
  std::vector<float>& maxima = scratch.maxima;
  maxima = scratch.law.lane_max;
  if (static_cast<int>(maxima.size()) < num) return -kLargest;
  std::nth_element(maxima.begin(), maxima.begin() + (num - 1), maxima.end(), [](float a, float b) { return a > b; });
  return std::max(maxima[num - 1], -kLargest);
}

// The `num` best ids of a scanned row, best first; how many there are.
int best_children(Scratch& scratch, int num, Child* to) {
  const Law& law = scratch.law;
  float least = least_of_best(scratch, num);
  int size = 0;  // of a heap whose top is the worst
  alignas(64) float buffer[kBlock];
  for (int64_t b = 0; b < law.source.blocks(); ++b) {
    if (law.block_max[b] < least) continue;
    const Block block = load_block(law.source, b, buffer);
    for (int i = 0; i < block.count; i += kLanes) {
      if (!any(load(block.logits + i) >= broadcast(least))) continue;
      for (int j = i; j < i + kLanes && j < block.count; ++j) {
        const Child child{block.logits[j], b * kBlock + j};
        if (child.logit < least || (size == num && !Better()(child, to[0]))) continue;
        if (size == num) {
          std::pop_heap(to, to + size, Better());
        } else {
          ++size;
        }
        to[size - 1] = child;
        std::push_heap(to, to + size, Better());
        if (size == num) least = std::max(least, to[0].logit);
      }
    }
  }
  std::sort_heap(to, to + size, Better());
  return size;
}

void expand_row(const ExpandParams& p, int64_t row, int threads) {
  const int64_t b = row / p.width, w = row % p.width, num = p.num;
  int64_t* tokens = p.tokens + row * num;
  float* scores = p.child_scores + row * num;
  const float above =
      p.scores == nullptr ? 0.0f : safe_score(p.scores[b * p.score_row_stride + w * p.score_column_stride]);
  Child children[kMaxExpand];
  int count = 0;
  Scratch& scratch = scratch_of_thread();
  Law& law = scratch.law;
  if (above != kAbsent) {
    scan_law(law, row_source(p.logits, row), 1.0f, threads, true);
    const bool stopped = p.stops.max_entropy && !law.dead() && p.stops.is_uncertain(b, entropy(law, threads));
    if (!law.dead() && !stopped) count = best_children(scratch, static_cast<int>(num), children);
  }
  const double log_sum = count > 0 ? log_double(law.total) : 0.0;
  for (int j = 0; j < num; ++j) {
    int64_t token = -1;
    float score = kAbsent;
    if (j < count) {
      token = p.draft_to_target ? p.draft_to_target[children[j].id] : children[j].id;
      score = child_score(above, children[j].logit, law.max, log_sum);
      const bool unlikely =
          p.stops.min_confidence && p.stops.is_unlikely(b, weight_of(children[j].logit, law.max, 1.0f) / law.total);
      if (unlikely || !is_token(token) || score == kAbsent) {
        token = -1;
        score = kAbsent;
      }
    }
    tokens[j] = token;
    scores[j] = score;
  }
}

void choose_beams(const ExpandParams& p, int64_t b) {
  struct Before {
    bool operator()(uint64_t a, uint64_t b) const { return a < b; }
  };
  const int32_t columns = static_cast<int32_t>(p.width * p.num);
  const float* scores = p.child_scores + b * columns;
  uint64_t keys[kMaxExpand * kMaxExpand];
  int count = 0;
  for (int32_t c = 0; c < columns; ++c) {
    if (scores[c] != kAbsent) keys[count++] = child_key(scores[c], c);
  }
  const int taken = std::min(count, static_cast<int>(p.beams));
  std::partial_sort(keys, keys + taken, keys + count, Before());
  int32_t* beams = p.beam_columns + b * p.beams;
  for (int i = 0; i < p.beams; ++i) beams[i] = i < taken ? static_cast<int32_t>(keys[i]) : -1;
}

}  // namespace

void expand(const ExpandParams& p) {
  const int64_t columns = p.logits.columns;
  spread(p.logits.rows, columns * static_cast<int64_t>(sizeof(float)), columns / kBlock,
         [&](int64_t row, int threads) { expand_row(p, row, threads); });
  for_pieces(p.batch, threads_for(p.batch * p.width * p.num * 64, p.batch), [&](int64_t b) { choose_beams(p, b); });
}

SPECDEC_ISA_END
