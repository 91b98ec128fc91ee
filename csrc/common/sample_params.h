// SPDX-License-Identifier: Apache-2.0
// What the ops of the sample family are given and write, as raw pointers. Strides are in elements.
#pragma once

#include <cstdint>

#include "sampling_law.h"
#include "verify_call.h"

namespace specdec {

struct SampleParams {
  RowsView logits;  // [batch, V]
  SamplingView sampling;
  IndexView positions;  // [batch]
  MaskView mask;
  Strided<bool> active;     // [batch] or null
  MutableIndexView tokens;  // [batch]
  Strided<int32_t> status;  // [batch]
};

struct DraftParams {
  RowsView logits;  // [rows, V] or [rows, V_draft]
  SamplingView sampling;
  int64_t batch = 0;                  // requests of `sampling`
  IndexView positions;                // [rows]
  IndexView requests, depths, nodes;  // [rows] or null
  MaskView mask;                      // over target ids
  IndexView draft_to_target;          // [V_draft] or null
  StopsView stops;
  bool replacement = false;
  bool coupled = false;
  int top = 0;
  int num = 0;                // drafts per row
  int64_t* drafts = nullptr;  // [rows, num]
  int64_t drafts_stride = 0;
  Strided<int32_t> status;     // [rows]
  float* certainty = nullptr;  // [rows, 2] or null: largest probability and entropy of what is drawn from

  SPECDEC_HD bool looks_at_laws() const { return static_cast<bool>(stops) || certainty != nullptr; }
};

}  // namespace specdec
