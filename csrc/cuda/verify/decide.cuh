// SPDX-License-Identifier: Apache-2.0
// What a rule decides at one node of a tree: a token, and the child that holds it. That depends on the node's rows and
// its children alone, so that all nodes can be decided at the same time, whether they are visited or not.
#pragma once

#include "../../common/verify_call.h"
#include "../sampling/cut.cuh"
#include "../sampling/residual.cuh"

namespace specdec::cuda {

// Of one node: the token that is emitted after it, and which child is visited next.
struct Decision {
  int32_t token;  // -1: dead end
  int32_t child;  // -1: none
  int32_t status;
  float logprob;
  float lse;
};

struct VerifyStorage {
  TeamStorage team;
  BinStorage bins;
  Source target, draft, raw;
};

// What a rule needs behind the storage above.
struct VerifyMemory {
  LawMemory target, draft;
  ResidualStorage* residual;
  double* left;  // [owned]

  SPECDEC_HD static int64_t bytes(Rule rule, bool drawn, const Layout& layout) {
    int64_t bytes = LawMemory::bytes(layout, 0);
    if (rule == Rule::rejection) {
      bytes += static_cast<int64_t>(sizeof(ResidualStorage)) + (layout.owned() + 1) / 2 * 16;
      if (drawn) bytes += LawMemory::bytes(layout, kMaxRejected);
    }
    return bytes;
  }
  __device__ static VerifyMemory carve(unsigned char* memory, Rule rule, bool drawn, const Layout& layout) {
    VerifyMemory m{};
    m.target = LawMemory::carve(memory, layout, 0);
    if (rule == Rule::rejection) {
      m.residual = reinterpret_cast<ResidualStorage*>(memory);
      memory += sizeof(ResidualStorage);
      m.left = reinterpret_cast<double*>(memory);
      memory += (layout.owned() + 1) / 2 * 16;
      if (drawn) m.draft = LawMemory::carve(memory, layout, kMaxRejected);
    }
    return m;
  }
};

template <Rule kRule>
class Decider {
 public:
  __device__ Decider(Team& team, VerifyStorage& shared, const VerifyMemory& memory, const Layout& layout,
                     const VerifyParams& p, int64_t request, const RequestNodes& nodes)
      : team_(team), shared_(shared), memory_(memory), p_(p), request_(request), nodes_(nodes) {
    law_.source = &shared.target;
    law_.memory = memory.target;
    law_.layout = layout;
    settings_ = p.settings_of(request);
  }

  // For all threads of the team together.
  __device__ Decision at(int32_t node) {
    status_ = 0;
    prepare(node);
    law_.settings = settings_;
    if (is_greedy(settings_)) {
      scan<false>(team_, law_);
    } else if constexpr (kRule != Rule::greedy) {
      find_law(team_, shared_.bins, law_);
    }
    if (shared_.target.data == nullptr) status_ |= kStatusMalformed;
    if (law_.nan) status_ |= kStatusNan;
    Step step{-1, -1};
    if (!law_.dead()) {
      if (is_greedy(settings_)) {
        step = follow(node, best_id(team_, law_));
      } else if constexpr (kRule == Rule::match) {
        step = follow(node, draw(team_, shared_.bins, law_,
                                 make_place(p_.sampling.seed[request_], position(node), Stream::target, 0, 0, 0)));
      } else if constexpr (kRule == Rule::rejection) {
        step = accept_or_reject(node);
      }
    }
    if (step.token < 0) status_ |= kStatusDeadEnd;
    Decision decision{static_cast<int32_t>(step.token), step.child, status_, 0.0f, 0.0f};
    if (p_.call.logprobs_mode != Logprobs::none) score(step.token, decision);
    return decision;
  }

 private:
  struct Step {
    int64_t token;
    int32_t child;
  };

  __device__ int64_t owner(int32_t node) const { return nodes_.first + node; }
  // A root that stands alone in a malformed tree has depth 0, whatever is written there.
  __device__ int64_t depth(int32_t node) const { return node == 0 ? 0 : p_.call.tree.depths[owner(node)]; }
  __device__ int64_t position(int32_t node) const { return p_.context_lens[request_] + depth(node) + 1; }
  __device__ Place place(int32_t node, Stream stream, int64_t counted_node) const {
    return make_place(p_.sampling.seed[request_], position(node), stream, depth(node), counted_node, 0);
  }

  // The sources of a node lie in shared memory: registers are for the passes over rows.
  // Nobody reads those of the node before any more: a barrier lies between two nodes.
  __device__ void prepare(int32_t node) {
    if (threadIdx.x == 0) {
      shared_.target = row_source(p_.call.logits, p_.call.row_of(owner(node)));
      shared_.raw = shared_.target;
      shared_.target.mask = p_.call.mask.of(owner(node));
    }
    __syncthreads();
  }

  __device__ Step follow(int32_t node, int64_t token) const {
    if (token < 0) return {-1, -1};
    return {token, child_with_token(p_.call.tree, nodes_, node, token)};
  }

  __device__ Step accept_or_reject(int32_t node) {
    const int64_t vocab = p_.call.logits.columns;
    const TreeView& tree = p_.call.tree;
    const int32_t end = end_of(tree, nodes_, node);
    int32_t child = present_child(tree, nodes_, node, node + 1, vocab);
    Law draft;
    bool drawn = false;
    if (child < end && !find_draft_law(node, draft, drawn)) child = end;
    Residual residual(team_, shared_.bins, *memory_.residual, memory_.left, law_, drawn ? &draft : nullptr,
                      p_.replacement);
    while (child < end && !residual.is_full()) {
      const int64_t token = tree.tokens[owner(child)];
      const double u = coin_at(place(node, Stream::coin, child));
      if (accepts(residual.target(token), residual.draft(token), u)) return {token, child};
      if (!residual.reject(token)) return {fall_back(node), -1};
      child = present_child(tree, nodes_, node, tree.ends[owner(child)], vocab);
    }
    const int64_t token = residual.draw(place(node, Stream::residual, node));
    return {token < 0 ? fall_back(node) : token, -1};
  }

  // Nothing is left of the target's law, which exact arithmetic does not know: draw from the law itself.
  __device__ int64_t fall_back(int32_t node) {
    status_ |= kStatusFallback;
    return draw(team_, shared_.bins, law_, place(node, Stream::residual, node));
  }

  // The law that the children of a node were drawn from, unless they are deterministic. False if its row is out of
  // range: the children count as absent.
  __device__ bool find_draft_law(int32_t node, Law& draft, bool& drawn) {
    if (p_.draft_logits.columns == 0) return true;  // none were given
    const Settings settings = p_.draft_sampling.of(request_);
    const int64_t row = p_.draft_rows ? p_.draft_rows[owner(node)] : owner(node);
    if (is_greedy(settings) || (p_.draft_rows && row == -1)) return true;
    if (row < 0 || row >= p_.draft_logits.rows) {
      status_ |= kStatusMalformed;
      return false;
    }
    if (threadIdx.x == 0) {
      Source source = row_source(p_.draft_logits, row);
      source.mask = p_.draft_mask.of(owner(node));
      source.id_of = p_.draft_to_target;
      source.column_of = p_.target_to_draft;
      if (source.column_of) source.entries = p_.call.logits.columns;
      shared_.draft = source;
    }
    __syncthreads();
    draft.source = &shared_.draft;
    draft.memory = memory_.draft;
    draft.layout = law_.layout;
    draft.settings = settings;
    find_law(team_, shared_.bins, draft);
    if (draft.nan) status_ |= kStatusNan;
    drawn = true;
    return true;
  }

  // Log-probability of the token under the law of the node, and that row's log-sum-exp.
  __device__ void score(int64_t token, Decision& to) {
    if (token < 0) {
      to.logprob = to.lse = -INFINITY;
      return;
    }
    const bool raw = p_.call.logprobs_mode == Logprobs::raw;
    if (!raw && is_greedy(settings_)) {
      to.lse = law_.max;
      return;
    }
    double temperature = settings_.temperature;
    const Source* source = &shared_.target;
    if (raw) {
      source = &shared_.raw;
      temperature = 1.0;
      if (!is_plain()) {
        law_.source = source;  // its memory is free now
        law_.settings = Settings{};
        scan<true>(team_, law_);
        law_.source = &shared_.target;
      }
    }
    const double log_sum = log_double(law_.total), max = law_.max;
    to.logprob = static_cast<float>((logit_of(*source, token) - max) / temperature - log_sum);
    to.lse = static_cast<float>(max / temperature + log_sum);
  }

  // Whether the processed law is the softmax of the row as it came.
  __device__ bool is_plain() const {
    return settings_.temperature == 1.0f && !has_filter(settings_) && shared_.target.mask.is_open();
  }

  Team& team_;
  VerifyStorage& shared_;
  const VerifyMemory& memory_;
  const VerifyParams& p_;
  const int64_t request_;
  const RequestNodes nodes_;
  Settings settings_;
  Law law_;
  int32_t status_ = 0;
};

}  // namespace specdec::cuda
