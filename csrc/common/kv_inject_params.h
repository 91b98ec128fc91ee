// SPDX-License-Identifier: Apache-2.0
// kv.inject: what it is given and writes, as raw pointers, and where each row goes. Strides are in elements.
//
// The arithmetic of a key is float32, each operation rounded for itself, in one order on every backend:
//   sum = halving sum of x[i] * x[i]: padded with zeros to a power of two, i and i + n/2 are added, then n/4, ... 1
//   r   = 1 / sqrt(sum / dim + eps);  y[i] = (x[i] * r) * weight[i]
//   z[i] = y[i] * cosine[i] + y[partner of i] * sine[i];  stored is z[i] / scale
#pragma once

#include <cmath>
#include <cstdint>

#include "paged_view.h"

namespace specdec {

inline constexpr int64_t kMaxInjectDim = 1024;

// Factors of a cache that is quantised: [layers, heads]; a stride is 0 where one factor is that of all.
struct InjectScale {
  const float* data = nullptr;
  int64_t layer_stride = 0;
  int64_t head_stride = 0;

  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
  SPECDEC_HD float at(int64_t layer, int64_t head) const { return data[layer * layer_stride + head * head_stride]; }
};

// The caches of all layers, of one layout.
struct InjectSide {
  void* const* caches = nullptr;  // [layers], in the memory of the host
  PagedView to;                   // without data
  InjectScale scale;
};

// Rows of floats whose last dimension has unit stride.
struct FloatTable {
  const void* data = nullptr;
  FloatType type = FloatType::float32;
  int64_t row_stride = 0;
  int64_t part_stride = 0;  // from the cosines to the sines
  int64_t rows = 0;

  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
};

struct KvInjectParams {
  const void* projected = nullptr;  // [batch, width, layers, 2, heads, dim]
  FloatType type = FloatType::float32;
  int64_t request_stride = 0;
  int64_t row_stride = 0;
  int64_t layer_stride = 0;
  int64_t side_stride = 0;
  int64_t head_stride = 0;
  int64_t batch = 0;
  int64_t width = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t dim = 0;    // at most kMaxInjectDim
  FloatTable norm;    // [layers, dim] or null
  FloatTable angles;  // [positions, 2, dim] or null; dim is even where it is given
  bool interleaved = false;
  float eps = 0.0f;
  IndexView positions;  // [batch, width] or null: those where the rows are stored; its stride is that of a request
  int64_t position_column_stride = 1;
  BlockTable table;
  IndexView context_lens;             // [batch]
  Strided<const int32_t> num_tokens;  // [batch]
  InjectSide sides[2];                // keys, values
  Strided<const bool> active;         // [batch] or null
  int32_t* status = nullptr;          // [batch] or null

  SPECDEC_HD int64_t source(int64_t b, int64_t j, int64_t layer, int64_t side, int64_t head) const {
    return b * request_stride + j * row_stride + layer * layer_stride + side * side_stride + head * head_stride;
  }
};

// One request.
struct InjectRequest {
  int64_t row = -1;     // of the block table
  int64_t context = 0;  // position of its first row
  int64_t count = 0;    // rows that are stored
  bool malformed = false;
};

SPECDEC_SHARED InjectRequest open_inject(const KvInjectParams& p, int64_t b) {
  InjectRequest request;
  if (p.active && !p.active[b]) return request;
  const int64_t tokens = p.num_tokens[b], context = p.context_lens[b];
  request.count = tokens < 0 ? 0 : tokens > p.width ? p.width : tokens;
  request.malformed = tokens != request.count || context < 0;
  request.context = context < 0 ? 0 : context > INT64_MAX / 2 ? INT64_MAX / 2 : context;  // beyond any table
  request.row = p.table.row_of(b);
  return request;
}

// Where row j of a request goes, and where its angles are; page -1: nowhere.
struct InjectPlace {
  int64_t page = -1;
  int64_t slot = 0;
  int64_t angle = 0;
};

SPECDEC_SHARED InjectPlace place_of_injected(const KvInjectParams& p, const InjectRequest& request, int64_t b,
                                             int64_t j) {
  const PagedView& pages = p.sides[0].to;
  const int64_t position = request.context + j;
  InjectPlace place;
  place.angle = position;
  if (p.angles) {
    if (p.positions) {
      IndexView row = p.positions;
      row.stride = 1;
      place.angle = row[b * p.positions.stride + j * p.position_column_stride];
    }
    if (place.angle < 0 || place.angle >= p.angles.rows) return place;
  }
  place.page = p.table.page(request.row, position / pages.page_size, pages.num_pages);
  place.slot = position % pages.page_size;
  return place;
}

// The factor of a row of keys whose squares have this sum.
SPECDEC_SHARED float inverse_rms(float sum, int64_t dim, float eps) {
  return 1.0f / sqrtf(sum / static_cast<float>(dim) + eps);
}

}  // namespace specdec
