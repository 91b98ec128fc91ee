// SPDX-License-Identifier: Apache-2.0
// Kernels that the emulator's tests run. They use what the library's kernels use, and compile with nvcc as well. Some
// take a bug as a template parameter.
#pragma once

#include "../cuda/instructions.cuh"

namespace specdec::cuda {

inline constexpr int kWarp = 32;

// ---- sum of exponentials of a row: shuffles, shared memory, a loop that uses it again ----

enum class SoftmaxBug { none, write_to_read, read_to_write };

struct SoftmaxCall {
  const float* rows;
  float* out;  // log of the sum of exponentials, per row
  int64_t columns;
};

template <int kThreads>
struct SoftmaxStorage {
  float partial[kThreads / kWarp];
};

template <int kThreads, SoftmaxBug kBug, class Combine>
__device__ float block_reduce(float mine, SoftmaxStorage<kThreads>& shared, const Combine& combine) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) mine = combine(mine, __shfl_xor_sync(~0u, mine, offset));
  if constexpr (kBug != SoftmaxBug::read_to_write) __syncthreads();
  if (threadIdx.x % kWarp == 0) shared.partial[threadIdx.x / kWarp] = mine;
  if constexpr (kBug != SoftmaxBug::write_to_read) __syncthreads();
  float all = shared.partial[0];
  for (int w = 1; w < kThreads / kWarp; ++w) all = combine(all, shared.partial[w]);
  return all;
}

template <int kThreads, SoftmaxBug kBug = SoftmaxBug::none>
__global__ void __launch_bounds__(kThreads) softmax_kernel(const __grid_constant__ SoftmaxCall p) {
  auto& shared = shared_storage<SoftmaxStorage<kThreads>>();
  const float* row = p.rows + blockIdx.x * p.columns;
  float highest = -INFINITY;
  for (int64_t i = threadIdx.x * 4; i < p.columns; i += kThreads * 4) {
    const float4 x = load_once(reinterpret_cast<const float4*>(row + i));
    highest = fmaxf(highest, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
  }
  highest = block_reduce<kThreads, kBug>(highest, shared, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0.0f;
  for (int64_t i = threadIdx.x * 4; i < p.columns; i += kThreads * 4) {
    const float4 x = load_once(reinterpret_cast<const float4*>(row + i));
    sum += expf(x.x - highest) + expf(x.y - highest) + expf(x.z - highest) + expf(x.w - highest);
  }
  sum = block_reduce<kThreads, kBug>(sum, shared, [](float a, float b) { return a + b; });
  if (threadIdx.x == 0) store(&p.out[blockIdx.x], highest + logf(sum));
}

// ---- the indices of positive values, ascending: ballots and counts ----

struct CompactCall {
  const int* values;
  int* indices;
  int* count;
  int size;
};

struct CompactStorage {
  int count[kWarp];
};

[[maybe_unused]] static __global__ void compact_kernel(const __grid_constant__ CompactCall p) {
  auto& shared = shared_storage<CompactStorage>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  int done = 0;
  for (int base = 0; base < p.size; base += static_cast<int>(blockDim.x)) {
    const int i = base + static_cast<int>(threadIdx.x);
    const bool take = i < p.size && load_once(&p.values[i]) > 0;
    const unsigned taken = __ballot_sync(~0u, take);
    if (lane == 0) shared.count[warp] = __popc(taken);
    __syncthreads();
    int before = done;
    for (int w = 0; w < warps; ++w) {
      if (w < warp) before += shared.count[w];
      done += shared.count[w];
    }
    if (take) store(&p.indices[before + __popc(taken & ((1u << lane) - 1))], i);
    __syncthreads();
  }
  if (threadIdx.x == 0) *p.count = done;
}

// ---- a sum over the grid: the last block to finish adds the blocks' sums ----

struct GridSumCall {
  const int* values;
  int* partial;      // [blocks]
  unsigned* ticket;  // 0; 0 again afterwards
  int* sum;
  int* finishers;  // how many blocks took themselves for the last one
  int size;
};

struct GridSumStorage {
  int sum;
  int last;
};

[[maybe_unused]] static __global__ void grid_sum_kernel(const __grid_constant__ GridSumCall p) {
  auto& shared = shared_storage<GridSumStorage>();
  if (threadIdx.x == 0) shared.sum = 0;
  __syncthreads();
  int mine = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.size; i += gridDim.x * blockDim.x) mine += p.values[i];
  mine = __reduce_add_sync(~0u, mine);
  if (threadIdx.x % kWarp == 0) atomicAdd(&shared.sum, mine);
  __syncthreads();
  if (threadIdx.x == 0) {
    p.partial[blockIdx.x] = shared.sum;
    __threadfence();
    shared.last = atomicAdd(p.ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!shared.last) return;
  if (threadIdx.x == 0) {
    __threadfence();
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) sum += p.partial[b];
    *p.sum = sum;
    *p.ticket = 0;
    atomicAdd(p.finishers, 1);
  }
}

// ---- blocks of a cluster read each other's shared memory ----

enum class ClusterBug { none, no_first_sync, no_last_sync };

struct ClusterCall {
  const int* values;  // [grid]
  int* sums;          // [grid, threads]: over the cluster's blocks of value * (thread + 1)
};

struct ClusterStorage {
  int product[64];
};

template <ClusterBug kBug = ClusterBug::none>
__global__ void __launch_bounds__(64) cluster_kernel(const __grid_constant__ ClusterCall p) {
  auto& shared = shared_storage<ClusterStorage>();
  shared.product[threadIdx.x] = p.values[blockIdx.x] * static_cast<int>(threadIdx.x + 1);
  if constexpr (kBug != ClusterBug::no_first_sync) cluster_sync();
  int sum = 0;
  for (int i = 0; i < cluster_size(); ++i) {
    const int rank = (cluster_rank() + i) % cluster_size();
    sum += cluster_map(&shared, rank)->product[(threadIdx.x + 1) % 64];
    if (i == 0) __syncthreads();
  }
  p.sums[blockIdx.x * 64 + threadIdx.x] = sum;
  if constexpr (kBug != ClusterBug::no_last_sync) cluster_sync();
}

// ---- a matrix product c[16, 16] = a[16, k] b: cp.async, ldmatrix, mma ----

struct ProductCall {
  const void* a;  // [16, k]
  const void* b;  // [16, k], or [k, 16] if kTransposed
  float* c;
  int k;
};

template <class T>
struct ProductStorage {
  alignas(128) T a[2][16][16];
  T b[2][16][16];
};

template <class T, bool kTransposed, bool kWaits = true>
__global__ void __launch_bounds__(kWarp) product_kernel(const __grid_constant__ ProductCall p) {
  auto& shared = shared_storage<ProductStorage<T>>();
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  const int lane = threadIdx.x, steps = (p.k + 15) / 16;
  // Columns past k, a multiple of 8, are zeros.
  const auto fetch = [&](int step) {
    const int row = lane / 2, column = lane % 2 * 8, k = step * 16 + column;
    const bool inside = k < p.k;
    cp_async_16(&shared.a[step % 2][row][column], inside ? a + row * p.k + k : a, inside);
    if constexpr (kTransposed) {
      const bool below = step * 16 + row < p.k;
      cp_async_16(&shared.b[step % 2][row][column], below ? b + (step * 16 + row) * 16 + column : b, below);
    } else {
      cp_async_16(&shared.b[step % 2][row][column], inside ? b + row * p.k + k : b, inside);
    }
    cp_async_commit();
  };
  float c[2][4] = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fetch(step + 1);
    if constexpr (kWaits) {
      if (step + 1 < steps) {
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
    }
    __syncwarp();
    unsigned fragment_a[4], fragment_b[4];
    ldmatrix_x4(fragment_a, &shared.a[step % 2][lane % 16][lane / 16 * 8]);
    if constexpr (kTransposed) {
      ldmatrix_x4_trans(fragment_b, &shared.b[step % 2][lane % 16][lane / 16 * 8]);
    } else {
      ldmatrix_x4(fragment_b, &shared.b[step % 2][lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
    }
    for (int half = 0; half < 2; ++half) {
      mma_m16n8k16<T>(c[half], fragment_a, {fragment_b[2 * half], fragment_b[2 * half + 1]});
    }
    __syncwarp();
  }
  for (int half = 0; half < 2; ++half) {
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + r / 2 * 8, column = half * 8 + lane % 4 * 2 + r % 2;
      p.c[row * 16 + column] = c[half][r];
    }
  }
}

// ---- threads that leave before a barrier ----

struct EarlyCall {
  int* counts;  // [3]
  int stay;     // threads that do not leave; a multiple of 32, so that warps stay whole
};

[[maybe_unused]] static __global__ void early_exit_kernel(const __grid_constant__ EarlyCall p) {
  if (static_cast<int>(threadIdx.x) >= p.stay) return;
  const int all = __syncthreads_count(1);
  const int odd = __syncthreads_count(threadIdx.x % 2);
  const int both = __syncthreads_and(all == p.stay) * 2 + __syncthreads_or(threadIdx.x == 0);
  if (threadIdx.x == 0) {
    p.counts[0] = all;
    p.counts[1] = odd;
    p.counts[2] = both;
  }
}

}  // namespace specdec::cuda
