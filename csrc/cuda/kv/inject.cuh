// SPDX-License-Identifier: Apache-2.0
// kv.inject: projected keys and values of all draft layers go to their pages, keys normalised and turned on the way.
//
// Who does what: a request has some blocks of four warps; a warp takes some heads of one row in one layer, a lane eight
// neighbouring elements of a head at a time, and 32 / (dim / 8) heads fit into a warp (a head of more than 256 elements
// has all lanes, several times eight elements each). Sums go through shuffles, the partners of a rotation through
// shared memory of the warp's own. Rows that are not valid are skipped on the device. The first block of a request
// writes its status.
//
// Memory traffic: one read and one write of the valid rows; weights and angles from the nearest cache after the first
// read. One launch up to 64 layers.
#pragma once

#include "../../common/kv_inject_params.h"
#include "../../common/status.h"
#include "elements.cuh"

namespace specdec::cuda {

inline constexpr int kInjectThreads = 128;
inline constexpr int kInjectWarps = kInjectThreads / 32;
inline constexpr int kMostInjectBlocks = 1024;  // of a request
inline constexpr int kInjectLayers = 64;        // of a launch
inline constexpr int kWarpElements = 32 * kEight;

struct InjectLaunch {
  KvInjectParams inject;
  void* caches[2][kInjectLayers];
  int32_t first_layer = 0;
  int32_t layers = 0;
  int32_t blocks = 1;          // of each request
  int32_t lanes = 1;           // of a head, a power of two
  int32_t chunks = 1;          // of the heads of a row, one for each item of a warp
  bool reads_eight = false;    // whether eight elements of a row can be read together,
  bool stores_eight[2] = {};   // ... written,
  bool weights_eight = false;  // ... and those of the weights
  bool angles_eight = false;
};

template <int kGroups>
struct InjectStorage {
  float keys[kInjectWarps][kGroups * kWarpElements];
};

// Where a lane works: `count` of eight elements of a head from `begin` on, and again 256 elements further.
struct InjectLane {
  int64_t head = 0;
  bool works = false;
  int begin = 0;

  __device__ int element(int group) const { return begin + group * kWarpElements; }
  __device__ int count(int64_t dim, int group) const {
    const int64_t left = dim - element(group);
    return !works || left <= 0 ? 0 : left < kEight ? static_cast<int>(left) : kEight;
  }
};

template <bool kOnce>
__device__ inline void load_up_to_eight(FloatType type, const void* from, int64_t at, int count, bool together,
                                        float (&x)[kEight]) {
  if (together && count == kEight) return load_eight<kOnce>(type, from, at, x);
#pragma unroll
  for (int j = 0; j < kEight; ++j) x[j] = j < count ? load_element<kOnce>(type, from, at + j) : 0.0f;
}

__device__ inline void store_up_to_eight(const PagedView& to, int64_t at, int count, bool together,
                                         const float (&x)[kEight]) {
  if (together && count == kEight) return store_eight(to, at, x);
#pragma unroll
  for (int j = 0; j < kEight; ++j) {  // every index is known when this is compiled
    if (j < count) store_element(to, at + j, x[j]);
  }
}

template <int kGroups>
using InjectNumbers = float[kGroups][kEight];

template <int kGroups>
__device__ inline void load_head(const InjectLaunch& launch, const InjectLane& lane, int64_t from,
                                 InjectNumbers<kGroups>& x) {
  const KvInjectParams& p = launch.inject;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    load_up_to_eight<true>(p.type, p.projected, from + lane.element(g), lane.count(p.dim, g), launch.reads_eight, x[g]);
  }
}

template <int kGroups>
__device__ inline void store_head(const InjectLaunch& launch, const InjectLane& lane, int side, int64_t layer,
                                  const InjectPlace& place, InjectNumbers<kGroups>& x) {
  const KvInjectParams& p = launch.inject;
  const InjectSide& of = p.sides[side];
  PagedView to = of.to;
  to.data = launch.caches[side][layer - launch.first_layer];
  const int64_t at = place.page * to.page_stride + place.slot * to.slot_stride + lane.head * to.head_stride;
  const bool scaled = static_cast<bool>(of.scale) && lane.works;
  const float scale = scaled ? of.scale.at(layer, lane.head) : 1.0f;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) x[g][j] = scaled ? x[g][j] / scale : x[g][j];
    store_up_to_eight(to, at + lane.element(g), lane.count(p.dim, g), launch.stores_eight[side], x[g]);
  }
}

// The halving sum of the squares of a head, the same in all of its lanes (common/kv_inject_params.h).
template <int kGroups>
__device__ inline float sum_of_squares(const InjectNumbers<kGroups>& x, int lanes) {
  float q[kGroups][kEight];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) q[g][j] = x[g][j] * x[g][j];
  }
#pragma unroll
  for (int half = kGroups / 2; half > 0; half /= 2) {
#pragma unroll
    for (int g = 0; g < half; ++g) {
#pragma unroll
      for (int j = 0; j < kEight; ++j) q[g][j] += q[g + half][j];
    }
  }
  for (int apart = lanes / 2; apart > 0; apart /= 2) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) q[0][j] += __shfl_xor_sync(~0u, q[0][j], apart);
  }
#pragma unroll
  for (int half = kEight / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) q[0][j] += q[0][j + half];
  }
  return q[0][0];
}

template <int kGroups>
__device__ inline void normalise(const InjectLaunch& launch, const InjectLane& lane, int64_t layer,
                                 InjectNumbers<kGroups>& x) {
  const KvInjectParams& p = launch.inject;
  const float factor = inverse_rms(sum_of_squares<kGroups>(x, launch.lanes), p.dim, p.eps);
  const int64_t row = layer * p.norm.row_stride;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    float weight[kEight];
    load_up_to_eight<false>(p.norm.type, p.norm.data, row + lane.element(g), lane.count(p.dim, g), launch.weights_eight,
                            weight);
#pragma unroll
    for (int j = 0; j < kEight; ++j) x[g][j] = x[g][j] * factor * weight[j];
  }
}

template <int kGroups>
__device__ inline void turn(const InjectLaunch& launch, const InjectLane& lane, int64_t angle, float* keys,
                            InjectNumbers<kGroups>& x) {
  const KvInjectParams& p = launch.inject;
  const int half = static_cast<int>(p.dim / 2);
  float* head = keys + static_cast<int>(threadIdx.x) % 32 / launch.lanes * launch.lanes * kEight;
  __syncwarp();  // the row before has been read
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) head[lane.element(g) + j] = x[g][j];
  }
  __syncwarp();
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    const int count = lane.count(p.dim, g), begin = lane.element(g);
    const int64_t row = angle * p.angles.row_stride + begin;
    float cosine[kEight], sine[kEight];
    load_up_to_eight<false>(p.angles.type, p.angles.data, row, count, launch.angles_eight, cosine);
    load_up_to_eight<false>(p.angles.type, p.angles.data, row + p.angles.part_stride, count, launch.angles_eight, sine);
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      const int at = begin + j, partner = p.interleaved ? at ^ 1 : at < half ? at + half : at - half;
      if (j < count) x[g][j] = x[g][j] * cosine[j] + head[partner] * sine[j];
    }
  }
}

template <int kGroups>
static __global__ void __launch_bounds__(kInjectThreads) kv_inject_kernel(const __grid_constant__ InjectLaunch launch) {
  auto& shared = shared_storage<InjectStorage<kGroups>>();
  const KvInjectParams& p = launch.inject;
  const int64_t b = blockIdx.x / static_cast<unsigned>(launch.blocks);
  const int part = static_cast<int>(blockIdx.x % static_cast<unsigned>(launch.blocks));
  const InjectRequest request = open_inject(p, b);
  if (part == 0 && launch.first_layer == 0 && p.status != nullptr) {
    bool lost = false;
    for (int64_t j = threadIdx.x; j < request.count; j += kInjectThreads) {
      lost |= place_of_injected(p, request, b, j).page < 0;
    }
    const bool any_lost = __syncthreads_or(lost) != 0;
    if (threadIdx.x == 0) {
      p.status[b] = (request.malformed ? kStatusMalformed : 0) | (any_lost ? kStatusPageOutOfRange : 0);
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, in_warp = static_cast<int>(threadIdx.x) % 32;
  InjectLane lane;
  lane.begin = in_warp % launch.lanes * kEight;
  const int64_t items = request.count * launch.layers * launch.chunks;
  for (int64_t item = part * kInjectWarps + warp; item < items; item += launch.blocks * kInjectWarps) {
    const int64_t row_and_layer = item / launch.chunks, chunk = item % launch.chunks;
    const int64_t j = row_and_layer / launch.layers, layer = launch.first_layer + row_and_layer % launch.layers;
    const InjectPlace place = place_of_injected(p, request, b, j);
    if (place.page < 0) continue;
    lane.head = chunk * (32 / launch.lanes) + in_warp / launch.lanes;
    lane.works = lane.head < p.heads;
    InjectNumbers<kGroups> key, value;
    load_head<kGroups>(launch, lane, p.source(b, j, layer, 0, lane.head), key);
    load_head<kGroups>(launch, lane, p.source(b, j, layer, 1, lane.head), value);
    store_head<kGroups>(launch, lane, 1, layer, place, value);
    if (p.norm) normalise<kGroups>(launch, lane, layer, key);
    if (p.angles) turn<kGroups>(launch, lane, place.angle, shared.keys[warp], key);
    store_head<kGroups>(launch, lane, 0, layer, place, key);
  }
}

// Whether all of these bytes are multiples of what moves eight elements of `element` bytes.
inline bool moves_eight(int64_t bytes, int64_t element) { return bytes % (element == 1 ? 8 : 16) == 0; }

inline bool reads_eight(const FloatTable& table) {
  const int64_t element = table.type == FloatType::float32 ? 4 : 2;
  return moves_eight(reinterpret_cast<intptr_t>(table.data) | (table.row_stride | table.part_stride) * element,
                     element);
}

// The layers of a launch from `first` on.
inline void fill_inject(const KvInjectParams& p, int64_t first, InjectLaunch& launch) {
  launch.inject = p;
  launch.first_layer = static_cast<int32_t>(first);
  launch.layers = static_cast<int32_t>(p.layers - first < kInjectLayers ? p.layers - first : kInjectLayers);
  const int64_t from = p.type == FloatType::float32 ? 4 : 2;
  const int64_t strides = p.request_stride | p.row_stride | p.layer_stride | p.side_stride | p.head_stride;
  launch.reads_eight = moves_eight(reinterpret_cast<intptr_t>(p.projected) | strides * from, from);
  launch.weights_eight = reads_eight(p.norm);
  launch.angles_eight = reads_eight(p.angles);
  for (int side = 0; side < 2; ++side) {
    const PagedView& to = p.sides[side].to;
    const int64_t element = bytes_of(to.type);
    int64_t bytes = (to.page_stride | to.slot_stride | to.head_stride) * element;
    for (int64_t layer = 0; layer < launch.layers; ++layer) {
      launch.caches[side][layer] = p.sides[side].caches[first + layer];
      bytes |= reinterpret_cast<intptr_t>(launch.caches[side][layer]);
    }
    launch.stores_eight[side] = moves_eight(bytes, element);
  }
  launch.lanes = 1;
  while (launch.lanes < 32 && launch.lanes * kEight < p.dim) launch.lanes *= 2;
  const int64_t at_once = 32 / launch.lanes, chunks = (p.heads + at_once - 1) / at_once;
  launch.chunks = static_cast<int32_t>(chunks < 1 ? 1 : chunks);
  const int64_t blocks = (p.width * launch.layers * launch.chunks + kInjectWarps - 1) / kInjectWarps;
  launch.blocks = static_cast<int32_t>(blocks < 1 ? 1 : blocks > kMostInjectBlocks ? kMostInjectBlocks : blocks);
}

template <int kGroups>
cudaError_t launch_inject_with(const KvInjectParams& p, cudaStream_t stream) {
  InjectLaunch call;
  for (int64_t first = 0; first < p.layers; first += kInjectLayers) {
    fill_inject(p, first, call);
    const unsigned grid = static_cast<unsigned>(p.batch * call.blocks);
    const cudaError_t error =
        launch(kv_inject_kernel<kGroups>, {grid, kInjectThreads, sizeof(InjectStorage<kGroups>), stream}, call);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

inline cudaError_t launch_kv_inject(const KvInjectParams& p, cudaStream_t stream) {
  static_assert(kMaxInjectDim == 4 * kWarpElements);
  if (p.batch == 0) return cudaSuccess;
  if (p.dim <= kWarpElements) return launch_inject_with<1>(p, stream);
  return p.dim <= 2 * kWarpElements ? launch_inject_with<2>(p, stream) : launch_inject_with<4>(p, stream);
}

}  // namespace specdec::cuda
