// SPDX-License-Identifier: Apache-2.0
// sample_tokens and draft_tokens against their definition, the test vectors of docs/randomness.md, and their promise:
// the same bits for all ways of running them.
#include <numeric>

#include "../common/race.h"
#include "rows_of_logits.h"
#include "ways.h"

using namespace specdec;
using namespace specdec::testing;

namespace {

constexpr int64_t kVocabs[] = {1, 2, 15, 16, 17, 63, 64, 65, 500, 4095, 4096, 4097, 9000};

// ---- sample ----
struct Sampled {
  int64_t token;
  int32_t status;
};

Sampled sample_slowly(const Doubles& row, bool nan, const Settings& s, int64_t seed, int64_t position, Margin* margin) {
  Ids ids(row.size());
  std::iota(ids.begin(), ids.end(), 0);
  int64_t token;
  if (greedy(s)) {
    const Ids order = ranking(row);
    token = order.empty() ? -1 : order[0];
  } else {
    token = draw_of(law_of(row, s), make_place(seed, position, Stream::target, 0, 0, 0), ids, margin);
  }
  return {token, (nan ? kStatusNan : 0) | (token < 0 ? kStatusDeadEnd : 0)};
}

template <class Token>
void check_sample(Numbers& numbers, const LogitRows& logits, SettingsTable& settings, const Masks& masks,
                  Tally* tally) {
  const int64_t batch = logits.rows();
  Ids positions;
  std::vector<char> active;
  for (int64_t b = 0; b < batch; ++b) {
    positions.push_back(once_in(numbers, 9) ? INT32_MAX : numbers.below(100000));
    active.push_back(!once_in(numbers, 8));
  }
  const Indices position = random_indices(numbers, positions);
  SampleParams p;
  p.logits = logits.view();
  p.sampling = settings.view();
  p.positions = position.view();
  p.mask = masks.view();
  const bool some = once_in(numbers, 2);
  if (some) p.active = {reinterpret_cast<bool*>(active.data()), 1};
  std::vector<Guarded<Token>> tokens;
  std::vector<Guarded<int32_t>> status;
  for (int way = 0; way < kWays; ++way) {
    tokens.emplace_back(2 * batch);
    status.emplace_back(3 * batch);
    p.tokens = {tokens[way].data(), 2, sizeof(Token) == 8};
    p.status = {status[way].data(), 3};
    run(p, way);
    CHECK(tokens[way].intact() && status[way].intact());
    CHECK(same_bits(tokens[0].data(), tokens[way].data(), 2 * batch), "way %d", way);
    CHECK(same_bits(status[0].data(), status[way].data(), 3 * batch), "way %d", way);
  }
  Ids ids(static_cast<size_t>(logits.columns()));
  std::iota(ids.begin(), ids.end(), 0);
  for (int64_t b = 0; b < batch; ++b) {
    CHECK(tokens[0].untouched(2 * b + 1) && status[0].untouched(3 * b + 1) && status[0].untouched(3 * b + 2));
    const int64_t token = tokens[0][2 * b];
    Sampled expected{-1, 0};
    Margin margin;
    if (!some || active[b]) {
      bool nan = false;
      Doubles row = logits.clean(b, &nan);
      masks.apply(b, ids, row);
      expected = sample_slowly(row, nan, settings.settings[b], settings.seeds[b], positions[b], &margin);
      CHECK(token < 0 || row[token] > -kInfinity, "an id that is not allowed");
    }
    CHECK(status[0][3 * b] == expected.status, "status %d, not %d", status[0][3 * b], expected.status);
    if (margin.close()) {
      ++tally->close;
      continue;
    }
    ++tally->compared;
    const Settings& s = settings.settings[b];
    CHECK(token == expected.token,
          "token %lld, not %lld: V %lld type %d, T %g top_k %d top_p %g min_p %g order %d, row %lld, margin %g",
          (long long)token, (long long)expected.token, (long long)logits.columns(), (int)p.logits.type, s.temperature,
          s.top_k, s.top_p, s.min_p, (int)s.order, (long long)b, margin.value);
  }
}

void test_sample(uint64_t seed) {
  Tally tally;
  Numbers numbers(seed + 1);
  for (int round = 0; round < 14; ++round) {
    for (const int64_t vocab : kVocabs) {
      const int64_t batch = numbers.below(6);
      const LogitRows logits = random_rows(numbers, batch, vocab);
      SettingsTable settings = random_settings(numbers, batch, vocab, !once_in(numbers, 4));
      const Masks masks = once_in(numbers, 3) && batch > 0 ? random_masks(numbers, batch, vocab) : Masks{};
      if (round % 2 == 0) {
        check_sample<int32_t>(numbers, logits, settings, masks, &tally);
      } else {
        check_sample<int64_t>(numbers, logits, settings, masks, &tally);
      }
    }
  }
  tally.check("sample", 0.02);
}

// One at a time, so that a row's blocks are spread over threads.
void test_wide_rows(uint64_t seed) {
  constexpr float kTemperatures[] = {1.0f, 3.0f, 50.0f};
  Tally tally;
  Numbers numbers(seed + 2);
  for (const FilterOrder order : kOrders) {
    for (const WideRow& wide : kWideRows) {
      const int64_t vocab = 20000 + numbers.below(20001);
      const LogitRows logits = one_wide_row(numbers, wide, vocab);
      SettingsTable settings = wide_settings(numbers, wide, order, one_of(numbers, kTemperatures));
      const Masks masks = once_in(numbers, 4) ? random_masks(numbers, 1, vocab) : Masks{};
      check_sample<int64_t>(numbers, logits, settings, masks, &tally);
    }
  }
  tally.check("sample, wide rows", 0.05);
}

// ---- draft ----
struct DraftOptions {
  int num = 1, top = 0;
  bool replacement = false, coupled = false;
  bool spiked = false;  // few ids have much of the mass, and nothing is filtered
};

// `values` are the logits of the ids `ids`, which ascend.
Ids draft_slowly(const Doubles& values, const Ids& ids, const Settings& s, int64_t seed, int64_t position,
                 int64_t depth, int64_t node, const DraftOptions& options, Margin* margin) {
  Ids chosen;
  const Ids order = ranking(values);
  if (order.empty()) return {};
  if (greedy(s)) {
    for (const int64_t entry : order) chosen.push_back(ids[entry]);
    chosen.resize(std::min<size_t>(chosen.size(), static_cast<size_t>(options.num)));
    return chosen;
  }
  Mass mass = law_of(values, s);
  for (size_t i = 0; i < order.size() && i < static_cast<size_t>(options.top); ++i) {
    if (mass.doubt[order[i]] > 2 * mass.w[order[i]]) margin->add(0.0);
    if (mass.w[order[i]] > 0) chosen.push_back(ids[order[i]]);
    mass.remove(order[i]);
  }
  const int64_t left = options.num - static_cast<int64_t>(chosen.size());
  if (!options.replacement && !options.coupled) {
    const Place place = make_place(seed, position, Stream::draft, depth, node, 0);
    for (const int64_t entry : arrivals_of(mass, place, left, ids, margin)) chosen.push_back(ids[entry]);
    return chosen;
  }
  for (int64_t k = 0; k < left; ++k) {
    const Place place = options.coupled ? make_place(seed, position, Stream::target, 0, 0, 0)
                                        : make_place(seed, position, Stream::draft, depth, node, k);
    const int64_t entry = draw_of(mass, place, ids, margin);
    if (entry < 0) break;
    chosen.push_back(ids[entry]);
    if (options.coupled) mass.remove(entry);
  }
  return chosen;
}

// Ids of a draft vocabulary's entries: ascending or shuffled, some of them negative.
Ids random_targets(Numbers& numbers, int64_t columns) {
  Ids targets;
  int64_t id = numbers.below(3);
  for (int64_t i = 0; i < columns; ++i, id += 1 + numbers.below(4)) {
    targets.push_back(once_in(numbers, 10) ? -1 - numbers.below(5) : id);
  }
  if (once_in(numbers, 2)) {
    for (int64_t i = columns - 1; i > 0; --i) std::swap(targets[i], targets[numbers.below(i + 1)]);
  }
  return targets;
}

void check_draft(Numbers& numbers, int64_t vocab, const DraftOptions& options, bool mapped, Tally* tally) {
  const int64_t rows = numbers.below(5), batch = 1 + numbers.below(3);
  LogitRows logits = random_rows(numbers, rows, vocab);
  for (int64_t r = 0; options.spiked && r < rows; ++r) fill_row(numbers, Shape::spiked, r, logits);
  SettingsTable settings = random_settings(numbers, batch, vocab, !options.spiked && !once_in(numbers, 3));
  Ids requests, positions, depths, nodes;
  constexpr int64_t kOdd[] = {-1, -2, 3, INT32_MAX, INT32_MIN};
  for (int64_t r = 0; r < rows; ++r) {
    requests.push_back(once_in(numbers, 6) ? one_of(numbers, kOdd) : numbers.below(batch));
    positions.push_back(numbers.below(5000));
    depths.push_back(numbers.below(10));
    nodes.push_back(numbers.below(60));
  }
  // Without an index, row r is that of request r.
  const bool plain = rows <= batch && once_in(numbers, 2);
  const Indices request = plain ? Indices() : random_indices(numbers, requests);
  const Indices position = random_indices(numbers, positions);
  const Indices depth = once_in(numbers, 3) ? Indices() : random_indices(numbers, depths);
  const Indices node = once_in(numbers, 3) ? Indices() : random_indices(numbers, nodes);
  const Indices targets = mapped ? random_indices(numbers, random_targets(numbers, vocab)) : Indices();
  // A target vocabulary that ends before the last id of the map: what is past it is not allowed.
  const int64_t target_vocab = mapped ? 1 + numbers.below(3 * vocab) : vocab;
  const Masks masks = once_in(numbers, 3) && rows > 0 ? random_masks(numbers, rows, target_vocab) : Masks{};
  DraftParams p;
  p.logits = logits.view();
  p.sampling = settings.view();
  p.batch = batch;
  p.positions = position.view();
  p.requests = request.view();
  p.depths = depth.view();
  p.nodes = node.view();
  p.mask = masks.view();
  p.draft_to_target = targets.view();
  p.replacement = options.replacement;
  p.coupled = options.coupled;
  p.top = options.top;
  p.num = options.num;
  p.drafts_stride = options.num + numbers.below(3);
  const int64_t length = rows * p.drafts_stride;
  std::vector<Guarded<int64_t>> drafts;
  std::vector<Guarded<int32_t>> status;
  for (int way = 0; way < kWays; ++way) {
    drafts.emplace_back(length);
    status.emplace_back(rows);
    p.drafts = drafts[way].data();
    p.status = {status[way].data(), 1};
    run(p, way);
    CHECK(drafts[way].intact() && status[way].intact());
    CHECK(same_bits(drafts[0].data(), drafts[way].data(), length), "way %d", way);
    CHECK(same_bits(status[0].data(), status[way].data(), rows), "way %d", way);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = options.num; i < p.drafts_stride; ++i) CHECK(drafts[0].untouched(r * p.drafts_stride + i));
    const int64_t b = request ? request[r] : r;
    Ids expected;
    Margin margin;
    int32_t expected_status = b == -1 ? 0 : kStatusMalformed;
    if (b >= 0 && b < batch) {
      bool nan = false;
      const Doubles row = logits.clean(r, &nan);
      std::vector<std::pair<int64_t, double>> entries;
      for (int64_t i = 0; i < vocab; ++i) {
        const int64_t id = mapped ? targets[i] : i;
        if (id >= 0) entries.emplace_back(id, masks.allows(r, id) ? row[i] : -kInfinity);
      }
      std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& c) { return a.first < c.first; });
      Ids ids;
      Doubles values;
      for (const auto& [id, value] : entries) {
        ids.push_back(id);
        values.push_back(value);
      }
      expected = draft_slowly(values, ids, settings.settings[b], settings.seeds[b], positions[r], depth ? depths[r] : 0,
                              node ? nodes[r] : 0, options, &margin);
      expected_status = (nan ? kStatusNan : 0) | (expected.empty() ? kStatusDeadEnd : 0);
    }
    CHECK(status[0][r] == expected_status, "status %d, not %d", status[0][r], expected_status);
    if (margin.close()) {
      ++tally->close;
      continue;
    }
    ++tally->compared;
    expected.resize(static_cast<size_t>(options.num), -1);
    for (int64_t i = 0; i < options.num; ++i) {
      const int64_t draft = drafts[0][r * p.drafts_stride + i];
      const Settings s = b >= 0 && b < batch ? settings.settings[b] : Settings{};
      CHECK(draft == expected[i],
            "draft %lld is %lld, not %lld: V %lld type %d mapped %d, T %g top_k %d top_p %g min_p %g order %d, num %d "
            "top %d replacement %d coupled %d, row %lld, margin %g",
            (long long)i, (long long)draft, (long long)expected[i], (long long)vocab, (int)p.logits.type, mapped,
            s.temperature, s.top_k, s.top_p, s.min_p, (int)s.order, options.num, options.top, options.replacement,
            options.coupled, (long long)r, margin.value);
    }
  }
}

void test_draft(uint64_t seed) {
  Tally tally;
  Numbers numbers(seed + 3);
  for (int round = 0; round < 9; ++round) {
    for (const int64_t vocab : kVocabs) {
      for (const bool mapped : {false, true}) {
        for (const int way : {0, 1, 2}) {  // without, with replacement, coupled
          DraftOptions options;
          options.num = static_cast<int>(1 + numbers.below(round == 0 && vocab < 100 ? 256 : 6));
          options.top = once_in(numbers, 2) ? static_cast<int>(numbers.below(options.num + 1)) : 0;
          options.replacement = way == 1;
          options.coupled = way == 2;
          check_draft(numbers, vocab, options, mapped, &tally);
        }
      }
    }
  }
  for (int round = 0; round < 18; ++round) {  // histograms, blocks of ids that lie anywhere
    DraftOptions options{static_cast<int>(1 + numbers.below(4)), static_cast<int>(numbers.below(2)), round % 3 == 1,
                         round % 3 == 2};
    check_draft(numbers, 20000 + numbers.below(5000), options, round % 2 == 1, &tally);
  }
  for (int round = 0; round < 40; ++round) {  // masses without the ids that were taken
    DraftOptions options;
    options.num = static_cast<int>(2 + numbers.below(3));
    options.top = static_cast<int>(numbers.below(2));
    options.coupled = round % 4 < 2;
    options.replacement = !options.coupled;
    options.spiked = true;
    check_draft(numbers, 9000 + numbers.below(9000), options, round % 2 == 1, &tally);
  }
  tally.check("draft", 0.03);
}

// ---- The test vectors of docs/randomness.md ----
void test_vectors() {
  const PhiloxWords words = words_at(make_place(81985529216486895, 4096, Stream::residual, 4, 9, 0), 1000);
  CHECK(words.word[0] == 0x9e81194c && words.word[1] == 0x75fbcaed && words.word[2] == 0x07ecada1 &&
        words.word[3] == 0x71678c95);
  const PhiloxWords negative = words_at(make_place(-1, int64_t{1} << 31, Stream::draft, 3, 5, 2), 2499);
  CHECK(negative.word[0] == 0xca929b8a && negative.word[3] == 0xcbea52e3);
  CHECK(exponential(0) == 1.1641532183371108e-10 && exponential(~0u) == 22.873856958478196);

  struct Vector {
    int64_t seed, position;
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    int64_t token;
  };
  constexpr Vector kVectors[] = {
      {0, 1, 1, 0, 1, 0, 2566},        {0, 2, 1, 0, 1, 0, 5984},     {0, 3, 1, 0, 1, 0, 61},
      {42, 1, 1, 0, 1, 0, 7156},       {42, 2, 1, 0, 1, 0, 8586},    {-1, 2147483648, 1, 0, 1, 0, 3548},
      {42, 7, 0.5f, 0, 1, 0, 9207},    {42, 7, 1, 100, 1, 0, 779},   {42, 7, 1, 0, 0.5f, 0, 9207},
      {42, 7, 1, 1000, 0.5f, 0, 8587}, {42, 7, 1, 0, 1, 0.5f, 9207}, {42, 7, 0, 0, 1, 0, 11},
  };
  constexpr int64_t kCount = sizeof(kVectors) / sizeof(kVectors[0]);
  for (const FloatType type : kFloatTypes) {
    LogitRows logits(type, kCount, 10000, 10000, 0);
    for (int64_t r = 0; r < kCount; ++r) {
      for (int64_t x = 0; x < 10000; ++x) logits.set(r, x, static_cast<float>(29 * x % 64) / 16);
    }
    SettingsTable settings;
    Ids positions;
    for (const Vector& v : kVectors) {
      settings.settings.push_back({v.temperature, v.top_k, v.top_p, v.min_p, FilterOrder::top_k_first});
      settings.seeds.push_back(v.seed);
      positions.push_back(v.position);
    }
    settings.finish();
    const Indices position(positions, true);
    std::vector<int64_t> tokens(kCount);
    std::vector<int32_t> status(kCount);
    SampleParams p;
    p.logits = logits.view();
    p.sampling = settings.view();
    p.positions = position.view();
    p.tokens = {tokens.data(), 1, true};
    p.status = {status.data(), 1};
    run(p);
    for (int64_t r = 0; r < kCount; ++r) {
      CHECK(tokens[r] == kVectors[r].token, "vector %lld: %lld", (long long)r, (long long)tokens[r]);
    }

    // The drafts of a node at position 8, depth 1 and index 3, with seed 42.
    constexpr int64_t kDrafts[3][4] = {{4601, 9679, 3990, 9851}, {9723, 2227, 4601, 7904}, {9915, 8951, 9765, 9652}};
    SettingsTable one;
    one.settings = {Settings{}};
    one.seeds = {42};
    one.finish();
    const Indices eighth({8}, false), depth({1}, true), node({3}, false);
    for (int way = 0; way < 3; ++way) {
      int64_t drafts[4];
      DraftParams d;
      d.logits = logits.view();
      d.logits.rows = 1;
      d.sampling = one.view();
      d.batch = 1;
      d.positions = eighth.view();
      d.depths = depth.view();
      d.nodes = node.view();
      d.replacement = way == 0;
      d.coupled = way == 2;
      d.num = d.drafts_stride = 4;
      d.drafts = drafts;
      d.status = {status.data(), 1};
      run(d);
      CHECK(same_bits(drafts, kDrafts[way], 4), "way %d: %lld ...", way, (long long)drafts[0]);
    }
  }
}

}  // namespace

// An argument is another seed, for runs over many.
int main(int argc, char** argv) {
  const uint64_t seed = argc > 1 ? 100 * std::strtoull(argv[1], nullptr, 10) : 0;
  std::printf("instruction set %s\n", kernels_in_use());
  test_vectors();
  test_sample(seed);
  test_wide_rows(seed);
  test_draft(seed);
  std::puts("sampling: ok");
  return 0;
}
