// SPDX-License-Identifier: Apache-2.0
// Builders of token trees on the CPU.
#pragma once

#include "../../common/tree_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, from_chains, (const FromChainsParams&))
