// SPDX-License-Identifier: Apache-2.0
// Who does what: one thread reads one block, sixteen lanes at a time. The four steps (convert, gather, mask, clean) go
// over a block that stays in the first cache level.
#include "row.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr float kNothing = -__builtin_inff();

float element(const Source& source, int64_t column) {
  switch (source.type) {
    case FloatType::bfloat16:
      return bits_float((uint32_t)static_cast<const uint16_t*>(source.data)[column] << 16);
    case FloatType::float16: {
      uint16_t one[kLanes] = {static_cast<const uint16_t*>(source.data)[column]};
      float wide[kLanes];
      store(wide, load_float16(one));
      return wide[0];
    }
    default:
      return static_cast<const float*>(source.data)[column];
  }
}

// The column of an entry of a gathered row; -1 if it has none.
int64_t column_of(const Source& source, int64_t entry) {
  const int64_t column = source.column_of[entry];
  return column >= 0 && column < source.columns && source.id_of[column] == entry ? column : -1;
}

float clean(float value) {
  if (!(value > kNothing)) return kNothing;
  return value < kLargest ? value : kLargest;
}

// Clears entries that are not allowed. A block starts at a multiple of 32 entries.
void apply_mask(const Source& source, int64_t first, int count, float* values) {
  if (source.listed()) {
    for (int i = 0; i < count; ++i) {
      const int64_t id = source.id(first + i);
      if (id < 0 || !source.mask.allows(id)) values[i] = kNothing;
    }
    return;
  }
  if (source.mask.is_open()) return;
  static constexpr int32_t kBit[kLanes] = {1,   2,   4,    8,    16,   32,   64,    128,
                                           256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  I16 bit;
  std::memcpy(&bit, kBit, sizeof(bit));
  const F16 nothing = broadcast(kNothing);
  for (int i = 0; i < count; i += kLanes) {
    const int64_t id = first + i;
    const uint32_t bits = source.mask.word(id / 32) >> (id % 32);
    const I16 may = (broadcast_int((int32_t)bits) & bit) == bit;
    store(values + i, select(may, load(values + i), nothing));
  }
}

template <FloatType type>
inline F16 load_as(const Source& source, int64_t column) {
  return load_lanes(type, source.data, column);
}

// Converts, cleans and finds maxima in one go.
template <FloatType type>
BlockFacts read_plain(const Source& source, int64_t first, int count, float* to) {
  const F16 nothing = broadcast(kNothing), largest = broadcast(kLargest);
  F16 highest[2] = {nothing, nothing};
  I16 nan[2] = {broadcast_int(0), broadcast_int(0)};
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    for (int j = 0; j < 2; ++j) {
      const F16 raw = load_as<type>(source, first + i + j * kLanes);
      nan[j] = nan[j] | (raw != raw);
      const F16 value = min(max(raw, nothing), largest);
      highest[j] = max(value, highest[j]);
      store(to + i + j * kLanes, value);
    }
  }
  for (; i < count; i += kLanes) {
    alignas(64) float rest[kLanes];
    const int here = count - i < kLanes ? count - i : kLanes;
    for (int j = 0; j < kLanes; ++j) rest[j] = kNothing;
    for (int j = 0; j < here; ++j) rest[j] = element(source, first + i + j);
    const F16 raw = load(rest);
    nan[0] = nan[0] | (raw != raw);
    const F16 value = min(max(raw, nothing), largest);
    highest[0] = max(value, highest[0]);
    store(to + i, value);
  }
  BlockFacts facts;
  facts.count = count;
  facts.lane_max = max(highest[0], highest[1]);
  facts.max = max_lane(facts.lane_max);
  facts.nan = any(nan[0] | nan[1]);
  return facts;
}

BlockFacts read_plain_any(const Source& source, int64_t first, int count, float* to) {
  switch (source.type) {
    case FloatType::bfloat16:
      return read_plain<FloatType::bfloat16>(source, first, count, to);
    case FloatType::float16:
      return read_plain<FloatType::float16>(source, first, count, to);
    default:
      return read_plain<FloatType::float32>(source, first, count, to);
  }
}

}  // namespace

BlockFacts load_block(const Source& source, int64_t block, float* to) {
  const int64_t first = block * kBlock;
  const int count = source.length(block);
  BlockFacts facts;
  if (source.data == nullptr) {
    for (int i = 0; i < count; i += kLanes) store(to + i, broadcast(kNothing));
    facts.count = count;
    facts.max = kNothing;
    facts.lane_max = broadcast(kNothing);
    return facts;
  }
  if (source.column_of) {
    for (int i = 0; i < count; ++i) {
      const int64_t column = column_of(source, first + i);
      const float raw = column < 0 ? kNothing : element(source, column);
      facts.nan |= raw != raw;
      to[i] = clean(raw);
    }
    for (int i = count; i % kLanes != 0; ++i) to[i] = kNothing;
  } else {
    facts = read_plain_any(source, first, count, to);
    if (source.mask.is_open() && !source.listed()) return facts;
  }
  apply_mask(source, first, count, to);
  F16 highest = broadcast(kNothing);
  for (int i = 0; i < count; i += kLanes) highest = max(load(to + i), highest);
  facts.count = count;
  facts.lane_max = highest;
  facts.max = max_lane(highest);
  return facts;
}

float logit_of(const Source& source, int64_t entry) {
  const int64_t id = source.id(entry);
  if (source.data == nullptr || id < 0 || !source.mask.allows(id)) return kNothing;
  const int64_t column = source.column_of ? column_of(source, entry) : entry;
  return column < 0 ? kNothing : clean(element(source, column));
}

bool has_nan(const Source& source) {
  if (source.data == nullptr) return false;
  Source plain = source;
  plain.entries = plain.columns;
  alignas(64) float values[kBlock];
  bool seen = false;
  for (int64_t b = 0; b < plain.blocks(); ++b) {
    seen |= read_plain_any(plain, b * kBlock, plain.length(b), values).nan;
  }
  return seen;
}

SPECDEC_ISA_END
