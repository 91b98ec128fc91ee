// SPDX-License-Identifier: Apache-2.0
// Builders of token trees on the CPU, and their exports.
#pragma once

#include "../../common/tree_params.h"
#include "../isa.h"

SPECDEC_DECLARE_KERNEL(void, from_chains, (const FromChainsParams&))
SPECDEC_DECLARE_KERNEL(void, from_parents, (const FromParentsParams&))
SPECDEC_DECLARE_KERNEL(void, from_beams, (const FromBeamsParams&))
SPECDEC_DECLARE_KERNEL(void, best_first, (const BestFirstParams&))
SPECDEC_DECLARE_KERNEL(void, to_dense_mask, (const DenseMaskParams&))
SPECDEC_DECLARE_KERNEL(void, to_packed_mask, (const PackedMaskParams&))
SPECDEC_DECLARE_KERNEL(void, to_links, (const LinksParams&))
SPECDEC_DECLARE_KERNEL(void, to_paths, (const PathsParams&))
