// SPDX-License-Identifier: Apache-2.0
// kv.gather: rows of a per-node tensor along the accepted paths, zeros where there is none. One thread per unit of up
// to 16 bytes of the result; one read and one write of each, one launch.
#pragma once

#include "../../common/kv_params.h"
#include "../device.cuh"

namespace specdec::cuda {

inline constexpr int kGatherThreads = 256;

template <class Unit>
__device__ __forceinline__ void gather_unit(const char* from, char* to) {
  Unit value{};
  if (from != nullptr) value = load_once(reinterpret_cast<const Unit*>(from));
  store(reinterpret_cast<Unit*>(to), value);
}

[[maybe_unused]] static __global__ void __launch_bounds__(kGatherThreads)
    kv_gather_kernel(const __grid_constant__ KvGatherParams p) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x, units = p.row.units();
  if (at >= p.batch * p.width * units) return;
  const int64_t place = at / units, unit = at % units;
  const int32_t per_run = p.row.units_per_run();
  const int64_t row = gathered_row(p, place / p.width, place % p.width);
  const char* from = nullptr;
  if (row >= 0) {
    from = p.values + row * p.row_stride + p.row.offset_of_run(static_cast<int32_t>(unit / per_run)) +
           unit % per_run * p.row.width;
  }
  char* to = p.out + place * p.out_row_bytes + unit * p.row.width;
  switch (p.row.width) {
    case 16:
      return gather_unit<uint4>(from, to);
    case 8:
      return gather_unit<uint2>(from, to);
    case 4:
      return gather_unit<uint32_t>(from, to);
    case 2:
      return gather_unit<uint16_t>(from, to);
    default:
      return gather_unit<uint8_t>(from, to);
  }
}

inline cudaError_t launch_kv_gather(const KvGatherParams& p, cudaStream_t stream) {
  const int64_t blocks = (p.batch * p.width * p.row.units() + kGatherThreads - 1) / kGatherThreads;
  if (blocks == 0) return cudaSuccess;
  return launch(kv_gather_kernel, {static_cast<unsigned>(blocks), kGatherThreads, 0, stream}, p);
}

}  // namespace specdec::cuda
