// SPDX-License-Identifier: Apache-2.0
// Random calls of tree_attention over caches of random layouts, and their result by the definition in double precision.
// What no row sees holds NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/attention_params.h"
#include "testing.h"

namespace specdec::testing {

// ---- elements by the definition of their formats ----

inline double decode(int exponent_bits, int fraction_bits, bool finite, uint32_t bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & top;
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  double value = exponent == 0 ? std::ldexp(fraction, 1 - bias - fraction_bits)
                               : std::ldexp(fraction + (1u << fraction_bits), exponent - bias - fraction_bits);
  if (exponent == top && !finite) value = fraction != 0 ? NAN : INFINITY;
  if (exponent == top && finite && fraction == (1u << fraction_bits) - 1) value = NAN;
  return bits >> (exponent_bits + fraction_bits) & 1 ? -value : value;
}

inline double decode(CacheType type, const void* data, int64_t i) {
  const auto half = [&] { return static_cast<const uint16_t*>(data)[i]; };
  const auto byte = [&] { return static_cast<const uint8_t*>(data)[i]; };
  switch (type) {
    case CacheType::bfloat16:
      return decode(8, 7, false, half());
    case CacheType::float16:
      return decode(5, 10, false, half());
    case CacheType::float8_e4m3:
      return decode(4, 3, true, byte());
    case CacheType::float8_e5m2:
      return decode(5, 2, false, byte());
    default:
      return static_cast<const float*>(data)[i];
  }
}

// The names that queries and outputs have among the types of caches.
inline CacheType cache_type(FloatType type) { return static_cast<CacheType>(static_cast<int32_t>(type)); }

// Elements of a type: numbers of moderate size, or NaN.
struct Elements {
  CacheType type = CacheType::float32;
  std::vector<unsigned char> bytes;

  void resize(CacheType t, int64_t count) {
    type = t;
    bytes.assign(static_cast<size_t>(count * bytes_of(t)), 0);
  }
  double operator[](int64_t i) const { return decode(type, bytes.data(), i); }
  void set(int64_t i, Numbers& numbers) {
    const float value = 2 * numbers.symmetric();
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t sign = bits >> 31, small = static_cast<uint32_t>(numbers.bits());
    switch (type) {
      case CacheType::float32:
        return put(i, bits);
      case CacheType::bfloat16:
        return put(i, bits >> 16);
      case CacheType::float16:  // magnitudes from 2^-3 to 2
        return put(i, sign << 15 | ((12 + small % 4) << 10 | (small >> 8 & 0x3ff)));
      case CacheType::float8_e4m3:
        return put(i, sign << 7 | ((4 + small % 4) << 3 | (small >> 8 & 7)));
      case CacheType::float8_e5m2:
        return put(i, sign << 7 | ((12 + small % 4) << 2 | (small >> 8 & 3)));
    }
  }
  void poison(int64_t i) { put(i, type == CacheType::float16 ? 0x7fff : 0xffffffffu); }

 private:
  void put(int64_t i, uint32_t bits) {
    const auto size = static_cast<size_t>(bytes_of(type));
    std::memcpy(bytes.data() + static_cast<size_t>(i) * size, &bits, size);
  }
};

// ---- calls ----

struct Choice {
  CacheType cache = CacheType::float32;
  FloatType query = FloatType::float32;
  int64_t key_dim = 16, value_dim = 16, heads = 2, kv_heads = 1, page_size = 4;
  std::vector<int64_t> contexts;
  std::vector<int64_t> sizes;  // live nodes of each request; two rows of padding follow
  int64_t window = 0;
  float softcap = 0, scale = 0.3f;
  Visibility visibility = Visibility::tree;
  bool sinks = false, scales = false, slots = false, queries = false, spoil = false;
  int layout = 0;  // 0: heads inside tokens, 1: tokens inside heads, 2: keys beside values
};

// A call that owns its memory.
class AttentionCall {
 public:
  AttentionCall(const Choice& choice, uint64_t seed) : c_(choice), numbers_(seed) {
    make_trees();
    make_queries();
    make_pages();
    make_options();
  }
  AttentionCall(const AttentionCall&) = delete;

  // Parameters without outputs. Where rows are seen from, keys and values are numbers; elsewhere NaN.
  const TreeAttentionParams& params() const { return p_; }
  TreeAttentionParams& params() { return p_; }
  int64_t rows() const { return p_.queries.total; }

  struct Expected {
    std::vector<double> out, lse;
    std::vector<int32_t> status;
    double largest = 0;  // magnitude of a score
  };
  Expected expected() const {
    Expected e;
    e.out.assign(static_cast<size_t>(rows() * c_.heads * c_.value_dim), 0.0);
    e.lse.assign(static_cast<size_t>(rows() * c_.heads), -INFINITY);
    e.status.assign(c_.sizes.size(), 0);
    for (const Seen& seen : seen_) {
      if (seen.missing) e.status[static_cast<size_t>(seen.request)] |= 16;
      for (int64_t h = 0; h < c_.heads; ++h) attend(seen, h, e);
    }
    return e;
  }

 private:
  struct Key {
    int64_t key, value;  // first elements
  };
  struct Seen {  // one row of a live node
    int64_t row, request;
    std::vector<Key> keys;  // of head 0
    bool missing = false;
  };

  void make_trees() {
    for (const int64_t size : c_.sizes) {
      cu_.push_back(static_cast<int32_t>(parents_.size()));
      const int kind = static_cast<int>(numbers_.below(3));
      std::vector<int32_t> open{-1};  // the path to the newest node, in depth-first order
      for (int64_t i = 0; i < size; ++i) {
        size_t depth = i == 0      ? 0
                       : kind == 0 ? open.size() - 1
                       : kind == 1 ? 1
                                   : 1 + static_cast<size_t>(numbers_.below(static_cast<int64_t>(open.size() - 1)));
        open.resize(depth + 1);
        parents_.push_back(open.back());
        depths_.push_back(static_cast<int32_t>(depth));
        ends_.push_back(static_cast<int32_t>(i + 1));
        for (const int32_t above : open) {
          if (above >= 0) ends_[static_cast<size_t>(cu_.back() + above)] = static_cast<int32_t>(i + 1);
        }
        open.push_back(static_cast<int32_t>(i));
        slots_.push_back(static_cast<int32_t>(c_.slots ? 2 * i + numbers_.below(2) : i));
      }
      for (int i = 0; i < 2; ++i) {
        parents_.push_back(-1);
        depths_.push_back(0);
        ends_.push_back(0);
        slots_.push_back(-7);
      }
    }
    cu_.push_back(static_cast<int32_t>(parents_.size()));
    tokens_.assign(parents_.size(), 0);
    auto& tree = p_.tree;
    tree.cu_nodes = {cu_.data(), 1};
    tree.tokens = {tokens_.data(), 1, false};
    tree.parents = {parents_.data(), 1};
    tree.depths = {depths_.data(), 1};
    tree.ends = {ends_.data(), 1};
    tree.batch = static_cast<int64_t>(c_.sizes.size());
    tree.total = static_cast<int64_t>(parents_.size());
    tree.max_depth = tree.total;
    p_.max_nodes = 1 + *std::max_element(c_.sizes.begin(), c_.sizes.end());
    if (c_.slots) p_.slots = {slots_.data(), 1};
  }

  void make_queries() {
    p_.queries.total = p_.tree.total;
    if (c_.queries) {
      cu_queries_.push_back(0);
      for (const int64_t size : c_.sizes) {
        for (int64_t i = numbers_.below(6); i > 0; --i) nodes_.push_back(numbers_.below(size + 2) - 1);
        cu_queries_.push_back(static_cast<int32_t>(nodes_.size()));
      }
      nodes_.push_back(0);  // of no request
      p_.queries = {{cu_queries_.data(), 1}, {nodes_.data(), 1, true}, static_cast<int64_t>(nodes_.size())};
    }
    const int64_t stride = c_.key_dim + 8;
    query_.resize(cache_type(c_.query), rows() * c_.heads * stride);
    for (int64_t i = 0; i < rows() * c_.heads; ++i) {
      for (int64_t d = 0; d < stride; ++d)
        d < c_.key_dim ? query_.set(i * stride + d, numbers_) : query_.poison(i * stride + d);
    }
    p_.query = query_.bytes.data();
    p_.query_type = c_.query;
    p_.query_row_stride = c_.heads * stride;
    p_.query_head_stride = stride;
    p_.heads = c_.heads;
    p_.kv_heads = c_.kv_heads;
    p_.key_dim = c_.key_dim;
    p_.value_dim = c_.value_dim;
  }

  void make_pages() {
    int64_t longest = 0;
    for (size_t b = 0; b < c_.sizes.size(); ++b) longest = std::max(longest, c_.contexts[b] + 2 * c_.sizes[b] + 2);
    const int64_t per = longest / c_.page_size + 1, batch = static_cast<int64_t>(c_.sizes.size());
    const int64_t pages = per * batch + 1;
    for (int64_t i = 0; i < pages; ++i) table_.push_back(static_cast<int32_t>(i));
    for (int64_t i = pages - 1; i > 0; --i)
      std::swap(table_[static_cast<size_t>(i)], table_[static_cast<size_t>(numbers_.below(i + 1))]);
    if (c_.spoil) {
      const int32_t wrong[] = {-1, static_cast<int32_t>(pages), INT32_MAX, INT32_MIN};
      for (int32_t& page : table_) {
        if (numbers_.below(4) == 0) page = wrong[numbers_.below(4)];
      }
    }
    p_.table = {table_.data(), false, batch, per, per, 1, {}};
    p_.context_lens = {c_.contexts.data(), 1, true};
    const int64_t k = c_.key_dim, v = c_.value_dim, h = c_.kv_heads, s = c_.page_size;
    if (c_.layout == 2) {  // a row of a token: per head its key, then its value
      cache_.resize(c_.cache, pages * s * h * (k + v));
      p_.key = {cache_.bytes.data(), c_.cache, pages, s, s * h * (k + v), h * (k + v), k + v};
      p_.value = p_.key;
      p_.value.data = cache_.bytes.data() + k * bytes_of(c_.cache);
      value_begin_ = k;
    } else {
      cache_.resize(c_.cache, pages * s * h * (k + v));
      value_begin_ = pages * s * h * k;
      const auto view = [&](int64_t first, int64_t dim) {
        PagedView made{cache_.bytes.data() + first * bytes_of(c_.cache), c_.cache, pages, s, s * h * dim, h * dim, dim};
        if (c_.layout == 1) {
          made.slot_stride = dim;
          made.head_stride = s * dim;
        }
        return made;
      };
      p_.key = view(0, k);
      p_.value = view(value_begin_, v);
    }
    for (int64_t i = 0; i < pages * s * h * (k + v); ++i) cache_.poison(i);
  }

  void make_options() {
    p_.scale = c_.scale;
    p_.softcap = c_.softcap;
    p_.window = c_.window;
    p_.visibility = c_.visibility;
    for (int64_t h = 0; h < c_.heads; ++h) sinks_.push_back(3 * numbers_.symmetric());
    for (int64_t h = 0; h < 2 * c_.kv_heads; ++h) scales_.push_back(1.0f + numbers_.symmetric() / 2);
    if (c_.sinks) p_.sinks = {sinks_.data(), 1};
    if (c_.scales) {
      p_.key_scale = {scales_.data(), 1};
      p_.value_scale = {scales_.data() + c_.kv_heads, 0};  // one for all heads
    }
    find_seen();
    for (const Seen& seen : seen_) {
      for (const Key& key : seen.keys) {
        for (int64_t h = 0; h < c_.kv_heads; ++h) {
          for (int64_t d = 0; d < c_.key_dim; ++d) fill(key.key + h * p_.key.head_stride + d);
          for (int64_t d = 0; d < c_.value_dim; ++d) fill(key.value + h * p_.value.head_stride + d);
        }
      }
    }
  }
  void fill(int64_t i) {
    if (std::isnan(cache_[i])) cache_.set(i, numbers_);
  }

  void find_seen() {
    for (size_t b = 0; b < c_.sizes.size(); ++b) {
      if (c_.queries) {
        for (int32_t row = cu_queries_[b]; row < cu_queries_[b + 1]; ++row)
          add_seen(b, row, nodes_[static_cast<size_t>(row)]);
      } else {
        for (int64_t i = 0; i < c_.sizes[b]; ++i) add_seen(b, cu_[b] + i, i);
      }
    }
  }

  void add_seen(size_t b, int64_t row, int64_t node) {
    if (node < 0 || node >= c_.sizes[b]) return;
    const int64_t context = c_.contexts[b];
    const auto at = [&](const std::vector<int32_t>& column, int64_t i) {
      return column[static_cast<size_t>(cu_[b] + i)];
    };
    Seen seen;
    seen.row = row;
    seen.request = static_cast<int64_t>(b);
    const auto add = [&](int64_t rotary, int64_t position) {
      if (c_.window > 0 && context + at(depths_, node) - rotary >= c_.window) return;
      const int64_t block = position / c_.page_size, per = p_.table.max_pages;
      const int64_t page = block < per ? table_[b * static_cast<size_t>(per) + static_cast<size_t>(block)] : -1;
      if (page < 0 || page >= p_.key.num_pages) {
        seen.missing = true;
        return;
      }
      const int64_t slot = position % c_.page_size;
      seen.keys.push_back({page * p_.key.page_stride + slot * p_.key.slot_stride,
                           value_begin_ + page * p_.value.page_stride + slot * p_.value.slot_stride});
    };
    for (int64_t t = 0; t < context; ++t) add(t, t);
    for (int64_t j = 0; j < c_.sizes[b]; ++j) {
      const bool sees = c_.visibility == Visibility::block || (j <= node && node < at(ends_, j));
      if (sees) add(context + at(depths_, j), context + at(slots_, j));
    }
    seen_.push_back(seen);
  }

  void attend(const Seen& seen, int64_t head, Expected& e) const {
    const int64_t kv = head / (c_.heads / c_.kv_heads), out = seen.row * c_.heads + head;
    const double key_scale = c_.scales ? scales_[static_cast<size_t>(kv)] : 1.0;
    const double value_scale = c_.scales ? scales_[static_cast<size_t>(c_.kv_heads)] : 1.0;
    std::vector<double> scores;
    double top = c_.sinks ? sinks_[static_cast<size_t>(head)] : -INFINITY, total = 0;
    for (const Key& key : seen.keys) {
      double dot = 0;
      for (int64_t d = 0; d < c_.key_dim; ++d) {
        dot += query_[seen.row * p_.query_row_stride + head * p_.query_head_stride + d] *
               cache_[key.key + kv * p_.key.head_stride + d];
      }
      double score = dot * static_cast<double>(c_.scale) * key_scale;
      if (c_.softcap > 0) score = c_.softcap * std::tanh(score / c_.softcap);
      scores.push_back(score);
      top = std::max(top, score);
      e.largest = std::max(e.largest, std::fabs(score));
    }
    if (top == -INFINITY) return;
    if (c_.sinks) total = std::exp(sinks_[static_cast<size_t>(head)] - top);
    for (const double score : scores) total += std::exp(score - top);
    e.lse[static_cast<size_t>(out)] = top + std::log(total);
    for (size_t k = 0; k < scores.size(); ++k) {
      const double weight = std::exp(scores[k] - top) / total * value_scale;
      for (int64_t d = 0; d < c_.value_dim; ++d) {
        e.out[static_cast<size_t>(out * c_.value_dim + d)] +=
            weight * cache_[seen.keys[k].value + kv * p_.value.head_stride + d];
      }
    }
  }

  Choice c_;
  Numbers numbers_;
  TreeAttentionParams p_;
  std::vector<int32_t> cu_, tokens_, parents_, depths_, ends_, slots_, cu_queries_, table_;
  std::vector<int64_t> nodes_;
  Elements query_, cache_;
  int64_t value_begin_ = 0;
  std::vector<float> sinks_, scales_;
  std::vector<Seen> seen_;
};

}  // namespace specdec::testing
