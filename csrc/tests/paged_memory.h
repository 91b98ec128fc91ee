// SPDX-License-Identifier: Apache-2.0
// Paged caches and block tables of random layouts for tests, in memory that can be compared whole.
#pragma once

#include <utility>
#include <vector>

#include "../binding/row_pieces.h"
#include "testing.h"

namespace specdec::testing {

// ---- tensors of bytes ----

// A tensor [pages, page_size, dims...] somewhere in memory of its own.
struct Cache {
  std::vector<unsigned char> bytes;
  int64_t begin = 0;  // of the first element
  int64_t num_pages = 0, page_size = 1, page_stride = 0, slot_stride = 0;
  std::vector<Extent> dims;
  int64_t element = 1;

  // The places of the elements of a row, from its begin.
  std::vector<int64_t> elements() const {
    std::vector<int64_t> found{0};
    for (const Extent& dim : dims) {
      std::vector<int64_t> finer;
      for (const int64_t at : found) {
        for (int64_t i = 0; i < dim.count; ++i) finer.push_back(at + i * dim.stride);
      }
      found = finer;
    }
    return found;
  }
};

// One of the layouts of engines: what lies between two elements of a tensor belongs to others.
inline Cache make_cache(Numbers& numbers, int64_t num_pages, int64_t page_size) {
  Cache cache;
  cache.num_pages = num_pages;
  cache.page_size = page_size;
  const int64_t elements[] = {1, 1, 2, 2, 4, 8, 16};
  const int64_t e = cache.element = elements[numbers.below(7)];
  const int64_t heads = 1 + numbers.below(3), wide = numbers.below(2) ? 16 / e + (e == 16) : 1;
  const int64_t dim = numbers.below(6) == 0 ? 300 / e : wide * (1 + numbers.below(5));
  int64_t total = 0;
  switch (numbers.below(8)) {
    case 0:  // [pages, page, heads, dim]
      cache.dims = {{heads, dim * e}, {dim, e}};
      cache.slot_stride = heads * dim * e;
      cache.page_stride = total = page_size * cache.slot_stride;
      break;
    case 1:  // [pages, heads, page, dim]
      cache.dims = {{heads, page_size * dim * e}, {dim, e}};
      cache.slot_stride = dim * e;
      cache.page_stride = total = heads * page_size * dim * e;
      break;
    case 2:  // [pages, 2, page, heads, dim], one of the two
      cache.dims = {{heads, dim * e}, {dim, e}};
      cache.slot_stride = heads * dim * e;
      cache.page_stride = total = 2 * page_size * cache.slot_stride;
      cache.begin = numbers.below(2) * page_size * cache.slot_stride;
      break;
    case 3:  // scales [pages, page, heads], or no trailing dimension at all
      cache.dims = numbers.below(2) ? std::vector<Extent>{{heads, e}} : std::vector<Extent>{};
      cache.slot_stride = cache.dims.empty() ? e : heads * e;
      cache.page_stride = total = page_size * cache.slot_stride;
      break;
    case 4:  // every second element of rows with gaps
      cache.dims = {{heads, (2 * dim + 3) * e}, {dim, 2 * e}};
      cache.slot_stride = (heads * (2 * dim + 3) + 1) * e;
      cache.page_stride = total = page_size * cache.slot_stride + 5 * e;
      break;
    case 5:  // more dimensions than a piece has, outermost last
      cache.dims = {{2, 3 * e}, {2, 7 * e}, {3, 15 * e}, {2, 50 * e}, {2, 101 * e}, {2, e}};
      cache.slot_stride = 203 * e;
      cache.page_stride = total = page_size * cache.slot_stride;
      break;
    case 6:  // rows that are padded to 16 bytes
      cache.dims = {{dim, e}};
      cache.slot_stride = (dim * e + 15) / 16 * 16;
      cache.page_stride = total = page_size * cache.slot_stride;
      break;
    default:  // a dimension that repeats the same memory
      cache.dims = {{3, 0}, {dim, e}};
      cache.slot_stride = dim * e;
      cache.page_stride = total = page_size * dim * e;
  }
  cache.begin += numbers.below(2) * e;  // not aligned to more than an element
  cache.bytes.resize(static_cast<size_t>(cache.begin + num_pages * total + 64));
  for (unsigned char& byte : cache.bytes) byte = static_cast<unsigned char>(numbers.bits());
  return cache;
}

// ---- tables ----

struct Table {
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow;
  std::vector<int64_t> rows;
  BlockTable view;
  int64_t max_pages = 0;

  // The page of a position; -1 if there is none.
  int64_t page(int64_t b, int64_t position, int64_t page_size, int64_t num_pages) const {
    const int64_t row = rows.empty() ? b : rows[static_cast<size_t>(b)];
    if (row < 0 || row >= view.table_rows || position < 0 || position / page_size >= max_pages) return -1;
    const int64_t page = wide[static_cast<size_t>(row * max_pages + position / page_size)];
    return page >= 0 && page < num_pages ? page : -1;
  }
};

// Every request has pages of its own, of which some are out of range if `spoil`; the last page is nobody's.
inline Table make_table(Numbers& numbers, int64_t batch, int64_t max_pages, int64_t num_pages, bool spoil) {
  Table table;
  const bool own_rows = numbers.below(2) != 0;
  const int64_t rows = own_rows ? batch + 2 : batch;
  table.max_pages = max_pages;
  std::vector<int64_t> pages;
  for (int64_t i = 0; i + 1 < num_pages; ++i) pages.push_back(i);
  for (size_t i = pages.size(); i > 1; --i) std::swap(pages[i - 1], pages[static_cast<size_t>(numbers.below(i))]);
  for (int64_t i = 0; i < rows * max_pages; ++i) table.wide.push_back(pages[static_cast<size_t>(i) % pages.size()]);
  if (spoil) {
    const int64_t wrong[] = {-1, num_pages, INT32_MAX, INT32_MIN};
    for (int64_t& page : table.wide) {
      if (numbers.below(5) == 0) page = wrong[numbers.below(4)];
    }
  }
  table.narrow.assign(table.wide.begin(), table.wide.end());
  if (own_rows) {
    for (int64_t b = 0; b < batch; ++b) table.rows.push_back((b + 1) % rows);
    if (spoil && batch > 0) table.rows[0] = numbers.below(2) ? -1 : rows;
  }
  table.view.wide = numbers.below(2) != 0;
  table.view.table_rows = rows;
  table.view.max_pages = max_pages;
  table.view.row_stride = max_pages;
  return table;
}

// Pointers, once the table stays where it is.
inline void point(Table& table) {
  table.view.data = table.view.wide ? static_cast<const void*>(table.wide.data()) : table.narrow.data();
  if (!table.rows.empty()) table.view.rows = {table.rows.data(), 1, true};
}

}  // namespace specdec::testing
