// SPDX-License-Identifier: Apache-2.0
// tree_attention: who computes what. A piece is a block of rows and a key/value head; where there are enough pieces, a
// thread computes a piece from its first split to its last. Otherwise the splits of a piece are spread over threads.
// Both merge the same partial results in the same order. Memory traffic: keys and values that some row sees, once for
// every kMaxRows rows. No heap but the buffers of a thread, which stay, and the partial results of spread splits.
#include "attention.h"

#include <omp.h>

#include <cmath>

#include "attention_work.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace attention {
namespace {

Scratch& scratch_of_thread(const Call& call) {
  static thread_local Scratch scratch;
  scratch.fit(call);
  return scratch;
}

// Whether a request has the rows from its offset to the next one: those that no request before it has.
bool owns_rows(const Strided<const int32_t>& offsets, int64_t total, int64_t request, int64_t& reach) {
  const int64_t first = offsets[request], after = offsets[request + 1];
  if (first < 0 || after < first || after > total) return false;
  const bool own = first >= reach;
  if (after > reach) reach = after;
  return own;
}

// Queries of request b that are about live nodes.
void add_queries(const Call& call, const Request& r) {
  const TreeAttentionParams& p = call.p;
  const auto add = [&](int64_t row, int64_t node) {
    if (node < 0 || node >= r.nodes) return;
    call.plan.queries.push_back({row, (int32_t)node, (int32_t)call.depth_of(r, (int32_t)node)});
  };
  if (r.nodes == 0) return;
  if (!p.queries.cu) {
    for (int32_t node = 0; node < r.nodes; ++node) add(r.first_node + node, node);
    return;
  }
  const int64_t first = p.queries.cu[r.index], after = p.queries.cu[r.index + 1];
  for (int64_t row = first; row < after; ++row) add(row, p.queries.nodes[row]);
}

// Queries [first, first + count) in blocks of nearly the same size.
void add_blocks(const Call& call, int64_t first, int64_t count) {
  Plan& plan = call.plan;
  const Request& r = plan.requests.back();
  const int64_t heads = std::min<int64_t>(call.group, kMaxRows), most = kMaxRows / heads;
  const int64_t parts = (count + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part) {
    Block block{};
    block.request = (int32_t)plan.requests.size() - 1;
    block.first = first + count * part / parts;
    block.count = (int32_t)(first + count * (part + 1) / parts - block.first);
    block.begin = INT64_MAX;
    for (int i = 0; i < block.count; ++i) {
      const int64_t depth = plan.queries[(size_t)(block.first + i)].depth;
      block.begin = std::min(block.begin, call.first_place(r, depth));
      block.end = std::max(block.end, call.end_place(r, depth));
    }
    for (int64_t head = 0; head < call.group; head += heads) {
      block.head = (int32_t)head;
      block.heads = (int32_t)std::min(heads, call.group - head);
      plan.blocks.push_back(block);
      plan.splits = std::max(plan.splits, (block.end + kSplit - 1) / kSplit - block.begin / kSplit);
      plan.work += (block.end - block.begin) * (block.count * block.heads + 3) / 4;
    }
  }
}

// Fills the plan; writes the status of all requests, but for pages that are found out of range later.
void make_plan(const Call& call) {
  const TreeAttentionParams& p = call.p;
  Plan& plan = call.plan;
  plan.requests.clear();
  plan.queries.clear();
  plan.blocks.clear();
  plan.splits = plan.work = 0;
  const Strided<const int32_t>& offsets = p.queries.cu ? p.queries.cu : p.tree.cu_nodes;
  int64_t reach = 0;  // rows of the requests before
  for (int64_t b = 0; b < p.tree.batch; ++b) {
    const bool active = !p.active || p.active[b], owns = owns_rows(offsets, p.queries.total, b, reach);
    int32_t flags = 0;
    const int64_t first = (int64_t)plan.queries.size();
    if (active) {
      const RequestNodes nodes = open_request(p.tree, b);
      Request r{};
      r.index = b;
      r.first_node = nodes.first;
      r.nodes = nodes.count;
      const int64_t context = p.context_lens[b];
      if (nodes.malformed || !owns || (nodes.count > 0 && context < 0)) flags = kStatusMalformed;
      r.context = std::clamp<int64_t>(context, 0, kMaxContext);
      r.table_row = p.table.row_of(b);
      const int64_t reach = r.table_row < 0 ? 0 : p.table.max_pages;
      r.base = r.context >> call.page_shift < reach ? r.context : reach << call.page_shift;
      if (owns) add_queries(call, r);
      for (int64_t q = first; q < (int64_t)plan.queries.size() && r.base < r.context; ++q) {
        const bool sees = call.window_begin(r.context + plan.queries[(size_t)q].depth) < r.context;
        if (sees) flags |= kStatusPageOutOfRange;
      }
      plan.requests.push_back(r);
    }
    if (p.status != nullptr) p.status[b] = flags;
    const int64_t count = (int64_t)plan.queries.size() - first;
    if (count > 0 && call.group > 0) add_blocks(call, first, count);
  }
}

void clear_outputs(const TreeAttentionParams& p) {
  const int64_t count = p.queries.total * p.heads, bytes = p.query_type == FloatType::float32 ? 4 : 2;
  std::fill(p.lse, p.lse + count, -INFINITY);
  std::fill(static_cast<char*>(p.out), static_cast<char*>(p.out) + count * p.value_dim * bytes, (char)0);
}

void run_whole(const Call& call, const Block& block, int64_t kv_head) {
  Scratch& scratch = scratch_of_thread(call);
  Work work(call, block, kv_head, scratch);
  const Partial all{scratch.states, scratch.mixed}, later{scratch.later_states, scratch.later};
  work.split(work.first_split(), all);
  for (int64_t s = work.first_split() + 1; s < work.splits(); ++s) {
    work.split(s, later);
    work.merge(later, all);
  }
  work.write(all);
}

void run_spread(const Call& call, const Block& block, int64_t kv_head, int threads, std::vector<RowState>& states,
                std::vector<float>& mixed) {
  const int64_t rows = (int64_t)block.count * block.heads, width = rows * call.value_width;
  const int64_t first = Work::first_split(block), splits = Work::splits(block) - first;
  states.resize((size_t)(splits * rows));
  mixed.resize((size_t)(splits * width));
  const auto partial = [&](int64_t s) { return Partial{states.data() + s * rows, mixed.data() + s * width}; };
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t s = 0; s < splits; ++s) {
    Work(call, block, kv_head, scratch_of_thread(call)).split(first + s, partial(s));
  }
  const Work work(call, block, kv_head, scratch_of_thread(call));
  for (int64_t s = 1; s < splits; ++s) work.merge(partial(s), partial(0));
  work.write(partial(0));
}

}  // namespace
}  // namespace attention

void tree_attention(const TreeAttentionParams& p) {
  using namespace attention;
  static thread_local Plan plan;
  const Call call(p, plan);
  clear_outputs(p);
  make_plan(call);
  const int64_t pieces = (int64_t)plan.blocks.size() * p.kv_heads;
  const auto whole = [&](int64_t i) { run_whole(call, call.plan.blocks[(size_t)(i / p.kv_heads)], i % p.kv_heads); };
  const int64_t bytes = plan.work * p.kv_heads * (p.key_dim * call.key_bytes + p.value_dim * call.value_bytes);
  const int threads = threads_for(bytes, pieces * plan.splits);
  if (threads == 1) {
    for (int64_t i = 0; i < pieces; ++i) whole(i);
  } else if (pieces >= 2 * threads || pieces == threads || plan.splits == 1) {
#pragma omp parallel for num_threads((int)std::min<int64_t>(threads, pieces)) schedule(dynamic)
    for (int64_t i = 0; i < pieces; ++i) whole(i);
  } else {
    std::vector<RowState> states;
    std::vector<float> mixed;
    for (int64_t i = 0; i < pieces; ++i) {
      run_spread(call, plan.blocks[(size_t)(i / p.kv_heads)], i % p.kv_heads, threads, states, mixed);
    }
  }
}

SPECDEC_ISA_END
