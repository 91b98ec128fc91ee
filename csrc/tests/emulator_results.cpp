// SPDX-License-Identifier: Apache-2.0
// The emulator runs right kernels right, in every order, to the same bits.
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

#include "emulator_kernels.cuh"
#include "testing.h"

using namespace specdec;
using namespace specdec::cuda;
using testing::Guarded;
using testing::Numbers;

namespace {

const std::vector<emulator::Schedule>& schedules() {
  static const std::vector<emulator::Schedule> all = [] {
    std::vector<emulator::Schedule> list = {emulator::in_order(),
                                            emulator::reverse(),
                                            {emulator::Order::in_order, 0, 5},
                                            {emulator::Order::reverse, 0, 3},
                                            {emulator::Order::shuffled, 7, 1},
                                            {emulator::Order::one_warp_ahead, 7, 1}};
    for (uint64_t seed = 0; seed < 6; ++seed) {
      list.push_back(emulator::shuffled(seed));
      list.push_back(emulator::one_warp_ahead(seed));
    }
    return list;
  }();
  return all;
}

void must(cudaError_t error) { CHECK(error == cudaSuccess, "%d: %s", error, emulator_last_error()); }

void on_every_schedule(const std::function<void()>& body) {
  for (const emulator::Schedule& schedule : schedules()) {
    const emulator::UseSchedule use(schedule);
    body();
  }
}

std::vector<float> random_floats(int64_t count, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = numbers.symmetric() * 8;
  return values;
}

std::vector<int> random_ints(int64_t count, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<int> values(static_cast<size_t>(count));
  for (int& value : values) value = static_cast<int>(numbers.below(2001)) - 1000;
  return values;
}

void test_softmax() {
  constexpr int kThreads = 256;
  constexpr int64_t kRows = 6, kColumns = 4096;
  const std::vector<float> rows = random_floats(kRows * kColumns, 1);
  std::vector<float> first;
  on_every_schedule([&] {
    Guarded<float> out(kRows);
    must(launch(softmax_kernel<kThreads>, {kRows, kThreads, sizeof(SoftmaxStorage<kThreads>)},
                SoftmaxCall{rows.data(), out.data(), kColumns}));
    CHECK(out.intact());
    const emulator::Report report = emulator::last_launch();
    CHECK(report.global_bytes_read == 2 * kRows * kColumns * 4 && report.global_bytes_written == kRows * 4);
    CHECK(report.steps == kRows * kThreads * 2 * (5 + 2), "%ld", static_cast<long>(report.steps));
    if (first.empty()) first.assign(out.data(), out.data() + kRows);
    CHECK(testing::same_bits(first.data(), out.data(), kRows));
  });
  for (int64_t row = 0; row < kRows; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < kColumns; ++i) sum += std::exp(static_cast<double>(rows[row * kColumns + i]));
    CHECK(std::fabs(first[row] - std::log(sum)) < 1e-5);
  }
}

void test_compact() {
  for (const int size : {0, 1, 31, 128, 1000}) {
    const std::vector<int> values = random_ints(size, static_cast<uint64_t>(size) + 3);
    std::vector<int> expected;
    for (int i = 0; i < size; ++i) {
      if (values[i] > 0) expected.push_back(i);
    }
    on_every_schedule([&] {
      Guarded<int> indices(size), count(1);
      must(launch(compact_kernel, {1, 128, sizeof(CompactStorage)},
                  CompactCall{values.data(), indices.data(), count.data(), size}));
      CHECK(indices.intact() && count[0] == static_cast<int>(expected.size()));
      CHECK(testing::same_bits(indices.data(), expected.data(), count[0]));
      CHECK(emulator::last_launch().global_bytes_read == size * 4 &&
            emulator::last_launch().global_bytes_written == count[0] * 4);
    });
  }
}

void test_grid_sum() {
  const std::vector<int> values = random_ints(3000, 5);
  int expected = 0;
  for (const int value : values) expected += value;
  for (const unsigned blocks : {1u, 2u, 13u}) {
    on_every_schedule([&] {
      Guarded<int> partial(blocks);
      int sum = -1, finishers = 0;
      unsigned ticket = 0;
      const GridSumCall call{values.data(), partial.data(), &ticket, &sum, &finishers, 3000};
      for (int again = 1; again <= 2; ++again) {
        must(launch(grid_sum_kernel, {blocks, 64, sizeof(GridSumStorage)}, call));
        CHECK(sum == expected && finishers == again && ticket == 0 && partial.intact());
      }
    });
  }
}

void test_clusters() {
  for (const int cluster : {1, 2, 4, 8, 16}) {
    const int grid = cluster * 3;
    const std::vector<int> values = random_ints(grid, 6);
    on_every_schedule([&] {
      Guarded<int> sums(grid * 64);
      must(launch(cluster_kernel<>, {static_cast<unsigned>(grid), 64, sizeof(ClusterStorage), nullptr, cluster},
                  ClusterCall{values.data(), sums.data()}));
      CHECK(sums.intact());
      for (int b = 0; b < grid; ++b) {
        int total = 0;
        for (int i = 0; i < cluster; ++i) total += values[b / cluster * cluster + i];
        for (int t = 0; t < 64; ++t) CHECK(sums[b * 64 + t] == total * ((t + 1) % 64 + 1));
      }
    });
  }
}

void test_early_exit() {
  for (const int stay : {32, 64, 128}) {
    on_every_schedule([&] {
      int counts[3] = {};
      must(launch(early_exit_kernel, {1, 128}, EarlyCall{counts, stay}));
      CHECK(counts[0] == stay && counts[1] == stay / 2 && counts[2] == 3);
    });
  }
}

// ---- every warp collective against its definition ----
struct CollectiveCall {
  const int* values;
  long long* out;  // [kResults, 32]
};
constexpr int kResults = 17;

__global__ void collective_kernel(const __grid_constant__ CollectiveCall p) {
  const int lane = static_cast<int>(threadIdx.x);
  const int value = p.values[lane];
  int next = 0;
  const auto put = [&](long long result) { p.out[next++ * 32 + lane] = result; };
  put(__shfl_sync(~0u, value, lane * 7, 32));
  put(__shfl_sync(~0u, value, lane * 5 + 3, 8));
  put(__shfl_up_sync(~0u, value, 3u));
  put(__shfl_up_sync(~0u, value, 2u, 4));
  put(__shfl_down_sync(~0u, value, 5u));
  put(__shfl_down_sync(~0u, value, 1u, 2));
  put(__shfl_xor_sync(~0u, value, 9));
  put(__shfl_xor_sync(~0u, value, 16, 16));
  put(__shfl_sync(~0u, static_cast<long long>(value) << 33, 31 - lane));
  put(static_cast<long long>(__shfl_xor_sync(~0u, value * 0.5, 1) * 2));
  put(__ballot_sync(~0u, value > 0));
  put(__any_sync(~0u, value > 990) * 2 + __all_sync(~0u, value > -2000));
  put(__match_any_sync(~0u, value % 3));
  put(__reduce_add_sync(~0u, value));
  put(__reduce_min_sync(~0u, value) * 10000LL + __reduce_max_sync(~0u, value));
  put(__reduce_and_sync(~0u, static_cast<unsigned>(value)) ^ __reduce_or_sync(~0u, static_cast<unsigned>(value)));
  // Different masks at the same time, and a nested one before its surroundings.
  int part = 0;
  if (lane % 2 == 0) {
    if (lane < 8) part = __reduce_add_sync(0x55u, value);
    part += __reduce_add_sync(0x55555555u, value);
  } else {
    part = __reduce_max_sync(0xaaaaaaaau, value);
  }
  __syncwarp();
  put(part);
}

void test_collectives() {
  const std::vector<int> v = random_ints(32, 8);
  std::vector<long long> expected;
  const auto each = [&](const std::function<long long(int)>& result) {
    for (int lane = 0; lane < 32; ++lane) expected.push_back(result(lane));
  };
  const auto any = [&](const std::function<bool(int)>& test) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= test(v[i]) ? 1u << i : 0u;
    return bits;
  };
  int sum = 0, first_even = 0, even = 0, highest_odd = INT32_MIN;
  unsigned all_bits = ~0u, some_bits = 0;
  for (int i = 0; i < 32; ++i) {
    sum += v[i];
    if (i % 2 == 0) even += v[i];
    if (i % 2 == 0 && i < 8) first_even += v[i];
    if (i % 2 == 1) highest_odd = std::max(highest_odd, v[i]);
    all_bits &= static_cast<unsigned>(v[i]);
    some_bits |= static_cast<unsigned>(v[i]);
  }
  each([&](int l) { return v[l * 7 % 32]; });
  each([&](int l) { return v[l / 8 * 8 + (l * 5 + 3) % 8]; });
  each([&](int l) { return v[l < 3 ? l : l - 3]; });
  each([&](int l) { return v[l % 4 < 2 ? l : l - 2]; });
  each([&](int l) { return v[l > 26 ? l : l + 5]; });
  each([&](int l) { return v[l % 2 == 1 ? l : l + 1]; });
  each([&](int l) { return v[l ^ 9]; });
  each([&](int l) { return v[l < 16 ? l : l ^ 16]; });  // later groups are out of reach, earlier ones are not
  each([&](int l) { return static_cast<long long>(v[31 - l]) * (1LL << 33); });
  each([&](int l) { return v[l ^ 1]; });
  each([&](int) { return any([](int x) { return x > 0; }); });
  each([&](int) { return (any([](int x) { return x > 990; }) != 0 ? 2 : 0) + 1; });
  each([&](int l) { return any([&](int x) { return x % 3 == v[l] % 3; }); });
  each([&](int) { return sum; });
  each([&](int) { return *std::min_element(v.begin(), v.end()) * 10000LL + *std::max_element(v.begin(), v.end()); });
  each([&](int) { return all_bits ^ some_bits; });
  each([&](int l) { return l % 2 == 1 ? highest_odd : even + (l < 8 ? first_even : 0); });
  on_every_schedule([&] {
    Guarded<long long> out(kResults * 32);
    must(launch(collective_kernel, {1, 32}, CollectiveCall{v.data(), out.data()}));
    CHECK(out.intact());
    for (int i = 0; i < kResults * 32; ++i) {
      CHECK(out[i] == expected[i], "result %d of lane %d: %lld, %lld", i / 32, i % 32, out[i], expected[i]);
    }
  });
}

// ---- indices, atomics, small functions ----
struct IndexCall {
  int* visits;    // [grid * block]
  int* counters;  // add, max, min, or, cas
  float* float_sum;
};

__global__ void index_kernel(const __grid_constant__ IndexCall p) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const int id = static_cast<int>(block * threads + thread);
  atomicAdd(&p.visits[id], 1);
  atomicAdd(&p.counters[0], id);
  atomicMax(&p.counters[1], id);
  atomicMin(&p.counters[2], -id);
  atomicOr(&p.counters[3], 1 << id % 20);
  int seen = p.counters[4];
  while (true) {
    const int found = atomicCAS(&p.counters[4], seen, seen + 2);
    if (found == seen) break;
    seen = found;
  }
  atomicAdd(p.float_sum, 0.5f);
}

void test_indices() {
  const dim3 grid(3, 2, 2), block(5, 3, 4);
  constexpr int kAll = 12 * 60;
  on_every_schedule([&] {
    Guarded<int> visits(kAll);
    for (int i = 0; i < kAll; ++i) visits[i] = 0;
    int counters[5] = {};
    float float_sum = 0;
    must(launch(index_kernel, {grid, block}, IndexCall{visits.data(), counters, &float_sum}));
    CHECK(visits.intact() && std::all_of(visits.data(), visits.data() + kAll, [](int n) { return n == 1; }));
    CHECK(counters[0] == kAll * (kAll - 1) / 2 && counters[1] == kAll - 1 && counters[2] == 1 - kAll &&
          counters[3] == (1 << 20) - 1 && counters[4] == 2 * kAll && float_sum == kAll * 0.5f);
  });
}

void test_functions() {
  CHECK(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4);
  CHECK(__ffs(0) == 0 && __ffsll(1ll << 40) == 41 && __brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u);
  CHECK(__brevll(2ull) == 1ull << 62 && __umulhi(~0u, ~0u) == ~0u - 1 && __mulhi(-1, 5) == -1);
  CHECK(__byte_perm(0x03020100u, 0x07060504u, 0x7410u) == 0x07040100u);
  CHECK(__byte_perm(0x00008000u, 0u, 0x9999u) == 0xffffffffu);
  CHECK(__funnelshift_l(0x80000000u, 1u, 1) == 3u && __funnelshift_r(1u, 1u, 1) == 0x80000000u);
  CHECK(__float_as_uint(1.0f) == 0x3f800000u && __int_as_float(0x40000000) == 2.0f);
  CHECK(__float2int_rz(1e20f) == INT32_MAX && __float2int_rz(NAN) == 0 && __float2int_rn(2.5f) == 2);
  CHECK(__float2uint_rz(-3.0f) == 0u && __float2uint_rz(1e20f) == UINT32_MAX);
  CHECK(min(-1, 1) == -1 && max(2u, 3u) == 3u && min(5ll, 4ll) == 4 && max(NAN, 1.0f) == 1.0f);
}

// ---- what surrounds a kernel ----
void test_environment() {
  int counts[3] = {};
  const auto run = [&] { return launch(early_exit_kernel, {1, 128}, EarlyCall{counts, 64}); };
  for (const char* name : {"in_order", "reverse", "shuffled", "one_warp_ahead", ""}) {
    setenv("SPECDEC_EMULATOR_SCHEDULE", name, 1);
    setenv("SPECDEC_EMULATOR_SEED", "12", 1);
    must(run());
  }
  setenv("SPECDEC_EMULATOR_SEED", "x", 1);
  CHECK(run() == cudaErrorInvalidValue);
  CHECK(std::string(emulator_last_error()) == "emulator: SPECDEC_EMULATOR_SEED must be an integer from 0, got \"x\"");
  unsetenv("SPECDEC_EMULATOR_SEED");
  setenv("SPECDEC_EMULATOR_SCHEDULE", "random", 1);
  CHECK(run() == cudaErrorInvalidValue);
  CHECK(std::string(emulator_last_error()) ==
        "emulator: SPECDEC_EMULATOR_SCHEDULE must be in_order, reverse, shuffled or one_warp_ahead, got \"random\"");
  unsetenv("SPECDEC_EMULATOR_SCHEDULE");
}

// One seed is one order.
void test_reproducible() {
  const std::vector<int> values = random_ints(3000, 5);
  std::vector<int> partial(13);
  for (const auto& make : {emulator::shuffled, emulator::one_warp_ahead}) {
    std::vector<int64_t> switches;
    for (const uint64_t seed : {1, 2, 1}) {
      int sum = 0, finishers = 0;
      unsigned ticket = 0;
      const emulator::UseSchedule use(make(seed));
      must(launch(grid_sum_kernel, {13, 64, sizeof(GridSumStorage)},
                  GridSumCall{values.data(), partial.data(), &ticket, &sum, &finishers, 3000}));
      switches.push_back(emulator::last_launch().switches);
    }
    CHECK(switches[0] == switches[2]);
  }
}

void test_host_threads() {
  emulator::reset_total();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 20; ++i) {
        int counts[3] = {};
        must(launch(early_exit_kernel, {1, 128}, EarlyCall{counts, 32 * (t + 1)}));
        CHECK(counts[0] == 32 * (t + 1));
      }
      CHECK(emulator::total().launches == 20);
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(emulator::total().launches == 0);
}

}  // namespace

int main() {
  test_functions();
  test_softmax();
  test_compact();
  test_grid_sum();
  test_clusters();
  test_early_exit();
  test_collectives();
  test_indices();
  test_environment();
  test_reproducible();
  test_host_threads();
  std::puts("ok");
  return 0;
}
