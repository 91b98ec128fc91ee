// SPDX-License-Identifier: Apache-2.0
// From the trailing dimensions of a tensor to the bytes of its rows: dimensions without gaps between them become one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/kv_params.h"

namespace specdec {

// A dimension: how many steps of how many bytes.
struct Extent {
  int64_t count;
  int64_t stride;
};

// A part of a row: all of it, unless the row has more dimensions than a RowShape. `offset` is from the row's begin in
// its tensor, `begin` in a row without gaps.
struct RowPiece {
  int64_t offset = 0;
  int64_t begin = 0;
  RowShape row;
};

// The pieces of a row whose dimensions are `dims`, outermost first, with elements of `element` bytes. In any order,
// where source and target of a move have the same strides: then the order of the dimensions does not matter, and one
// along which nothing moves (stride 0) is left out. A piece must have fewer than 2^31 bytes.
inline std::vector<RowPiece> pieces_of_row(std::vector<Extent> dims, int64_t element, bool any_order) {
  for (const Extent& dim : dims) {
    if (dim.count == 0) return std::vector<RowPiece>(1);  // without bytes
  }
  std::erase_if(dims, [&](const Extent& dim) { return dim.count == 1 || (any_order && dim.stride == 0); });
  if (any_order) {
    std::stable_sort(dims.begin(), dims.end(), [](const Extent& a, const Extent& b) { return a.stride > b.stride; });
  }
  int64_t run = element;
  while (!dims.empty() && dims.back().stride == run) {
    run *= dims.back().count;
    dims.pop_back();
  }
  std::vector<Extent> merged;  // outermost first
  for (const Extent& dim : dims) {
    if (!merged.empty() && merged.back().stride == dim.count * dim.stride) {
      merged.back() = {merged.back().count * dim.count, dim.stride};
    } else {
      merged.push_back(dim);
    }
  }
  std::vector<RowPiece> pieces(1);
  int64_t bytes = run;
  for (const Extent& dim : merged) bytes *= dim.count;
  while (merged.size() > 3) {  // a piece for each step of the outermost dimension
    const Extent outer = merged.front();
    merged.erase(merged.begin());
    bytes /= outer.count;
    std::vector<RowPiece> finer;
    for (const RowPiece& piece : pieces) {
      for (int64_t i = 0; i < outer.count; ++i) {
        finer.push_back({piece.offset + i * outer.stride, piece.begin + i * bytes, {}});
      }
    }
    pieces = finer;
  }
  RowShape row;
  row.run = static_cast<int32_t>(run);
  for (size_t i = 0; i < merged.size(); ++i) {
    const size_t place = 3 - merged.size() + i;
    row.counts[place] = static_cast<int32_t>(merged[i].count);
    row.strides[place] = merged[i].stride;
  }
  for (RowPiece& piece : pieces) piece.row = row;
  return pieces;
}

// The widest unit of at most 16 bytes that divides a row's runs and all of `others`: addresses and strides.
inline int32_t width_of(const RowShape& row, std::initializer_list<int64_t> others) {
  int64_t bits = 16 | row.run;
  for (int i = 0; i < 3; ++i) {
    if (row.counts[i] > 1) bits |= row.strides[i];
  }
  for (const int64_t other : others) bits |= other;
  return static_cast<int32_t>(bits & -bits);
}

}  // namespace specdec
