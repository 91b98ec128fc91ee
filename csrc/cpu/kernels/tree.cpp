// SPDX-License-Identifier: Apache-2.0
// from_chains: row i of a request has parent i - 1, depth i and end `length`; rows beyond are padding. A length outside
// [0, width] leaves the root alone and is flagged. Bytes: reads and writes O(batch * width) integers; one thread,
// because a batch of drafts is a few kilobytes.
#include "tree.h"

#include "../../common/status.h"

SPECDEC_ISA_BEGIN

void from_chains(const FromChainsParams& p) {
  p.cu_nodes[0] = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    p.cu_nodes[b + 1] = static_cast<int32_t>((b + 1) * p.width);
    int64_t length = p.lengths ? p.lengths[b] : p.width;
    const bool wrong = length < 0 || length > p.width;
    if (wrong) length = p.width < 1 ? p.width : 1;
    p.status[b] = wrong ? kStatusMalformed : 0;
    const IndexView chain{static_cast<const char*>(p.chains) + b * p.row_stride * (p.wide ? 8 : 4), p.column_stride,
                          p.wide};
    for (int64_t i = 0; i < p.width; ++i) {
      const int64_t row = b * p.width + i;
      const bool live = i < length;
      p.tokens.set(row, live ? chain[i] : -1);
      p.parents[row] = live ? static_cast<int32_t>(i - 1) : -1;
      p.depths[row] = live ? static_cast<int32_t>(i) : 0;
      p.ends[row] = live ? static_cast<int32_t>(length) : 0;
    }
  }
}

SPECDEC_ISA_END
