// SPDX-License-Identifier: Apache-2.0
// kv.inject and draft.block against their definitions, number by number: every layout, and data that is wrong.
#include <cmath>
#include <deque>

#include "paged_memory.h"
#include "ways.h"

using namespace specdec;
using testing::Guarded;
using testing::Numbers;
using testing::Table;

namespace {

constexpr int32_t kMalformed = 8, kNoPage = 16;

// ---- kv.inject ----

struct Call {
  int64_t batch = 0, width = 0, layers = 1, heads = 1, dim = 1, page_size = 1, num_pages = 1;
  std::vector<float> projected, norm, angles;
  std::vector<int64_t> positions, contexts;
  std::vector<int32_t> counts;
  std::vector<char> active;
  std::vector<float> scales[2];
  std::deque<std::vector<float>> caches[2];  // of each layer
  Table table;
  KvInjectParams p;
};

Call make_call(uint64_t seed, bool spoil) {
  Numbers numbers(seed);
  Call c;
  KvInjectParams& p = c.p;
  const int64_t dims[] = {1, 2, 6, 8, 24, 64, 80, 128, 130, 256, 260, 520, 1024};
  p.batch = c.batch = numbers.below(4);
  p.width = c.width = numbers.below(5);
  p.layers = c.layers = numbers.below(9) == 0 ? 66 : 1 + numbers.below(3);
  p.heads = c.heads = 1 + numbers.below(4);
  p.dim = c.dim = c.layers > 60 ? 8 : dims[numbers.below(13)];
  c.page_size = int64_t{1} << numbers.below(4);
  // [batch, width, layers, 2, heads, dim] with a gap, or aligned
  const int64_t gap = numbers.below(2) * (numbers.below(2) ? 16 : 3);
  p.head_stride = c.dim + gap;
  p.side_stride = c.heads * p.head_stride;
  p.layer_stride = 2 * p.side_stride + gap;
  p.row_stride = c.layers * p.layer_stride;
  p.request_stride = c.width * p.row_stride + gap;
  c.projected.resize(static_cast<size_t>(c.batch * p.request_stride + 64));
  for (float& x : c.projected) x = numbers.symmetric() * std::ldexp(1.0f, static_cast<int>(numbers.below(12)) - 6);
  if (numbers.below(3)) {
    c.norm.resize(static_cast<size_t>(c.layers * c.dim));
    for (float& x : c.norm) x = numbers.symmetric();
  }
  p.eps = numbers.below(2) ? 1e-5f : 0.25f;
  const int64_t most = 40;
  if (c.dim % 2 == 0 && numbers.below(4)) {
    p.interleaved = numbers.below(2) != 0;
    p.angles.rows = spoil ? numbers.below(most) : most;
    c.angles.resize(static_cast<size_t>(most * 2 * c.dim));
    for (float& x : c.angles) x = numbers.symmetric();
    if (numbers.below(2)) {
      for (int64_t i = 0; i < c.batch * c.width; ++i) {
        c.positions.push_back(spoil && numbers.below(6) == 0 ? -1 - numbers.below(9) : numbers.below(most));
      }
    }
  }
  const int64_t max_pages = most / c.page_size + 1;
  c.num_pages = max_pages * (c.batch + 2) + 1;
  c.table = make_table(numbers, c.batch, max_pages, c.num_pages, spoil);
  for (int64_t b = 0; b < c.batch; ++b) {
    c.contexts.push_back(spoil && numbers.below(4) == 0 ? -3 : numbers.below(30));
    const int32_t count = static_cast<int32_t>(numbers.below(c.width + 1));
    c.counts.push_back(!spoil || numbers.below(4) ? count : numbers.below(2) ? -7 : INT32_MAX);
    c.active.push_back(numbers.below(4) != 0);
  }
  for (int side = 0; side < 2; ++side) {
    const bool heads_first = numbers.below(2) != 0;
    PagedView& to = p.sides[side].to;
    to.type = CacheType::float32;
    to.num_pages = c.num_pages;
    to.page_size = c.page_size;
    to.head_stride = heads_first ? c.page_size * c.dim : c.dim;
    to.slot_stride = heads_first ? c.dim : c.heads * c.dim;
    to.page_stride = c.heads * c.page_size * c.dim + numbers.below(2) * 8;
    for (int64_t layer = 0; layer < c.layers; ++layer) {
      std::vector<float> cache(static_cast<size_t>(c.num_pages * to.page_stride + 16));
      for (float& x : cache) x = numbers.symmetric();
      c.caches[side].push_back(cache);
    }
    if (numbers.below(2)) {
      for (int64_t i = 0; i < c.layers * c.heads; ++i)
        c.scales[side].push_back(0.5f + 0.25f * static_cast<float>(i % 7));
    }
  }
  return c;
}

void point(Call& c, std::vector<void*> (&data)[2]) {
  KvInjectParams& p = c.p;
  point(c.table);
  p.projected = c.projected.data();
  if (!c.norm.empty()) p.norm = {c.norm.data(), FloatType::float32, c.dim, 0, c.layers};
  if (!c.angles.empty()) p.angles = {c.angles.data(), FloatType::float32, 2 * c.dim, c.dim, p.angles.rows};
  if (!c.positions.empty()) p.positions = {c.positions.data(), c.width, true};
  p.table = c.table.view;
  p.context_lens = {c.contexts.data(), 1, true};
  p.num_tokens = {c.counts.data(), 1};
  p.active = {reinterpret_cast<const bool*>(c.active.data()), 1};
  for (int side = 0; side < 2; ++side) {
    data[side].clear();
    for (std::vector<float>& cache : c.caches[side]) data[side].push_back(cache.data());
    p.sides[side].caches = data[side].data();
    if (!c.scales[side].empty()) p.sides[side].scale = {c.scales[side].data(), c.heads, 1};
  }
}

// The sum of squares by its definition: the two halves are added until one number is left.
float halves(const std::vector<float>& q) {
  if (q.size() == 1) return q[0];
  std::vector<float> sums;
  for (size_t i = 0; i < q.size() / 2; ++i) sums.push_back(q[i] + q[i + q.size() / 2]);
  return halves(sums);
}

std::vector<float> finished_key(const Call& c, const float* x, int64_t layer, int64_t angle) {
  const size_t dim = static_cast<size_t>(c.dim);
  std::vector<float> y(x, x + dim);
  if (!c.norm.empty()) {
    std::vector<float> squares;
    for (const float v : y) squares.push_back(v * v);
    size_t width = 1;
    while (width < dim) width *= 2;
    squares.resize(width, 0.0f);
    const float mean = halves(squares) / static_cast<float>(dim) + c.p.eps;
    const float factor = 1.0f / std::sqrt(mean);
    for (size_t i = 0; i < dim; ++i) y[i] = (y[i] * factor) * c.norm[static_cast<size_t>(layer) * dim + i];
  }
  if (c.angles.empty()) return y;
  std::vector<float> z(dim);
  const float* cosine = &c.angles[static_cast<size_t>(angle) * 2 * dim];
  for (size_t i = 0; i < dim; ++i) {
    const size_t partner = c.p.interleaved ? (i % 2 ? i - 1 : i + 1) : (i + dim / 2) % dim;
    const float own = y[i] * cosine[i], other = y[partner] * cosine[dim + i];
    z[i] = own + other;
  }
  return z;
}

int64_t expect(const Call& c, std::deque<std::vector<float>> (&caches)[2], std::vector<int32_t>& status) {
  int64_t written = 0;
  for (int64_t b = 0; b < c.batch; ++b) {
    const size_t i = static_cast<size_t>(b);
    status.push_back(0);
    if (!c.active[i]) continue;
    const int64_t count = std::min(std::max<int64_t>(c.counts[i], 0), c.width);
    if (count != c.counts[i] || c.contexts[i] < 0) status[i] |= kMalformed;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t position = std::max<int64_t>(c.contexts[i], 0) + j;
      const int64_t angle = c.positions.empty() ? position : c.positions[static_cast<size_t>(b * c.width + j)];
      const int64_t page = c.table.page(b, position, c.page_size, c.num_pages);
      if (page < 0 || (!c.angles.empty() && (angle < 0 || angle >= c.p.angles.rows))) {
        status[i] |= kNoPage;
        continue;
      }
      ++written;
      for (int64_t layer = 0; layer < c.layers; ++layer) {
        for (int side = 0; side < 2; ++side) {
          const PagedView& to = c.p.sides[side].to;
          for (int64_t h = 0; h < c.heads; ++h) {
            const float* x = &c.projected[static_cast<size_t>(c.p.source(b, j, layer, side, h))];
            const std::vector<float> z =
                side == 0 ? finished_key(c, x, layer, angle) : std::vector<float>(x, x + c.dim);
            const std::vector<float>& scales = c.scales[side];
            const float scale = scales.empty() ? 1.0f : scales[static_cast<size_t>(layer * c.heads + h)];
            const int64_t at = page * to.page_stride + position % c.page_size * to.slot_stride + h * to.head_stride;
            for (size_t d = 0; d < z.size(); ++d) {
              caches[side][static_cast<size_t>(layer)][static_cast<size_t>(at) + d] = z[d] / scale;
            }
          }
        }
      }
    }
  }
  return written;
}

int64_t check_inject(uint64_t seed, bool spoil) {
  Call c = make_call(seed, spoil);
  std::vector<void*> data[2];
  point(c, data);
  std::deque<std::vector<float>> expected[2] = {c.caches[0], c.caches[1]};
  const std::deque<std::vector<float>> before[2] = {c.caches[0], c.caches[1]};
  std::vector<int32_t> status;
  const int64_t written = expect(c, expected, status);
  for (int way = 0; way < testing::kWays; ++way) {
    for (int side = 0; side < 2; ++side) {
      for (size_t layer = 0; layer < before[side].size(); ++layer) {
        std::copy(before[side][layer].begin(), before[side][layer].end(), c.caches[side][layer].begin());
      }
    }
    Guarded<int32_t> flags(c.batch);
    c.p.status = flags.data();
    testing::run(c.p, way);
    CHECK(flags.intact());
    for (int64_t b = 0; b < c.batch; ++b) {
      CHECK(flags[b] == status[static_cast<size_t>(b)], "seed %ld, request %ld: %d, not %d", (long)seed, (long)b,
            flags[b], status[static_cast<size_t>(b)]);
    }
    for (int side = 0; side < 2; ++side) {
      for (size_t layer = 0; layer < before[side].size(); ++layer) {
        const size_t bytes = expected[side][layer].size() * sizeof(float);
        CHECK(std::memcmp(expected[side][layer].data(), c.caches[side][layer].data(), bytes) == 0,
              "seed %ld, dim %ld, side %d, layer %zu, way %d", (long)seed, (long)c.dim, side, layer, way);
      }
    }
  }
  return written;
}

// ---- draft.block ----

void check_block(uint64_t seed, bool spoil) {
  Numbers numbers(seed);
  const int64_t batch = numbers.below(7), width = spoil ? numbers.below(5) : 1 + numbers.below(4);
  const int64_t size = 1 + numbers.below(70), page_size = int64_t{1} << numbers.below(5),
                max_pages = 90 / page_size + 1;
  std::vector<int32_t> tokens, counts, contexts;
  std::vector<char> active;
  for (int64_t i = 0; i < batch * width; ++i)
    tokens.push_back(static_cast<int32_t>(numbers.below(spoil ? 3 : 1000)) - spoil);
  for (int64_t b = 0; b < batch; ++b) {
    counts.push_back(static_cast<int32_t>(numbers.below(width + (spoil ? 3 : 1))) - (spoil ? 1 : 0));
    contexts.push_back(spoil && numbers.below(4) == 0 ? (numbers.below(2) ? -3 : INT32_MAX)
                                                      : static_cast<int32_t>(numbers.below(20)));
    active.push_back(numbers.below(4) != 0);
  }
  Table table = make_table(numbers, batch, max_pages, max_pages * (batch + 2) + 1, spoil);
  point(table);
  const bool with_slots = numbers.below(4) != 0, in_place = numbers.below(2) != 0;
  for (int way = 0; way < testing::kWays; ++way) {
    Guarded<int32_t> roots(batch), ids(batch * size), lengths(batch), status(batch);
    Guarded<int64_t> positions(batch * size), slots(batch * size);
    for (int64_t b = 0; b < batch; ++b) lengths[b] = contexts[static_cast<size_t>(b)];
    DraftBlockParams p;
    p.tokens = tokens.data();
    p.row_stride = width;
    p.batch = batch;
    p.width = width;
    p.num_tokens = {counts.data(), 1};
    p.context_lens = {in_place ? lengths.data() : contexts.data(), 1, false};
    p.mask_token = 77;
    p.size = size;
    if (with_slots) p.table = table.view;
    p.page_size = page_size;
    p.active = {reinterpret_cast<const bool*>(active.data()), 1};
    p.roots = {roots.data(), 1, false};
    p.ids = ids.data();
    p.positions = positions.data();
    p.slots = with_slots ? slots.data() : nullptr;
    p.new_contexts = {lengths.data(), 1, false};
    p.status = status.data();
    testing::run(p, way);
    CHECK(roots.intact() && ids.intact() && lengths.intact() && status.intact() && positions.intact() &&
          slots.intact());
    for (int64_t b = 0; b < batch; ++b) {
      const size_t i = static_cast<size_t>(b);
      const int64_t count = active[i] ? std::min(std::max<int64_t>(counts[i], 0), width) : 0;
      const int64_t begin = std::max<int64_t>(contexts[i], 0) + count;
      const int32_t root = count > 0 ? tokens[static_cast<size_t>(b * width + count - 1)] : -1;
      int32_t wanted = active[i] && (counts[i] != count || contexts[i] < 0) ? kMalformed : 0;
      CHECK(roots[b] == root, "seed %ld", (long)seed);
      CHECK(lengths[b] == (count > 0 ? std::min<int64_t>(begin, INT32_MAX) : contexts[i]), "seed %ld", (long)seed);
      for (int64_t j = 0; j < size; ++j) {
        CHECK(ids[b * size + j] == (root < 0 ? -1 : j == 0 ? root : 77), "seed %ld", (long)seed);
        CHECK(positions[b * size + j] == (root < 0 ? 0 : begin + j), "seed %ld", (long)seed);
        if (!with_slots) continue;
        const int64_t page = root < 0 ? -1 : table.page(b, begin + j, page_size, INT64_MAX);
        CHECK(slots[b * size + j] == (page < 0 ? -1 : page * page_size + (begin + j) % page_size), "seed %ld",
              (long)seed);
        if (root >= 0 && page < 0) wanted |= kNoPage;
      }
      CHECK(status[b] == wanted, "seed %ld: %d, not %d", (long)seed, status[b], wanted);
    }
  }
}

}  // namespace

int main() {
  int64_t written = 0;
  for (uint64_t seed = 1; seed < 160; ++seed) written += check_inject(seed, seed % 2 == 0);
  CHECK(written > 80, "only %ld rows written", (long)written);
  for (uint64_t seed = 1; seed < 200; ++seed) check_block(seed, seed % 2 == 0);
  std::printf("kv.inject, draft.block (%s): passed\n", testing::kernels_in_use());
  return 0;
}
