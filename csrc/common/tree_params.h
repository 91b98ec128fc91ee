// SPDX-License-Identifier: Apache-2.0
// What the ops of the tree family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "views.h"

namespace specdec {

struct FromChainsParams {
  const void* chains = nullptr;  // [batch, width] int32 or int64
  bool wide = false;             // int64 chains and tokens
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  int64_t batch = 0;
  int64_t width = 0;
  IndexView lengths;  // [batch] or null: all rows are live
  int32_t* cu_nodes = nullptr;
  MutableIndexView tokens;
  int32_t* parents = nullptr;
  int32_t* depths = nullptr;
  int32_t* ends = nullptr;
  int32_t* status = nullptr;
};

}  // namespace specdec
