// SPDX-License-Identifier: Apache-2.0
// The exports of trees against the relation of ancestors, and draft.expand against a sorted row.
#include <algorithm>
#include <cmath>

#include "ways.h"

using namespace specdec;
using testing::Guarded;
using testing::Numbers;

namespace {

constexpr float kInf = INFINITY;

// Trees of a batch in one row of nodes, some of them spoiled, some requests idle, garbage in the padding.
struct Trees {
  std::vector<int32_t> cu_nodes{0}, parents, depths, ends;
  std::vector<int64_t> tokens;
  std::vector<std::vector<int32_t>> shapes;  // parents of the live nodes; of what is no tree the root alone

  Trees(Numbers& numbers, int64_t batch, int64_t most, int64_t nodes) {
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<int32_t> shape;
      const int64_t count = numbers.below(most + 1);
      for (int32_t i = 0; i < count; ++i) {  // pre-order: the parent is the last node or an ancestor of it
        int32_t parent = i - 1;
        while (i > 1 && parent > 0 && numbers.below(2)) parent = shape[static_cast<size_t>(parent)];
        shape.push_back(parent);
      }
      for (int32_t i = 0; i < count; ++i) {
        parents.push_back(shape[static_cast<size_t>(i)]);
        depths.push_back(static_cast<int32_t>(line(shape, i).size()) - 1);
        int32_t end = i + 1;
        while (end < count && sees(shape, end, i)) ++end;
        ends.push_back(end);
      }
      const size_t first = static_cast<size_t>(cu_nodes.back());
      if (count > 1 && numbers.below(5) == 0) {
        const size_t at = first + static_cast<size_t>(numbers.below(count));
        const int32_t odd[] = {INT32_MAX, INT32_MIN, -2, static_cast<int32_t>(count) + 1};
        (numbers.below(2) ? parents : ends)[at] = odd[numbers.below(4)];
        shape.assign(1, -1);
      }
      const int64_t padding = count == 0 ? numbers.below(2) : numbers.below(3);
      for (int64_t i = 0; i < padding; ++i) {
        parents.push_back(3);
        depths.push_back(-7);
        ends.push_back(count == 0 ? 0 : 99);
      }
      if (static_cast<int64_t>(shape.size()) > nodes) shape.assign(nodes > 0 ? 1 : 0, -1);
      shapes.push_back(shape);
      cu_nodes.push_back(static_cast<int32_t>(parents.size()));
    }
    tokens.assign(parents.size(), 5);
  }

  static std::vector<int32_t> line(const std::vector<int32_t>& shape, int32_t node) {
    std::vector<int32_t> found;
    for (; node >= 0; node = shape[static_cast<size_t>(node)]) found.insert(found.begin(), node);
    return found;
  }
  static bool sees(const std::vector<int32_t>& shape, int32_t node, int32_t other) {
    const std::vector<int32_t> found = line(shape, node);
    return std::find(found.begin(), found.end(), other) != found.end();
  }
  bool sees(int64_t b, int64_t i, int64_t j) const {
    const auto& shape = shapes[static_cast<size_t>(b)];
    const int64_t count = static_cast<int64_t>(shape.size());
    return i < count && j < count && sees(shape, static_cast<int32_t>(i), static_cast<int32_t>(j));
  }
  TreeView view(int64_t max_depth) const {
    TreeView tree;
    tree.cu_nodes = {cu_nodes.data(), 1};
    tree.tokens = {tokens.data(), 1, true};
    tree.parents = {parents.data(), 1};
    tree.depths = {depths.data(), 1};
    tree.ends = {ends.data(), 1};
    tree.batch = static_cast<int64_t>(shapes.size());
    tree.total = static_cast<int64_t>(parents.size());
    tree.max_depth = max_depth;
    return tree;
  }
};

bool bit(const uint8_t* bytes, int64_t at) { return bytes[at / 8] >> (at % 8) & 1; }

void check_masks(const Trees& trees, int64_t nodes, int way, Numbers& numbers) {
  const int64_t batch = static_cast<int64_t>(trees.shapes.size());
  Guarded<bool> mask(batch * nodes * nodes);
  DenseMaskParams dense;
  dense.tree = trees.view(INT32_MAX);
  dense.nodes = nodes;
  dense.mask = mask.data();
  testing::run(dense, way);
  CHECK(mask.intact());
  for (int64_t at = 0; at < mask.size(); ++at) {
    CHECK(mask[at] == trees.sees(at / nodes / nodes, at / nodes % nodes, at % nodes));
  }
  for (const MaskLayout layout : {MaskLayout::query, MaskLayout::words}) {
    const int64_t width = layout == MaskLayout::query ? (nodes + 7) / 8 : (nodes + 31) / 32 * 4;
    Guarded<uint8_t> packed(batch * nodes * width);
    PackedMaskParams p;
    p.tree = trees.view(INT32_MAX);
    p.layout = layout;
    p.nodes = nodes;
    p.mask = packed.data();
    p.bytes = packed.size();
    testing::run(p, way);
    CHECK(packed.intact());
    for (int64_t row = 0; row < batch * nodes; ++row) {
      for (int64_t j = 0; j < 8 * width; ++j) {
        CHECK(bit(packed.data() + row * width, j) == (j < nodes && trees.sees(row / nodes, row % nodes, j)));
      }
    }
  }
  std::vector<int64_t> contexts;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t odd[] = {-5, 1000, INT64_MAX, INT64_MIN};
    contexts.push_back(numbers.below(6) ? numbers.below(30) : odd[numbers.below(4)]);
  }
  const int64_t share = (nodes * (30 + nodes) + 7) / 8, rest = batch > 0 ? numbers.below(batch) : 0;
  Guarded<uint8_t> full(batch * share + rest);
  Guarded<int32_t> indptr(batch + 1);
  PackedMaskParams p;
  p.tree = trees.view(INT32_MAX);
  p.context_lens = {contexts.data(), 1, true};
  p.nodes = nodes;
  p.mask = full.data();
  p.bytes = full.size();
  p.indptr = indptr.data();
  testing::run(p, way);
  CHECK(full.intact() && indptr.intact() && indptr[0] == 0);
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t context = std::max<int64_t>(contexts[static_cast<size_t>(b)], 0);
    int64_t live = static_cast<int64_t>(trees.shapes[static_cast<size_t>(b)].size());
    if (context > 8 * share || (live * (context + live) + 7) / 8 > share) live = 0;
    const int64_t bits = live > 0 ? live * (context + live) : 0;
    CHECK(indptr[b + 1] - indptr[b] == (bits + 7) / 8);
    for (int64_t at = 0; at < 8 * (indptr[b + 1] - indptr[b]); ++at) {
      const int64_t i = bits > 0 ? at / (context + live) : 0, t = bits > 0 ? at % (context + live) : 0;
      const bool wanted = at < bits && (t < context || trees.sees(b, i, t - context));
      CHECK(bit(full.data() + indptr[b], at) == wanted);
    }
  }
  for (int64_t at = indptr[batch]; at < full.size(); ++at) CHECK(full[at] == 0);
}

void check_links_and_paths(const Trees& trees, int64_t nodes, int way) {
  const int64_t batch = static_cast<int64_t>(trees.shapes.size());
  Guarded<int64_t> child(batch * nodes), sibling(batch * nodes), row(batch * nodes);
  LinksParams p;
  p.tree = trees.view(INT32_MAX);
  p.nodes = nodes;
  p.first_child = {child.data(), 1, true};
  p.next_sibling = {sibling.data(), 1, true};
  p.retrieve_index = {row.data(), 1, true};
  testing::run(p, way);
  CHECK(child.intact() && sibling.intact() && row.intact());
  const int64_t width = nodes + 1;
  Guarded<int32_t> paths(batch * nodes * width), counts(batch);
  PathsParams q;
  q.tree = trees.view(width - 1);
  q.nodes = nodes;
  q.width = width;
  q.paths = paths.data();
  q.num_paths = counts.data();
  testing::run(q, way);
  CHECK(paths.intact() && counts.intact());
  for (int64_t b = 0; b < batch; ++b) {
    const auto& shape = trees.shapes[static_cast<size_t>(b)];
    const int64_t count = static_cast<int64_t>(shape.size());
    int64_t leaves = 0;
    for (int64_t i = 0; i < nodes; ++i) {
      int64_t first = -1, next = -1;
      for (int64_t j = count; j-- > 0 && i < count;) {
        if (shape[static_cast<size_t>(j)] == i) first = j;
        if (j > i && shape[static_cast<size_t>(j)] == shape[static_cast<size_t>(i)]) next = j;
      }
      CHECK(child[b * nodes + i] == first && sibling[b * nodes + i] == next);
      CHECK(row[b * nodes + i] == (i < count ? trees.cu_nodes[static_cast<size_t>(b)] + i : -1));
      if (i >= count || first >= 0) continue;
      const std::vector<int32_t> line = Trees::line(shape, static_cast<int32_t>(i));
      for (int64_t d = 0; d < width; ++d) {
        const bool there = d < static_cast<int64_t>(line.size());
        CHECK(paths[(b * nodes + leaves) * width + d] == (there ? line[static_cast<size_t>(d)] : -1));
      }
      ++leaves;
    }
    CHECK(counts[b] == leaves);
    for (int64_t at = leaves * width; at < nodes * width; ++at) CHECK(paths[b * nodes * width + at] == -1);
  }
}

// ---- draft.expand ----
void check_expand(uint64_t seed, int64_t columns) {
  Numbers numbers(seed);
  const int64_t batch = numbers.below(3) + 1, width = numbers.below(4) + 1, stride = columns + numbers.below(3);
  const int64_t num = 1 + numbers.below(columns > 99 ? 64 : 8), beams = 1 + numbers.below(12);
  std::vector<float> logits(static_cast<size_t>(batch * width * stride)), scores;
  for (float& logit : logits) {
    const float strange[] = {-kInf, NAN, kInf, -3e38f};
    logit = numbers.below(3) ? 9.0f * numbers.symmetric() : static_cast<float>(numbers.below(3));
    if (seed % 3 == 0 && numbers.below(20) == 0) logit = strange[numbers.below(4)];
  }
  std::vector<int64_t> there;
  for (int64_t i = 0; i < columns; ++i) there.push_back(numbers.below(9) ? 3 * i + 1 : -1);
  for (int64_t i = 0; i < batch * width; ++i) {
    const float strange[] = {-kInf, NAN, 0.0f};
    scores.push_back(numbers.below(5) ? numbers.symmetric() - 1 : strange[numbers.below(3)]);
  }
  const bool mapped = numbers.below(2);
  std::vector<float> first;
  for (int way = 0; way < testing::kWays; ++way) {
    Guarded<int64_t> tokens(batch * width * num);
    Guarded<float> reached(batch * width * num);
    Guarded<int32_t> chosen(batch * beams);
    ExpandParams p;
    p.logits = {logits.data(), FloatType::float32, batch * width, columns, stride};
    p.scores = scores.data();
    p.score_row_stride = width;
    p.batch = batch;
    p.width = width;
    p.num = num;
    p.beams = beams;
    if (mapped) p.draft_to_target = {there.data(), 1, true};
    p.tokens = tokens.data();
    p.child_scores = reached.data();
    p.beam_columns = chosen.data();
    testing::run(p, way);
    CHECK(tokens.intact() && reached.intact() && chosen.intact());
    for (int64_t r = 0; r < batch * width; ++r) {
      std::vector<std::pair<double, int64_t>> row;  // best first
      for (int64_t i = 0; i < columns; ++i) {
        const float logit = logits[static_cast<size_t>(r * stride + i)];
        if (logit > -kInf) row.push_back({-static_cast<double>(std::min(logit, kLargest)), i});
      }
      std::sort(row.begin(), row.end());
      const float above = scores[static_cast<size_t>(r)];
      if (!(above > -kInf)) row.clear();
      double sum = 0.0;
      for (const auto& [logit, id] : row) sum += std::exp(row.front().first - logit);
      for (int64_t j = 0; j < num; ++j) {
        int64_t token = -1;
        double score = -kInf;
        if (j < static_cast<int64_t>(row.size())) {
          const auto& [logit, id] = row[static_cast<size_t>(j)];
          token = mapped ? there[static_cast<size_t>(id)] : id;
          score = above + ((row.front().first - logit) - std::log(sum));
          if (token < 0 || score < -3.5e38) token = -1;
        }
        CHECK(tokens[r * num + j] == token, "seed %lu, row %ld, child %ld", (unsigned long)seed, (long)r, (long)j);
        const float made = reached[r * num + j];
        CHECK(token < 0 ? made == -kInf : std::fabs(made - score) <= 2e-6 * std::max(1.0, std::fabs(score)));
      }
    }
    for (int64_t b = 0; b < batch; ++b) {
      std::vector<std::pair<float, int32_t>> ranked;
      for (int32_t c = 0; c < width * num; ++c) {
        if (reached[b * width * num + c] > -kInf) ranked.push_back({-reached[b * width * num + c], c});
      }
      std::sort(ranked.begin(), ranked.end());
      for (int64_t i = 0; i < beams; ++i) {
        const bool exists = i < static_cast<int64_t>(ranked.size());
        CHECK(chosen[b * beams + i] == (exists ? ranked[static_cast<size_t>(i)].second : -1));
      }
    }
    if (way == 0) first.assign(reached.data(), reached.data() + reached.size());
    CHECK(testing::same_bits(first.data(), reached.data(), reached.size()));
  }
}

}  // namespace

int main() {
  for (uint64_t seed = 1; seed <= 120; ++seed) {
    Numbers numbers(seed);
    const int64_t most = seed % 10 == 0 ? 70 : 9;
    const int64_t nodes = numbers.below(4) ? most : numbers.below(most + 3);
    const Trees trees(numbers, numbers.below(5), most, nodes);
    for (int way = 0; way < testing::kWays; ++way) {
      check_masks(trees, nodes, way, numbers);
      check_links_and_paths(trees, nodes, way);
    }
  }
  for (const int64_t columns : {1, 2, 7, 64, 100, 4096, 9001}) {
    for (uint64_t seed = 1; seed <= (columns > 1000 ? 4u : 30u); ++seed) check_expand(seed, columns);
  }
  std::printf("tree exports, expand (%s): passed\n", testing::kernels_in_use());
  return 0;
}
