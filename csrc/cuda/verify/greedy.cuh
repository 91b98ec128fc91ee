// SPDX-License-Identifier: Apache-2.0
// verify.greedy: follow the argmax of each node while it is a child.
//
// One block per request walks down its tree; at each visited node all threads read the row, each its own 16-byte
// pieces, and the block reduces (value, id) pairs: larger value first, lower id among equals, so the result does not
// depend on who read what. With log-probabilities of the raw row a second read sums exponentials: each thread adds its
// own pieces in ascending order, and the threads' sums are added in a tree of fixed shape.
//
// Memory traffic: one read of the visited rows (two with raw log-probabilities). Deterministic, independent of the
// batch. No allocation, no host synchronisation; the loops are bounded by the depth of the tree and the length of a
// row.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "../../common/sampling_law.h"
#include "../../common/verify_call.h"

namespace specdec::cuda {

inline constexpr int kGreedyThreads = 512;
inline constexpr int kWarp = 32;

struct Best {
  float value;
  int32_t id;
};

__device__ inline Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a;
}

__device__ inline Best block_best(Best mine, Best* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(~0u, mine.value, offset), __shfl_xor_sync(~0u, mine.id, offset)};
    mine = better(mine, other);
  }
  __syncthreads();
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  Best best = shared[0];
  for (int w = 1; w < kGreedyThreads / kWarp; ++w) best = better(best, shared[w]);
  return best;
}

__device__ inline float block_sum(float mine, float* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) mine += __shfl_xor_sync(~0u, mine, offset);
  __syncthreads();
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < kGreedyThreads / kWarp; ++w) sum += shared[w];
  return sum;
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

// Calls visit(id, value) for the ids of this thread in ascending order: NaN arrives as -inf (and is reported), +inf as
// the largest float.
template <class T, class Visit>
__device__ inline bool scan_row(const T* row, int64_t vocab, const Visit& visit) {
  constexpr int kPack = 16 / sizeof(T);
  bool nan = false;
  const auto take = [&](int64_t id, T raw) {
    float value = widen(raw);
    if (isnan(value)) {
      nan = true;
      value = -INFINITY;
    }
    visit(static_cast<int32_t>(id), fminf(value, FLT_MAX));
  };
  const int64_t misaligned = (reinterpret_cast<uintptr_t>(row) % 16) / sizeof(T);
  int64_t head = misaligned == 0 ? 0 : kPack - misaligned;
  if (head > vocab) head = vocab;
  const int64_t packs = (vocab - head) / kPack;
  if (threadIdx.x < head) take(threadIdx.x, row[threadIdx.x]);
  for (int64_t pack = threadIdx.x; pack < packs; pack += kGreedyThreads) {
    const int64_t first = head + pack * kPack;
    const uint4 bits = *reinterpret_cast<const uint4*>(row + first);
    T values[kPack];
    memcpy(values, &bits, sizeof(bits));
#pragma unroll
    for (int i = 0; i < kPack; ++i) take(first + i, values[i]);
  }
  const int64_t tail = head + packs * kPack + threadIdx.x;
  if (tail < vocab) take(tail, row[tail]);
  return nan;
}

template <class T>
__global__ void __launch_bounds__(kGreedyThreads) verify_greedy_kernel(const __grid_constant__ VerifyCall p) {
  __shared__ Best shared_best[kGreedyThreads / kWarp];
  __shared__ float shared_sum[kGreedyThreads / kWarp];
  __shared__ RequestNodes shared_nodes;
  __shared__ int32_t shared_child;
  const int64_t request = blockIdx.x;
  const int64_t width = p.width(), limit = p.limit(request);
  const int64_t vocab = p.logits.columns;
  if (threadIdx.x == 0) {
    shared_nodes = RequestNodes{};
    if (!p.active || p.active[request]) shared_nodes = open_request(p.tree, request);
  }
  __syncthreads();
  const RequestNodes nodes = shared_nodes;
  int32_t status = nodes.malformed ? kStatusMalformed : 0;
  int32_t node = nodes.count > 0 ? 0 : -1;
  int64_t emitted = 0;
  while (node >= 0 && emitted < limit) {
    const int64_t owner = nodes.first + node;
    const int64_t index = p.row_of(owner);
    const bool readable = index >= 0 && index < p.logits.rows;
    if (!readable) status |= kStatusMalformed;
    const Mask mask = p.mask.of(owner);
    const T* row = static_cast<const T*>(p.logits.data) + (readable ? index * p.logits.row_stride : 0);
    Best best{-INFINITY, INT32_MAX};
    float raw_max = -INFINITY;
    bool nan = false;
    if (readable) {
      nan = scan_row(row, vocab, [&](int32_t id, float value) {
        raw_max = fmaxf(raw_max, value);
        if (value > -INFINITY && mask.allows(id)) best = better(best, Best{value, id});
      });
    }
    best = block_best(best, shared_best);
    if (__syncthreads_or(nan)) status |= kStatusNan;
    const bool dead = best.id == INT32_MAX;
    float lse = dead ? -INFINITY : best.value, logprob = dead ? -INFINITY : 0.0f;
    if (p.logprobs_mode == Logprobs::raw && !dead) {
      const float highest = block_best(Best{raw_max, 0}, shared_best).value;
      float sum = 0.0f;
      scan_row(row, vocab, [&](int32_t, float value) { sum += expf(value - highest); });
      lse = highest + logf(block_sum(sum, shared_sum));
      logprob = best.value - lse;
    }
    if (threadIdx.x == 0) {
      shared_child = dead ? -1 : child_with_token(p.tree, nodes, node, best.id);
      const int64_t at = request * width + emitted;
      p.out_tokens.set(at, dead ? -1 : best.id);
      p.path[at] = node;
      if (p.logprobs != nullptr) {
        p.logprobs[at] = logprob;
        p.lse[at] = lse;
      }
    }
    if (dead) status |= kStatusDeadEnd;
    __syncthreads();
    node = shared_child;
    ++emitted;
  }
  if (threadIdx.x == 0) {
    p.num_tokens[request] = static_cast<int32_t>(emitted);
    p.status[request] = status;
  }
  for (int64_t i = emitted + threadIdx.x; i < width; i += kGreedyThreads) {
    const int64_t at = request * width + i;
    p.out_tokens.set(at, -1);
    p.path[at] = -1;
    if (p.logprobs != nullptr) p.logprobs[at] = p.lse[at] = 0.0f;
  }
}

inline cudaError_t launch_verify_greedy(const VerifyCall& p, cudaStream_t stream) {
  if (p.tree.batch == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(p.tree.batch));
  switch (p.logits.type) {
    case FloatType::float32:
      verify_greedy_kernel<float><<<grid, kGreedyThreads, 0, stream>>>(p);
      break;
    case FloatType::bfloat16:
      verify_greedy_kernel<__nv_bfloat16><<<grid, kGreedyThreads, 0, stream>>>(p);
      break;
    case FloatType::float16:
      verify_greedy_kernel<__half><<<grid, kGreedyThreads, 0, stream>>>(p);
      break;
  }
  return cudaGetLastError();
}

}  // namespace specdec::cuda
