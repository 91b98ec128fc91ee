// SPDX-License-Identifier: Apache-2.0
// kv.commit and kv.gather against their definitions, byte by byte: every layout, and data that is wrong in every way.
#include <deque>

#include "paged_memory.h"
#include "ways.h"

using namespace specdec;
using testing::Cache;
using testing::Guarded;
using testing::Numbers;
using testing::Table;

namespace {

constexpr int32_t kMalformed = 8, kNoPage = 16;

// ---- kv.commit ----

struct Group {
  std::deque<Cache> caches;
  Table table;
  std::vector<int64_t> contexts;
  std::vector<int32_t> slots;
  int64_t page_size = 1;
};

struct Batch {
  std::vector<int32_t> path, num_tokens, cu_nodes;
  std::deque<bool> active;
  int64_t width = 0;
};

// Nodes from the root down a random tree: they increase. Wrong ones if `spoil`.
Batch make_batch(Numbers& numbers, int64_t batch, bool spoil) {
  Batch made;
  made.width = 1 + numbers.below(numbers.below(4) == 0 ? 80 : 7);
  made.cu_nodes.push_back(static_cast<int32_t>(numbers.below(3)));
  for (int64_t b = 0; b < batch; ++b) {
    int32_t node = 0, tokens = static_cast<int32_t>(numbers.below(made.width + 1));
    for (int64_t j = 0; j < made.width; ++j) {
      made.path.push_back(j < tokens ? node : -1);
      node += 1 + static_cast<int32_t>(numbers.below(numbers.below(2) ? 1 : 3));
    }
    made.cu_nodes.push_back(made.cu_nodes.back() + std::max(node, 1));
    if (spoil && numbers.below(3) == 0) {
      const int32_t wrong[] = {-1, 4096, INT32_MAX, INT32_MIN, 0, 1};
      made.path[static_cast<size_t>(b * made.width + numbers.below(made.width))] = wrong[numbers.below(6)];
    }
    if (spoil && numbers.below(5) == 0) {
      const int32_t wrong[] = {-1, static_cast<int32_t>(made.width + 1), INT32_MAX, INT32_MIN};
      tokens = wrong[numbers.below(4)];
    }
    made.num_tokens.push_back(tokens);
    made.active.push_back(numbers.below(4) != 0);
  }
  if (spoil && batch > 0 && numbers.below(3) == 0) made.cu_nodes[1] = numbers.below(2) ? -1 : 1 << 20;
  return made;
}

Group make_group(Numbers& numbers, const Batch& batch, bool with_slots, bool spoil) {
  Group group;
  const int64_t requests = static_cast<int64_t>(batch.num_tokens.size());
  group.page_size = int64_t{1} << numbers.below(7);
  const int64_t reach = 3 * batch.width + 40;  // positions behind the longest context
  const int64_t max_pages = (reach + 20) / group.page_size + 1;
  const int64_t num_pages = max_pages * (requests + 2) + 1;
  group.table = make_table(numbers, requests, max_pages, num_pages, spoil);
  for (int64_t count = 1 + numbers.below(3); count > 0; --count) {
    group.caches.push_back(make_cache(numbers, num_pages, group.page_size));
  }
  for (int64_t b = 0; b < requests; ++b) group.contexts.push_back(numbers.below(20));
  if (spoil && requests > 0 && numbers.below(4) == 0) {
    const int64_t wrong[] = {-1, INT64_MAX, INT64_MIN, int64_t{1} << 40};
    group.contexts[0] = wrong[numbers.below(4)];
  }
  if (with_slots) {
    int32_t slot = 0;
    for (int64_t i = 0; i < (int64_t{1} << 11); ++i) {  // ascending within a request for any offsets of this size
      group.slots.push_back(slot++ % 512);
      if (spoil && numbers.below(6) == 0) group.slots.back() = static_cast<int32_t>(numbers.below(9)) - 2;
    }
  }
  return group;
}

// The definition: status bits, and the caches after all sources were read.
void expect_commit(const Batch& batch, Group& group, const std::vector<bool>& on, bool with_slots,
                   std::vector<int32_t>& status) {
  for (size_t b = 0; b < batch.num_tokens.size(); ++b) {
    if (!on[b]) continue;
    const int64_t tokens = batch.num_tokens[b], count = std::min(std::max<int64_t>(tokens, 0), batch.width);
    const int64_t context = std::max<int64_t>(group.contexts[b], 0);
    if (count != tokens || group.contexts[b] < 0) status[b] |= kMalformed;
    std::vector<std::pair<int64_t, int64_t>> moves;
    int64_t node_before = -1, slot_before = -1;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t node = batch.path[b * static_cast<size_t>(batch.width) + static_cast<size_t>(j)];
      const int64_t begin = batch.cu_nodes[b], end = batch.cu_nodes[b + 1];
      bool good = node > node_before && node < 4096;
      int64_t slot = node;
      if (good && with_slots) {
        good = begin >= 0 && end <= static_cast<int64_t>(group.slots.size()) && node < end - begin;
        if (good) slot = group.slots[static_cast<size_t>(begin + node)];
      }
      if (!good || slot <= slot_before) {
        status[b] |= kMalformed;
        break;
      }
      node_before = node;
      slot_before = slot;
      if (slot != j) moves.push_back({slot, j});
    }
    for (Cache& cache : group.caches) {
      const std::vector<unsigned char> before = cache.bytes;
      const auto place = [&](int64_t slot) -> int64_t {
        if (context > int64_t{1} << 50) return -1;
        const int64_t position = context + slot;
        const int64_t page = group.table.page(static_cast<int64_t>(b), position, cache.page_size, cache.num_pages);
        if (page < 0) return -1;
        return cache.begin + page * cache.page_stride + position % cache.page_size * cache.slot_stride;
      };
      for (const auto& [from, to] : moves) {
        const int64_t source = place(from), target = place(to);
        if (source < 0 || target < 0) {
          status[b] |= kNoPage;
          continue;
        }
        for (const int64_t at : cache.elements()) {
          std::memcpy(&cache.bytes[static_cast<size_t>(target + at)], &before[static_cast<size_t>(source + at)],
                      static_cast<size_t>(cache.element));
        }
      }
    }
  }
}

// The parameters of a call, as its launcher would make them.
struct Commit {
  std::vector<KvBuffer> buffers;
  std::vector<KvGroupView> groups;
  KvCommitParams p;
};

void add_group(Commit& commit, Group& group) {
  point(group.table);
  KvGroupView view;
  view.table = group.table.view;
  view.context_lens = {group.contexts.data(), 1, true};
  if (!group.slots.empty()) view.slots = {group.slots.data(), 1};
  view.slots_total = static_cast<int64_t>(group.slots.size());
  while (int64_t{1} << view.page_shift < group.page_size) ++view.page_shift;
  view.fewest_pages = group.caches.front().num_pages;
  for (Cache& cache : group.caches) {
    for (const RowPiece& piece : pieces_of_row(cache.dims, cache.element, true)) {
      KvBuffer buffer;
      buffer.data = reinterpret_cast<char*>(cache.bytes.data()) + cache.begin + piece.offset;
      buffer.num_pages = cache.num_pages;
      buffer.page_stride = cache.page_stride;
      buffer.slot_stride = cache.slot_stride;
      buffer.row = piece.row;
      buffer.row.width =
          width_of(piece.row, {reinterpret_cast<intptr_t>(buffer.data), cache.page_stride, cache.slot_stride});
      buffer.group = static_cast<int32_t>(commit.groups.size());
      commit.buffers.push_back(buffer);
    }
  }
  commit.groups.push_back(view);
}

int64_t check_commit(uint64_t seed, int64_t requests, int64_t group_count, bool spoil) {
  Numbers numbers(seed);
  Batch batch = make_batch(numbers, requests, spoil);
  const bool with_slots = numbers.below(3) == 0, give_active = numbers.below(2) != 0;
  std::deque<Group> groups;
  for (int64_t g = 0; g < group_count; ++g) groups.push_back(make_group(numbers, batch, with_slots, spoil));
  std::vector<bool> on;
  std::vector<char> active;
  for (const bool one : batch.active) {
    on.push_back(one || !give_active);
    active.push_back(one);
  }
  std::deque<Group> expected = groups;
  std::vector<int32_t> status(static_cast<size_t>(requests));
  for (Group& group : expected) expect_commit(batch, group, on, with_slots, status);
  int64_t moved = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t i = 0; i < groups[g].caches.size(); ++i) {
      moved += groups[g].caches[i].bytes != expected[g].caches[i].bytes;
    }
  }
  for (int way = 0; way < testing::kWays; ++way) {
    std::deque<Group> ours = groups;
    Commit commit;
    for (Group& group : ours) add_group(commit, group);
    Guarded<int32_t> flags(requests);
    KvCommitParams& p = commit.p;
    p.call.path = batch.path.data();
    p.call.path_row_stride = batch.width;
    p.call.num_tokens = {batch.num_tokens.data(), 1};
    p.call.cu_nodes = {batch.cu_nodes.data(), 1};
    if (give_active) p.call.active = {reinterpret_cast<const bool*>(active.data()), 1};
    p.call.status = flags.data();
    p.call.batch = requests;
    p.call.width = static_cast<int32_t>(batch.width);
    p.buffers = commit.buffers.data();
    p.buffer_count = static_cast<int64_t>(commit.buffers.size());
    p.groups = commit.groups.data();
    p.group_count = static_cast<int64_t>(commit.groups.size());
    testing::run(p, way);
    CHECK(flags.intact());
    for (int64_t b = 0; b < requests; ++b) {
      CHECK(flags[b] == status[static_cast<size_t>(b)], "seed %ld, request %ld: %d, not %d", (long)seed, (long)b,
            flags[b], status[static_cast<size_t>(b)]);
    }
    for (size_t g = 0; g < ours.size(); ++g) {
      for (size_t i = 0; i < ours[g].caches.size(); ++i) {
        CHECK(ours[g].caches[i].bytes == expected[g].caches[i].bytes, "seed %ld, group %zu, buffer %zu", (long)seed, g,
              i);
      }
    }
  }
  return moved;
}

void test_commit() {
  int64_t moved = 0;
  uint64_t seed = 1;
  for (int round = 0; round < 120; ++round, ++seed) moved += check_commit(seed, seed % 4, 1 + seed % 3, seed % 2 == 0);
  CHECK(moved > 50, "only %ld caches changed", (long)moved);
  moved = 0;
  for (int round = 0; round < 6; ++round) {
    moved += check_commit(++seed, 2, 6, false);                 // more groups than the small table has
    if (round < 2) moved += check_commit(++seed, 1, 34, true);  // and than the large one has
  }
  CHECK(moved > 20, "only %ld caches changed", (long)moved);
  check_commit(++seed, 2, 0, true);
}

// One request whose rows hold their own slot, and what they hold afterwards: (slots, path, num_tokens) -> slots.
void test_commit_examples() {
  struct Example {
    std::vector<int32_t> slots, path;
    int32_t num_tokens, status;
    std::vector<int32_t> rows;
  };
  const Example examples[] = {
      {{}, {0, 1, 2, -1}, 3, 0, {0, 1, 2, 3, 4, 5}},          // in place
      {{}, {0, 2, 5, -1}, 3, 0, {0, 2, 5, 3, 4, 5}},          // of each other's places
      {{}, {0, 2, 3, 4}, 4, 0, {0, 2, 3, 4, 4, 5}},           // every place is a source before
      {{}, {0, 2, 5, -1}, 2, 0, {0, 2, 2, 3, 4, 5}},          // as many as there are tokens
      {{}, {3, 4, 5, -1}, 3, 0, {3, 4, 5, 3, 4, 5}},          // not from the root on
      {{}, {0, 3, 3, 5}, 4, kMalformed, {0, 3, 2, 3, 4, 5}},  // twice the same: the moves end there
      {{}, {0, 4, 2, 5}, 4, kMalformed, {0, 4, 2, 3, 4, 5}},
      {{}, {0, 2, -1, 5}, 4, kMalformed, {0, 2, 2, 3, 4, 5}},
      {{}, {0, 2, 4096, 5}, 4, kMalformed, {0, 2, 2, 3, 4, 5}},
      {{}, {0, 2, 3, 5}, 5, kMalformed, {0, 2, 3, 5, 4, 5}},  // more tokens than entries
      {{}, {0, 2, 3, 5}, -1, kMalformed, {0, 1, 2, 3, 4, 5}},
      {{0, 4, 1, 2, 5, 3}, {0, 2, 3, -1}, 3, 0, {0, 1, 2, 3, 4, 5}},  // slots in place, nodes are not
      {{0, 4, 1, 2, 5, 3}, {0, 1, 4, -1}, 3, 0, {0, 4, 5, 3, 4, 5}},
      {{1, 2, 3, 4, 5, 0}, {0, 1, 3, -1}, 3, 0, {1, 2, 4, 3, 4, 5}},
      {{0, 5, 3, 4, 5, 0}, {0, 1, 2, 3}, 4, kMalformed, {0, 5, 2, 3, 4, 5}},   // slots descend
      {{0, 4, 2, 3, 5, 0}, {0, 2, 1, -1}, 3, kMalformed, {0, 2, 2, 3, 4, 5}},  // nodes descend, slots do not
      {{0, -1, 2, 3, 5, 0}, {0, 1, 2, -1}, 3, kMalformed, {0, 1, 2, 3, 4, 5}},
      {{0, 2, 3, 4, 5, 9}, {0, 1, 6, -1}, 3, kMalformed, {0, 2, 2, 3, 4, 5}},  // no slot of this request
  };
  for (const Example& e : examples) {
    std::vector<int32_t> rows(4097);
    for (int32_t i = 0; i < 4097; ++i) rows[static_cast<size_t>(i)] = i;
    const int32_t cu_nodes[] = {0, static_cast<int32_t>(e.slots.size())}, page = 0;
    const int64_t context = 0;
    int32_t status = 99;
    KvGroupView group;
    group.table.data = &page;
    group.table.table_rows = group.table.max_pages = 1;
    group.context_lens = {&context, 1, true};
    if (!e.slots.empty()) group.slots = {e.slots.data(), 1};
    group.slots_total = static_cast<int64_t>(e.slots.size());
    group.page_shift = 13;
    group.fewest_pages = 1;
    KvBuffer buffer;
    buffer.data = reinterpret_cast<char*>(rows.data());
    buffer.num_pages = 1;
    buffer.slot_stride = buffer.row.run = buffer.row.width = 4;
    KvCommitParams p;
    p.call.path = e.path.data();
    p.call.num_tokens = {&e.num_tokens, 1};
    p.call.cu_nodes = {cu_nodes, 1};
    p.call.status = &status;
    p.call.batch = 1;
    p.call.width = 4;
    p.buffers = &buffer;
    p.groups = &group;
    p.buffer_count = p.group_count = 1;
    testing::run(p);
    const size_t number = static_cast<size_t>(&e - examples);
    CHECK(status == e.status, "example %zu: %d", number, status);
    for (size_t i = 0; i < e.rows.size(); ++i) CHECK(rows[i] == e.rows[i], "example %zu, row %zu", number, i);
  }
}

// Of many groups the first alone has a page out of range: no later launch takes that back.
void test_status_of_many_groups() {
  constexpr int kMany = 70;
  const int32_t path[] = {0, 2}, tokens = 2, pages[] = {7, 0};
  const int64_t context = 0;
  std::vector<int32_t> rows(4 * kMany);
  std::vector<KvGroupView> groups(kMany);
  std::vector<KvBuffer> buffers(kMany);
  for (int g = 0; g < kMany; ++g) {
    for (int i = 0; i < 4; ++i) rows[static_cast<size_t>(4 * g + i)] = i;
    KvGroupView& group = groups[static_cast<size_t>(g)];
    group.table.data = pages + (g > 0);
    group.table.table_rows = group.table.max_pages = 1;
    group.context_lens = {&context, 1, true};
    group.page_shift = 2;
    group.fewest_pages = 1;
    KvBuffer& buffer = buffers[static_cast<size_t>(g)];
    buffer.data = reinterpret_cast<char*>(&rows[static_cast<size_t>(4 * g)]);
    buffer.num_pages = 1;
    buffer.slot_stride = buffer.row.run = buffer.row.width = 4;
    buffer.group = g;
  }
  int32_t status = 99;
  KvCommitParams p;
  p.call.path = path;
  p.call.num_tokens = {&tokens, 1};
  p.call.status = &status;
  p.call.batch = 1;
  p.call.width = 2;
  p.buffers = buffers.data();
  p.groups = groups.data();
  p.buffer_count = p.group_count = kMany;
  testing::run(p);
  CHECK(status == kNoPage, "%d", status);
  for (int g = 0; g < kMany; ++g) CHECK(rows[static_cast<size_t>(4 * g + 1)] == (g > 0 ? 2 : 1));
}

// Tables that name pages several times, also of other requests: somewhere, and within the tensor.
void test_commit_of_shared_pages() {
  for (uint64_t seed = 500; seed < 520; ++seed) {
    Numbers numbers(seed);
    Batch batch = make_batch(numbers, 3, true);
    Group group = make_group(numbers, batch, false, true);
    for (int64_t& page : group.table.wide) page %= 3;
    group.table.narrow.assign(group.table.wide.begin(), group.table.wide.end());
    const std::deque<Cache> before = group.caches;
    Commit commit;
    add_group(commit, group);
    KvCommitParams& p = commit.p;
    p.call.path = batch.path.data();
    p.call.path_row_stride = batch.width;
    p.call.num_tokens = {batch.num_tokens.data(), 1};
    p.call.batch = 3;
    p.call.width = static_cast<int32_t>(batch.width);
    p.buffers = commit.buffers.data();
    p.buffer_count = static_cast<int64_t>(commit.buffers.size());
    p.groups = commit.groups.data();
    p.group_count = 1;
    testing::run(p, static_cast<int>(seed) % testing::kWays);
    for (size_t i = 0; i < before.size(); ++i) {
      const Cache &old = before[i], &now = group.caches[i];
      std::vector<char> inside(old.bytes.size());  // of the three pages
      for (int64_t row = 0; row < 3 * old.page_size; ++row) {
        for (const int64_t at : old.elements()) {
          const int64_t place =
              old.begin + row / old.page_size * old.page_stride + row % old.page_size * old.slot_stride + at;
          std::memset(&inside[static_cast<size_t>(place)], 1, static_cast<size_t>(old.element));
        }
      }
      for (size_t k = 0; k < inside.size(); ++k) CHECK(inside[k] || old.bytes[k] == now.bytes[k]);
    }
  }
}

// ---- kv.gather ----

void check_gather(uint64_t seed) {
  Numbers numbers(seed);
  const int64_t requests = numbers.below(4), total = numbers.below(12);
  Batch batch = make_batch(numbers, requests, true);
  Cache values = make_cache(numbers, total, 1);         // [total, 1, dims...]
  for (size_t b = 1; b < batch.cu_nodes.size(); ++b) {  // often fewer rows than the path has
    batch.cu_nodes[b] = batch.cu_nodes[b - 1] + static_cast<int32_t>(numbers.below(5)) - (numbers.below(9) == 0);
  }
  const std::vector<int64_t> elements = values.elements();
  const int64_t row_bytes = static_cast<int64_t>(elements.size()) * values.element;
  for (int way = 0; way < testing::kWays; ++way) {
    Guarded<unsigned char> out(requests * batch.width * row_bytes);
    KvGatherParams p;
    p.total = total;
    p.row_stride = values.page_stride;
    p.cu_nodes = {batch.cu_nodes.data(), 1};
    p.path = batch.path.data();
    p.path_row_stride = batch.width;
    p.num_tokens = {batch.num_tokens.data(), 1};
    p.batch = requests;
    p.width = batch.width;
    p.out_row_bytes = row_bytes;
    for (const RowPiece& piece : pieces_of_row(values.dims, values.element, false)) {
      p.values = reinterpret_cast<const char*>(values.bytes.data()) + values.begin + piece.offset;
      p.out = reinterpret_cast<char*>(out.data()) + piece.begin;
      p.row = piece.row;
      p.row.width = width_of(piece.row, {reinterpret_cast<intptr_t>(p.values), reinterpret_cast<intptr_t>(p.out),
                                         p.row_stride, row_bytes});
      testing::run(p, way);
    }
    CHECK(out.intact());
    for (int64_t i = 0; i < requests * batch.width; ++i) {
      const int64_t b = i / batch.width, j = i % batch.width;
      const int64_t begin = batch.cu_nodes[static_cast<size_t>(b)], end = batch.cu_nodes[static_cast<size_t>(b) + 1];
      const int64_t node = batch.path[static_cast<size_t>(i)];
      const bool there = j < batch.num_tokens[static_cast<size_t>(b)] && begin >= 0 && node >= 0 &&
                         node < end - begin && begin + node < total;
      for (size_t k = 0; k < elements.size(); ++k) {
        const unsigned char* ours = out.data() + i * row_bytes + static_cast<int64_t>(k) * values.element;
        for (int64_t byte = 0; byte < values.element; ++byte) {
          const int64_t at = values.begin + (begin + node) * values.page_stride + elements[k] + byte;
          CHECK(ours[byte] == (there ? values.bytes[static_cast<size_t>(at)] : 0), "seed %ld", (long)seed);
        }
      }
    }
  }
}

}  // namespace

int main() {
  test_commit();
  test_commit_examples();
  test_status_of_many_groups();
  test_commit_of_shared_pages();
  for (uint64_t seed = 1000; seed < 1100; ++seed) check_gather(seed);
  std::printf("kv (%s): passed\n", testing::kernels_in_use());
  return 0;
}
