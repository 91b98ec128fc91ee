// SPDX-License-Identifier: Apache-2.0
// Draft-side helpers on the CPU.
#pragma once

#include "../../common/budget_params.h"
#include "../../common/draft_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, ngram_lookup, (const NgramParams&))
SPECDEC_DECLARE_KERNEL(void, expand, (const ExpandParams&))
SPECDEC_DECLARE_KERNEL(void, draft_block, (const DraftBlockParams&))
SPECDEC_DECLARE_KERNEL(void, draft_budget, (const BudgetParams&))
