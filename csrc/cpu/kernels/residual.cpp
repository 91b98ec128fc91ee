// SPDX-License-Identifier: Apache-2.0
// Who does what: blocks are spread over threads; their sums are added in ascending order. Memory traffic: per rejected
// draft one read of both rows (where p is short, only at its ids; where the drafts are deterministic, only the blocks
// of rejected ids).
#include "residual.h"

#include <algorithm>

#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {
// A sum this small is rounding, and its inverse no number in single precision.
constexpr double kLeast = 1e-30;
}  // namespace

void Residual::begin(const Law& p, const Law* q, bool replacement, int threads, double budget) {
  p_ = &p;
  q_ = q;
  replacement_ = replacement;
  threads_ = threads;
  first_budget_ = budget_ = budget;
  q_left_ = q == nullptr ? 1.0 : q->total;
  rejected_.clear();
  q_rest_.clear();
  inverse_.clear();
}

void Residual::exclude(const std::vector<int64_t>& ids) {
  if (q_ == nullptr || q_->dead() || ids.empty()) return;
  for (const int64_t id : ids) {
    rejected_.push_back(id);
    q_rest_.push_back(__builtin_inf());
    inverse_.push_back(1.0);
  }
  q_left_ = drafts_left();
}

bool Residual::is_rejected(int64_t id, size_t among) const {
  return std::find(rejected_.begin(), rejected_.begin() + (ptrdiff_t)among, id) != rejected_.begin() + (ptrdiff_t)among;
}

double Residual::draft(int64_t id) const {
  if (q_ == nullptr) return 1.0;
  if (!(q_left_ > 0) || (!replacement_ && is_rejected(id, rejected_.size()))) return 0.0;
  return q_->weight_at(id) / q_left_;
}

double Residual::fold(double w, int64_t id) const {
  const double q = q_ == nullptr || !(w > 0) ? 0.0 : q_->weight_at(id);
  for (size_t j = 0; j < rejected_.size() && w > 0; ++j) {
    if (q_ == nullptr) {
      w = rejected_[j] == id ? 0.0 : w;
    } else if (q > 0 && (replacement_ || !is_rejected(id, j))) {
      w -= q / q_rest_[j];
    }
    w = w > 0 ? w * inverse_[j] : 0.0;
  }
  return w;
}

bool Residual::reject(int64_t id) {
  rejected_.push_back(id);
  q_rest_.push_back(q_left_);
  inverse_.push_back(1.0);
  const double sum = p_->is_short ? sum_short() : sum_dense();
  if (budget_ < 1.0) {
    const double reached = sum + (1.0 - budget_);
    inverse_.back() = 1.0 / reached;
    budget_ = sum / reached;
  } else {
    if (!(sum > kLeast)) return false;
    inverse_.back() = 1.0 / sum;
  }
  if (q_ != nullptr && !q_->dead() && !replacement_) q_left_ = drafts_left();
  return true;
}

double Residual::drafts_left() const {
  double sum = 0.0;
  if (q_->is_short) {
    for (int i = 0; i < q_->count; ++i) {
      if (!is_rejected(q_->ids[i], rejected_.size())) sum += q_->weight(q_->logits[i], q_->ids[i]);
    }
    return sum;
  }
  for (int64_t b = 0; b < q_->source.blocks(); ++b) {
    bool touched = false;
    for (const int64_t id : rejected_) touched |= id / kBlock == b;
    sum += touched ? mass_without(*q_, b, rejected_) : q_->block_mass[(size_t)b];
  }
  return sum;
}

double Residual::sum_short() {
  values_.resize((size_t)p_->count);
  double sum = 0.0;
  for (int i = 0; i < p_->count; ++i) {
    values_[(size_t)i] = fold(first_budget_ * (p_->weight(p_->logits[i], p_->ids[i]) / p_->total), p_->ids[i]);
    sum += values_[(size_t)i];
  }
  return sum;
}

double Residual::sum_dense() {
  const int64_t blocks = p_->source.blocks();
  masses_.resize((size_t)blocks);
  double scale = first_budget_ / p_->total;
  for (const double inverse : inverse_) scale *= inverse;
  for_pieces(blocks, threads_, [&](int64_t b) {
    double& mass = masses_[(size_t)b];
    mass = p_->block_mass[(size_t)b];
    if (!(mass > 0)) return;
    bool touched = q_ != nullptr;
    for (const int64_t id : rejected_) touched |= id / kBlock == b;
    if (!touched) {
      mass *= scale;
      return;
    }
    alignas(64) float weights[kBlock];
    const int count = fill_block(b, weights);
    mass = sum_block(weights, count);
  });
  double sum = 0.0;
  for (const double mass : masses_) sum += mass;
  return sum;
}

// A block of w in single precision; the ids that were rejected, whose fold is another one, in double precision.
int Residual::fill_block(int64_t block, float* weights) const {
  alignas(64) float buffer[kBlock];
  const Block target_block = load_block(p_->source, block, buffer);
  const int count = target_block.count;
  weigh_block(*p_, block, target_block, p_->max, weights);
  const F16 p_scale = broadcast((float)(first_budget_ / p_->total)), zero = broadcast(0.0f);
  if (q_ == nullptr || q_->dead()) {
    double product = 1.0;
    for (const double inverse : inverse_) product *= inverse;
    const F16 scale = p_scale * broadcast((float)product);
    for (int i = 0; i < count; i += kLanes) store(weights + i, load(weights + i) * scale);
  } else {
    // Relative to the largest logit of the block that was not rejected: q may be many orders below its maximum there.
    alignas(64) float drafts[kBlock];
    const Block draft_block = load_block(q_->source, block, buffer);
    const float largest = largest_without(*q_, block, draft_block, rejected_);
    weigh_block(*q_, block, draft_block, largest > -kLargest ? largest : q_->max, drafts);
    const double unit = largest > -kLargest ? weight_of(largest, q_->max, q_->settings.temperature) : 0.0;
    for (int i = 0; i < count; i += kLanes) {
      F16 w = load(weights + i) * p_scale;
      const F16 q = load(drafts + i);
      for (size_t j = 0; j < rejected_.size(); ++j) {
        const float share = q_rest_[j] > 0 ? (float)(unit / q_rest_[j]) : 0.0f;
        w = max(w - q * broadcast(share), zero) * broadcast((float)inverse_[j]);
      }
      store(weights + i, w);
    }
  }
  const int64_t first = block * kBlock;
  for (const int64_t id : rejected_) {
    if (id >= first && id < first + count) weights[id - first] = (float)target(id);
  }
  return count;
}

int64_t Residual::draw(const Place& place) const {
  if (rejected_.empty()) return specdec::cpu::SPECDEC_ISA::draw(*p_, place);
  if (p_->is_short) {
    const int index = race_list(place, p_->ids.data(), values_.data(), p_->count);
    return index < 0 ? -1 : p_->ids[index];
  }
  const int64_t block = race_of_blocks(place, masses_);
  if (block < 0) return -1;
  alignas(64) float weights[kBlock];
  const int count = fill_block(block, weights);
  return race_block(place, block * kBlock, weights, count,
                    [&](int i) { return weights[i] > 0 ? target(block * kBlock + i) : 0.0; });
}

SPECDEC_ISA_END
