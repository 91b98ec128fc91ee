// SPDX-License-Identifier: Apache-2.0
// One node of a request under verification, by a team: its laws, its children, its noise, and what is said of a token.
#pragma once

#include "../../common/verify_call.h"
#include "../sampling/cut.cuh"
#include "../sampling/residual.cuh"

namespace specdec::cuda {

struct VerifyStorage {
  TeamStorage team;
  BinStorage bins;
  Source target, draft, raw;
};

// What a rule needs behind the storage above. `drawn`: some drafts may have been drawn from a law.
struct VerifyMemory {
  LawMemory target, draft;
  ResidualStorage* residual;
  double* left;  // [owned]

  SPECDEC_HD static constexpr bool has_residual(Rule rule) { return uses_drafts(rule) || rule == Rule::threshold; }

  SPECDEC_HD static int64_t bytes(Rule rule, bool drawn, const Layout& layout) {
    int64_t bytes = LawMemory::bytes(layout, 0);
    if (has_residual(rule)) bytes += static_cast<int64_t>(sizeof(ResidualStorage)) + (layout.owned() + 1) / 2 * 16;
    if (uses_drafts(rule) && drawn) bytes += LawMemory::bytes(layout, kMaxRejected);
    return bytes;
  }
  __device__ static VerifyMemory carve(unsigned char* memory, Rule rule, bool drawn, const Layout& layout) {
    VerifyMemory m{};
    m.target = LawMemory::carve(memory, layout, 0);
    if (has_residual(rule)) {
      m.residual = reinterpret_cast<ResidualStorage*>(memory);
      memory += sizeof(ResidualStorage);
      m.left = reinterpret_cast<double*>(memory);
      memory += (layout.owned() + 1) / 2 * 16;
    }
    if (uses_drafts(rule) && drawn) m.draft = LawMemory::carve(memory, layout, kMaxRejected);
    return m;
  }
};

inline bool may_be_drawn(const VerifyParams& p) { return uses_drafts(p.rule) && p.draft_logits.columns > 0; }

// What the log-probabilities of a node are relative to.
struct Scale {
  double log_sum = 0.0;
  float max = 0.0f;
};

struct Score {
  float logprob, lse;
};

// What is decided at a node.
struct Step {
  int64_t token;
  int32_t child;  // visited next; -1: none
  double divergence = 0.0;
};

// Whatever uses the laws is called by all threads of the team together.
class NodeLaws {
 public:
  __device__ NodeLaws(Team& team, VerifyStorage& shared, const VerifyMemory& memory, const Layout& layout,
                      const VerifyParams& p, int64_t request, const RequestNodes& nodes)
      : team_(team), shared_(shared), memory_(memory), p_(p), request_(request), nodes_(nodes) {
    law_.source = &shared.target;
    law_.memory = memory.target;
    law_.layout = layout;
    settings_ = p.settings_of(request);
  }

 protected:
  __device__ int64_t owner(int32_t node) const { return nodes_.first + node; }
  __device__ int64_t token(int32_t node) const { return p_.call.tree.tokens[owner(node)]; }
  // A root that stands alone in a malformed tree has depth 0, whatever is written there.
  __device__ int64_t depth(int32_t node) const { return node == 0 ? 0 : p_.call.tree.depths[owner(node)]; }
  __device__ int32_t end(int32_t node) const { return end_of(p_.call.tree, nodes_, node); }
  __device__ int32_t first_child(int32_t node) const {
    return present_child(p_.call.tree, nodes_, node, node + 1, p_.call.logits.columns);
  }
  __device__ int32_t next_child(int32_t node, int32_t child) const {
    return present_child(p_.call.tree, nodes_, node, p_.call.tree.ends[owner(child)], p_.call.logits.columns);
  }
  __device__ int32_t child_with(int32_t node, int64_t token) const {
    return child_with_token(p_.call.tree, nodes_, node, token);
  }

  __device__ int64_t position(int32_t node) const { return p_.context_lens[request_] + depth(node) + 1; }
  // Where noise lies that is met at a node.
  __device__ Place place(int32_t node, Stream stream, int64_t counted_node) const {
    return make_place(p_.sampling.seed[request_], position(node), stream, depth(node), counted_node, 0);
  }
  __device__ double coin(int32_t parent, int32_t child) const { return coin_at(place(parent, Stream::coin, child)); }
  // The token that plain decoding draws after a node.
  __device__ int64_t plain_draw(int32_t node) {
    return draw(team_, shared_.bins, law_,
                make_place(p_.sampling.seed[request_], position(node), Stream::target, 0, 0, 0));
  }

  // Reads the row of a node; of a greedy request only the maxima, and kGreedy says that every request is one. The
  // sources lie in shared memory: registers are for the passes over rows. Nobody reads those of the node before any
  // more: a barrier lies between two nodes.
  template <bool kGreedy = false>
  __device__ void read(int32_t node) {
    if (threadIdx.x == 0) {
      shared_.raw = row_source(p_.call.logits, p_.call.row_of(owner(node)));
      shared_.target = shared_.raw;
      shared_.target.mask = p_.call.mask.of(owner(node));
    }
    __syncthreads();
    law_.settings = settings_;
    if (kGreedy || is_greedy(settings_)) {
      scan<false>(team_, law_);
    } else {
      find_law(team_, shared_.bins, law_);
    }
    if (shared_.target.data == nullptr) status_ |= kStatusMalformed;
    if (law_.nan) status_ |= kStatusNan;
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

  // Of the children from `first` on, which were chosen, the last of all, which was drawn from q without the others; -1
  // if it is absent. Of more than are looked at, all count as chosen: the draw is from p then, whatever they are.
  __device__ int32_t sampled_child(int32_t node, int32_t first) const {
    const int32_t end = this->end(node);
    int32_t sampled = -1;
    int count = 0;
    for (int32_t child = first; child < end; child = next_child(node, child)) {
      if (p_.call.tree.ends[owner(child)] >= end) sampled = child;
      ++count;
    }
    return count > kMaxRejected ? -1 : sampled;
  }

  // Lets the children of a node come to nothing, one after the other; hand(child, budget) by the thread that leads.
  // False if nothing is left although the budget is 1.
  template <class Hand>
  __device__ bool try_children(int32_t node, int32_t child, Residual& residual, const Hand& hand) {
    const int32_t end = this->end(node);
    for (; child < end && !residual.is_full(); child = next_child(node, child)) {
      if (team_.leads()) hand(child, residual.handed_down(token(child)));
      if (!residual.reject(token(child))) return false;
    }
    return true;
  }

  __device__ int64_t draw_residual(int32_t node, Residual& residual) {
    const int64_t token = residual.draw(place(node, Stream::residual, node));
    return token < 0 ? fall_back(node) : token;
  }

  // Nothing is left of the target's law, which exact arithmetic does not know: draw from the law itself.
  __device__ int64_t fall_back(int32_t node) {
    status_ |= kStatusFallback;
    return draw(team_, shared_.bins, law_, place(node, Stream::residual, node));
  }

  __device__ bool wants_scores() const { return p_.call.logprobs_mode != Logprobs::none; }

  // Of a law that is not dead, and that is lost then.
  __device__ Scale scale() {
    if (p_.call.logprobs_mode == Logprobs::raw && !is_plain()) {
      law_.source = &shared_.raw;  // the law's memory is free now
      law_.settings = Settings{};
      scan<true>(team_, law_);
      law_.source = &shared_.target;
    } else if (is_greedy(settings_)) {
      return {0.0, law_.max};
    }
    return {log_double(law_.total), law_.max};
  }

  // Log-probability of a token under the law of a node with these sources, and that row's log-sum-exp; by any thread.
  __device__ Score score(int64_t token, const Scale& scale, const Source& target, const Source& raw) const {
    if (token < 0) return {-INFINITY, -INFINITY};
    const bool of_raw = p_.call.logprobs_mode == Logprobs::raw;
    if (!of_raw && is_greedy(settings_)) return {0.0f, scale.max};
    const double temperature = of_raw ? 1.0 : settings_.temperature, max = scale.max;
    const double above = logit_of(of_raw ? raw : target, token) - max;
    return {static_cast<float>(above / temperature - scale.log_sum),
            static_cast<float>(max / temperature + scale.log_sum)};
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

 private:
  // Whether the processed law is the softmax of the row as it came.
  __device__ bool is_plain() const {
    return settings_.temperature == 1.0f && !has_filter(settings_) && shared_.target.mask.is_open();
  }
};

}  // namespace specdec::cuda
