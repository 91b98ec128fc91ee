// SPDX-License-Identifier: Apache-2.0
// Who sees what, and where it lies. The places of a row are its keys in the order of their absolute positions: the
// context, then the tree. An ancestor of depth d stands at place context + d, a node of a block at context + its index,
// so that a place does not tell whether its key is committed. Tiles and splits are cut by place.
//
// A tile is scored for all rows at once as far as they have its keys in common; the ancestors of each node follow.
// Values are asked for while keys are scored, and the keys of the next tile while values are mixed.
#include "attention_work.h"

#include <cmath>

#include "convert.h"

SPECDEC_ISA_BEGIN
namespace attention {

namespace {

constexpr int kLine = 64;
// So many rows read float32 where it lies. More of them read a copy: rows of a cache often lie a multiple of 4,096
// bytes apart, and of such lines the first cache holds eight.
constexpr int kDirectRows = 4;
constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// Places [from, to) of a tile.
uint64_t places_of(int64_t from, int64_t to) {
  from = std::clamp<int64_t>(from, 0, kTile);
  to = std::clamp<int64_t>(to, from, kTile);
  return from == to ? 0 : kAllPlaces >> (kTile - (to - from)) << from;
}

// The next run of places from `at` on, [begin, end); false where there is none.
bool next_run(uint64_t places, int at, int& begin, int& end) {
  const uint64_t rest = at >= kTile ? 0 : places >> at << at;
  if (rest == 0) return false;
  begin = __builtin_ctzll(rest);
  const uint64_t gaps = ~(rest >> begin);  // what is shifted in is a gap
  end = gaps == 0 ? kTile : begin + __builtin_ctzll(gaps);
  return true;
}

void prefetch(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

}  // namespace

Work::Work(const Call& call, const Block& block, int64_t kv_head, Scratch& scratch)
    : call_(call),
      p_(call.p),
      block_(block),
      request_(call.plan.requests[(size_t)block.request]),
      kv_head_(kv_head),
      scratch_(scratch) {
  float_keys_ = p_.key.type == CacheType::float32 && p_.key_dim == call.key_width;
  float_values_ = p_.value.type == CacheType::float32 && p_.value_dim == call.value_width;
  const double scale = (double)p_.scale * (p_.key_scale ? p_.key_scale[kv_head] : 1.0f);
  rule_.capped = p_.softcap > 0;
  rule_.inner = (float)(rule_.capped ? scale / p_.softcap : scale * kLog2e);
  rule_.outer = (float)(p_.softcap * kLog2e);
  for (int r = 0; r < rows(); ++r) {
    const int64_t at = query(r / block_.heads).row * p_.query_row_stride + head_of(r) * p_.query_head_stride;
    float* to = scratch_.query + r * call_.key_width;
    load_floats({p_.query, p_.query_type}, at, (int)p_.key_dim, to);
    std::fill(to + p_.key_dim, to + call_.key_width, 0.0f);
  }
  if (call.is_block()) return;
  path_stride_ = block_.end - request_.base;  // the depth of the deepest query, plus one
  scratch_.paths.resize((size_t)(path_stride_ * block_.count));
  for (int q = 0; q < block_.count; ++q) {
    int32_t node = query(q).node;
    for (int64_t depth = query(q).depth; depth >= 0; --depth) {
      scratch_.paths[(size_t)(q * path_stride_ + depth)] = node;
      node = p_.tree.parents[request_.first_node + node];
    }
  }
}

// ---- where keys lie ----

bool Work::locate(int64_t position, const char*& key, const char*& value) const {
  const int64_t block = position >> call_.page_shift, slot = position - (block << call_.page_shift);
  const int64_t page = p_.table.page(request_.table_row, block, p_.key.num_pages);
  if (page < 0) return false;
  const auto address = [&](const PagedView& view, int64_t bytes) {
    return static_cast<const char*>(view.data) +
           (page * view.page_stride + slot * view.slot_stride + kv_head_ * view.head_stride) * bytes;
  };
  key = address(p_.key, call_.key_bytes);
  value = address(p_.value, call_.value_bytes);
  return true;
}

// The first `count` places of a tile lie at positions from `begin` on; pages that no row needs are not looked up. A
// tile begins with a page, or lies in one.
void Work::locate_context(int64_t begin, int count, uint64_t needed, Tile& tile) const {
  const int64_t key_step = p_.key.slot_stride * call_.key_bytes, value_step = p_.value.slot_stride * call_.value_bytes;
  for (int i = 0; i < count;) {
    const int run = (int)std::min<int64_t>(count - i, p_.key.page_size);
    const uint64_t places = places_of(i, i + run) & needed;
    const char *key, *value;
    if (places != 0) {
      if (locate(begin + i, key, value)) {
        tile.there |= places;
        for (int j = 0; j < run; ++j) {
          tile.keys[i + j] = key + j * key_step;
          tile.values[i + j] = value + j * value_step;
        }
      } else {
        flag(kStatusPageOutOfRange);
      }
    }
    i += run;
  }
}

// The keys of the tile that starts at place `begin`, as far as rows have them in common and some row sees them.
void Work::find(int64_t begin, Tile& tile) const {
  tile.there = 0;
  if (begin >= block_.end) return;
  uint64_t needed = 0;
  for (int q = 0; q < block_.count && needed != kAllPlaces; ++q) needed |= seen_in(begin, query(q));
  const int64_t context = std::clamp<int64_t>(request_.base - begin, 0, kTile);
  locate_context(begin, (int)context, needed, tile);
  if (!call_.is_block()) return;
  for (int64_t i = context; i < kTile && begin + i < block_.end; ++i) {
    if ((needed >> i & 1) == 0) continue;
    const int32_t node = (int32_t)(begin + i - request_.base);
    const int64_t position = call_.position_of(request_, node);
    if (locate(position, tile.keys[i], tile.values[i])) {
      tile.there |= uint64_t{1} << i;
    } else {
      flag(position < 0 ? kStatusMalformed : kStatusPageOutOfRange);
    }
  }
}

// Of the keys that rows have in common, those that a query sees if they are there.
uint64_t Work::seen_in(int64_t begin, const Query& query) const {
  const int64_t from = call_.window_begin(request_.context + query.depth);
  uint64_t seen = places_of(from - begin, request_.base - begin);
  if (!call_.is_block()) return seen;
  const int64_t end = std::min<int64_t>(kTile, block_.end - begin);
  for (int64_t i = std::max<int64_t>(0, request_.base - begin); i < end; ++i) {
    const int64_t depth = call_.depth_of(request_, (int32_t)(begin + i - request_.base));
    if (request_.context + depth >= from) seen |= uint64_t{1} << i;
  }
  return seen;
}

// The ancestors of a query in the tile, itself included, as far as it sees them.
void Work::find_own(int64_t begin, int q, Tile& tile) const {
  tile.there = 0;
  const int64_t depth = query(q).depth, first = begin - request_.base;
  const int64_t from = std::max(call_.window_begin(depth), first), end = std::min(depth + 1, first + kTile);
  for (int64_t d = from; d < end; ++d) {
    const int32_t node = scratch_.paths[(size_t)(q * path_stride_ + d)];
    const int64_t i = d - first;
    const int64_t position = call_.position_of(request_, node);
    if (locate(position, tile.keys[i], tile.values[i])) {
      tile.there |= uint64_t{1} << i;
    } else {
      flag(position < 0 ? kStatusMalformed : kStatusPageOutOfRange);
    }
  }
}

void Work::flag(int32_t bits) const {
  if (p_.status != nullptr) __atomic_fetch_or(&p_.status[request_.index], bits, __ATOMIC_RELAXED);
}

// ---- tiles ----

// Scores of rows [row, row + count) at the places of a tile; other places get anything.
void Work::score(const Tile& tile, int row, int count) {
  const float* query = scratch_.query + row * call_.key_width;
  float* scores = scratch_.scores + row * kScoreStride;
  const bool direct = float_keys_ && count <= kDirectRows;
  const int64_t value_size = p_.value_dim * call_.value_bytes;
  for (int begin = 0, end = 0; next_run(tile.there, end, begin, end);) {
    for (int i = begin; i < end; i += kKeyGroup) {
      const float* keys[kKeyGroup];
      for (int k = 0; k < kKeyGroup; ++k) {
        if (i + k >= end) {  // no key: any other one
          keys[k] = keys[0];
          continue;
        }
        if (direct) {
          keys[k] = reinterpret_cast<const float*>(tile.keys[i + k]);
        } else {
          float* copy = scratch_.keys + k * call_.key_width;
          widen(p_.key.type, tile.keys[i + k], p_.key_dim, copy);
          keys[k] = copy;
        }
        prefetch(tile.values[i + k], value_size);
      }
      for (int r = 0; r < count; ++r) {
        score_keys(query + r * call_.key_width, keys, call_.key_width, scores + r * kScoreStride + i);
      }
    }
  }
}

// Sums of rows [row, row + count): what they are is multiplied by `old`, and values of the places are added.
void Work::mix_in(const Tile& tile, uint64_t places, int row, int count, const float* old, const Partial& to) {
  const int64_t width = call_.value_width;
  const bool direct = float_values_ && count <= kDirectRows;
  const int64_t columns = direct ? width : kTile;
  const float* weights = scratch_.scores + row * kScoreStride;
  float ones[kMaxRows];
  std::fill(ones, ones + count, 1.0f);
  const float* values[kTile];
  for (int64_t column = 0; column < width; column += columns) {
    const int64_t here = std::min(columns, width - column);
    float* mixed = to.mixed + row * width + column;
    const float* factors = old;
    int begin = 0, end = 0;
    while (next_run(places, end, begin, end)) {
      for (int i = begin; i < end; ++i) {
        if (direct) {
          values[i] = reinterpret_cast<const float*>(tile.values[i]);
        } else {
          float* copy = scratch_.values + i * kTile;
          const int64_t count_here = std::min(here, p_.value_dim - column);
          widen(p_.value.type, tile.values[i] + column * call_.value_bytes, count_here, copy);
          values[i] = copy;
        }
      }
      mix(count, weights + begin, values + begin, end - begin, factors, mixed, width, here);
      factors = ones;
    }
    if (end == 0) mix(count, weights, values, 0, old, mixed, width, here);
  }
}

void Work::prefetch_keys(const Tile& next) const {
  const int64_t size = p_.key_dim * call_.key_bytes;
  for (int begin = 0, end = 0; next_run(next.there, end, begin, end);) {
    for (int i = begin; i < end; ++i) prefetch(next.keys[i], size);
  }
}

void Work::process(int64_t begin, const Tile& tile, const Tile& next, const Partial& to) {
  const int heads = block_.heads;
  const bool tree = !call_.is_block() && begin + kTile > request_.base;
  score(tile, 0, rows());
  float old[kMaxRows];
  uint64_t seen[kMaxRows];
  Tile own;
  own.there = 0;
  bool alike = true;
  for (int q = 0; q < block_.count; ++q) {
    seen[q] = seen_in(begin, query(q)) & tile.there;
    alike = alike && seen[q] == seen[0];
    if (tree) {
      find_own(begin, q, own);
      score(own, q * heads, heads);
    }
    for (int r = q * heads; r < (q + 1) * heads; ++r) {
      old[r] = weigh(scratch_.scores + r * kScoreStride, seen[q] | own.there, rule_, to.states[r]);
    }
  }
  prefetch_keys(next);
  if (alike) {
    mix_in(tile, block_.count > 0 ? seen[0] : 0, 0, rows(), old, to);
  } else {
    for (int q = 0; q < block_.count; ++q) mix_in(tile, seen[q], q * heads, heads, old + q * heads, to);
  }
  if (!tree) return;
  std::fill(old, old + heads, 1.0f);
  for (int q = 0; q < block_.count; ++q) {
    find_own(begin, q, own);
    if (own.there != 0) mix_in(own, own.there, q * heads, heads, old, to);
  }
}

void Work::split(int64_t index, const Partial& to) {
  std::fill(to.states, to.states + rows(), RowState());
  std::fill(to.mixed, to.mixed + rows() * call_.value_width, 0.0f);
  const int64_t end = std::min((index + 1) * kSplit, block_.end);
  int64_t begin = std::max(index * kSplit, block_.begin / kTile * kTile);
  Tile tiles[2];
  int current = 0;
  find(begin, tiles[current]);
  for (; begin < end; begin += kTile) {
    find(begin + kTile, tiles[1 - current]);
    process(begin, tiles[current], tiles[1 - current], to);
    current = 1 - current;
  }
}

// ---- results ----

void Work::merge(const Partial& later, const Partial& all) const {
  const int64_t width = call_.value_width;
  for (int r = 0; r < rows(); ++r) {
    const RowState& b = later.states[r];
    RowState& a = all.states[r];
    const float* from = later.mixed + r * width;
    float* to = all.mixed + r * width;
    if (b.total == 0.0f) continue;
    if (a.total == 0.0f) {
      a = b;
      std::copy(from, from + width, to);
      continue;
    }
    const float largest = b.largest > a.largest ? b.largest : a.largest;
    const float shift = largest == -INFINITY ? 0.0f : largest;
    const VecF x = exp2_vector(splat(a.largest - shift)), y = exp2_vector(splat(b.largest - shift));
    a.largest = largest;
    a.total = multiply_add(splat(b.total), y, splat(a.total) * x)[0];
    for (int64_t i = 0; i < width; i += kVectorLanes) {
      store_vector(to + i, multiply_add(load_vector(from + i), y, load_vector(to + i) * x));
    }
  }
}

void Work::write(const Partial& all) const {
  const float value_scale = p_.value_scale ? p_.value_scale[kv_head_] : 1.0f;
  for (int r = 0; r < rows(); ++r) {
    const int64_t head = head_of(r), out = query(r / block_.heads).row * p_.heads + head;
    RowState state = all.states[r];
    float kept = 1.0f;
    if (p_.sinks && p_.sinks[head] != -INFINITY) {
      const float sink = (float)(p_.sinks[head] * kLog2e);
      const float largest = sink > state.largest ? sink : state.largest;
      const float shift = largest == -INFINITY ? 0.0f : largest;  // a sink that is NaN makes all of it so
      kept = exp2_vector(splat(state.largest - shift))[0];
      state.total = multiply_add(splat(state.total), splat(kept), exp2_vector(splat(sink - shift)))[0];
      state.largest = largest;
    }
    float* mixed = all.mixed + r * call_.value_width;
    const bool nothing = state.total == 0.0f;
    const VecF factor = splat(kept * value_scale / state.total);
    for (int64_t i = 0; i < call_.value_width; i += kVectorLanes) {
      store_vector(mixed + i, nothing ? VecF{} : load_vector(mixed + i) * factor);
    }
    store_floats(mixed, (int)p_.value_dim, p_.query_type, p_.out, out * p_.value_dim);
    p_.lse[out] = nothing ? -INFINITY : (float)((state.largest + std::log2((double)state.total)) * kLn2);
  }
}

}  // namespace attention
SPECDEC_ISA_END
