// SPDX-License-Identifier: Apache-2.0
// Who does what: one thread reads one block, sixteen lanes at a time.
//
// A clean block of float32 is not copied: beside the time of the copy, stores to a buffer whose addresses meet those of
// the loads in their last twelve bits would hold the loads back.
#include "row.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr float kNothing = -__builtin_inff();
constexpr int kPadding = 64;

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
  static constexpr int32_t kBit[kLanes] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const I16 bit = load_as<I16>(kBit);
  const F16 nothing = broadcast(kNothing);
  for (int i = 0; i < count; i += kLanes) {
    const int64_t id = first + i;
    const uint32_t bits = source.mask.word(id / 32) >> (id % 32);
    const I16 may = (broadcast_int((int32_t)bits) & bit) == bit;
    store(values + i, select(may, load(values + i), nothing));
  }
}

// Finds the maxima of a run of entries; with kStore it also brings them to `to`, clean. Two runs of sixteen lanes.
template <FloatType type, bool kStore>
Block read_as(const Source& source, int64_t first, int count, float* to) {
  const F16 nothing = broadcast(kNothing), largest = broadcast(kLargest);
  F16 highest[2] = {nothing, nothing};
  I16 nan[2] = {broadcast_int(0), broadcast_int(0)};
  int i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const F16 raw = load_lanes(type, source.data, first + i + j * kLanes);
      nan[j] = nan[j] | (raw != raw);
      highest[j] = max(raw, highest[j]);  // passes over NaN
      if (kStore) store(to + i + j * kLanes, min(max(raw, nothing), largest));
    }
  }
  for (; i < count; i += kLanes) {
    alignas(64) float rest[kLanes];
    for (int j = 0; j < kLanes; ++j) rest[j] = i + j < count ? element(source, first + i + j) : kNothing;
    const F16 raw = load(rest);
    nan[0] = nan[0] | (raw != raw);
    highest[0] = max(raw, highest[0]);
    if (kStore) store(to + i, min(max(raw, nothing), largest));
  }
  Block block;
  block.logits = kStore ? to : nullptr;
  block.count = count;
  block.lane_max = min(max(highest[0], highest[1]), largest);
  block.max = max_lane(block.lane_max);
  block.nan = any(nan[0] | nan[1]);
  return block;
}

template <bool kStore>
Block read(const Source& source, int64_t first, int count, float* to) {
  switch (source.type) {
    case FloatType::bfloat16:
      return read_as<FloatType::bfloat16, kStore>(source, first, count, to);
    case FloatType::float16:
      return read_as<FloatType::float16, kStore>(source, first, count, to);
    default:
      return read_as<FloatType::float32, kStore>(source, first, count, to);
  }
}

void gather(const Source& source, int64_t first, Block& block, float* to) {
  block.count = source.length(first / kBlock);
  for (int i = 0; i < block.count; ++i) {
    const int64_t column = source.column(first + i);
    const float raw = column < 0 ? kNothing : element(source, column);
    block.nan |= raw != raw;
    to[i] = clean(raw);
  }
}

}  // namespace

Block load_block(const Source& source, int64_t index, float* buffer) {
  const int64_t first = index * kBlock;
  const int count = source.length(index);
  alignas(64) float own[kBlock];
  float* to = buffer != nullptr ? buffer : own;
  Block block;
  if (source.data != nullptr && !source.column_of && !source.listed() && source.mask.is_open()) {
    if (buffer == nullptr) return read<false>(source, first, count, nullptr);
    if (source.type == FloatType::float32 && count == kBlock) {
      block = read<false>(source, first, count, nullptr);
      block.logits = static_cast<const float*>(source.data) + first;
      if (!block.nan && block.max < kLargest) return block;  // clean as it lies
    }
    block = read<true>(source, first, count, to);
  } else {
    if (source.data == nullptr) {
      block.count = count;
      for (int i = 0; i < count; ++i) to[i] = kNothing;
    } else if (source.column_of) {
      gather(source, first, block, to);
    } else {
      block = read<true>(source, first, count, to);
    }
    apply_mask(source, first, count, to);
    F16 highest = broadcast(kNothing);
    for (int i = count; i % kLanes != 0; ++i) to[i] = kNothing;
    for (int i = 0; i < count; i += kLanes) highest = max(load(to + i), highest);
    block.lane_max = highest;
    block.max = max_lane(highest);
  }
  for (int i = count; i % kPadding != 0; ++i) to[i] = kNothing;
  block.logits = buffer;
  return block;
}

float logit_of(const Source& source, int64_t entry) {
  const int64_t id = source.id(entry);
  if (source.data == nullptr || id < 0 || !source.mask.allows(id)) return kNothing;
  const int64_t column = source.column(entry);
  return column < 0 ? kNothing : clean(element(source, column));
}

bool has_nan(const Source& source) {
  if (source.data == nullptr) return false;
  Source plain = source;
  plain.column_of = {};
  plain.entries = plain.columns;
  bool seen = false;
  for (int64_t b = 0; b < plain.blocks(); ++b) seen |= read<false>(plain, b * kBlock, plain.length(b), nullptr).nan;
  return seen;
}

SPECDEC_ISA_END
