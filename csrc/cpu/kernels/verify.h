// SPDX-License-Identifier: Apache-2.0
// The verification rules on the CPU.
#pragma once

#include "../../common/verify_call.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, verify, (const VerifyParams&))
SPECDEC_DECLARE_KERNEL(void, verify_expect, (const ExpectParams&))
