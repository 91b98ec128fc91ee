// SPDX-License-Identifier: Apache-2.0
// The emulator finds what is wrong: every kernel here has one bug.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "emulator_kernels.cuh"
#include "testing.h"

using namespace specdec;
using namespace specdec::cuda;
using testing::Guarded;

#if defined(SPECDEC_EMULATOR_ASAN)
constexpr bool kAsan = true;
#else
constexpr bool kAsan = false;
#endif

namespace {

std::vector<emulator::Schedule> orders() {
  return {emulator::in_order(), emulator::reverse(), emulator::shuffled(1), emulator::one_warp_ahead(1)};
}

// Every one of `parts` is in the message.
void expect_error(cudaError_t error, std::initializer_list<std::string> parts) {
  const std::string text = emulator_last_error();
  CHECK(error == cudaErrorLaunchFailure, "code %d", error);
  for (const std::string& part : parts) {
    CHECK(text.find(part) != std::string::npos, "\"%s\" lacks \"%s\"", text.c_str(), part.c_str());
  }
}

std::string line(int number) { return "emulator_errors.cpp:" + std::to_string(number); }

// What the address sanitizer says of `body`, run in a child process: the kind of error, or nothing.
template <class Body>
std::string verdict(const Body& body) {
  int ends[2];
  CHECK(pipe(ends) == 0);
  std::fflush(nullptr);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(ends[0], buffer, sizeof(buffer))) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  const std::string marker = "AddressSanitizer: ";
  const size_t begin = text.find(marker);
  CHECK((begin == std::string::npos) == (WIFEXITED(status) && WEXITSTATUS(status) == 0), "%s", text.c_str());
  if (begin == std::string::npos) return "";
  return text.substr(begin + marker.size(), text.find(' ', begin + marker.size()) - begin - marker.size());
}

// ---- barriers that are missing ----
template <SoftmaxBug kBug>
bool softmax_right(const emulator::Schedule& schedule) {
  constexpr int64_t kColumns = 1024;
  static const std::vector<float> row = [] {
    testing::Numbers numbers(2);
    std::vector<float> values(kColumns);
    for (float& value : values) value = numbers.symmetric();
    return values;
  }();
  double sum = 0;
  for (const float value : row) sum += std::exp(static_cast<double>(value));
  float out = 0;
  const emulator::UseSchedule use(schedule);
  const cudaError_t error =
      launch(softmax_kernel<256, kBug>, {1, 256, sizeof(SoftmaxStorage<256>)}, SoftmaxCall{row.data(), &out, kColumns});
  return error == cudaSuccess && std::fabs(out - std::log(sum)) < 1e-5;
}

// The result is that of warp 0: it must have read while others had not written, or had written again. So not every
// order shows it, but most of ten do.
void test_missing_syncthreads() {
  int early_ahead = 0, early_shuffled = 0, late_ahead = 0, late_shuffled = 0;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const emulator::Schedule ahead = emulator::one_warp_ahead(seed), shuffled = emulator::shuffled(seed);
    CHECK(softmax_right<SoftmaxBug::none>(ahead) && softmax_right<SoftmaxBug::none>(shuffled));
    early_ahead += !softmax_right<SoftmaxBug::write_to_read>(ahead);
    early_shuffled += !softmax_right<SoftmaxBug::write_to_read>(shuffled);
    late_ahead += !softmax_right<SoftmaxBug::read_to_write>(ahead);
    late_shuffled += !softmax_right<SoftmaxBug::read_to_write>(shuffled);
  }
  CHECK(early_ahead >= 5 && early_shuffled >= 5 && late_ahead >= 5 && late_shuffled >= 1, "%d %d %d %d", early_ahead,
        early_shuffled, late_ahead, late_shuffled);
}

struct WarpStorage {
  int value[32];
};

template <int kFrom>
__global__ void missing_syncwarp_kernel(int* out) {
  auto& shared = shared_storage<WarpStorage>();
  const int lane = static_cast<int>(threadIdx.x);
  shared.value[lane] = lane;
  out[lane] = shared.value[(lane + kFrom) % 32];
}

void test_missing_syncwarp() {
  const auto wrong = [](void (*kernel)(int*), const emulator::Schedule& schedule) {
    const emulator::UseSchedule use(schedule);
    int out[32];
    CHECK(launch(kernel, {1, 32, sizeof(WarpStorage)}, out) == cudaSuccess);
    int poisoned = 0;
    for (const int value : out) poisoned += value == -1;
    return poisoned;
  };
  CHECK(wrong(missing_syncwarp_kernel<1>, emulator::in_order()) == 31);  // all but the last read ahead
  CHECK(wrong(missing_syncwarp_kernel<31>, emulator::in_order()) == 1);
  CHECK(wrong(missing_syncwarp_kernel<31>, emulator::reverse()) == 31);
  for (uint64_t seed = 0; seed < 10; ++seed) {
    CHECK(wrong(missing_syncwarp_kernel<1>, emulator::shuffled(seed)) >= 4);
    CHECK(wrong(missing_syncwarp_kernel<31>, emulator::shuffled(seed)) >= 4);
  }
}

void test_missing_cluster_sync() {
  const std::vector<int> values = {3, 5, 7, 11};
  int sums[4 * 64];
  const Launch how{4, 64, sizeof(ClusterStorage), nullptr, 4};
  for (const emulator::Schedule& schedule : orders()) {
    const emulator::UseSchedule use(schedule);
    CHECK(launch(cluster_kernel<>, how, ClusterCall{values.data(), sums}) == cudaSuccess, "%s", emulator_last_error());
    const cudaError_t first = launch(cluster_kernel<ClusterBug::no_first_sync>, how, ClusterCall{values.data(), sums});
    bool wrong = first != cudaSuccess;
    for (int i = 0; i < 4 * 64; ++i) wrong |= sums[i] != 26 * ((i + 1) % 64 + 1);
    CHECK(wrong);
  }
  // A block must not end while others read its memory: some order shows it.
  int found = 0;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const emulator::UseSchedule use(emulator::one_warp_ahead(seed));
    const cudaError_t last = launch(cluster_kernel<ClusterBug::no_last_sync>, how, ClusterCall{values.data(), sums});
    if (last == cudaSuccess) continue;
    expect_error(last, {"cluster_map to rank", "which has exited", "emulator_kernels.cuh:"});
    ++found;
  }
  CHECK(found >= 5, "%d", found);
}

// ---- barriers and collectives that do not fit together ----
constexpr int kBranchLine = __LINE__ + 4;
__global__ void branch_barrier_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t < 32) {
    __syncthreads();
    *out = 1;
  } else {
    __syncthreads();
    *out = 2;
  }
}

constexpr int kStuckLine = __LINE__ + 4;
__global__ void stuck_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 40) {
    *out = __shfl_sync(~0u, t, 0);
  } else {
    __syncthreads();
  }
}

constexpr int kExitedLine = __LINE__ + 4;
__global__ void exited_lane_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t >= 20) return;
  *out = __shfl_down_sync(~0u, t, 1u);
}

constexpr int kMixedLine = __LINE__ + 4;
__global__ void mixed_kinds_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % 2 == 0) {
    *out = static_cast<int>(__ballot_sync(~0u, t));
  } else {
    *out = __any_sync(~0u, t);
  }
}

constexpr int kMasksLine = __LINE__ + 3;
__global__ void mixed_masks_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  *out = __shfl_sync(t == 7 ? 0xffffu : ~0u, t, 0);
}

__global__ void own_mask_kernel(int* out) { *out = __shfl_sync(1u, static_cast<int>(threadIdx.x), 0); }

__global__ void outside_mask_kernel(int* out) {
  if (threadIdx.x < 16) *out = __shfl_sync(0xffffu, 1, 20);
}

__global__ void short_warp_kernel(int* out) { *out = __shfl_xor_sync(~0u, 1, 1); }

__global__ void cluster_barrier_kernel(int* out) {
  if (blockIdx.x == 0) {
    cluster_sync();
  } else {
    __syncthreads();
    *out = cluster_rank();
    __syncwarp();
    if (threadIdx.x == 0) cluster_sync();
    __syncthreads();
  }
}

void test_divergence() {
  for (const emulator::Schedule& schedule : orders()) {
    const emulator::UseSchedule use(schedule);
    int out = 0;
    expect_error(launch(branch_barrier_kernel, {1, 64}, &out),
                 {"divergent barrier: __syncthreads, while thread", line(kBranchLine), line(kBranchLine + 3)});
    expect_error(launch(stuck_kernel, {1, 64}, &out),
                 {"deadlock (divergent barrier)", "block (0, 0, 0)", "63 threads", "in __syncthreads",
                  "1 thread (40, 0, 0) in __shfl_sync with mask 0xffffffff", line(kStuckLine), line(kStuckLine + 2)});
    expect_error(launch(exited_lane_kernel, {1, 32}, &out),
                 {"__shfl_down_sync with mask 0xffffffff", "exited", line(kExitedLine)});
    expect_error(launch(mixed_kinds_kernel, {1, 32}, &out),
                 {"deadlock (mismatched collectives)", "16 threads", "__ballot_sync", "__any_sync", line(kMixedLine),
                  line(kMixedLine + 2)});
    expect_error(launch(mixed_masks_kernel, {1, 32}, &out), {"deadlock (mismatched collectives)", "31 threads",
                                                             "1 thread (7, 0, 0)", "0x0000ffff", line(kMasksLine)});
    expect_error(launch(own_mask_kernel, {1, 32}, &out), {"which leaves out the caller", "emulator_errors.cpp:"});
    expect_error(launch(outside_mask_kernel, {1, 32}, &out), {"reads lane 20, which is not in it"});
    expect_error(launch(short_warp_kernel, {1, 48}, &out), {"lane 16 does not exist"});
    expect_error(launch(cluster_barrier_kernel, {2, 32, 0, nullptr, 2}, &out), {"divergent barrier", "cluster_sync"});
  }
}

// ---- memory ----
struct RowStorage {
  int value[64];
};

// Reads before anything was written.
__global__ void uninitialised_kernel(float* out) {
  auto& shared = shared_storage<RowStorage>();
  out[threadIdx.x] = reinterpret_cast<const float*>(shared.value)[threadIdx.x];
}

__global__ void shared_write_kernel(int index) {
  int* values = shared_storage<RowStorage>().value;
  values[threadIdx.x == 5 ? index : 0] = 1;
}

__global__ void global_write_kernel(int* out, int size) {
  if (static_cast<int>(threadIdx.x) <= size) out[threadIdx.x] = 1;
}

__global__ void remote_write_kernel(int index) {
  auto& shared = shared_storage<RowStorage>();
  cluster_sync();
  int* other = cluster_map(shared.value, 1 - cluster_rank());
  if (cluster_rank() == 0 && threadIdx.x == 0) other[index] = 1;
  cluster_sync();
}

// Block 0 reads the memory of block 1, which may have ended.
__global__ void late_read_kernel() {
  auto& shared = shared_storage<RowStorage>();
  const int* other = cluster_map(shared.value, 1 - cluster_rank());
  cluster_sync();
  if (cluster_rank() == 0) shared.value[threadIdx.x] = other[threadIdx.x];
}

// The compiler must not see that the index is wrong.
int opaque(int value) {
  volatile int hidden = value;
  return hidden;
}

void test_memory() {
  float out[64];
  CHECK(launch(uninitialised_kernel, {1, 64, sizeof(RowStorage)}, out) == cudaSuccess);
  for (const float value : out) CHECK(std::isnan(value));

  const auto write_shared = [](int index) {
    return launch(shared_write_kernel, {3, 32, sizeof(RowStorage)}, opaque(index));
  };
  const auto write_remote = [](int index) {
    return launch(remote_write_kernel, {2, 32, sizeof(RowStorage), nullptr, 2}, opaque(index));
  };
  CHECK(write_shared(63) == cudaSuccess && write_remote(63) == cudaSuccess);
  if (kAsan) {
    CHECK(verdict([&] { write_shared(64); }) == "heap-buffer-overflow");
    CHECK(verdict([&] { write_shared(-1); }) == "heap-buffer-overflow");
    CHECK(verdict([&] { write_remote(64); }) == "heap-buffer-overflow");
    CHECK(verdict([&] { write_remote(0); }).empty());
    const auto write_global = [](int size) {
      std::vector<int> values(20);
      return launch(global_write_kernel, {1, 32}, values.data(), size);
    };
    CHECK(verdict([&] { write_global(19); }).empty());
    CHECK(verdict([&] { write_global(20); }) == "heap-buffer-overflow");
    int found = 0;
    for (uint64_t seed = 0; seed < 8; ++seed) {
      const emulator::UseSchedule use(emulator::one_warp_ahead(seed));
      const std::string text = verdict([] { launch(late_read_kernel, {2, 32, sizeof(RowStorage), nullptr, 2}); });
      CHECK(text.empty() || text == "use-after-poison");
      found += !text.empty();
    }
    CHECK(found >= 2, "%d", found);
  } else {
    for (int again = 0; again < 2; ++again) {
      expect_error(write_shared(64), {"byte 256 of shared memory of 256 bytes was written", "the end of block"});
      expect_error(write_shared(-1), {"out of bounds: byte -1 of"});
      expect_error(write_remote(70), {"byte 280 of", "block (1, 0, 0)"});
    }
    Guarded<int> values(20);
    CHECK(launch(global_write_kernel, {1, 32}, values.data(), 19) == cudaSuccess && values.intact());
    CHECK(launch(global_write_kernel, {1, 32}, values.data(), 20) == cudaSuccess && !values.intact());
  }
}

// ---- pointers of the wrong kind ----
__global__ void misaligned_kernel(const int* values, uint4* out) {
  *out = load_once(reinterpret_cast<const uint4*>(values + 1));
}
__global__ void shared_load_kernel(int* out) { *out = load_once(&shared_storage<RowStorage>().value[3]); }
__global__ void copy_to_global_kernel(int* out) { cp_async_16(out, out); }
__global__ void copy_from_shared_kernel() {
  auto& shared = shared_storage<RowStorage>();
  cp_async_16(&shared.value[0], &shared.value[4]);
}
__global__ void map_kernel(int* out) { *out = *cluster_map(out, 0); }
__global__ void rank_kernel() { cluster_map(shared_storage<RowStorage>().value, 2); }
__global__ void trap_kernel() {
  if (threadIdx.x == 3) __trap();
  __syncthreads();
}

void test_pointers() {
  alignas(16) int values[8] = {};
  uint4 out;
  expect_error(launch(misaligned_kernel, {1, 1}, values, &out),
               {"load_once of an address that is not a multiple of 16"});
  expect_error(launch(shared_load_kernel, {1, 1, sizeof(RowStorage)}, values), {"load_once of shared memory"});
  expect_error(launch(copy_to_global_kernel, {1, 1, 16}, values), {"cp_async_16 to what is not"});
  expect_error(launch(copy_from_shared_kernel, {1, 1, sizeof(RowStorage)}), {"cp_async_16 of shared memory"});
  expect_error(launch(map_kernel, {1, 1, 16}, values), {"cluster_map of a pointer that is not"});
  expect_error(launch(rank_kernel, {2, 1, sizeof(RowStorage), nullptr, 2}), {"cluster_map to rank 2 of 2"});
  expect_error(launch(shared_write_kernel, {1, 32, sizeof(RowStorage) - 1}, 0),
               {"shared_storage of 256 bytes in a launch with 255 bytes"});
  expect_error(launch(trap_kernel, {1, 64}), {"__trap; in thread (3, 0, 0) of block (0, 0, 0) at"});
}

// ---- deadlocks, spins, launches that cannot be ----
__global__ void half_waits_kernel() {
  if (threadIdx.x % 2 == 0) __syncwarp();
}

__global__ void spin_kernel(int* flag) {
  while (atomicAdd(flag, 0) == 0) {
  }
}

// Threads of one block may wait for each other: it ends.
__global__ void handover_kernel(int* flag) {
  if (threadIdx.x == 0) {
    while (atomicAdd(flag, 0) == 0) {
    }
  } else if (threadIdx.x == 63) {
    atomicExch(flag, 1);
  }
}

__global__ void nested_kernel(int* out) { *out = launch(half_waits_kernel, {1, 32}); }

void test_limits() {
  expect_error(launch(half_waits_kernel, {1, 32}), {"exited", "__syncwarp with mask 0xffffffff"});
  int flag = 0;
  emulator::set_step_limit(10000);
  for (const emulator::Schedule& schedule : orders()) {
    const emulator::UseSchedule use(schedule);
    flag = 0;
    expect_error(launch(spin_kernel, {2, 64}, &flag), {"more than 10000 steps", "emulator_errors.cpp:"});
    CHECK(launch(handover_kernel, {1, 64}, &flag) == cudaSuccess, "%s", emulator_last_error());
  }
  emulator::set_step_limit(0);
  const auto refused = [](const Launch& how, cudaError_t code, const char* text) {
    const cudaError_t error = launch(half_waits_kernel, how);
    CHECK(error == code && std::string(emulator_last_error()).find(text) != std::string::npos, "%d: %s", error,
          emulator_last_error());
  };
  refused({0, 32}, cudaErrorInvalidConfiguration, "grid must have");
  refused({1, 1025}, cudaErrorInvalidConfiguration, "block must have 1 to 1024 threads");
  refused({1, 0}, cudaErrorInvalidConfiguration, "block must have");
  refused({3, 32, 0, nullptr, 2}, cudaErrorInvalidConfiguration,
          "cluster must be 1 to 16 and divide grid.x = 3, got 2");
  refused({1, 32, 227 * 1024 + 1}, cudaErrorInvalidValue, "shared_bytes must be at most 232448, got 232449");
  int nested = 0;
  CHECK(launch(nested_kernel, {1, 1}, &nested) == cudaSuccess && nested == cudaErrorNotSupported);
}

// After any error the next launch is as good as new.
void test_recovery() {
  for (int again = 0; again < 50; ++again) {
    const emulator::UseSchedule use(again % 2 == 0 ? emulator::shuffled(static_cast<uint64_t>(again))
                                                   : emulator::one_warp_ahead(static_cast<uint64_t>(again)));
    int out = 0;
    CHECK(launch(stuck_kernel, {5, 256}, &out) == cudaErrorLaunchFailure);
    CHECK(softmax_right<SoftmaxBug::none>(emulator::shuffled(static_cast<uint64_t>(again))));
  }
}

}  // namespace

int main() {
  test_missing_syncthreads();
  test_missing_syncwarp();
  test_missing_cluster_sync();
  test_divergence();
  test_memory();
  test_pointers();
  test_limits();
  test_recovery();
  std::puts("ok");
  return 0;
}
