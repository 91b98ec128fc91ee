// SPDX-License-Identifier: Apache-2.0
// What the ops of the draft family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "views.h"

namespace specdec {

struct NgramParams {
  const void* history = nullptr;  // [batch, columns] int32 or int64, unit column stride
  bool wide = false;
  int64_t row_stride = 0;
  int64_t batch = 0;
  int64_t columns = 0;
  IndexView lengths;
  int64_t min_n = 1;
  int64_t max_n = 1;
  int64_t num = 1;
  Strided<bool> active;    // [batch] or null
  void* drafts = nullptr;  // [batch, num], contiguous, dtype of history
  int32_t* counts = nullptr;
};

}  // namespace specdec
