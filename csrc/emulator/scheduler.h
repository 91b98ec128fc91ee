// SPDX-License-Identifier: Apache-2.0
// Which thread runs next.
//
// Warps have ranks, lanes have positions: the identity, or their mirror image for the reverse order. A bit per warp
// says whether any of its lanes can run, so that the choice costs a few instructions however many threads wait.
#pragma once

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "engine.h"

namespace specdec::emulator {

// A small generator (splitmix64).
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  size_t below(size_t limit) { return static_cast<size_t>(bits() % limit); }

 private:
  uint64_t state_;
};

template <class T>
void shuffle(std::vector<T>& values, Dice& dice) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[dice.below(i)]);
}

class Scheduler {
 public:
  // Takes the warps of all blocks that are resident, in ascending order. None is ready.
  void begin(const Schedule& schedule, std::vector<Warp>& warps) {
    order_ = schedule.order;
    dice_ = Dice(schedule.seed);
    mirror_ = order_ == Order::reverse;
    by_rank_.clear();
    for (Warp& warp : warps) by_rank_.push_back(&warp);
    if (mirror_) std::reverse(by_rank_.begin(), by_rank_.end());
    for (size_t i = 0; i < by_rank_.size(); ++i) by_rank_[i]->rank = static_cast<unsigned>(i);
    summary_.assign((warps.size() + 63) / 64, 0);
    favourite_ = 0;
    if (order_ == Order::one_warp_ahead) redraw();
  }

  Order order() const { return order_; }
  Dice& dice() { return dice_; }

  void wake(Warp& warp, unsigned lanes) {
    warp.ready |= mirror_ ? mirrored(lanes) : lanes;
    if (warp.ready != 0) summary_[warp.rank / 64] |= 1ull << warp.rank % 64;
  }

  void put_to_sleep(const Fiber& fiber) {
    Warp& warp = *fiber.warp;
    warp.ready &= ~(1u << position(fiber.lane));
    if (warp.ready == 0) summary_[warp.rank / 64] &= ~(1ull << warp.rank % 64);
  }

  // Null if none can run.
  Fiber* next(const Fiber& now) {
    if (order_ == Order::shuffled) return at_random();
    const Warp& mine = *now.warp;
    const unsigned later = mine.ready & (~1u << position(now.lane));
    if (order_ == Order::one_warp_ahead) {
      const Warp* warp = first_from(0);
      if (warp == nullptr) return nullptr;
      return fiber_at(*warp, std::countr_zero(warp == &mine && later != 0 ? later : warp->ready));
    }
    if (later != 0) return fiber_at(mine, std::countr_zero(later));
    const Warp* warp = first_from(mine.rank + 1);
    return warp == nullptr ? nullptr : fiber_at(*warp, std::countr_zero(warp->ready));
  }

  // After all threads of a block were released at once, so that there is one.
  Fiber* after_release(const Block& block) {
    if (order_ == Order::shuffled) return at_random();
    size_t rank = 0;
    if (order_ == Order::one_warp_ahead) {
      redraw();
    } else {
      rank = block.warps[mirror_ ? g_shape.warps() - 1 : 0].rank;
    }
    const Warp* warp = first_from(rank);
    return fiber_at(*warp, std::countr_zero(warp->ready));
  }

  // Null if none can run.
  Fiber* at_random() {
    const uint64_t bits = dice_.bits();
    const size_t draw = static_cast<size_t>((bits >> 32) * by_rank_.size() >> 32);
    // Some warp is preferred for a while: without that all advance alike.
    if (bits % 64 == 0) favourite_ = draw;
    const bool prefer = (bits & 64) != 0 && by_rank_[favourite_]->ready != 0;
    const Warp* warp = prefer ? by_rank_[favourite_] : first_from(draw);
    if (warp == nullptr) return nullptr;
    const int turn = static_cast<int>(bits >> 8 & 31);
    return fiber_at(*warp, (std::countr_zero(std::rotr(warp->ready, turn)) + turn) % kLanes);
  }

 private:
  static unsigned mirrored(unsigned lanes) {
    unsigned result = 0;
    for (; lanes != 0; lanes &= lanes - 1) result |= 0x80000000u >> std::countr_zero(lanes);
    return result;
  }
  int position(int lane) const { return mirror_ ? kLanes - 1 - lane : lane; }
  Fiber* fiber_at(const Warp& warp, int position_of_lane) const { return warp.fibers + position(position_of_lane); }

  // The first warp with a ready lane at or after a rank, or else before it.
  const Warp* first_from(size_t rank) const {
    if (rank >= by_rank_.size()) rank = 0;
    size_t word = rank / 64;
    uint64_t bits = summary_[word] & (~0ull << rank % 64);
    for (size_t i = 0; i <= summary_.size(); ++i) {
      if (bits != 0) return by_rank_[word * 64 + static_cast<size_t>(std::countr_zero(bits))];
      if (++word == summary_.size()) word = 0;
      bits = summary_[word];
    }
    return nullptr;
  }

  void redraw() {
    shuffle(by_rank_, dice_);
    summary_.assign(summary_.size(), 0);
    for (size_t i = 0; i < by_rank_.size(); ++i) {
      by_rank_[i]->rank = static_cast<unsigned>(i);
      if (by_rank_[i]->ready != 0) summary_[i / 64] |= 1ull << i % 64;
    }
  }

  Order order_ = Order::in_order;
  Dice dice_{0};
  bool mirror_ = false;
  std::vector<Warp*> by_rank_;
  std::vector<uint64_t> summary_;
  size_t favourite_ = 0;
};

}  // namespace specdec::emulator
