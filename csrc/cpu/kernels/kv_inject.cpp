// SPDX-License-Identifier: Apache-2.0
// kv.inject: a thread has some rows in some layers; rows are independent of each other, so that threads do not change a
// result. The order of the arithmetic is that of common/kv_inject_params.h.
#include <cstring>

#include "../../common/status.h"
#include "cache_store.h"
#include "kv.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr int kMost = static_cast<int>(kMaxInjectDim);

// What all heads of a row in one layer are given.
struct HeadFactors {
  alignas(64) float weight[kMost];
  alignas(64) float cosine[kMost];
  alignas(64) float sine[kMost];
};

void load_table(const FloatTable& table, int64_t at, int dim, float* to) {
  load_floats({table.data, table.type, 0, 0, 0}, at, dim, to);
}

// `squares` has room for the next power of two, and at least sixteen.
float sum_of_squares(const float* x, int dim, float* squares) {
  int width = kLanes;
  while (width < dim) width *= 2;
  for (int i = 0; i < dim; ++i) squares[i] = x[i] * x[i];
  for (int i = dim; i < width; ++i) squares[i] = 0.0f;
  for (int half = width / 2; half >= kLanes; half /= 2) {
    for (int i = 0; i < half; i += kLanes) store(squares + i, load(squares + i) + load(squares + i + half));
  }
  return sum(load(squares));
}

void normalise(const float* weight, int dim, float eps, float* x) {
  alignas(64) float squares[kMost];
  const float factor = inverse_rms(sum_of_squares(x, dim, squares), dim, eps);
  for (int i = 0; i < dim; ++i) x[i] = x[i] * factor * weight[i];
}

void turn(const HeadFactors& of, int dim, bool interleaved, const float* x, float* to) {
  const int half = dim / 2;
  if (interleaved) {
    for (int i = 0; i < dim; i += 2) {
      to[i] = x[i] * of.cosine[i] + x[i + 1] * of.sine[i];
      to[i + 1] = x[i + 1] * of.cosine[i + 1] + x[i] * of.sine[i + 1];
    }
    return;
  }
  for (int i = 0; i < half; ++i) to[i] = x[i] * of.cosine[i] + x[i + half] * of.sine[i];
  for (int i = half; i < dim; ++i) to[i] = x[i] * of.cosine[i] + x[i - half] * of.sine[i];
}

void store_head(const InjectSide& side, int64_t layer, int64_t head, const InjectPlace& place, int dim, float* x) {
  if (side.scale) {
    const float scale = side.scale.at(layer, head);
    for (int i = 0; i < dim; ++i) x[i] /= scale;
  }
  const PagedView& to = side.to;
  const int64_t at = place.page * to.page_stride + place.slot * to.slot_stride + head * to.head_stride;
  store_narrow(x, dim, to.type, side.caches[layer], at);
}

void inject_value(const KvInjectParams& p, int64_t from, int64_t layer, int64_t head, const InjectPlace& place,
                  float* x) {
  const InjectSide& side = p.sides[1];
  const int dim = static_cast<int>(p.dim);
  if (side.scale || !same_type(p.type, side.to.type)) {
    load_floats({p.projected, p.type, 0, 0, 0}, from, dim, x);
    return store_head(side, layer, head, place, dim, x);
  }
  const PagedView& to = side.to;
  const int64_t at = place.page * to.page_stride + place.slot * to.slot_stride + head * to.head_stride;
  const int64_t element = bytes_of(to.type);
  std::memcpy(static_cast<char*>(side.caches[layer]) + at * element,
              static_cast<const char*>(p.projected) + from * element, static_cast<size_t>(dim * element));
}

void inject_row(const KvInjectParams& p, int64_t b, int64_t j, int64_t layer, const InjectPlace& place) {
  const int dim = static_cast<int>(p.dim);
  const RowsView rows{p.projected, p.type, 0, 0, 0};
  HeadFactors of;
  if (p.norm) load_table(p.norm, layer * p.norm.row_stride, dim, of.weight);
  if (p.angles) {
    load_table(p.angles, place.angle * p.angles.row_stride, dim, of.cosine);
    load_table(p.angles, place.angle * p.angles.row_stride + p.angles.part_stride, dim, of.sine);
  }
  alignas(64) float x[kMost], turned[kMost];
  for (int64_t head = 0; head < p.heads; ++head) {
    load_floats(rows, p.source(b, j, layer, 0, head), dim, x);
    if (p.norm) normalise(of.weight, dim, p.eps, x);
    if (p.angles) turn(of, dim, p.interleaved, x, turned);
    store_head(p.sides[0], layer, head, place, dim, p.angles ? turned : x);
    inject_value(p, p.source(b, j, layer, 1, head), layer, head, place, x);
  }
}

}  // namespace

void kv_inject(const KvInjectParams& p) {
  int64_t rows = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    const InjectRequest request = open_inject(p, b);
    rows += request.count;
    if (p.status != nullptr) p.status[b] = request.malformed ? kStatusMalformed : 0;
  }
  const int64_t pieces = p.batch * p.width * p.layers;
  const int threads = threads_for(rows * p.layers * p.heads * p.dim * 16, rows * p.layers);
  for_pieces(rows == 0 ? 0 : pieces, threads, [&](int64_t piece) {
    const int64_t layer = piece % p.layers, j = piece / p.layers % p.width, b = piece / p.layers / p.width;
    const InjectRequest request = open_inject(p, b);
    if (j >= request.count) return;
    const InjectPlace place = place_of_injected(p, request, b, j);
    if (place.page >= 0) return inject_row(p, b, j, layer, place);
    if (layer == 0 && p.status != nullptr) {
      __atomic_fetch_or(&p.status[b], kStatusPageOutOfRange, __ATOMIC_RELAXED);
    }
  });
}

SPECDEC_ISA_END
