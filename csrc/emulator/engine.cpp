// SPDX-License-Identifier: Apache-2.0
// Waiting and being released: warp collectives, barriers, the end of a thread.
#include "engine.h"

#include <bit>
#include <cstring>

#include "state.h"

namespace specdec::emulator {
namespace {

constexpr int64_t kPatience = 64;  // atomics in a row before others get their turn, so that a spin can end

void switch_to(Fiber& self, Fiber& to) {
  if (&self == &to) return;
  ++g_report.switches;
  g_state.steps_since_switch = 0;
  g_current = &to;
  switch_context(self.context, to.context);
}

// The current thread waits; returns when it has been woken and chosen.
void suspend(Fiber& self) {
  g_state.scheduler.put_to_sleep(self);
  Fiber* to = g_state.scheduler.next(self);
  if (to == nullptr) leave(Stop::deadlock);
  switch_to(self, *to);
}

void step(const Place& place) {
  if (++g_report.steps > g_state.step_limit) {
    fail(place, "more than %lld steps: a thread spins, or the limit must be raised",
         static_cast<long long>(g_state.step_limit));
  }
}

bool same_place(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void arrive(Barrier& barrier, Fiber& self, Wait kind, bool predicate, const Place& place) {
  step(place);
  self.wait = kind;
  self.place = place;
  if (barrier.arrived == 0) barrier.first = &self;
  if (barrier.first->wait != kind || !same_place(barrier.first->place, place)) {
    fail(place, "divergent barrier: %s, while %s waits in %s at %s", name_of(kind), name_of(*barrier.first).chars,
         name_of(barrier.first->wait), at(barrier.first->place).chars);
  }
  ++barrier.arrived;
  barrier.trues += predicate;
}

void release(Barrier& barrier) {
  barrier.last_trues = barrier.trues;
  barrier.last_total = barrier.arrived;
  barrier.arrived = barrier.trues = 0;
  barrier.first = nullptr;
}

void wake_all(Block& block) {
  for (int w = 0; w < g_shape.warps(); ++w) g_state.scheduler.wake(block.warps[w], block.warps[w].live);
}

void release_block(Block& block) {
  release(block.barrier);
  wake_all(block);
}

void release_cluster(Cluster& cluster) {
  release(cluster.barrier);
  for (int b = 0; b < g_shape.cluster; ++b) wake_all(cluster.blocks[b]);
}

// Its threads have exited.
void end_block(Block& block, const Place& place) {
  const int64_t offset = overwritten(block.shared, g_shape.shared_bytes);
  if (offset != 0) {
    fail(place, "out of bounds: byte %lld of shared memory of %zu bytes was written", static_cast<long long>(offset),
         g_shape.shared_bytes);
  }
  close_shared(block.shared, g_shape.shared_bytes);
}

[[noreturn]] void exit_thread() {
  Fiber& self = *g_current;
  Warp& warp = *self.warp;
  Block& block = *self.block;
  Cluster& cluster = *block.cluster;
  const unsigned bit = 1u << self.lane;
  self.wait = Wait::exited;
  warp.live &= ~bit;
  for (int i = 0; i < warp.gatherings; ++i) {
    const Gathering& waiting = warp.gathering[i];
    if ((waiting.mask & bit) == 0) continue;
    const Fiber& other = warp.fibers[std::countr_zero(waiting.arrived)];
    fail(other.place, "this thread has exited, while %s waits for it in %s with mask 0x%08x", name_of(other).chars,
         name_of(waiting.kind), waiting.mask);
  }
  g_state.scheduler.put_to_sleep(self);
  --block.live;
  --cluster.live;
  Fiber* to = nullptr;
  if (block.live == 0) {
    end_block(block, Place("", 0));
    if (cluster.live == 0) leave(Stop::cluster_done);
  } else if (block.barrier.arrived == block.live) {
    release_block(block);
    to = g_state.scheduler.after_release(block);
  }
  if (cluster.barrier.arrived == cluster.live) {
    release_cluster(cluster);
    to = g_state.scheduler.after_release(cluster.blocks[0]);
  }
  if (to == nullptr) to = g_state.scheduler.next(self);
  if (to == nullptr) leave(Stop::deadlock);
  ++g_report.switches;
  g_current = to;
  switch_context(self.context, to->context, true);
  __builtin_unreachable();
}

}  // namespace

void fiber_main() {
  announce_arrival(g_current->context);
  g_state.kernel.call(g_state.kernel.arguments);
  exit_thread();
}

void leave(Stop stop) {
  g_state.stop = stop;
  switch_context(g_current->context, g_state.main, true);
  __builtin_unreachable();
}

void gather(Wait kind, unsigned mask, const Place& place, void* data,
            void (*combine)(void* const* data, unsigned mask)) {
  Fiber& self = *g_current;
  Warp& warp = *self.warp;
  const unsigned bit = 1u << self.lane;
  step(place);
  self.wait = kind;
  self.mask = mask;
  self.place = place;
  if ((mask & bit) == 0) fail(place, "%s with mask 0x%08x, which leaves out the caller", name_of(kind), mask);
  if ((mask & ~warp.live) != 0) {
    const int lane = std::countr_zero(mask & ~warp.live);
    const bool exists = (&warp - self.block->warps) * kLanes + lane < g_shape.threads();
    fail(place, "%s with mask 0x%08x: lane %d %s", name_of(kind), mask, lane, exists ? "has exited" : "does not exist");
  }
  warp.data[self.lane] = data;
  int i = 0;
  while (i < warp.gatherings &&
         (warp.gathering[i].mask != mask || warp.gathering[i].kind != kind || warp.gathering[i].combine != combine)) {
    ++i;
  }
  if (i == warp.gatherings) warp.gathering[warp.gatherings++] = {mask, 0, kind, combine};
  warp.gathering[i].arrived |= bit;
  if (warp.gathering[i].arrived != mask) {
    suspend(self);
  } else {
    combine(warp.data, mask);
    warp.gathering[i] = warp.gathering[--warp.gatherings];
    g_state.scheduler.wake(warp, mask);
    if (g_state.scheduler.order() == Order::shuffled) switch_to(self, *g_state.scheduler.at_random());
  }
  self.wait = Wait::none;
}

BarrierResult block_barrier(Wait kind, bool predicate, const Place& place) {
  Fiber& self = *g_current;
  Block& block = *self.block;
  arrive(block.barrier, self, kind, predicate, place);
  if (block.barrier.arrived == block.live) {
    release_block(block);
    switch_to(self, *g_state.scheduler.after_release(block));
  } else {
    suspend(self);
  }
  self.wait = Wait::none;
  return {block.barrier.last_trues, block.barrier.last_total};
}

void cluster_barrier(const Place& place) {
  Fiber& self = *g_current;
  Cluster& cluster = *self.block->cluster;
  arrive(cluster.barrier, self, Wait::cluster_sync, false, place);
  if (cluster.barrier.arrived == cluster.live) {
    release_cluster(cluster);
    switch_to(self, *g_state.scheduler.after_release(cluster.blocks[0]));
  } else {
    suspend(self);
  }
  self.wait = Wait::none;
}

void interleave(const Place& place) {
  step(place);
  Fiber& self = *g_current;
  Scheduler& scheduler = g_state.scheduler;
  if (++g_state.steps_since_switch >= kPatience) {
    g_state.steps_since_switch = 0;
    switch_to(self, scheduler.order() == Order::one_warp_ahead ? *scheduler.at_random() : *scheduler.next(self));
  } else if (scheduler.order() == Order::shuffled && scheduler.dice().bits() % 4 == 0) {
    switch_to(self, *scheduler.at_random());
  }
}

}  // namespace specdec::emulator
