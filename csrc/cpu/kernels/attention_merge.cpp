// SPDX-License-Identifier: Apache-2.0
// merge_states: results over parts of the keys as the result over all of them. A row and head after the other, spread
// over threads; parts in ascending order. Memory traffic: one read of the parts that count, one write.
#include <cmath>

#include "attention.h"
#include "attention_lanes.h"
#include "convert.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN

namespace {

constexpr int kColumns = 64;  // merged at a time

void merge_row(const MergeStatesParams& p, int64_t row, int64_t head) {
  const int64_t out = row * p.heads + head;
  const float* lses = p.lses + row * p.lse_strides[0] + head * p.lse_strides[2];
  const auto lse_of = [&](int64_t state) { return lses[state * p.lse_strides[1]]; };
  float largest = -INFINITY, total = 0.0f;
  for (int64_t s = 0; s < p.states; ++s) largest = lse_of(s) > largest ? lse_of(s) : largest;
  const float shift = largest == -INFINITY ? 0.0f : largest;
  const auto weight_of = [&](int64_t state) { return exp2_vector(splat((lse_of(state) - shift) * 1.442695041f))[0]; };
  for (int64_t s = 0; s < p.states; ++s) total += weight_of(s);
  const bool nothing = total == 0.0f;
  const VecF factor = splat(1.0f / total);
  p.lse[out] = nothing ? -INFINITY : (float)(largest + std::log((double)total));
  for (int64_t first = 0; first < p.dim; first += kColumns) {
    const int count = (int)(p.dim - first < kColumns ? p.dim - first : kColumns);
    alignas(64) float mixed[kColumns] = {}, part[kColumns] = {};
    for (int64_t s = 0; s < p.states && !nothing; ++s) {
      if (lse_of(s) == -INFINITY) continue;
      const int64_t at = row * p.value_strides[0] + s * p.value_strides[1] + head * p.value_strides[2] + first;
      load_floats({p.values, p.type}, at, count, part);
      const VecF weight = splat(weight_of(s));
      for (int i = 0; i < kColumns; i += kVectorLanes) {
        store_vector(mixed + i, multiply_add(load_vector(part + i), weight, load_vector(mixed + i)));
      }
    }
    for (int i = 0; i < kColumns && !nothing; i += kVectorLanes) {
      store_vector(mixed + i, load_vector(mixed + i) * factor);
    }
    store_floats(mixed, count, p.type, p.out, out * p.dim + first);
  }
}

}  // namespace

void merge_states(const MergeStatesParams& p) {
  const int64_t pieces = p.rows * p.heads;
  const int threads = threads_for(pieces * p.states * p.dim * (int64_t)sizeof(float), pieces);
  for_pieces(pieces, threads, [&](int64_t i) { merge_row(p, i / p.heads, i % p.heads); });
}

SPECDEC_ISA_END
