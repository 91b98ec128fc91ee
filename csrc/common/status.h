// SPDX-License-Identifier: Apache-2.0
// What an op met in the data of a request; several bits may be set (specdec_kernels.Status).
#pragma once

#include <cstdint>

namespace specdec {

enum StatusBit : int32_t {
  kStatusNan = 1,
  kStatusDeadEnd = 2,
  kStatusFallback = 4,
  kStatusMalformed = 8,
  kStatusPageOutOfRange = 16
};

}  // namespace specdec
