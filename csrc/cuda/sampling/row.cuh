// SPDX-License-Identifier: Apache-2.0
// A row of logits in the shared memory of a team: blocks of 4,096 clean floats, dealt to the team's blocks in turn and
// to their warps. Where all of a row fits it stays there, and global memory is read once; else every pass reads it
// again, each warp through one buffer.
//
// What the contract says of dtypes, NaN, infinities, allowed ids and draft vocabularies is settled here.
#pragma once

#include "../../common/sampling_law.h"
#include "../../common/source.h"
#include "../team.cuh"

namespace specdec::cuda {

inline constexpr int kBlock = kBlockIds;
inline constexpr int kPadding = 4 * kWarp;  // a warp reads four entries per lane

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ float clean(float raw, bool& nan) {
  if (isnan(raw)) {
    nan = true;
    return -INFINITY;
  }
  return fminf(raw, kLargest);
}

// Calls `visit` with a null pointer to the element type.
template <class Visit>
__device__ __forceinline__ auto with_type(FloatType type, const Visit& visit) {
  switch (type) {
    case FloatType::bfloat16:
      return visit(static_cast<const __nv_bfloat16*>(nullptr));
    case FloatType::float16:
      return visit(static_cast<const __half*>(nullptr));
    default:
      return visit(static_cast<const float*>(nullptr));
  }
}

__device__ inline float element(const Source& source, int64_t column) {
  return with_type(source.type, [&](auto* null) { return widen(static_cast<decltype(null)>(source.data)[column]); });
}

// The clean value of one entry, by any thread.
SPECDEC_STEP float logit_of(const Source& source, int64_t entry) {
  const int64_t id = source.id(entry);
  if (source.data == nullptr || id < 0 || !source.mask.allows(id)) return -INFINITY;
  const int64_t column = source.column(entry);
  bool nan;
  return column < 0 ? -INFINITY : clean(element(source, column), nan);
}

// One warp copies `count` elements, in pieces of 16 bytes where they are aligned. Whether this lane met a NaN.
template <class T>
__device__ inline bool copy_clean(const T* from, int count, float* to) {
  constexpr int kPack = 16 / sizeof(T), kAhead = 4;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  bool nan = false;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    const int packs = count / kPack;
    for (int base = lane; base < packs; base += kAhead * kWarp) {
      uint4 bits[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = base + a * kWarp;
        if (i < packs) bits[a] = load_once(reinterpret_cast<const uint4*>(from) + i);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int i = base + a * kWarp;
        if (i >= packs) continue;
        T raw[kPack];
        memcpy(static_cast<void*>(raw), &bits[a], sizeof(raw));
#pragma unroll
        for (int e = 0; e < kPack; e += 4) {
          float4 four;
          four.x = clean(widen(raw[e]), nan);
          four.y = clean(widen(raw[e + 1]), nan);
          four.z = clean(widen(raw[e + 2]), nan);
          four.w = clean(widen(raw[e + 3]), nan);
          *reinterpret_cast<float4*>(to + i * kPack + e) = four;
        }
      }
    }
    done = packs * kPack;
  }
  for (int i = done + lane; i < count; i += kWarp) to[i] = clean(widen(load_once(from + i)), nan);
  return nan;
}

// One warp brings a block to `to` (kBlock floats), clean, followed by -inf up to a multiple of kPadding. Whether this
// lane met a NaN.
SPECDEC_STEP bool load_block(const Source& source, int64_t block, float* to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t first = block * kBlock;
  const int count = source.length(block);
  bool nan = false;
  __syncwarp();  // whoever still reads what was there
  if (source.data == nullptr) {
    for (int i = lane; i < count; i += kWarp) to[i] = -INFINITY;
  } else if (source.column_of) {
    for (int i = lane; i < count; i += kWarp) {
      const int64_t column = source.column(first + i);
      to[i] = column < 0 ? -INFINITY : clean(element(source, column), nan);
    }
  } else {
    nan = with_type(source.type, [&](auto* null) {
      return copy_clean(static_cast<decltype(null)>(source.data) + first, count, to);
    });
  }
  const int padded = (count + kPadding - 1) / kPadding * kPadding;
  for (int i = count + lane; i < padded; i += kWarp) to[i] = -INFINITY;
  __syncwarp();
  if (source.listed()) {
    for (int i = lane; i < count; i += kWarp) {
      const int64_t id = source.id(first + i);
      if (id < 0 || !source.mask.allows(id)) to[i] = -INFINITY;
    }
    __syncwarp();
  } else if (!source.mask.is_open() && source.data != nullptr) {
    for (int i = lane; i < count; i += kWarp) {
      if ((source.mask.word((first + i) / 32) >> (i % 32) & 1u) == 0) to[i] = -INFINITY;
    }
    __syncwarp();
  }
  return nan;
}

// How rows lie in the team's shared memory; the host decides.
struct Layout {
  int64_t blocks = 0;  // of the longest row
  int cluster = 1;
  int warps = 1;
  bool cached = false;

  // Blocks of one row that one block of the team owns.
  SPECDEC_HD int owned() const { return static_cast<int>((blocks + cluster - 1) / cluster); }
  SPECDEC_HD int buffers() const { return cached ? owned() : warps; }
};

inline Launch team_launch(const Layout& layout, int64_t teams, int64_t shared_bytes, cudaStream_t stream) {
  return {static_cast<unsigned>(teams * layout.cluster), static_cast<unsigned>(layout.warps * kWarp),
          static_cast<size_t>(shared_bytes), stream, layout.cluster};
}

// How a team is laid out for rows of so many ids; `bytes_of(layout)` is the shared memory of one of its blocks. A
// cluster that finds no room, as on a part of a GPU, is halved.
template <class Kernel, class BytesOf>
Layout choose_layout(Kernel kernel, int64_t vocab, const BytesOf& bytes_of) {
  const DeviceLimits device = device_limits();
  Layout layout;
  layout.blocks = (vocab + kBlock - 1) / kBlock;
  const int64_t most = device.max_cluster < kMaxCluster ? device.max_cluster : kMaxCluster;
  layout.cluster = static_cast<int>(layout.blocks < most ? layout.blocks : most);
  for (;; layout.cluster /= 2) {
    layout.warps = layout.owned() < kMaxWarps ? layout.owned() : kMaxWarps;
    layout.cached = true;
    if (bytes_of(layout) > device.shared_bytes) layout.cached = false;
    while (layout.warps > 1 && bytes_of(layout) > device.shared_bytes) --layout.warps;
    if (layout.cluster == 1 || clusters_at_once(kernel, team_launch(layout, 1, bytes_of(layout), nullptr)) > 0) {
      return layout;
    }
  }
}

}  // namespace specdec::cuda
