// SPDX-License-Identifier: Apache-2.0
// A launch from its checks to its report: which blocks are resident, and what becomes of them.
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "state.h"

namespace specdec::emulator {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxCluster = 16;
constexpr size_t kMaxBlocks = size_t{1} << 26;  // more would take hours
constexpr size_t kMaxFibers = 16384;            // two mappings each, of the 65,530 that Linux allows
constexpr int64_t kStepLimit = int64_t{1} << 30;

std::mutex g_mutex;
std::atomic<std::thread::id> g_owner;  // who holds it
const Schedule* g_schedule = nullptr;
int64_t g_step_limit = 0;
thread_local Report t_last, t_total;
thread_local std::string t_error;

[[gnu::format(printf, 2, 3)]] cudaError_t refuse(cudaError_t code, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  t_error = message;
  return code;
}

cudaError_t report_failure(std::string text) {
  t_error = std::move(text);
  return cudaErrorLaunchFailure;
}

// ---- what is asked for ----

bool read_number(const char* name, int64_t lowest, int64_t& value) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return true;
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(text, &end, 10);
  if (errno != 0 || *end != '\0' || number < lowest) {
    refuse(cudaErrorInvalidValue, "emulator: %s must be an integer from %lld, got \"%s\"", name,
           static_cast<long long>(lowest), text);
    return false;
  }
  value = number;
  return true;
}

bool read_environment(Schedule& schedule) {
  static constexpr const char* kNames[] = {"in_order", "reverse", "shuffled", "one_warp_ahead"};
  int64_t seed = 0;
  if (!read_number("SPECDEC_EMULATOR_SEED", 0, seed)) return false;
  const Schedule choices[] = {in_order(), reverse(), shuffled(static_cast<uint64_t>(seed)),
                              one_warp_ahead(static_cast<uint64_t>(seed))};
  const char* name = std::getenv("SPECDEC_EMULATOR_SCHEDULE");
  size_t i = 0;
  if (name != nullptr && *name != '\0') {
    while (i < std::size(kNames) && std::strcmp(kNames[i], name) != 0) ++i;
  }
  if (i == std::size(kNames)) {
    refuse(cudaErrorInvalidValue,
           "emulator: SPECDEC_EMULATOR_SCHEDULE must be in_order, reverse, shuffled or one_warp_ahead, got \"%s\"",
           name);
    return false;
  }
  schedule = choices[i];
  int64_t resident = schedule.resident;
  if (!read_number("SPECDEC_EMULATOR_RESIDENT", 1, resident)) return false;
  schedule.resident = static_cast<int>(resident < 1024 ? resident : 1024);
  return true;
}

cudaError_t check(const Shape& s) {
  const size_t threads = static_cast<size_t>(s.block.x) * s.block.y * s.block.z;
  const size_t blocks = static_cast<size_t>(s.grid.x) * s.grid.y * s.grid.z;
  if (threads == 0 || threads > kMaxThreads || s.block.z > 64) {
    return refuse(cudaErrorInvalidConfiguration,
                  "emulator: block must have 1 to %d threads (z to 64), got (%u, %u, %u)", kMaxThreads, s.block.x,
                  s.block.y, s.block.z);
  }
  if (s.grid.x > 0x7fffffffu || s.grid.y > 65535 || s.grid.z > 65535 || blocks == 0 || blocks > kMaxBlocks) {
    return refuse(cudaErrorInvalidConfiguration, "emulator: grid must have 1 to %zu blocks, got (%u, %u, %u)",
                  kMaxBlocks, s.grid.x, s.grid.y, s.grid.z);
  }
  if (s.cluster < 1 || s.cluster > kMaxCluster || s.grid.x % static_cast<unsigned>(s.cluster) != 0) {
    return refuse(cudaErrorInvalidConfiguration, "emulator: cluster must be 1 to %d and divide grid.x = %u, got %d",
                  kMaxCluster, s.grid.x, s.cluster);
  }
  if (s.shared_bytes > kMaxSharedBytes) {
    return refuse(cudaErrorInvalidValue, "emulator: shared_bytes must be at most %zu, got %zu", kMaxSharedBytes,
                  s.shared_bytes);
  }
  return cudaSuccess;
}

// ---- the grid ----

// Lays out the resident clusters; none runs yet.
bool furnish(const Shape& shape, size_t resident) {
  const size_t blocks = resident * static_cast<size_t>(shape.cluster);
  const size_t threads = static_cast<size_t>(shape.threads()), warps = static_cast<size_t>(shape.warps());
  g_state.clusters.assign(resident, {});
  g_state.blocks.assign(blocks, {});
  g_state.warps.assign(blocks * warps, {});
  if (g_state.fibers.size() < blocks * threads) g_state.fibers.resize(blocks * threads);
  for (size_t c = 0; c < resident; ++c) g_state.clusters[c].blocks = &g_state.blocks[c * shape.cluster];
  for (size_t b = 0; b < blocks; ++b) {
    Block& block = g_state.blocks[b];
    block.cluster = &g_state.clusters[b / shape.cluster];
    block.rank = static_cast<int>(b % shape.cluster);
    block.warps = &g_state.warps[b * warps];
    block.fibers = &g_state.fibers[b * threads];
    block.shared = allocate_shared(shape.shared_bytes);
    if (block.shared == nullptr) return false;
    for (size_t w = 0; w < warps; ++w) {
      block.warps[w].block = &block;
      block.warps[w].fibers = block.fibers + w * kLanes;
    }
    for (size_t t = 0; t < threads; ++t) {
      Fiber& fiber = block.fibers[t];
      fiber.block = &block;
      fiber.warp = &block.warps[t / kLanes];
      fiber.lane = static_cast<int>(t % kLanes);
      const unsigned linear = static_cast<unsigned>(t);
      fiber.index = {linear % shape.block.x, linear / shape.block.x % shape.block.y,
                     linear / (shape.block.x * shape.block.y)};
    }
  }
  return true;
}

// Starts the cluster of that number in a place that is free.
bool start(Cluster& cluster, size_t number) {
  const Shape& shape = g_shape;
  const size_t per_row = shape.grid.x / static_cast<unsigned>(shape.cluster);
  cluster.live = shape.cluster * shape.threads();
  cluster.barrier = {};
  for (int rank = 0; rank < shape.cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    block.index = {
        static_cast<unsigned>(number % per_row * static_cast<size_t>(shape.cluster)) + static_cast<unsigned>(rank),
        static_cast<unsigned>(number / per_row % shape.grid.y), static_cast<unsigned>(number / per_row / shape.grid.y)};
    block.live = shape.threads();
    block.barrier = {};
    open_shared(block.shared, shape.shared_bytes);
    for (int t = 0; t < shape.threads(); ++t) {
      Fiber& fiber = block.fibers[t];
      fiber.wait = Wait::none;
      fiber.copies.clear();
      fiber.copy_groups = 0;
      if (!prepare(fiber.context, static_cast<size_t>(&fiber - g_state.fibers.data()), fiber_main)) return false;
    }
    for (int w = 0; w < shape.warps(); ++w) {
      Warp& warp = block.warps[w];
      const int lanes = shape.threads() - w * kLanes;
      warp.live = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
      warp.gatherings = 0;
      g_state.scheduler.wake(warp, warp.live);
    }
  }
  return true;
}

// The next of the grid's clusters, in the order of the schedule.
class Queue {
 public:
  Queue(size_t count, const Schedule& schedule) : count_(count), reverse_(schedule.order == Order::reverse) {
    if (schedule.order == Order::in_order || reverse_) return;
    numbers_.resize(count);
    std::iota(numbers_.begin(), numbers_.end(), 0u);
    Dice dice(schedule.seed ^ 0x6772696420697321ull);
    shuffle(numbers_, dice);
  }
  bool empty() const { return next_ == count_; }
  size_t pop() {
    const size_t i = next_++;
    return reverse_ ? count_ - 1 - i : numbers_.empty() ? i : numbers_[i];
  }

 private:
  size_t count_;
  bool reverse_;
  size_t next_ = 0;
  std::vector<uint32_t> numbers_;
};

// Into a fiber, until it hands back.
Stop enter(Fiber& fiber) {
  g_state.stop = Stop::none;
  g_current = &fiber;
  switch_context(g_state.main, fiber.context);
  return g_state.stop;
}

cudaError_t run_grid(const Schedule& schedule) {
  constexpr const char* kNoMemory = "emulator: no memory for the stacks and the shared memory of the blocks";
  const size_t per_cluster = static_cast<size_t>(g_shape.cluster) * static_cast<size_t>(g_shape.threads());
  const size_t count = static_cast<size_t>(g_shape.grid.x) * g_shape.grid.y * g_shape.grid.z / g_shape.cluster;
  size_t resident = schedule.resident < 1 ? 1 : static_cast<size_t>(schedule.resident);
  if (resident > kMaxFibers / per_cluster) resident = kMaxFibers / per_cluster;
  if (resident > count) resident = count;
  Queue queue(count, schedule);
  if (!furnish(g_shape, resident)) return refuse(cudaErrorMemoryAllocation, "%s", kNoMemory);
  g_state.scheduler.begin(schedule, g_state.warps);
  for (Cluster& cluster : g_state.clusters) {
    if (!start(cluster, queue.pop())) return refuse(cudaErrorMemoryAllocation, "%s", kNoMemory);
  }
  size_t running = resident;
  Fiber* next = g_state.scheduler.after_release(g_state.blocks[0]);
  while (true) {
    const Stop stop = enter(*next);
    if (stop == Stop::failure) return report_failure(std::move(g_state.error));
    if (stop == Stop::deadlock) return report_failure(describe_deadlock());
    if (queue.empty()) {
      if (--running == 0) return cudaSuccess;
    } else if (!start(*g_current->block->cluster, queue.pop())) {
      return refuse(cudaErrorMemoryAllocation, "%s", kNoMemory);
    }
    next = g_state.scheduler.next(*g_current);
    if (next == nullptr) return report_failure(describe_deadlock());
  }
}

void clean_up() {
  for (Block& block : g_state.blocks) {
    free_shared(block.shared, g_shape.shared_bytes);
    if (block.fibers == nullptr) continue;
    for (int t = 0; t < g_shape.threads(); ++t) forget(block.fibers[t].context);
  }
  g_state.blocks.clear();
  g_state.error.clear();
  g_current = nullptr;
}

}  // namespace

cudaError_t run(const Shape& shape, const Kernel& kernel) {
  if (g_owner.load() == std::this_thread::get_id()) {
    return refuse(cudaErrorNotSupported, "emulator: a kernel must not launch a kernel");
  }
  const std::lock_guard<std::mutex> lock(g_mutex);
  Schedule schedule;
  int64_t limit = g_step_limit > 0 ? g_step_limit : kStepLimit;
  t_last = {};
  if (g_schedule != nullptr) {
    schedule = *g_schedule;
  } else if (!read_environment(schedule)) {
    return cudaErrorInvalidValue;
  }
  if (const cudaError_t error = check(shape); error != cudaSuccess) return error;
  g_owner = std::this_thread::get_id();
  g_shape = shape;
  g_report = {};
  g_report.launches = 1;
  g_state.kernel = kernel;
  g_state.step_limit = limit;
  g_state.steps_since_switch = 0;
  const cudaError_t error = run_grid(schedule);
  clean_up();
  t_last = g_report;
  t_total.launches += t_last.launches;
  t_total.global_bytes_read += t_last.global_bytes_read;
  t_total.global_bytes_written += t_last.global_bytes_written;
  t_total.steps += t_last.steps;
  t_total.switches += t_last.switches;
  g_owner = std::thread::id();
  return error;
}

UseSchedule::UseSchedule(const Schedule& schedule) : mine_(schedule) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  before_ = g_schedule;
  g_schedule = &mine_;
}

UseSchedule::~UseSchedule() {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_schedule = before_;
}

Device device() {
  const char* name = std::getenv("SPECDEC_EMULATOR_DEVICE");
  const bool old = name != nullptr && std::strcmp(name, "80") == 0;
  return old ? Device{1, 163 * 1024, 1} : Device{8, static_cast<int64_t>(kMaxSharedBytes), 132};
}

Report last_launch() { return t_last; }
Report total() { return t_total; }
void reset_total() { t_total = {}; }

void set_step_limit(int64_t steps) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  g_step_limit = steps;
}

}  // namespace specdec::emulator

namespace specdec {
const char* emulator_last_error() { return emulator::t_error.c_str(); }
}  // namespace specdec
