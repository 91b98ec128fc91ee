// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../../common/kv_inject_params.h"
#include "../../common/kv_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, kv_write, (const KvWriteParams&))
SPECDEC_DECLARE_KERNEL(void, kv_commit, (const KvCommitParams&))
SPECDEC_DECLARE_KERNEL(void, kv_gather, (const KvGatherParams&))
SPECDEC_DECLARE_KERNEL(void, kv_inject, (const KvInjectParams&))
