// SPDX-License-Identifier: Apache-2.0
// The attention family on the CPU.
#pragma once

#include "../../common/attention_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, tree_attention, (const TreeAttentionParams&))
SPECDEC_DECLARE_KERNEL(void, merge_states, (const MergeStatesParams&))
