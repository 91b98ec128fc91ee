// SPDX-License-Identifier: Apache-2.0
// A paged cache as kernels see it: position t of a request lies in page table[row, t / page_size], slot t % page_size.
// Strides are in elements; pages may lie more than 2^31 elements apart.
#pragma once

#include <cstdint>

#include "views.h"

namespace specdec {

enum class CacheType : int32_t { float32, bfloat16, float16, float8_e4m3, float8_e5m2 };

SPECDEC_SHARED int32_t bytes_of(CacheType type) {
  return type == CacheType::float32 ? 4 : type == CacheType::bfloat16 || type == CacheType::float16 ? 2 : 1;
}

struct PagedView {
  void* data = nullptr;  // [num_pages, page_size, heads, dim], unit stride in the last dimension
  CacheType type = CacheType::float32;
  int64_t num_pages = 0;
  int64_t page_size = 1;
  int64_t page_stride = 0;
  int64_t slot_stride = 0;
  int64_t head_stride = 0;
};

// [rows, max_pages] page ids; request b reads row b, or rows[b] where that is given.
struct BlockTable {
  const void* data = nullptr;
  bool wide = false;  // int64
  int64_t table_rows = 0;
  int64_t max_pages = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  IndexView rows;  // [batch] or null

  // The row of a request; -1 if it is out of range.
  SPECDEC_HD int64_t row_of(int64_t request) const {
    const int64_t row = rows ? rows[request] : request;
    return row >= 0 && row < table_rows ? row : -1;
  }

  // The page that holds block `block` of a table row; -1 if the row, the block or the page is out of range.
  SPECDEC_HD int64_t page(int64_t row, int64_t block, int64_t num_pages) const {
    if (row < 0 || block < 0 || block >= max_pages) return -1;
    const int64_t at = row * row_stride + block * column_stride;
    const int64_t page = wide ? static_cast<const int64_t*>(data)[at] : static_cast<const int32_t*>(data)[at];
    return page >= 0 && page < num_pages ? page : -1;
  }
};

}  // namespace specdec
