// SPDX-License-Identifier: Apache-2.0
// What is left to be emitted at a node while its children are tried, as a fold over scalars: with p the target's law, q
// that of the drafts, a_0 the budget with which the node is visited (1 unless the rule is a bottom-up one), and
// c_1 .. c_k the drafts that came to nothing,
//
//     w(x) = a_0 p(x);   for j < k:   w(x) = max(w(x) - q_j(x), 0) / D_j,   D_j = S_j + 1 - a_j,   a_{j+1} = S_j / D_j
//
// where S_j is the sum of the numerators, and q_j is q (drawn with replacement), q without c_1 .. c_j and normalised
// (without), or 1 at c_j (a deterministic draft). w sums to the budget that is left; python_ref/ops/residual.py says
// why. Nothing of the size of the vocabulary is stored.
#pragma once

#include "race.cuh"

namespace specdec::cuda {

// More drafts of one node than this are not looked at.
inline constexpr int kMaxRejected = 256;

struct ResidualStorage {
  double q_rest[kMaxRejected];   // the weights of q that a draft was drawn from
  double inverse[kMaxRejected];  // 1 / D
  int32_t id[kMaxRejected];
};

class Residual {
 public:
  // `q` is null for deterministic drafts, and may be dead: it is 0 then. `left` has a place for each owned block.
  __device__ Residual(Team& team, BinStorage& bins, ResidualStorage& shared, double* left, const Law& p, Law* q,
                      bool replacement, double budget = 1.0)
      : team_(team),
        bins_(bins),
        shared_(shared),
        left_(left),
        p_(p),
        q_(q),
        replacement_(replacement),
        first_budget_(budget),
        budget_(budget) {
    q_left_ = q == nullptr ? 1.0 : q->total;
  }

  __device__ bool is_full() const { return count_ == kMaxRejected; }
  __device__ bool holds(int64_t id) const { return is_rejected(id, count_); }

  // Says that the next draft was drawn from q without this id. It stands among the rejected ones as if it had been
  // drawn from endless weights.
  __device__ __noinline__ void exclude(int64_t id) {
    if (!drawn()) return;
    add(id, static_cast<double>(INFINITY));
    remove(team_, *q_, id);
    q_left_ = q_->total;
  }

  // What is left at an id, and what the next draft was drawn with.
  __device__ double target(int64_t id) const { return fold(first_budget_ * p_.probability(id), id); }
  __device__ double draft(int64_t id) const {
    if (q_ == nullptr) return 1.0;
    if (!(q_left_ > 0.0) || (!replacement_ && is_rejected(id, count_))) return 0.0;
    return q_->weight_at(id) / q_left_;
  }

  // The budget that the next draft is visited with, and the one that is left.
  __device__ double handed_down(int64_t id) const {
    const double w = target(id), q = draft(id);
    return !(w > 0.0) ? 0.0 : w >= q ? 1.0 : w / q;
  }
  __device__ double budget() const { return budget_; }

  // Adds a draft that came to nothing. False if nothing is left to be emitted although the budget is 1.
  __device__ __noinline__ bool reject(int64_t id) {
    add(id, q_left_);
    if (drawn() && !replacement_) {
      remove(team_, *q_, id);
      q_left_ = q_->total;
    }
    const double sum = sum_of_what_is_left();
    double reached = sum;
    if (budget_ < 1.0) {
      reached += 1.0 - budget_;
      budget_ = sum / reached;
    } else if (!(sum > 1e-30)) {  // rounding
      return false;
    }
    __syncthreads();
    if (threadIdx.x == 0) shared_.inverse[count_ - 1] = 1.0 / reached;
    __syncthreads();
    return true;
  }

  // An id of the law that is left; -1 if there is none.
  __device__ __noinline__ int64_t draw(const Place& place) {
    if (count_ == 0) return cuda::draw(team_, bins_, p_, place);
    const int64_t block = race_of_blocks(team_, place, p_.source->blocks(), [&](int own) { return left_[own]; });
    if (block < 0) return -1;
    const bool owner = block % team_.size() == team_.rank();
    const float* targets = nullptr;
    const float* drafts = nullptr;
    if (owner) {
      targets = open_block(team_, p_, block);
      if (drawn()) drafts = open_block(team_, *q_, block);
    }
    const Shares shares = shares_of(owner ? static_cast<int>(block / team_.size()) : 0);
    return race_of_ids(
        team_, place, block, p_.source->length(block), owner,
        [&](int i) { return estimate_at(shares, targets, drafts, block, i); },
        [&](int i) { return target(block * kBlock + i); });
  }

 private:
  // What is the same for all entries of a block.
  struct Shares {
    Weigher target, draft;
    float p;        // a_0 / total; for deterministic drafts also 1 / D of all rejected ones
    float largest;  // logit of q that its weights in this block are relative to
    double unit;    // the weight of that logit
    float first;    // `unit` over what the first draft was drawn from
  };

  __device__ bool drawn() const { return q_ != nullptr && !q_->dead(); }

  __device__ void add(int64_t id, double q_rest) {
    __syncthreads();  // the list is still read
    if (threadIdx.x == 0) {
      shared_.id[count_] = static_cast<int32_t>(id);
      shared_.q_rest[count_] = q_rest;
      shared_.inverse[count_] = 1.0;
    }
    ++count_;
    __syncthreads();
  }

  __device__ bool is_rejected(int64_t id, int among) const {
    for (int j = 0; j < among; ++j) {
      if (shared_.id[j] == id) return true;
    }
    return false;
  }

  __device__ __noinline__ double fold(double w, int64_t id) const {
    const double q = q_ == nullptr || !(w > 0.0) ? 0.0 : q_->weight_at(id);
    for (int j = 0; j < count_ && w > 0.0; ++j) {
      if (q_ == nullptr) {
        w = shared_.id[j] == id ? 0.0 : w;
      } else if (q > 0.0 && (replacement_ || !is_rejected(id, j))) {
        w -= q / shared_.q_rest[j];
      }
      w = w > 0.0 ? w * shared_.inverse[j] : 0.0;
    }
    return w;
  }

  __device__ Shares shares_of(int own) const {
    Shares shares{Weigher(p_.settings.temperature), Weigher(drawn() ? q_->settings.temperature : 1.0f), 0, 0, 0, 0};
    double scale = first_budget_ / p_.total;
    if (drawn()) {
      shares.largest = q_->memory.stats[own].max;
      shares.unit = shares.largest == -INFINITY ? 0.0 : weight_of(shares.largest, q_->max, q_->settings.temperature);
      shares.first = share(shares.unit, 0);
    } else {
      for (int j = 0; j < count_; ++j) scale *= shared_.inverse[j];
    }
    shares.p = static_cast<float>(scale);
    return shares;
  }

  __device__ float share(double unit, int j) const {
    const double rest = shared_.q_rest[j];
    return rest > 0.0 ? static_cast<float>(unit / rest) : 0.0f;
  }

  // What is left at an entry of a block; of rejected ids, whose fold is another one, in double precision. Where p and q
  // are nearly equal, their difference is off by much more than either.
  __device__ __forceinline__ Estimated estimate_at(const Shares& shares, const float* targets, const float* drafts,
                                                   int64_t block, int i) const {
    constexpr float kOff = 3e-6f;  // of a weight
    const int64_t id = block * kBlock + i;
    const float logit = targets[i];
    if (logit == -INFINITY || !is_kept(p_.cut, logit, id)) return {0.0f, 0.0f};
    if (is_rejected(id, count_)) {
      const float exact = static_cast<float>(target(id));
      return {exact, kOff * exact};
    }
    float w = shares.target(logit, p_.max) * shares.p;
    float slack = kOff * w;
    if (drafts == nullptr) return {w, slack};
    const float other = drafts[i];
    const float q = shares.unit > 0.0 && other > -INFINITY && is_kept(q_->cut, other, id)
                        ? shares.draft(other, shares.largest)
                        : 0.0f;
    for (int j = 0; j < count_; ++j) {
      const float taken = q * (j == 0 ? shares.first : share(shares.unit, j));
      const float inverse = static_cast<float>(shared_.inverse[j]);
      w = fmaxf(w - taken, 0.0f) * inverse;
      slack = (slack + kOff * taken) * inverse;
    }
    return {w, slack};
  }

  // By blocks, and in `left_`.
  __device__ double sum_of_what_is_left() {
    for_blocks(team_, p_, [&](int own, int64_t block, float* buffer) {
      bool touched = drawn();
      for (int j = 0; j < count_; ++j) touched |= shared_.id[j] / kBlock == block;
      const double mass = mass_of(p_, p_.memory.stats[own]);
      double sum = 0.0;
      if (mass > 0.0 && !touched) {
        sum = first_budget_ * mass / p_.total;
        for (int j = 0; j < count_; ++j) sum *= shared_.inverse[j];
      } else if (mass > 0.0) {
        const float* drafts = drawn() ? owned_block(team_, *q_, own, block) : nullptr;
        const Shares shares = shares_of(own);
        const int count = p_.source->length(block);
        float mine = 0.0f;
        for (int i = team_.lane(); i < count; i += kWarp) mine += estimate_at(shares, buffer, drafts, block, i).weight;
        sum = warp_reduce(mine, [](float a, float b) { return a + b; });
      }
      if (team_.lane() == 0) left_[own] = sum;
    });
    return sum_over_blocks(team_, p_, [&](int own) { return left_[own]; });
  }

  Team& team_;
  BinStorage& bins_;
  ResidualStorage& shared_;
  double* left_;
  const Law& p_;
  Law* q_;
  bool replacement_;
  int count_ = 0;
  double first_budget_, budget_;
  double q_left_;
};

}  // namespace specdec::cuda
