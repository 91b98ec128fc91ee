// SPDX-License-Identifier: Apache-2.0
// kv.write against its definition, byte by byte, and the 8-bit floats against the nearest of all their values.
#include <cmath>
#include <deque>

#include "../common/float8.h"
#include "paged_memory.h"
#include "ways.h"

using namespace specdec;
using testing::Cache;
using testing::Guarded;
using testing::Numbers;
using testing::Table;

namespace {

constexpr int32_t kMalformed = 8, kNoPage = 16;

// ---- float8 ----

float value_of(int byte, bool e5m2) {
  const int mantissa = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7;
  const int exponent = (byte & 0x7f) >> mantissa, fraction = byte & ((1 << mantissa) - 1);
  const int whole = exponent == 0 ? fraction : fraction + (1 << mantissa);
  return std::ldexp(static_cast<float>(whole), std::max(exponent, 1) - bias - mantissa);
}

// The nearest of all finite values, ties to the even byte.
int nearest(float x, bool e5m2) {
  const int last = e5m2 ? 0x7b : 0x7e;
  const double magnitude = std::min(std::fabs(static_cast<double>(x)), static_cast<double>(value_of(last, e5m2)));
  int best = 0;
  for (int byte = 1; byte <= last; ++byte) {
    const double far = std::fabs(magnitude - value_of(byte, e5m2));
    const double before = std::fabs(magnitude - value_of(best, e5m2));
    if (far < before || (far == before && byte % 2 == 0)) best = byte;
  }
  return best;
}

void test_float8() {
  Numbers numbers(3);
  for (const bool e5m2 : {false, true}) {
    const auto ours = [&](float x) { return static_cast<int>(e5m2 ? to_float8<true>(x) : to_float8<false>(x)); };
    for (int i = 0; i < 20000; ++i) {
      float x;
      uint32_t bits = static_cast<uint32_t>(numbers.bits());
      if (i % 2) bits = (bits & 0x83ffffffu) | 0x38000000u;  // near 1
      if (i % 3 == 0) bits &= 0xfff80000u;                   // ties
      std::memcpy(&x, &bits, sizeof(x));
      if (std::isnan(x)) {
        CHECK(ours(x) == 0x7f);
        continue;
      }
      const int wanted = std::isinf(x) ? (e5m2 ? 0x7b : 0x7e) : nearest(x, e5m2);
      CHECK((ours(x) & 0x7f) == wanted, "%g: %d, not %d", x, ours(x), wanted);
      CHECK((ours(x) & 0x80) == (std::signbit(x) ? 0x80 : 0));
    }
    for (int byte = 0; byte <= (e5m2 ? 0x7b : 0x7e); ++byte) CHECK(ours(value_of(byte, e5m2)) == byte);
  }
}

// ---- kv.write ----

int64_t bytes_of_float(FloatType type) { return type == FloatType::float32 ? 4 : 2; }

uint16_t half_bits(float x) { return static_cast<uint16_t>(__builtin_bit_cast(uint16_t, static_cast<_Float16>(x))); }
float of_half(uint16_t bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }

// To nearest by the long way: the two neighbours, and the even one of two that are equally near.
uint16_t bfloat16_bits(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x), low = bits & 0xffff0000u;
  const double down = std::fabs(static_cast<double>(x) - __builtin_bit_cast(float, low));
  const double up = std::fabs(static_cast<double>(__builtin_bit_cast(float, low + 0x10000u)) - x);
  const bool takes_up = up < down || (up == down && (low >> 16) % 2 == 1);
  return static_cast<uint16_t>((takes_up ? low + 0x10000u : low) >> 16);
}

struct Side {
  std::vector<unsigned char> source;
  Cache cache;
  std::vector<float> scale;
  KvSide view;
};

Side make_side(Numbers& numbers, int64_t rows, int64_t heads, int64_t num_pages, int64_t page_size) {
  Side side;
  KvSide& view = side.view;
  view.type = static_cast<FloatType>(numbers.below(3));
  const int64_t element = bytes_of_float(view.type), gap = numbers.below(2) * (numbers.below(2) ? 8 : 3);
  view.dim = numbers.below(3) ? 8 * (1 + numbers.below(3)) : 1 + numbers.below(140);
  view.head_stride = view.dim + gap;
  view.row_stride = heads * view.head_stride + gap;
  side.source.resize(static_cast<size_t>(rows * view.row_stride * element + 64));
  for (int64_t i = 0; i * element + element <= static_cast<int64_t>(side.source.size()); ++i) {
    const float x = numbers.symmetric() * std::ldexp(1.0f, static_cast<int>(numbers.below(26)) - 12);
    const uint16_t half = view.type == FloatType::float16 ? half_bits(x) : bfloat16_bits(x);
    const void* from = element == 4 ? static_cast<const void*>(&x) : &half;
    std::memcpy(&side.source[static_cast<size_t>(i * element)], from, static_cast<size_t>(element));
  }
  if (numbers.below(2)) {
    for (int64_t h = 0; h < heads; ++h) side.scale.push_back(0.3f + 0.2f * static_cast<float>(h));
  }
  Cache& cache = side.cache;
  view.to.type = static_cast<CacheType>(numbers.below(5));
  cache.element = bytes_of(view.to.type);
  cache.num_pages = num_pages;
  cache.page_size = page_size;
  const bool heads_first = numbers.below(2) != 0;
  view.to.num_pages = num_pages;
  view.to.page_size = page_size;
  view.to.head_stride = heads_first ? page_size * view.dim : view.dim;
  view.to.slot_stride = heads_first ? view.dim : heads * view.dim;
  view.to.page_stride = heads * page_size * view.dim + numbers.below(2) * 8;
  cache.bytes.resize(static_cast<size_t>(num_pages * view.to.page_stride * cache.element + 64));
  for (unsigned char& byte : cache.bytes) byte = static_cast<unsigned char>(numbers.bits());
  return side;
}

void point(Side& side) {
  side.view.from = side.source.data();
  side.view.to.data = side.cache.bytes.data();
  if (!side.scale.empty()) side.view.scale = {side.scale.data(), 1};
}

// The bytes of one element as the cache holds it.
void expect_element(const Side& side, int64_t from, float scale, unsigned char* to) {
  const unsigned char* source = &side.source[static_cast<size_t>(from * bytes_of_float(side.view.type))];
  float x;
  uint16_t half;
  std::memcpy(&half, source, 2);
  if (side.view.type == FloatType::float32) {
    std::memcpy(&x, source, 4);
  } else {
    x = side.view.type == FloatType::float16 ? of_half(half)
                                             : __builtin_bit_cast(float, static_cast<uint32_t>(half) << 16);
  }
  x = x / scale;
  const bool e5m2 = side.view.to.type == CacheType::float8_e5m2;
  switch (side.cache.element) {
    case 4:
      std::memcpy(to, &x, 4);
      return;
    case 2:
      half = side.view.to.type == CacheType::float16 ? half_bits(x) : bfloat16_bits(x);
      std::memcpy(to, &half, 2);
      return;
    default:
      *to = static_cast<unsigned char>(nearest(x, e5m2) | (std::signbit(x) ? 0x80 : 0));
  }
}

int64_t check_write(uint64_t seed, bool spoil) {
  Numbers numbers(seed);
  const int64_t requests = numbers.below(4), heads = 1 + numbers.below(3), page_size = int64_t{1} << numbers.below(4);
  // Trees: a chain of some nodes with a second child of the root, then padding.
  std::vector<int32_t> cu_nodes{0}, tokens, parents, depths, ends, counts;
  for (int64_t b = 0; b < requests; ++b) {
    const int32_t count = static_cast<int32_t>(numbers.below(6)), rows = count + static_cast<int32_t>(numbers.below(3));
    for (int32_t i = 0; i < rows; ++i) {
      const bool last = i + 1 == count && count > 2;
      tokens.push_back(1);
      parents.push_back(i >= count ? 7 : last ? 0 : i - 1);
      depths.push_back(i >= count ? 7 : last ? 1 : i);
      ends.push_back(i >= count ? (count == 0 ? 0 : 7) : i == 0 || count <= 2 || last ? count : count - 1);
    }
    const bool broken = spoil && count > 1 && numbers.below(2);
    if (broken) parents[static_cast<size_t>(cu_nodes.back() + 1)] = 5;
    counts.push_back(broken ? -1 : rows == 0 ? 0 : count);
    cu_nodes.push_back(cu_nodes.back() + rows);
  }
  const int64_t total = cu_nodes.back(), max_pages = 60 / page_size + 1, num_pages = max_pages * (requests + 2) + 1;
  Table table = make_table(numbers, requests, max_pages, num_pages, spoil);
  point(table);
  std::vector<int64_t> contexts;
  for (int64_t b = 0; b < requests; ++b) contexts.push_back(spoil && numbers.below(4) == 0 ? -3 : numbers.below(20));
  std::vector<int32_t> slots;
  if (numbers.below(2)) {
    for (int64_t i = 0; i < total; ++i) slots.push_back(static_cast<int32_t>(2 * i + numbers.below(2)));
  }
  std::vector<int32_t> cu_queries{0};
  std::vector<int64_t> query_nodes;
  const bool some = numbers.below(2) != 0;
  for (int64_t b = 0; b < requests; ++b) {
    for (int64_t node = -1; node < 7; ++node) {
      if (numbers.below(2)) query_nodes.push_back(node);
    }
    cu_queries.push_back(static_cast<int32_t>(query_nodes.size()));
  }
  if (spoil && requests > 1) cu_queries[1] = numbers.below(2) ? -1 : 1 << 20;
  const int64_t rows = some ? static_cast<int64_t>(query_nodes.size()) : total;
  std::deque<Side> sides;
  const int32_t side_count = 1 + static_cast<int32_t>(numbers.below(2));
  for (int32_t s = 0; s < side_count; ++s) sides.push_back(make_side(numbers, rows, heads, num_pages, page_size));
  std::vector<char> active;
  for (int64_t b = 0; b < requests; ++b) active.push_back(numbers.below(4) != 0);

  std::deque<Side> expected = sides;
  std::vector<int32_t> status;
  int64_t written = 0;
  for (int64_t b = 0; b < requests; ++b) {
    const size_t i = static_cast<size_t>(b);
    status.push_back(0);
    if (!active[i]) continue;
    const int64_t count = counts[i] < 0 ? 1 : counts[i];
    if (counts[i] < 0 || (count > 0 && contexts[i] < 0)) status[i] |= kMalformed;
    int64_t begin = some ? cu_queries[i] : cu_nodes[i], end = some ? cu_queries[i + 1] : cu_nodes[i + 1];
    if (begin < 0 || begin > end || end > rows) {
      status[i] |= kMalformed;
      end = begin;
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t node = some ? query_nodes[static_cast<size_t>(row)] : row - begin;
      if (node < 0 || node >= count) continue;
      const int64_t slot = slots.empty() ? node : slots[static_cast<size_t>(cu_nodes[i] + node)];
      const int64_t position = std::max<int64_t>(contexts[i], 0) + slot;
      const int64_t page = table.page(b, position, page_size, num_pages);
      if (page < 0) {
        status[i] |= kNoPage;
        continue;
      }
      ++written;
      for (Side& side : expected) {
        const KvSide& v = side.view;
        for (int64_t at = 0; at < heads * v.dim; ++at) {
          const int64_t h = at / v.dim, d = at % v.dim;
          const int64_t to = page * v.to.page_stride + position % page_size * v.to.slot_stride + h * v.to.head_stride;
          expect_element(side, row * v.row_stride + h * v.head_stride + d,
                         side.scale.empty() ? 1.0f : side.scale[static_cast<size_t>(h)],
                         &side.cache.bytes[static_cast<size_t>((to + d) * side.cache.element)]);
        }
      }
    }
  }
  for (int way = 0; way < testing::kWays; ++way) {
    std::deque<Side> ours = sides;
    Guarded<int32_t> flags(requests);
    KvWriteParams p;
    p.side_count = side_count;
    for (int32_t s = 0; s < side_count; ++s) {
      point(ours[static_cast<size_t>(s)]);
      p.sides[s] = ours[static_cast<size_t>(s)].view;
    }
    p.heads = heads;
    p.table = table.view;
    p.context_lens = {contexts.data(), 1, true};
    p.tree.cu_nodes = {cu_nodes.data(), 1};
    p.tree.tokens = {tokens.data(), 1, false};
    p.tree.parents = {parents.data(), 1};
    p.tree.depths = {depths.data(), 1};
    p.tree.ends = {ends.data(), 1};
    p.tree.batch = requests;
    p.tree.total = total;
    p.tree.max_depth = 9;
    if (!slots.empty()) p.slots = {slots.data(), 1};
    p.queries.total = rows;
    if (some) {
      p.queries.cu = {cu_queries.data(), 1};
      p.queries.nodes = {query_nodes.data(), 1, true};
    }
    p.active = {reinterpret_cast<const bool*>(active.data()), 1};
    p.status = flags.data();
    testing::run(p, way);
    CHECK(flags.intact());
    for (int64_t b = 0; b < requests; ++b) {
      CHECK(flags[b] == status[static_cast<size_t>(b)], "seed %ld, request %ld: %d, not %d", (long)seed, (long)b,
            flags[b], status[static_cast<size_t>(b)]);
    }
    for (size_t s = 0; s < ours.size(); ++s) {
      CHECK(ours[s].cache.bytes == expected[s].cache.bytes, "seed %ld, side %zu, way %d", (long)seed, s, way);
    }
  }
  return written;
}

}  // namespace

int main() {
  test_float8();
  int64_t written = 0;
  for (uint64_t seed = 1; seed < 300; ++seed) written += check_write(seed, seed % 2 == 0);
  CHECK(written > 200, "only %ld rows written", (long)written);
  std::printf("kv.write (%s): passed\n", testing::kernels_in_use());
  return 0;
}
