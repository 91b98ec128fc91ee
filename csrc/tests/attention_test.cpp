// SPDX-License-Identifier: Apache-2.0
// tree_attention and merge_states against their definition in double precision, between sentinels, and the promises
// about bits: on the CPU those of a row depend on what it sees alone.
#include <iterator>

#include "slow_attention.h"
#include "ways.h"

using namespace specdec;
using testing::AttentionCall;
using testing::Choice;
using testing::Guarded;
using testing::kWays;
using testing::Numbers;
using testing::run;
using testing::same_bits;

namespace {

#if defined(SPECDEC_EMULATED)
constexpr int kCalls = 100;
constexpr int64_t kContexts[] = {0, 1, 7, 33, 64, 130, 300};
constexpr bool kByRow = false;  // the bits of a row are promised for a request, not for a row
#else
constexpr int kCalls = 400;
constexpr int64_t kContexts[] = {0, 1, 7, 63, 64, 65, 130, 511, 512, 700, 1030};
constexpr bool kByRow = true;
#endif

constexpr CacheType kCaches[] = {CacheType::float32, CacheType::bfloat16, CacheType::float16, CacheType::float8_e4m3,
                                 CacheType::float8_e5m2};
constexpr FloatType kFloats[] = {FloatType::float32, FloatType::bfloat16, FloatType::float16};

template <class T, size_t N>
T one_of(Numbers& numbers, const T (&options)[N]) {
  return options[numbers.below(static_cast<int64_t>(N))];
}

// The outputs of a call, poisoned.
struct Outputs {
  Outputs(AttentionCall& call, int64_t value_dim)
      : type(call.params().query_type),
        out(call.rows() * call.params().heads * value_dim * (type == FloatType::float32 ? 4 : 2)),
        lse(call.rows() * call.params().heads),
        status(call.params().tree.batch) {
    call.params().out = out.data();
    call.params().lse = lse.data();
    call.params().status = status.data();
  }
  double value(int64_t i) { return testing::decode(testing::cache_type(type), out.data(), i); }
  bool intact() const { return out.intact() && lse.intact() && status.intact(); }

  FloatType type;
  Guarded<unsigned char> out;
  Guarded<float> lse;
  Guarded<int32_t> status;
};

bool same(Outputs& a, Outputs& b) {
  return same_bits(a.out.data(), b.out.data(), a.out.size()) && same_bits(a.lse.data(), b.lse.data(), a.lse.size()) &&
         same_bits(a.status.data(), b.status.data(), a.status.size());
}

void compare(const AttentionCall::Expected& expected, Outputs& ours, const char* what, int number, int way) {
  const double rounding = ours.type == FloatType::float32 ? 0 : ours.type == FloatType::bfloat16 ? 0x1p-8 : 0x1p-11;
  // An error of a score is one of the weights; values are at most 3. Tensor cores take weights of the query's type.
  const double unit = 3e-6 * (1 + expected.largest) + (kByRow ? 0 : rounding);
  const double lse_unit = 3e-6 * (1 + expected.largest);
  for (size_t i = 0; i < expected.out.size(); ++i) {
    const double wanted = expected.out[i], got = ours.value(static_cast<int64_t>(i));
    CHECK(std::fabs(got - wanted) <= 3 * unit + rounding * (std::fabs(wanted) + unit),
          "%s %d, way %d: element %zu is %.9g, not %.9g", what, number, way, i, got, wanted);
  }
  for (size_t i = 0; i < expected.lse.size(); ++i) {
    const double wanted = expected.lse[i], got = ours.lse[static_cast<int64_t>(i)];
    CHECK(wanted == got || std::fabs(got - wanted) <= lse_unit, "%s %d, way %d: lse %zu is %.9g, not %.9g", what,
          number, way, i, got, wanted);
  }
  for (size_t b = 0; b < expected.status.size(); ++b) {
    CHECK(ours.status[static_cast<int64_t>(b)] == expected.status[b], "%s %d, way %d: status of %zu is %d, not %d",
          what, number, way, b, ours.status[static_cast<int64_t>(b)], expected.status[b]);
  }
  CHECK(ours.intact(), "%s %d, way %d", what, number, way);
}

// All ways against the definition; some of them must agree to the bit.
void check(AttentionCall& call, int64_t value_dim, const char* what, int number) {
  const AttentionCall::Expected expected = call.expected();
  Outputs first(call, value_dim);
  run(call.params(), 0);
  compare(expected, first, what, number, 0);
  for (int way = 1; way < kWays; ++way) {
    Outputs again(call, value_dim);
    run(call.params(), way);
    compare(expected, again, what, number, way);
    // On the CPU another number of threads, on the emulated GPU another order of them; else another machine.
    const bool alike = kByRow ? way == 1 : way >= 2;
    CHECK(!alike || same(first, again), "%s %d, way %d: other bits", what, number, way);
  }
}

void test_random_calls() {
  constexpr int64_t kDims[][2] = {{8, 8}, {16, 24}, {40, 16}, {64, 64}, {80, 80}, {128, 128}, {72, 136}};
  constexpr int64_t kGroups[] = {1, 2, 3, 4, 7};
  constexpr int64_t kPages[] = {1, 2, 16, 64};
  constexpr int64_t kWindows[] = {0, 0, 1, 3, 20, 66};
  constexpr float kCaps[] = {0, 0, 1.5f, 30};
  for (int i = 0; i < kCalls; ++i) {
    Numbers numbers(static_cast<uint64_t>(i) + 1);
    Choice c;
    c.cache = kCaches[i % std::size(kCaches)];
    c.query = one_of(numbers, kFloats);
    const auto& dims = kDims[numbers.below(static_cast<int64_t>(std::size(kDims)))];
    c.key_dim = dims[0];
    c.value_dim = dims[1];
    c.kv_heads = 1 + numbers.below(2);
    c.heads = c.kv_heads * one_of(numbers, kGroups);
    c.page_size = one_of(numbers, kPages);
    for (int64_t b = 1 + numbers.below(3); b > 0; --b) {
      c.contexts.push_back(one_of(numbers, kContexts));
      c.sizes.push_back(numbers.below(numbers.below(8) == 0 ? 30 : 7));
    }
    c.window = one_of(numbers, kWindows);
    c.softcap = one_of(numbers, kCaps);
    c.visibility = numbers.below(3) == 0 ? Visibility::block : Visibility::tree;
    c.sinks = numbers.below(3) == 0;
    c.scales = numbers.below(3) == 0;
    c.slots = numbers.below(2) == 0;
    c.queries = numbers.below(3) == 0;
    c.spoil = numbers.below(4) == 0;
    c.layout = static_cast<int>(numbers.below(3));
    AttentionCall call(c, static_cast<uint64_t>(i));
    check(call, c.value_dim, "call", i);
  }
}

// Keys that are read as values too, of the sizes of latent attention; many heads on one.
void test_latent() {
  Choice c;
  c.cache = CacheType::bfloat16;
  c.query = FloatType::bfloat16;
  c.key_dim = 576;
  c.value_dim = 512;
  c.heads = kByRow ? 70 : 3;
  c.contexts = {kByRow ? 130 : 20};
  c.sizes = {3};
  c.scale = 0.05f;
  AttentionCall call(c, 5);
  check(call, c.value_dim, "latent", 0);
}

// One visible key has weight 1: every value of a type comes out exactly.
void test_every_value_of_a_type() {
  for (const CacheType type : kCaches) {
    if (type == CacheType::float32) continue;
    const int size = bytes_of(type);
    const int64_t count = size == 1 ? 256 : 65536, dim = 256;
    for (int64_t first = 0; first < count; first += kByRow || size == 1 ? dim : 4096) {
      Choice c;
      c.cache = type;
      c.key_dim = 8;
      c.value_dim = dim;
      c.heads = 1;
      c.page_size = 1;
      c.contexts = {0};
      c.sizes = {1};
      AttentionCall call(c, 1);
      std::vector<unsigned char> values(static_cast<size_t>(dim * size));
      for (int64_t i = 0; i < dim; ++i) {
        const auto bits = static_cast<uint32_t>(first + i);
        std::memcpy(values.data() + i * size, &bits, static_cast<size_t>(size));
      }
      PagedView& view = call.params().value;
      view.data = values.data();
      view.page_stride = 0;  // every page is this one
      Outputs ours(call, dim);
      run(call.params());
      for (int64_t i = 0; i < dim; ++i) {
        const double wanted = testing::decode(type, values.data(), i), got = ours.value(i);
        CHECK(got == wanted || (std::isnan(got) && std::isnan(wanted)), "bits %lx of type %d: %.9g, not %.9g",
              static_cast<long>(first + i), static_cast<int>(type), got, wanted);
      }
    }
  }
}

// A chain of draft tokens, and the same text decoded one token at a time: row i of the chain has the bits of a root
// behind i more committed tokens.
void test_rows_are_those_of_plain_decoding() {
  int64_t heads = 0;
  for (const int64_t context : {0, 1, 60, 63, 64, 500, 509, 512, 1400}) {
    heads = heads % 5 + 1;
    for (const CacheType cache : kCaches) {
      for (const int64_t window : {0, 5, 70}) {
        Choice c;
        c.cache = cache;
        c.key_dim = c.value_dim = 40;
        c.heads = heads;
        c.contexts = {context};
        c.sizes = {9};
        c.window = window;
        AttentionCall call(c, 77);
        TreeAttentionParams& p = call.params();
        int32_t parents[11], depths[11], ends[11];
        for (int i = 0; i < 11; ++i) {
          parents[i] = i - 1;
          depths[i] = i;
          ends[i] = 9;
        }
        p.tree.parents.data = parents;
        p.tree.depths.data = depths;
        p.tree.ends.data = ends;
        Outputs together(call, 40);
        run(p);
        const auto row = [&](Outputs& outputs, int64_t i) { return outputs.out.data() + i * heads * 40 * 4; };
        for (int i = 0; i < 9; ++i) {
          Outputs alone(call, 40);
          const int64_t longer = context + i;
          const int32_t root[] = {0, 1, -1, 0, 1}, row_of[] = {0, 1};
          TreeAttentionParams one = p;
          one.context_lens.data = &longer;
          one.tree.cu_nodes.data = row_of;
          one.tree.total = 1;
          one.tree.parents.data = root + 2;
          one.tree.depths.data = root + 3;
          one.tree.ends.data = root + 4;
          one.queries.total = 1;
          one.query = static_cast<const float*>(p.query) + i * p.query_row_stride;
          run(one, i % 2);
          CHECK(same_bits(row(alone, 0), row(together, i), heads * 40 * 4) &&
                    same_bits(alone.lse.data(), together.lse.data() + heads * i, heads),
                "context %ld, type %d, window %ld, node %d", static_cast<long>(context), static_cast<int>(cache),
                static_cast<long>(window), i);
        }
      }
    }
  }
}

// Lengths, slots and offsets that no one should give: bounded work, and a status.
void test_bad_data() {
  Choice c;
  c.contexts = {30, 20};
  c.sizes = {4, 3};
  c.slots = true;
  const int64_t kLengths[] = {-1, INT64_MIN, int64_t{1} << 40, INT64_MAX};
  for (const int64_t length : kLengths) {
    AttentionCall call(c, 9);
    TreeAttentionParams& p = call.params();
    const int64_t contexts[] = {length, 20};
    p.context_lens.data = contexts;
    const AttentionCall::Expected expected = call.expected();
    Outputs ours(call, 16);
    run(p);
    CHECK((ours.status[0] & (length < 0 ? 8 : 16)) != 0, "length %ld", static_cast<long>(length));
    CHECK(ours.status[1] == 0 && ours.intact());
    for (int64_t i = 6 * 2; i < 9 * 2; ++i) {  // the other request does not mind
      CHECK(std::fabs(ours.lse[i] - expected.lse[static_cast<size_t>(i)]) < 1e-5);
    }
    for (int64_t i = 0; length > 0 && i < 4 * 2; ++i) CHECK(std::isnan(ours.lse[i]) || ours.lse[i] > -INFINITY);
  }
  AttentionCall call(c, 9);
  TreeAttentionParams& p = call.params();
  const int32_t slots[] = {INT32_MIN, INT32_MAX, -31, 1 << 20, 0, 0, 0, 1, 2, 0, 0};
  p.slots.data = slots;
  Outputs ours(call, 16);
  run(p);
  CHECK(ours.status[0] == (8 | 16) && ours.status[1] == 0 && ours.intact());
  // The context reaches beyond the table, and slots below 0 do not bring nodes back into it.
  const int64_t reach = p.table.max_pages * p.key.page_size, beyond[] = {reach + 5, 20};
  const int32_t back[] = {-9, -8, -7, -6, 0, 0, 0, 1, 2, 0, 0};
  p.context_lens.data = beyond;
  p.slots.data = back;
  Outputs inside(call, 16);
  run(p);
  CHECK(inside.status[0] == (8 | 16) && inside.status[1] == 0 && inside.intact());
  const int32_t offsets[] = {-1, 3, 100};
  p.tree.cu_nodes.data = offsets;
  Outputs none(call, 16);
  run(p);
  CHECK(none.status[0] == 8 && none.status[1] == 8 && none.intact());
  for (int64_t i = 0; i < none.lse.size(); ++i) CHECK(none.lse[i] == -INFINITY);
  p.status = nullptr;
  run(p);
  p.tree.batch = 0;
  Outputs empty(call, 16);
  run(p);
  for (int64_t i = 0; i < empty.lse.size(); ++i) CHECK(empty.lse[i] == -INFINITY && empty.intact());
}

void test_merge_states() {
  for (int i = 0; i < (kByRow ? 60 : 6); ++i) {
    Numbers numbers(static_cast<uint64_t>(i) + 100);
    const int64_t rows = numbers.below(4), states = numbers.below(5), heads = 1 + numbers.below(3);
    const int64_t dim = 1 + numbers.below(150);
    testing::Elements values;
    const FloatType type = kFloats[i % 3];
    values.resize(testing::cache_type(type), rows * states * heads * (dim + 1));
    std::vector<float> lses(static_cast<size_t>(rows * states * heads));
    for (size_t s = 0; s < lses.size(); ++s) {
      lses[s] = numbers.below(4) == 0 ? -INFINITY : 20 * numbers.symmetric();
      for (int64_t d = 0; d <= dim; ++d) {
        const int64_t at = static_cast<int64_t>(s) * (dim + 1) + d;
        lses[s] == -INFINITY || d == dim ? values.poison(at) : values.set(at, numbers);
      }
    }
    MergeStatesParams p;
    p.values = values.bytes.data();
    p.type = type;
    const int64_t strides[] = {states * heads, heads, 1};
    for (int d = 0; d < 3; ++d) {
      p.value_strides[d] = strides[d] * (dim + 1);
      p.lse_strides[d] = strides[d];
    }
    p.lses = lses.data();
    p.rows = rows;
    p.states = states;
    p.heads = heads;
    p.dim = dim;
    for (int way = 0; way < kWays; ++way) {
      Guarded<unsigned char> out(rows * heads * dim * (type == FloatType::float32 ? 4 : 2));
      Guarded<float> lse(rows * heads);
      p.out = out.data();
      p.lse = lse.data();
      run(p, way);
      CHECK(out.intact() && lse.intact());
      for (int64_t at = 0; at < rows * heads; ++at) {
        const auto lse_of = [&](int64_t s) {
          return lses[static_cast<size_t>((at / heads * states + s) * heads + at % heads)];
        };
        double total = 0;
        for (int64_t s = 0; s < states; ++s) total += std::exp(static_cast<double>(lse_of(s)));
        const double wanted = std::log(total);
        CHECK(lse[at] == wanted || std::fabs(lse[at] - wanted) < 1e-6 * (1 + std::fabs(wanted)));
        for (int64_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (int64_t s = 0; s < states; ++s) {
            if (lse_of(s) == -INFINITY) continue;
            sum +=
                std::exp(lse_of(s) - wanted) * values[((at / heads * states + s) * heads + at % heads) * (dim + 1) + d];
          }
          const double got = testing::decode(testing::cache_type(type), out.data(), at * dim + d);
          const double unit = type == FloatType::float32 ? 3e-6 : type == FloatType::bfloat16 ? 0x1p-8 : 0x1p-11;
          CHECK(std::fabs(got - sum) <= unit * (std::fabs(sum) + 1e-2), "%.9g, not %.9g", got, sum);
        }
      }
    }
  }
}

}  // namespace

int main() {
  test_random_calls();
  test_latent();
  test_every_value_of_a_type();
  if (kByRow) test_rows_are_those_of_plain_decoding();
  test_bad_data();
  test_merge_states();
  std::printf("attention (%s): passed\n", testing::kernels_in_use());
  return 0;
}
