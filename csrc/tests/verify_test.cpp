// SPDX-License-Identifier: Apache-2.0
// verify against the walk of docs/verify.md with whole laws in double precision, and its promise: the same bits for any
// number of threads and any instruction set.
#include "verify_cases.h"
#include "ways.h"

using namespace specdec;
using namespace specdec::testing;

namespace {

// ---- Comparison ----

bool near(float got, double expected) {
  if (std::isnan(expected)) return std::isnan(got);  // a draft of logit -inf, followed at an infinite temperature
  const double narrow = static_cast<float>(expected);
  if (std::isinf(narrow) || std::isinf(got)) return static_cast<double>(got) == narrow;
  return std::fabs(got - expected) <= 4e-6 + 1e-6 * std::fabs(expected);
}

// What the walks met, so that a test that meets nothing is seen.
struct Seen {
  int64_t accepted = 0, rejected = 0, scored = 0, statuses = 0, far_off = 0;
};

template <class Token>
void check_case(Case& c, Tally* tally, Seen* seen) {
  const int64_t batch = c.trees.batch(), width = c.trees.max_depth + 1, length = batch * width;
  VerifyParams p = parameters(c);
  std::vector<Guarded<Token>> tokens;
  std::vector<Guarded<int32_t>> num, path, status;
  std::vector<Guarded<float>> logprobs, lse, divergence;
  const bool scored = c.logprobs != Logprobs::none;
  for (int way = 0; way < kWays; ++way) {
    tokens.emplace_back(length);
    num.emplace_back(batch);
    path.emplace_back(length);
    status.emplace_back(batch);
    logprobs.emplace_back(length);
    lse.emplace_back(length);
    divergence.emplace_back(length);
    p.call.out_tokens = {tokens[way].data(), 1, sizeof(Token) == 8};
    p.call.num_tokens = num[way].data();
    p.call.path = path[way].data();
    p.call.status = status[way].data();
    p.call.logprobs = scored ? logprobs[way].data() : nullptr;
    p.call.lse = scored ? lse[way].data() : nullptr;
    p.call.divergence = c.lossy() ? divergence[way].data() : nullptr;
    run(p, way);
    CHECK(tokens[way].intact() && num[way].intact() && path[way].intact() && status[way].intact());
    CHECK(logprobs[way].intact() && lse[way].intact() && divergence[way].intact());
    CHECK(same_bits(tokens[0].data(), tokens[way].data(), length), "way %d", way);
    CHECK(same_bits(num[0].data(), num[way].data(), batch), "way %d", way);
    CHECK(same_bits(path[0].data(), path[way].data(), length), "way %d", way);
    CHECK(same_bits(status[0].data(), status[way].data(), batch), "way %d", way);
    CHECK(same_bits(logprobs[0].data(), logprobs[way].data(), length), "way %d", way);
    CHECK(same_bits(lse[0].data(), lse[way].data(), length), "way %d", way);
    CHECK(same_bits(divergence[0].data(), divergence[way].data(), length), "way %d", way);
  }
  for (int64_t b = 0; b < batch; ++b) {
    const Result expected = SlowWalk(c, b).run();
    const int64_t n = static_cast<int64_t>(expected.tokens.size());
    CHECK(num[0][b] >= 0 && num[0][b] <= width);
    for (int64_t i = num[0][b]; i < width; ++i) {
      CHECK(tokens[0][b * width + i] == -1 && path[0][b * width + i] == -1);
      CHECK(!scored || (logprobs[0][b * width + i] == 0.0f && lse[0][b * width + i] == 0.0f));
      CHECK(!c.lossy() || divergence[0][b * width + i] == 0.0f);
    }
    if (expected.margin.close()) {
      ++tally->close;
      continue;
    }
    ++tally->compared;
    seen->accepted += std::max<int64_t>(n - 1, 0);
    seen->rejected += n > 0 && expected.rejections > 0;
    seen->statuses |= expected.status;
    const Settings s = c.undrawn() ? Settings{0.0f} : c.sampling.settings[b];
    CHECK(num[0][b] == n, "request %lld: %d, not %lld", (long long)b, num[0][b], (long long)n);
    CHECK(status[0][b] == expected.status, "request %lld: status %d, not %d", (long long)b, status[0][b],
          expected.status);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = b * width + i;
      CHECK(path[0][at] == expected.path[i], "node %d, not %lld", path[0][at], (long long)expected.path[i]);
      CHECK(tokens[0][at] == expected.tokens[i],
            "token %lld of request %lld is %lld, not %lld: rule %d, V %lld, T %g top_k %d top_p %g min_p %g order %d",
            (long long)i, (long long)b, (long long)tokens[0][at], (long long)expected.tokens[i], (int)c.rule,
            (long long)c.logits.columns(), s.temperature, s.top_k, s.top_p, s.min_p, (int)s.order);
      if (c.lossy()) {
        const double wanted = expected.divergences[i];
        CHECK(std::fabs(divergence[0][at] - wanted) <= 1e-5, "%g, not %g", divergence[0][at], wanted);
        seen->far_off += wanted > 0.01;
      }
      if (!scored || expected.scores_doubtful) continue;
      ++seen->scored;
      CHECK(near(logprobs[0][at], expected.logprobs[i]), "%g, not %g", logprobs[0][at], expected.logprobs[i]);
      CHECK(near(lse[0][at], expected.lse[i]), "%g, not %g", lse[0][at], expected.lse[i]);
    }
  }
}

// ---- Random cases ----

void run_case(Numbers& numbers, Rule rule, int64_t vocab, int64_t batch, Tally* tally, Seen* seen) {
  const bool wide = once_in(numbers, 2);
  Case c = random_case(numbers, rule, vocab, batch, wide);
  if (wide) {
    check_case<int64_t>(c, tally, seen);
  } else {
    check_case<int32_t>(c, tally, seen);
  }
}

// `most` is the share of results that may be too close to call.
void test_random(Rule rule, const char* name, int rounds, double most, uint64_t seed) {
  constexpr int64_t kSmall[] = {1, 2, 3, 5, 15, 16, 17, 63, 64, 65, 300};
  constexpr int64_t kLarge[] = {4095, 4096, 4097, 9000};
  Tally tally;
  Seen seen;
  Numbers numbers(seed + static_cast<uint64_t>(rule) + 7);
  for (int round = 0; round < rounds; ++round) {
    for (const int64_t vocab : kSmall) run_case(numbers, rule, vocab, numbers.below(5), &tally, &seen);
    if (round % 4 == 0) {
      for (const int64_t vocab : kLarge) run_case(numbers, rule, vocab, numbers.below(3), &tally, &seen);
    }
  }
  // One request: the blocks of a row are spread over threads.
  for (int round = 0; round < rounds / 8; ++round)
    run_case(numbers, rule, 17000 + numbers.below(9000), 1, &tally, &seen);
  tally.check(name, most);
  std::printf("  %lld drafts accepted, %lld walks with a rejection\n", static_cast<long long>(seen.accepted),
              static_cast<long long>(seen.rejected));
  CHECK(6 * seen.accepted > tally.compared, "%s", name);
  CHECK(!uses_drafts(rule) || 8 * seen.rejected > tally.compared, "%s", name);
  CHECK(rule < Rule::threshold || 20 * seen.far_off > tally.compared, "%s", name);
  CHECK((seen.statuses & ~kStatusFallback) == (kStatusNan | kStatusDeadEnd | kStatusMalformed), "%s", name);
}

// ---- Cuts ----
// The log-sum-exp of a processed law shows every single id that was kept, or not.
void test_cuts(uint64_t seed) {
  Tally tally;
  Seen seen;
  Numbers numbers(seed + 5);
  for (const FilterOrder order : kOrders) {
    for (const WideRow& wide : kWideRows) {
      const int64_t vocab = 20000 + numbers.below(20001);
      Case c;
      c.rule = Rule::match;
      c.trees.cu_nodes = {0, 1};
      c.trees.parents = {-1};
      c.trees.depths = {0};
      c.trees.ends = {1};
      c.trees.tokens = {0};
      c.trees.given_tokens = Indices(c.trees.tokens, true);
      c.logits = one_wide_row(numbers, wide, vocab);
      c.sampling = wide_settings(numbers, wide, order, once_in(numbers, 2) ? 1.0f : 50.0f);
      c.context_lens = Indices({5}, true);
      c.logprobs = Logprobs::processed;
      if (once_in(numbers, 4)) c.masks = random_masks(numbers, 1, vocab);
      check_case<int64_t>(c, &tally, &seen);
    }
  }
  std::printf("cuts: %lld of %lld log-probabilities compared\n", static_cast<long long>(seen.scored),
              static_cast<long long>(tally.compared));
  CHECK(4 * seen.scored > 3 * tally.compared);
}

// ---- Where nothing is left ----
// Both laws hold one and the same id, and the draft is another one: no drafter draws it, and no residual is left.
void test_fallback(Rule rule) {
  for (const int64_t vocab : {20, 5000}) {
    Case c;
    c.rule = rule;
    c.trees.cu_nodes = {0, 2};
    c.trees.parents = {-1, 0};
    c.trees.depths = {0, 1};
    c.trees.ends = {2, 2};
    c.trees.tokens = {0, 3};
    c.trees.given_tokens = Indices(c.trees.tokens, true);
    c.trees.max_depth = 1;
    c.logits = LogitRows(FloatType::float32, 2, vocab, vocab, 0);
    Numbers numbers(9);
    for (int64_t r = 0; r < 2; ++r) fill_row(numbers, Shape::flat, r, c.logits);
    c.logits.set(0, 17, 50.0f);
    c.draft_logits = c.logits;
    c.sampled_drafts = true;
    c.context_lens = Indices({5}, true);
    for (SettingsTable* table : {&c.sampling, &c.draft_sampling}) {
      table->settings = {Settings{1.0f, 1, 1.0f, 0.0f, FilterOrder::top_k_first}};
      table->seeds = {4};
      table->finish();
    }
    Guarded<int64_t> tokens(2);
    Guarded<int32_t> num(1), path(2), status(1);
    VerifyParams p = parameters(c);
    p.call.out_tokens = {tokens.data(), 1, true};
    p.call.num_tokens = num.data();
    p.call.path = path.data();
    p.call.status = status.data();
    run(p);
    CHECK(tokens[0] == 17 && tokens[1] == -1 && num[0] == 1 && path[0] == 0 && status[0] == kStatusFallback);
  }
}

// ---- Deep chains and wide roots ----
// Deeper than any scratch of a fixed size, and as many siblings as one node can draw, most of which come to nothing.
void test_extremes(Rule rule, const char* name, uint64_t seed) {
  Numbers numbers(seed + static_cast<uint64_t>(rule) + 99);
  Tally tally;
  Seen seen;
  for (const int64_t vocab : {300, 300, 300, 300, 300, 300, 4500}) {
    for (const bool deep : {true, false}) {
      const int32_t count = deep ? 201 : 257;
      Case c;
      c.rule = rule;
      c.trees.cu_nodes = {0, count};
      c.trees.max_depth = deep ? count - 1 : 1;
      c.logits = LogitRows(FloatType::float32, count, vocab, vocab, 0);
      c.draft_logits = c.logits;
      for (int32_t i = 0; i < count; ++i) {
        c.trees.parents.push_back(deep ? i - 1 : std::min(i, 1) - 1);
        c.trees.depths.push_back(deep ? i : std::min(i, 1));
        c.trees.ends.push_back(deep || i == 0 ? count : i + 1);
        fill_row(numbers, Shape::flat, i, c.logits);
        for (int64_t x = 0; x < vocab; ++x) {
          const float logit = static_cast<float>(c.logits.get(i, x));
          c.draft_logits.set(i, x, deep ? logit + 0.05f * numbers.symmetric() : -2.0f * logit);
        }
      }
      bool nan = false;
      for (int32_t i = 0; i < count; ++i) {
        const Ids best = ranking(c.draft_logits.clean(deep ? std::max(i - 1, 0) : 0, &nan));
        c.trees.tokens.push_back(best[static_cast<size_t>(deep ? numbers.below(vocab) : std::max(i - 1, 0))]);
      }
      c.trees.given_tokens = Indices(c.trees.tokens, true);
      c.sampled_drafts = true;
      c.replacement = deep && once_in(numbers, 2);
      c.context_lens = Indices({5}, true);
      for (SettingsTable* table : {&c.sampling, &c.draft_sampling}) {
        table->settings = {Settings{once_in(numbers, 2) ? 1.0f : 0.5f}};
        table->seeds = {static_cast<int64_t>(numbers.bits())};
        table->finish();
      }
      check_case<int64_t>(c, &tally, &seen);
    }
  }
  std::printf("%s, extremes: %lld drafts accepted\n", name, static_cast<long long>(seen.accepted));
  tally.check(name, 0.5);
}

// ---- The steps of docs/randomness.md ----
void test_vectors() {
  struct Vector {
    int64_t seed;
    int32_t drafts[3];
    Ids rejection, match;
  };
  const Vector kVectors[] = {
      {1, {6, 6, 4}, {6, 4}, {8}},    {2, {2, 8, 3}, {2, 1}, {4}}, {3, {6, 6, 0}, {6, 2}, {6, 1}},
      {4, {2, 5, 1}, {2, 5, 8}, {1}}, {5, {2, 6, 2}, {3}, {6}},    {6, {8, 1, 2}, {8, 1, 2, 3}, {9}},
      {7, {4, 4, 1}, {4, 4, 2}, {8}}, {8, {5, 8, 1}, {5, 1}, {4}},
  };
  for (const FloatType type : kFloatTypes) {
    LogitRows logits(type, 4, 10, 10, 0), draft_logits(type, 4, 10, 11, 1);
    for (int64_t v = 0; v < 4; ++v) {
      for (int64_t x = 0; x < 10; ++x) {
        logits.set(v, x, static_cast<float>((7 * x + 3 * v) % 11) / 4);
        draft_logits.set(v, x, static_cast<float>((5 * x + 2 * v) % 11) / 4);
      }
    }
    for (const Vector& v : kVectors) {
      for (const Rule rule : {Rule::rejection, Rule::match}) {
        Case c;
        c.rule = rule;
        c.trees.cu_nodes = {0, 4};
        c.trees.parents = {-1, 0, 1, 2};
        c.trees.depths = {0, 1, 2, 3};
        c.trees.ends = {4, 4, 4, 4};
        c.trees.tokens = {0, v.drafts[0], v.drafts[1], v.drafts[2]};
        c.trees.given_tokens = Indices(c.trees.tokens, false);
        c.trees.max_depth = 3;
        c.logits = logits;
        c.draft_logits = draft_logits;
        c.sampled_drafts = c.replacement = true;
        c.context_lens = Indices({100}, false);
        for (SettingsTable* table : {&c.sampling, &c.draft_sampling}) {
          table->settings = {Settings{}};
          table->seeds = {v.seed};
          table->finish();
        }
        const Ids& expected = rule == Rule::match ? v.match : v.rejection;
        CHECK(SlowWalk(c, 0).run().tokens == expected, "seed %lld", (long long)v.seed);
        Tally tally;
        Seen seen;
        check_case<int64_t>(c, &tally, &seen);
        CHECK(tally.compared == 1);
      }
    }
  }
}

}  // namespace

// An argument is another seed, for runs over many.
int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? 100 * std::strtoull(argv[1], nullptr, 10) : 0;
  std::printf("instruction set %s\n", kernels_in_use());
  test_vectors();
  test_fallback(Rule::rejection);
  test_cuts(seed);
  test_random(Rule::greedy, "greedy", 30, 0.0, seed);
  test_random(Rule::match, "match", 60, 0.01, seed);
  test_random(Rule::rejection, "rejection", 120, 0.03, seed);
  test_extremes(Rule::rejection, "rejection", seed);
  test_fallback(Rule::bottom_up);
  test_fallback(Rule::greedy_plus_one);
  test_random(Rule::bottom_up, "bottom up", 80, 0.04, seed);
  test_random(Rule::greedy_plus_one, "greedy plus one", 40, 0.03, seed);
  test_random(Rule::threshold, "threshold", 32, 0.03, seed);
  test_random(Rule::typical, "typical", 32, 0.03, seed);
  test_random(Rule::relaxed, "relaxed", 32, 0.03, seed);
  test_random(Rule::synthetic, "synthetic", 32, 0.03, seed);
  test_extremes(Rule::bottom_up, "bottom up", seed);
  test_extremes(Rule::greedy_plus_one, "greedy plus one", seed);
  std::puts("verify: ok");
  return 0;
}
