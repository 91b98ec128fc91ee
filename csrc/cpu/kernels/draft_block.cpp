// SPDX-License-Identifier: Apache-2.0
// draft.block: a few numbers for each request, by one thread each.
#include "../../common/status.h"
#include "draft.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN

void draft_block(const DraftBlockParams& p) {
  for_pieces(p.batch, threads_for(p.batch * p.size * 24, p.batch), [&](int64_t b) {
    const NextBlock block = open_block(p, b);
    bool complete = true;
    for (int64_t j = 0; j < p.size; ++j) complete &= write_block_entry(p, block, b, j);
    p.roots.set(b, block.root);
    p.new_contexts.set(b, block.length);
    if (p.status != nullptr) {
      p.status[b] = (block.malformed ? kStatusMalformed : 0) | (complete ? 0 : kStatusPageOutOfRange);
    }
  });
}

SPECDEC_ISA_END
