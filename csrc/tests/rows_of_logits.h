// SPDX-License-Identifier: Apache-2.0
// Random inputs of the sampling kernels: rows of logits, masks, settings and indices, in memory that is exactly as long
// as the kernel may read.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "../common/sampling_law.h"
#include "../common/verify_call.h"
#include "slow_law.h"
#include "testing.h"

namespace specdec::testing {

constexpr FloatType kFloatTypes[] = {FloatType::float32, FloatType::bfloat16, FloatType::float16};

// One of the given values.
template <class T, size_t n>
T one_of(Numbers& numbers, const T (&values)[n]) {
  return values[numbers.below(static_cast<int64_t>(n))];
}
inline bool once_in(Numbers& numbers, int64_t n) { return numbers.below(n) == 0; }

// An optional int32 or int64 tensor with any stride.
class Indices {
 public:
  Indices() = default;
  Indices(Ids values, bool wide, int64_t stride = 1) : values_(std::move(values)), wide_(wide), stride_(stride) {
    given_ = true;
    const size_t length = values_.empty() ? 0 : (values_.size() - 1) * static_cast<size_t>(stride) + 1;
    if (wide) {
      data64_.assign(length, -77);
    } else {
      data32_.assign(length, -77);
    }
    for (size_t i = 0; i < values_.size(); ++i) {
      const size_t at = i * static_cast<size_t>(stride);
      if (wide) {
        data64_[at] = values_[i];
      } else {
        data32_[at] = static_cast<int32_t>(values_[i]);
      }
    }
  }
  explicit operator bool() const { return given_; }
  int64_t operator[](int64_t i) const { return values_[i]; }
  int64_t size() const { return static_cast<int64_t>(values_.size()); }
  const Ids& values() const { return values_; }
  IndexView view() const {
    if (!given_) return {};
    return {wide_ ? static_cast<const void*>(data64_.data()) : data32_.data(), stride_, wide_};
  }

 private:
  bool given_ = false;
  Ids values_;
  bool wide_ = false;
  int64_t stride_ = 1;
  std::vector<int64_t> data64_;
  std::vector<int32_t> data32_;
};

inline Indices random_indices(Numbers& numbers, Ids values) {
  const bool wide = once_in(numbers, 2);
  return Indices(std::move(values), wide, 1 + numbers.below(2));
}

// Rows of floats. The first begins `offset` elements behind an aligned address; the last ends with the memory.
class LogitRows {
 public:
  LogitRows() = default;
  LogitRows(FloatType type, int64_t rows, int64_t columns, int64_t stride, int64_t offset)
      : type_(type), rows_(rows), columns_(columns), stride_(stride), offset_(offset) {
    const int64_t length = rows > 0 ? offset + (rows - 1) * stride + columns : offset;
    if (type == FloatType::float32) {
      floats_.assign(static_cast<size_t>(length), std::numeric_limits<float>::quiet_NaN());
    } else {
      halves_.assign(static_cast<size_t>(length), 0x7fff);  // NaN: what lies between rows must not be seen
    }
  }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  // Rounded towards zero.
  void set(int64_t row, int64_t column, float value) {
    const size_t at = static_cast<size_t>(offset_ + row * stride_ + column);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (type_ == FloatType::float32) {
      floats_[at] = value;
    } else if (type_ == FloatType::bfloat16) {
      halves_[at] = static_cast<uint16_t>(bits >> 16 | (value != value ? 0x40 : 0));
    } else {
      halves_[at] = static_cast<uint16_t>(half(std::fabs(value)) | (bits >> 16 & 0x8000));
    }
  }
  // By the definition of the format, independent of the kernels.
  double get(int64_t row, int64_t column) const {
    const size_t at = static_cast<size_t>(offset_ + row * stride_ + column);
    if (type_ == FloatType::float32) return floats_[at];
    const int fraction_bits = type_ == FloatType::bfloat16 ? 7 : 10, exponent_bits = 15 - fraction_bits;
    const int last = (1 << exponent_bits) - 1, bias = last / 2, bits = halves_[at];
    const int exponent = bits >> fraction_bits & last, fraction = bits & ((1 << fraction_bits) - 1);
    double value =
        std::ldexp(fraction + (exponent ? 1 << fraction_bits : 0), (exponent ? exponent : 1) - bias - fraction_bits);
    if (exponent == last) value = fraction ? NAN : INFINITY;
    return bits & 0x8000 ? -value : value;
  }
  RowsView view() const {
    if (type_ == FloatType::float32) return {floats_.data() + offset_, type_, rows_, columns_, stride_};
    return {halves_.data() + offset_, type_, rows_, columns_, stride_};
  }
  // A row as a kernel is to see it: NaN as -inf, +inf as the largest float.
  Doubles clean(int64_t row, bool* nan) const {
    Doubles values;
    for (int64_t i = 0; i < columns_; ++i) {
      const double value = get(row, i);
      *nan |= std::isnan(value);
      values.push_back(std::isnan(value) ? -kInfinity : std::min(value, 0x1.fffffep127));
    }
    return values;
  }

 private:
  static uint16_t half(float magnitude) {
    if (magnitude != magnitude) return 0x7e01;
    if (magnitude >= 65536.0f) return 0x7c00;
    int exponent;
    const float fraction = std::frexp(magnitude, &exponent);  // in [0.5, 1)
    if (exponent < -13) return static_cast<uint16_t>(std::ldexp(magnitude, 24));
    return static_cast<uint16_t>((exponent + 14) << 10 | static_cast<int>((2 * fraction - 1) * 1024));
  }

  FloatType type_ = FloatType::float32;
  int64_t rows_ = 0, columns_ = 0, stride_ = 0, offset_ = 0;
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
};

// What a row looks like.
enum class Shape { peaked, flat, spiked, ties, equal, wild, nothing };
constexpr Shape kShapes[] = {Shape::peaked, Shape::peaked, Shape::spiked, Shape::flat,
                             Shape::ties,   Shape::ties,   Shape::equal,  Shape::wild};

inline void fill_row(Numbers& numbers, Shape shape, int64_t row, LogitRows& rows) {
  constexpr float kWild[] = {NAN, INFINITY, -INFINITY, -INFINITY, -3e38f, -0.0f, 0.0f, 1e-40f, -6e-8f};
  const float all = 3 * numbers.symmetric();
  for (int64_t i = 0; i < rows.columns(); ++i) {
    float normal = numbers.symmetric();
    normal += numbers.symmetric();
    normal += numbers.symmetric();
    float value = 4 * normal;
    if (shape == Shape::flat) value = 3 + 0.01f * normal;
    if (shape == Shape::spiked) value = once_in(numbers, 2500) ? 8.0f + normal : 0.5f * normal;
    if (shape == Shape::ties) value = 0.25f * static_cast<float>(numbers.below(20));
    if (shape == Shape::equal) value = all;
    if (shape == Shape::wild && once_in(numbers, 4)) value = one_of(numbers, kWild);
    if (shape == Shape::nothing) value = once_in(numbers, 2) ? -INFINITY : NAN;
    rows.set(row, i, value);
  }
}

// Rows of one type with a stride and an offset that are seldom multiples of anything.
inline LogitRows random_rows(Numbers& numbers, int64_t rows, int64_t columns) {
  const FloatType type = one_of(numbers, kFloatTypes);
  const int64_t stride = columns + numbers.below(4);
  LogitRows logits(type, rows, columns, stride, numbers.below(18));
  for (int64_t r = 0; r < rows; ++r) {
    fill_row(numbers, once_in(numbers, 20) ? Shape::nothing : one_of(numbers, kShapes), r, logits);
  }
  return logits;
}

// Rows of bits with the row of each owner; open unless `given`.
struct Masks {
  bool given = false;
  int64_t rows = 0, columns = 0, stride = 0;
  std::vector<int32_t> words;
  Indices index;

  MaskView view() const {
    if (!given) return {};
    return {words.data(), rows, columns, stride, index.view()};
  }
  bool allows(int64_t owner, int64_t id) const { return allows(owner, id, index); }
  // With another index of owners.
  bool allows(int64_t owner, int64_t id, const Indices& other) const {
    if (!given) return true;
    const int64_t row = other ? other[owner] : owner;
    if (other && row == -1) return true;
    if (row < 0 || row >= rows || id / 32 >= columns) return false;
    return static_cast<uint32_t>(words[row * stride + id / 32]) >> (id % 32) & 1;
  }
  void apply(int64_t owner, const Ids& ids, Doubles& logits) const {
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!allows(owner, ids[i])) logits[i] = -kInfinity;
    }
  }
};

// Rows of a mask for each owner: unrestricted, out of range, or one of the rows.
inline Indices mask_rows(Numbers& numbers, int64_t owners, int64_t rows) {
  constexpr int64_t kOdd[] = {-1, -1, -2, INT32_MIN, INT32_MAX};
  Ids index;
  for (int64_t i = 0; i < owners; ++i) {
    index.push_back(once_in(numbers, 4) ? one_of(numbers, kOdd) : numbers.below(rows + once_in(numbers, 8)));
  }
  return random_indices(numbers, index);
}

inline Masks random_masks(Numbers& numbers, int64_t owners, int64_t vocab) {
  Masks masks;
  masks.given = true;
  masks.columns = (vocab + 31) / 32;
  masks.stride = masks.columns + numbers.below(3);
  const bool indexed = once_in(numbers, 2);
  masks.rows = indexed ? 3 : owners;
  masks.words.assign(static_cast<size_t>((masks.rows - 1) * masks.stride + masks.columns), 0);
  for (int64_t r = 0; r < masks.rows; ++r) {
    const int64_t density = numbers.below(4);  // 0: nothing is allowed
    for (int64_t c = 0; c < masks.columns; ++c) {
      uint64_t bits = density == 0 ? 0 : numbers.bits() >> 16;
      if (density == 2) bits &= numbers.bits() & numbers.bits();
      if (density == 3) bits |= numbers.bits() | numbers.bits();
      masks.words[static_cast<size_t>(r * masks.stride + c)] = static_cast<int32_t>(static_cast<uint32_t>(bits));
    }
  }
  if (indexed) masks.index = mask_rows(numbers, owners, masks.rows);
  return masks;
}

constexpr FilterOrder kOrders[] = {FilterOrder::top_k_first, FilterOrder::joint, FilterOrder::min_p_first};

// Settings of a batch.
struct SettingsTable {
  std::vector<Settings> settings;
  Ids seeds;
  FilterOrder order = FilterOrder::top_k_first;
  bool filters = true;
  std::vector<float> temperature, top_p, min_p;
  std::vector<int32_t> top_k;
  std::vector<int64_t> seed;

  // The columns of a table in which request b has row 2 b, as a view of interleaved tensors would have.
  void finish() {
    for (size_t b = 0; b < settings.size(); ++b) {
      for (int pad = 0; pad < (b == 0 ? 1 : 2); ++pad) {
        temperature.push_back(settings[b].temperature);
        top_p.push_back(settings[b].top_p);
        min_p.push_back(settings[b].min_p);
        top_k.push_back(settings[b].top_k);
        seed.push_back(seeds[b]);
      }
    }
  }
  SamplingView view() {
    SamplingView view;
    view.temperature = {temperature.data(), 2};
    view.seed = {seed.data(), 2};
    view.order = order;
    if (filters) {
      view.top_k = {top_k.data(), 2};
      view.top_p = {top_p.data(), 2};
      view.min_p = {min_p.data(), 2};
    }
    return view;
  }
};

inline SettingsTable random_settings(Numbers& numbers, int64_t batch, int64_t vocab, bool filters) {
  constexpr float kTemperatures[] = {1.0f, 1.0f, 0.7f, 0.7f, 2.5f, 0.05f, 40.0f};
  constexpr float kOddTemperatures[] = {0.0f, 0.0f, -1.0f, NAN, 1e-31f, 1e31f, INFINITY};
  constexpr float kTopP[] = {1.0f, 1.0f, 1.0f, 0.9f, 0.9f, 0.5f, 0.999f, 0.0f, -1.0f, NAN};
  constexpr float kMinP[] = {0.0f, 0.0f, 0.0f, 0.02f, 0.1f, 0.5f, 1.0f, 1.5f, NAN};
  const int32_t few = static_cast<int32_t>(1 + numbers.below(vocab));
  const int32_t kTopK[] = {0, 0, 0, 1, 2, 5, 40, 4096, 4097, few, few, -1, INT32_MAX};
  SettingsTable table;
  table.filters = filters;
  table.order = one_of(numbers, kOrders);
  for (int64_t b = 0; b < batch; ++b) {
    Settings s;
    s.temperature = once_in(numbers, 8) ? one_of(numbers, kOddTemperatures) : one_of(numbers, kTemperatures);
    s.order = table.order;
    if (filters) {
      s.top_k = one_of(numbers, kTopK);
      s.top_p = one_of(numbers, kTopP);
      s.min_p = one_of(numbers, kMinP);
    }
    table.settings.push_back(s);
    table.seeds.push_back(static_cast<int64_t>(numbers.bits()));
  }
  table.finish();
  return table;
}

// Rows of 20,000 ids and more, of which more than 4,096 are kept or compete for the cut, and their filters.
struct WideRow {
  Shape shape;
  int32_t top_k;
  float top_p, min_p;
};
constexpr WideRow kWideRows[] = {
    {Shape::flat, 0, 1.0f, 0.0f},      {Shape::flat, 5000, 1.0f, 0.0f},    {Shape::flat, 0, 0.9f, 0.0f},
    {Shape::flat, 9000, 0.7f, 0.0f},   {Shape::flat, 15000, 0.9f, 0.99f},  {Shape::ties, 4097, 1.0f, 0.0f},
    {Shape::ties, 0, 0.9f, 0.0f},      {Shape::ties, 12000, 0.95f, 0.05f}, {Shape::ties, 700, 1.0f, 0.0f},
    {Shape::ties, 0, 0.3f, 0.6f},      {Shape::equal, 5000, 1.0f, 0.0f},   {Shape::equal, 0, 0.31f, 0.0f},
    {Shape::equal, 10000, 0.9f, 0.5f}, {Shape::equal, 3, 1.0f, 0.0f},      {Shape::peaked, 6000, 0.99f, 0.0f},
    {Shape::peaked, 50, 0.9f, 0.01f},  {Shape::wild, 4500, 0.999f, 0.0f},  {Shape::wild, 0, 0.97f, 1e-6f},
    {Shape::nothing, 100, 0.9f, 0.0f},
};

inline LogitRows one_wide_row(Numbers& numbers, const WideRow& wide, int64_t vocab) {
  const FloatType type = one_of(numbers, kFloatTypes);
  LogitRows logits(type, 1, vocab, vocab, 1 + 2 * numbers.below(9));
  fill_row(numbers, wide.shape, 0, logits);
  return logits;
}

inline SettingsTable wide_settings(Numbers& numbers, const WideRow& wide, FilterOrder order, float temperature) {
  SettingsTable table;
  table.order = order;
  table.settings = {{temperature, wide.top_k, wide.top_p, wide.min_p, order}};
  table.seeds = {static_cast<int64_t>(numbers.bits())};
  table.finish();
  return table;
}

// How many results were compared, and how many were too close to call.
struct Tally {
  int64_t compared = 0, close = 0;
  void check(const char* what, double most) const {
    std::printf("%s: %lld compared, %lld too close to call\n", what, static_cast<long long>(compared),
                static_cast<long long>(close));
    CHECK(static_cast<double>(close) <= most * static_cast<double>(compared + close), "%s", what);
  }
};

}  // namespace specdec::testing
