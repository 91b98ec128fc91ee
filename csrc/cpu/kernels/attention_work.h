// SPDX-License-Identifier: Apache-2.0
// Attention of the rows of a block to the keys of one key/value head.
#pragma once

#include "attention_call.h"

SPECDEC_ISA_BEGIN
namespace attention {

class Work {
 public:
  Work(const Call& call, const Block& block, int64_t kv_head, Scratch& scratch);

  // Splits [first_split, splits) hold what some row of a block sees.
  static int64_t first_split(const Block& block) { return block.begin / kSplit; }
  static int64_t splits(const Block& block) { return (block.end + kSplit - 1) / kSplit; }
  int64_t first_split() const { return first_split(block_); }
  int64_t splits() const { return splits(block_); }
  // The places of one split, from nothing.
  void split(int64_t index, const Partial& to);
  // Adds the result of a later split to that of the ones before.
  void merge(const Partial& later, const Partial& all) const;
  // The outputs, when all splits are merged.
  void write(const Partial& all) const;

 private:
  // Where keys of a tile lie; bit i of `there` is set where place i has one.
  struct Tile {
    uint64_t there;
    const char* keys[kTile];
    const char* values[kTile];
  };

  int rows() const { return block_.count * block_.heads; }
  const Query& query(int i) const { return call_.plan.queries[(size_t)(block_.first + i)]; }
  int64_t head_of(int row) const { return kv_head_ * call_.group + block_.head + row % block_.heads; }

  bool locate(int64_t position, const char*& key, const char*& value) const;
  void locate_context(int64_t begin, int count, uint64_t needed, Tile& tile) const;
  void find(int64_t begin, Tile& tile) const;
  uint64_t seen_in(int64_t begin, const Query& query) const;
  void find_own(int64_t begin, int query, Tile& tile) const;
  void flag(int32_t bits) const;

  void process(int64_t begin, const Tile& tile, const Tile& next, const Partial& to);
  void score(const Tile& tile, int row, int count);
  void mix_in(const Tile& tile, uint64_t places, int row, int count, const float* old, const Partial& to);
  void prefetch_keys(const Tile& next) const;

  const Call& call_;
  const TreeAttentionParams& p_;
  const Block& block_;
  const Request& request_;
  const int64_t kv_head_;
  Scratch& scratch_;
  ScoreRule rule_;
  int64_t path_stride_;
  bool float_keys_, float_values_;  // which could be read where they lie
};

}  // namespace attention
SPECDEC_ISA_END
