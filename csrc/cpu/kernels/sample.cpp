// SPDX-License-Identifier: Apache-2.0
// sample: one token per request from its processed law. draft: the children of one node per row.
//
// Who does what: rows are spread over threads; where they are fewer than the threads, rows come one after the other and
// their blocks are spread. Memory traffic: one read of a row, another one under filters, and one for drafts without
// replacement.
#include "sample.h"

#include <memory>

#include "draw.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

Law& law_of_thread() {
  static thread_local std::unique_ptr<Law> law;  // only for the instruction set that is in use
  if (law == nullptr) law = std::make_unique<Law>();
  return *law;
}

void sample_row(const SampleParams& p, int64_t b, int threads) {
  int64_t token = -1;
  int32_t status = 0;
  if (!p.active || p.active[b]) {
    Law& law = law_of_thread();
    Source source = row_source(p.logits, b);
    source.mask = p.mask.of(b);
    const Settings settings = p.sampling.of(b);
    if (is_greedy(settings)) {
      scan_maxima(law, source, threads);
      token = best_id(law);
    } else {
      find_law(law, source, settings, threads);
      token = law.dead() ? -1 : draw(law, make_place(p.sampling.seed[b], p.positions[b], Stream::target, 0, 0, 0));
    }
    status = (law.nan ? kStatusNan : 0) | (token < 0 ? kStatusDeadEnd : 0);
  }
  p.tokens.set(b, token);
  p.status[b] = status;
}

// The children of one node; how many there are.
int children(const DraftParams& p, Law& law, int64_t r, int64_t request, int64_t* to) {
  const Settings settings = law.settings;
  if (law.dead()) return 0;
  if (is_greedy(settings)) return best_ids(law, p.num, to);
  int count = 0;
  if (p.top > 0) {
    count = best_ids(law, p.top, to);
    for (int i = 0; i < count; ++i) remove(law, to[i]);
  }
  const int64_t seed = p.sampling.seed[request], position = p.positions[r];
  const int64_t depth = p.depths ? p.depths[r] : 0, node = p.nodes ? p.nodes[r] : 0;
  const int left = p.num - count;
  if (!p.replacement && !p.coupled) {
    if (left == 0) return count;
    return count + arrivals(law, make_place(seed, position, Stream::draft, depth, node, 0), left, to + count);
  }
  for (int k = 0; k < left; ++k) {
    const Place place = p.coupled ? make_place(seed, position, Stream::target, 0, 0, 0)
                                  : make_place(seed, position, Stream::draft, depth, node, k);
    const int64_t id = draw(law, place);
    if (id < 0) break;
    to[count++] = id;
    if (p.coupled && k + 1 < left) remove(law, id);
  }
  return count;
}

// Whether drafting ends at a law that is not dead, by its largest probability (the best weight is 1) and its entropy.
bool is_stopped(const DraftParams& p, const Law& law, int64_t r, int64_t request, int threads) {
  const bool wants_entropy = p.certainty != nullptr || p.stops.max_entropy;
  const double confidence = 1.0 / law.total, nats = wants_entropy ? entropy(law, threads) : 0.0;
  if (p.certainty != nullptr) {
    p.certainty[2 * r] = static_cast<float>(confidence);
    p.certainty[2 * r + 1] = static_cast<float>(nats);
  }
  return p.stops.is_unlikely(request, confidence) || p.stops.is_uncertain(request, nats);
}

void draft_row(const DraftParams& p, int64_t r, int threads) {
  int64_t* drafts = p.drafts + r * p.drafts_stride;
  const int64_t request = p.requests ? p.requests[r] : r;
  int count = 0;
  int32_t status = request == -1 ? 0 : kStatusMalformed;
  if (p.certainty != nullptr) p.certainty[2 * r] = p.certainty[2 * r + 1] = 0.0f;
  if (request >= 0 && request < p.batch) {
    Law& law = law_of_thread();
    Source source = row_source(p.logits, r);
    source.mask = p.mask.of(r);
    source.id_of = p.draft_to_target;
    const Settings settings = p.sampling.of(request);
    if (!is_greedy(settings)) {
      find_law(law, source, settings, threads);
    } else if (p.looks_at_laws()) {
      scan_law(law, source, 1.0f, threads);
    } else {
      scan_maxima(law, source, threads);
    }
    const bool stopped = p.looks_at_laws() && !law.dead() && is_stopped(p, law, r, request, threads);
    law.settings = settings;
    if (!stopped) count = children(p, law, r, request, drafts);
    status = (law.nan ? kStatusNan : 0) | (law.dead() ? kStatusDeadEnd : 0);
  }
  for (int i = count; i < p.num; ++i) drafts[i] = -1;
  p.status[r] = status;
}

}  // namespace

void sample_tokens(const SampleParams& p) {
  const int64_t vocab = p.logits.columns;
  spread(p.logits.rows, vocab * (int64_t)sizeof(float), vocab / kBlock,
         [&](int64_t b, int threads) { sample_row(p, b, threads); });
}

void draft_tokens(const DraftParams& p) {
  const int64_t vocab = p.logits.columns;
  spread(p.logits.rows, vocab * (int64_t)sizeof(float), vocab / kBlock,
         [&](int64_t r, int threads) { draft_row(p, r, threads); });
}

SPECDEC_ISA_END
