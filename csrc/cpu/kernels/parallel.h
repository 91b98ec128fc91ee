// SPDX-License-Identifier: Apache-2.0
// How many threads a loop is worth.
#pragma once

#include <omp.h>

#include <cstdint>

#include "../isa.h"

SPECDEC_ISA_BEGIN

// Less than this is not worth a second thread.
inline constexpr int64_t kBytesPerThread = 32 << 10;

// The same of bytes that are only copied, each counted twice.
inline constexpr int64_t kCopiedPerThread = 256 << 10;

// Threads for `units` independent pieces of work that read `bytes` in all; 1 inside a parallel region.
static inline int threads_for(int64_t bytes, int64_t units, int64_t per_thread = kBytesPerThread) {
  int64_t threads = omp_get_max_threads();
  const int64_t useful = 1 + bytes / (2 * per_thread);
  if (threads > useful) threads = useful;
  if (threads > units) threads = units;
  return threads < 1 || omp_in_parallel() ? 1 : (int)threads;
}

// Calls work(piece) for all pieces. A parallel region costs half a microsecond even for one thread.
template <class Work>
static inline void for_pieces(int64_t pieces, int threads, const Work& work) {
  if (threads <= 1) {
    for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
}

// Calls work(unit, threads inside the unit) for units that read `bytes` each, in `blocks` pieces that can be spread:
// over units where there are enough of them, else one unit after the other.
template <class Work>
static inline void spread(int64_t units, int64_t bytes, int64_t blocks, const Work& work) {
  const int across = threads_for(units * bytes, units);
  const int within = threads_for(bytes, blocks);
  if (across > 1 && across >= within) {
#pragma omp parallel for num_threads(across) schedule(dynamic)
    for (int64_t unit = 0; unit < units; ++unit) work(unit, 1);
  } else {
    for (int64_t unit = 0; unit < units; ++unit) work(unit, within);
  }
}

SPECDEC_ISA_END
