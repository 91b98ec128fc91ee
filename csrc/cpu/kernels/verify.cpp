// SPDX-License-Identifier: Apache-2.0
// greedy, match, rejection: one walk down the tree of each request. At a node a rule decides one token. Either it is
// that of a child, which is then visited, or it is the request's last token.
//
// Who does what: requests are spread over threads; where they are fewer than the threads, requests come one after the
// other and the blocks of their rows are spread. Memory traffic: the rows of visited nodes, once; again under filters,
// and for a rejected draft. Deterministic, independent of the batch and of the number of threads.
#include "verify.h"

#include <memory>

#include "parallel.h"
#include "residual.h"

SPECDEC_ISA_BEGIN
namespace {

// What one thread needs; its size does not depend on the vocabulary, but for a few numbers per 4,096 ids. It is made by
// the first call and kept; only for the instruction set that is in use.
struct Workspace {
  Law target, draft, raw;
  Residual residual;
};

Workspace& workspace_of_thread() {
  static thread_local std::unique_ptr<Workspace> workspace;
  if (workspace == nullptr) workspace = std::make_unique<Workspace>();
  return *workspace;
}

class Walk {
 public:
  Walk(const VerifyParams& p, int64_t request, int threads, Workspace& space)
      : p_(p), call_(p.call), request_(request), threads_(threads), space_(space), p_law_(space.target) {
    settings_ = p.settings_of(request);
  }

  void run() {
    const int64_t width = call_.width(), limit = call_.limit(request_);
    int32_t node = -1;
    if (!call_.active || call_.active[request_]) {
      nodes_ = open_request(call_.tree, request_);
      if (nodes_.malformed) status_ |= kStatusMalformed;
      if (nodes_.count > 0) node = 0;
    }
    int64_t emitted = 0;
    while (node >= 0 && emitted < limit) {
      const Step step = visit(node);
      if (step.token < 0) status_ |= kStatusDeadEnd;
      write(emitted++, step.token, node);
      node = step.child;
    }
    call_.num_tokens[request_] = static_cast<int32_t>(emitted);
    call_.status[request_] = status_;
    for (int64_t i = emitted; i < width; ++i) write(i, -1, -1);
  }

 private:
  struct Step {
    int64_t token;
    int32_t child;  // visited next; -1: none
  };

  int64_t owner(int32_t node) const { return nodes_.first + node; }
  // A root that stands alone in a malformed tree has depth 0, whatever is written there.
  int64_t depth(int32_t node) const { return node == 0 ? 0 : call_.tree.depths[owner(node)]; }
  int64_t position(int32_t node) const { return p_.context_lens[request_] + depth(node) + 1; }
  Place place(int32_t node, Stream stream, int64_t counted_node) const {
    return make_place(p_.sampling.seed[request_], position(node), stream, depth(node), counted_node, 0);
  }

  Step visit(int32_t node) {
    source_ = row_source(call_.logits, call_.row_of(owner(node)));
    if (source_.data == nullptr) status_ |= kStatusMalformed;
    source_.mask = call_.mask.of(owner(node));
    if (is_greedy(settings_)) {
      scan_maxima(p_law_, source_, threads_);
    } else {
      find_law(p_law_, source_, settings_, threads_);
    }
    if (p_law_.nan) status_ |= kStatusNan;
    if (p_law_.dead()) return {-1, -1};
    if (is_greedy(settings_)) return follow(node, best_id(p_law_));
    if (p_.rule == Rule::rejection) return accept_or_reject(node);
    return follow(node, draw(p_law_, make_place(p_.sampling.seed[request_], position(node), Stream::target, 0, 0, 0)));
  }

  Step follow(int32_t node, int64_t token) const {
    if (token < 0) return {-1, -1};
    return {token, child_with_token(call_.tree, nodes_, node, token)};
  }

  Step accept_or_reject(int32_t node) {
    const int64_t vocab = call_.logits.columns;
    const int32_t end = end_of(call_.tree, nodes_, node);
    int32_t child = present_child(call_.tree, nodes_, node, node + 1, vocab);
    const Law* q = nullptr;
    if (child < end && !find_draft_law(node, &q)) child = end;
    Residual& residual = space_.residual;
    residual.begin(p_law_, q, p_.replacement, threads_);
    while (child < end) {
      const int64_t token = call_.tree.tokens[owner(child)];
      const double u = coin_at(place(node, Stream::coin, child));
      if (accepts(residual.target(token), residual.draft(token), u)) return {token, child};
      if (!residual.reject(token)) return {fall_back(node), -1};
      child = present_child(call_.tree, nodes_, node, call_.tree.ends[owner(child)], vocab);
    }
    const int64_t token = residual.draw(place(node, Stream::residual, node));
    return {token < 0 ? fall_back(node) : token, -1};
  }

  // Nothing is left of the target's law, which exact arithmetic does not know: draw from the law itself.
  int64_t fall_back(int32_t node) {
    status_ |= kStatusFallback;
    return draw(p_law_, place(node, Stream::residual, node));
  }

  // The law that the children of a node were drawn from, null if they are deterministic. False if its row is out of
  // range: the children count as absent.
  bool find_draft_law(int32_t node, const Law** q) {
    if (p_.draft_logits.columns == 0) return true;  // none were given
    const Settings settings = p_.draft_sampling.of(request_);
    const int64_t row = p_.draft_rows ? p_.draft_rows[owner(node)] : owner(node);
    if (is_greedy(settings) || (p_.draft_rows && row == -1)) return true;
    Source source = row_source(p_.draft_logits, row);
    if (source.data == nullptr) {
      status_ |= kStatusMalformed;
      return false;
    }
    source.mask = p_.draft_mask.of(owner(node));
    source.id_of = p_.draft_to_target;
    source.column_of = p_.target_to_draft;
    if (source.column_of) source.entries = call_.logits.columns;
    find_law(space_.draft, source, settings, threads_);
    if (space_.draft.nan) status_ |= kStatusNan;
    *q = &space_.draft;
    return true;
  }

  void write(int64_t index, int64_t token, int32_t node) {
    const int64_t at = request_ * call_.width() + index;
    call_.out_tokens.set(at, token);
    call_.path[at] = node;
    if (call_.logprobs_mode == Logprobs::none) return;
    double logprob = 0.0, lse = 0.0;
    if (node >= 0) score(token, &logprob, &lse);
    call_.logprobs[at] = static_cast<float>(logprob);
    call_.lse[at] = static_cast<float>(lse);
  }

  // Log-probability of a token under the law of the node that was visited last, and that row's log-sum-exp.
  void score(int64_t token, double* logprob, double* lse) {
    if (token < 0) {
      *logprob = *lse = -__builtin_inf();
      return;
    }
    const bool raw = call_.logprobs_mode == Logprobs::raw;
    if (!raw && is_greedy(settings_)) {
      *lse = p_law_.max;
      return;
    }
    const Law* law = &p_law_;
    double temperature = settings_.temperature;
    if (raw && !is_plain(settings_)) {
      law = &space_.raw;
      temperature = 1.0;
      Source source = source_;
      source.mask = Mask{};
      scan_law(space_.raw, source, 1.0f, threads_);
    }
    const double log_sum = log_double(law->total), max = law->max;
    *logprob = (logit_of(law->source, token) - max) / temperature - log_sum;
    *lse = max / temperature + log_sum;
  }

  // Whether the processed law is the softmax of the row as it came.
  bool is_plain(const Settings& s) const { return s.temperature == 1.0f && !has_filter(s) && source_.mask.is_open(); }

  const VerifyParams& p_;
  const VerifyCall& call_;
  const int64_t request_;
  const int threads_;
  Workspace& space_;
  Law& p_law_;
  Settings settings_;
  RequestNodes nodes_;
  Source source_;
  int32_t status_ = 0;
};

}  // namespace

void verify(const VerifyParams& p) {
  const int64_t vocab = p.call.logits.columns;
  spread(p.call.tree.batch, vocab * (int64_t)sizeof(float), vocab / kBlock,
         [&](int64_t b, int threads) { Walk(p, b, threads, workspace_of_thread()).run(); });
}

SPECDEC_ISA_END
