// SPDX-License-Identifier: Apache-2.0
// Sampling and drafting from rows of logits on the CPU.
#pragma once

#include "../../common/sample_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, sample_tokens, (const SampleParams&))
SPECDEC_DECLARE_KERNEL(void, draft_tokens, (const DraftParams&))
