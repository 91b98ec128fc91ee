// SPDX-License-Identifier: Apache-2.0
#include "verify_request.h"

SPECDEC_ISA_BEGIN

Workspace& workspace_of_thread() {
  static thread_local std::unique_ptr<Workspace> workspace;
  if (workspace == nullptr) workspace = std::make_unique<Workspace>();
  return *workspace;
}

void Request::read(int32_t node, Law& law) {
  Source source = row_source(call.logits, call.row_of(owner(node)));
  if (source.data == nullptr) status |= kStatusMalformed;
  source.mask = call.mask.of(owner(node));
  if (is_greedy(settings)) {
    scan_maxima(law, source, threads);
  } else {
    find_law(law, source, settings, threads);
  }
  if (law.nan) status |= kStatusNan;
}

bool Request::read_drafts(int32_t node, Law& draft, const Law** q) {
  *q = nullptr;
  if (p.draft_logits.columns == 0) return true;  // none were given
  const Settings drawn = p.draft_sampling.of(index);
  const int64_t row = p.draft_rows ? p.draft_rows[owner(node)] : owner(node);
  if (is_greedy(drawn) || (p.draft_rows && row == -1)) return true;
  Source source = row_source(p.draft_logits, row);
  if (source.data == nullptr) {
    status |= kStatusMalformed;
    return false;
  }
  source.mask = p.draft_mask.of(owner(node));
  source.id_of = p.draft_to_target;
  source.column_of = p.target_to_draft;
  if (source.column_of) source.entries = vocab();
  find_law(draft, source, drawn, threads);
  if (draft.nan) status |= kStatusNan;
  *q = &draft;
  return true;
}

void Request::emit(int64_t token, int32_t node, const Law& law, double divergence) {
  if (token < 0) status |= kStatusDeadEnd;
  const int64_t at = index * call.width() + emitted++;
  call.out_tokens.set(at, token);
  call.path[at] = node;
  if (call.divergence != nullptr) call.divergence[at] = static_cast<float>(divergence);
  if (call.logprobs_mode == Logprobs::none) return;
  double logprob = 0.0, lse = 0.0;
  score(token, law, &logprob, &lse);
  call.logprobs[at] = static_cast<float>(logprob);
  call.lse[at] = static_cast<float>(lse);
}

void Request::finish() {
  const int64_t width = call.width();
  call.num_tokens[index] = static_cast<int32_t>(emitted);
  call.status[index] = status;
  for (int64_t at = index * width + emitted; at < (index + 1) * width; ++at) {
    call.out_tokens.set(at, -1);
    call.path[at] = -1;
    if (call.divergence != nullptr) call.divergence[at] = 0.0f;
    if (call.logprobs_mode != Logprobs::none) call.logprobs[at] = call.lse[at] = 0.0f;
  }
}

// Log-probability of a token under the law of its node, and that row's log-sum-exp.
void Request::score(int64_t token, const Law& law, double* logprob, double* lse) const {
  if (token < 0) {
    *logprob = *lse = -__builtin_inf();
    return;
  }
  const bool raw = call.logprobs_mode == Logprobs::raw;
  if (!raw && is_greedy(settings)) {
    *lse = law.max;
    return;
  }
  // Whether the processed law is the softmax of the row as it came.
  const bool plain = settings.temperature == 1.0f && !has_filter(settings) && law.source.mask.is_open();
  const Law* scored = &law;
  double temperature = settings.temperature;
  if (raw && !plain) {
    scored = &space.raw;
    temperature = 1.0;
    Source source = law.source;
    source.mask = Mask{};
    scan_law(space.raw, source, 1.0f, threads);
  }
  const double log_sum = log_double(scored->total), max = scored->max;
  *logprob = (logit_of(scored->source, token) - max) / temperature - log_sum;
  *lse = max / temperature + log_sum;
}

SPECDEC_ISA_END
