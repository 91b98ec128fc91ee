// SPDX-License-Identifier: Apache-2.0
// Who computes what: every thread owns a run of consecutive panels and computes all rows of their outputs. Within the
// run K is cut into blocks, so that the block of x stays in the first cache level while the panels of a group stream
// past it; the totals of a group wait on the stack. No heap, no shared state between threads.
#include "linear.h"

#include "convert.h"
#include "linear_tile.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

constexpr int kGroup = 4;           // panels that share a block of x
constexpr int kBlockFloats = 6144;  // of x: 24 kB
constexpr int kRowPadding = 16;     // keeps the rows of a block in different cache sets
constexpr int kPackBlock = 64;      // inputs of 32 rows that are transposed at a time: 8 kB

// The end of a panel: scales, bias, and rounding to the type of the result. One function for any number of rows, so
// that a row cannot be contracted differently in different company.
template <class W>
__attribute__((noinline)) void finish(const LinearSkinny& p, int64_t panel, int64_t row, const float* totals) {
  const int64_t first = panel * kPanel;
  const int count = p.outputs - first < kPanel ? (int)(p.outputs - first) : kPanel;
  float values[kPanel];
  for (int v = 0; v < kPanelVectors; ++v) {
    for (int lane = 0; lane < kVectorLanes; ++lane) values[output_of<W>(v, lane)] = totals[v * kVectorLanes + lane];
  }
  if (p.scales) {
    for (int i = 0; i < count; ++i) values[i] *= p.scales[first + i];
  }
  if (p.bias) {
    for (int i = 0; i < count; ++i) values[i] += p.bias[first + i];
  }
  store_floats(values, count, p.x.type, p.out, row * p.out_stride + first);
}

// `rows` rows of x (at most kMaxRows) times panels [begin, end).
template <class W>
void panels(const LinearSkinny& p, int64_t first_row, int rows, int64_t begin, int64_t end) {
  alignas(64) float x_block[kBlockFloats + kMaxRows * kRowPadding];
  alignas(64) float totals[kGroup][kMaxRows * kPanel];
  const W* packed = static_cast<const W*>(p.packed);
  const int64_t inputs = p.x.columns;
  // Chunks of rows of nearly the same size, each of which fits the registers of a tile.
  const int chunks = (rows + kTileRows - 1) / kTileRows;
  const int even = (rows + chunks - 1) / chunks;
  const int chunk = chunks > 1 && even == kSlowRows<W> ? even + 1 : even;
  const bool in_place = p.x.type == FloatType::float32 && rows == 1;
  const int64_t most = kBlockFloats / rows / kSegment * kSegment;
  const int64_t blocks = in_place ? 1 : (inputs + most - 1) / most;  // of nearly the same size
  const int64_t block = blocks <= 1 ? inputs : ((inputs + blocks - 1) / blocks + kSegment - 1) / kSegment * kSegment;
  constexpr int kInputBytes = kPanel * (int)sizeof(W);
  for (int64_t group = begin; group < end; group += kGroup) {
    const int members = end - group < kGroup ? (int)(end - group) : kGroup;
    for (int m = 0; m < members; ++m) {
      for (int i = 0; i < rows * kPanel; ++i) totals[m][i] = 0;
    }
    for (int64_t k = 0; k < inputs; k += block) {
      const int length = inputs - k < block ? (int)(inputs - k) : (int)block;
      const int stride = (length + kRowPadding - 1) / kRowPadding * kRowPadding + kRowPadding;
      const float* x = x_block;
      if (in_place) {
        x = static_cast<const float*>(p.x.data) + first_row * p.x.row_stride + k;
      } else {
        for (int r = 0; r < rows; ++r) {
          load_floats(p.x, (first_row + r) * p.x.row_stride + k, length, x_block + r * stride);
        }
      }
      for (int m = 0; m < members; ++m) {
        const W* weights = packed + ((group + m) * inputs + k) * kPanel;
        // The block that comes next: of the next panel, of the next inputs, or of the next group; at the very end this
        // one.
        const W* next = m + 1 < members        ? weights + inputs * kPanel
                        : k + block < inputs   ? packed + (group * inputs + k + block) * kPanel
                        : group + kGroup < end ? packed + (group + kGroup) * inputs * kPanel
                                               : weights;
        // All chunks of rows while the weights of this block lie in a near cache.
        for (int row = 0; row < rows; row += chunk) {
          const int here = rows - row < chunk ? rows - row : chunk;
          float* to = totals[m] + row * kPanel;
          if (chunks == 1 ||
              sizeof(W) == 1) {  // int8 weights leave memory time enough: their widening is what takes it
            const Ahead own{(const char*)weights + kPrefetchBytes, kInputBytes};
            panel_product_rows<W, true>(here, x + row * stride, stride, weights, length, to, own);
          } else {
            const int share = kInputBytes / chunks;
            const Ahead other{(const char*)next + (int64_t)(row / chunk) * length * share, share};
            panel_product_rows<W, false>(here, x + row * stride, stride, weights, length, to, other);
          }
        }
      }
    }
    for (int m = 0; m < members; ++m) {
      for (int r = 0; r < rows; ++r) finish<W>(p, group + m, first_row + r, totals[m] + r * kPanel);
    }
  }
}

template <class W>
void skinny(const LinearSkinny& p) {
  const int64_t count = (p.outputs + kPanel - 1) / kPanel;
  const int64_t rows = p.x.rows < kMaxRows ? p.x.rows : kMaxRows;
  const int threads = threads_for(count * kPanel * p.x.columns * (int64_t)sizeof(W) * (rows + 3) / 4, count);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t id = omp_get_thread_num(), team = omp_get_num_threads();
    const int64_t begin = count * id / team, end = count * (id + 1) / team;
    for (int64_t first = 0; first < p.x.rows; first += kMaxRows) {
      const int64_t left = p.x.rows - first;
      panels<W>(p, first, left < kMaxRows ? (int)left : kMaxRows, begin, end);
    }
  }
}

// The scale of one row of int8 weights: the largest magnitude becomes 127.
float scale_of(const LinearPack& p, int64_t row) {
  float block[kPackBlock];
  float largest = 0;
  for (int64_t k = 0; k < p.weight.columns; k += kPackBlock) {
    const int count = p.weight.columns - k < kPackBlock ? (int)(p.weight.columns - k) : kPackBlock;
    load_floats(p.weight, row * p.weight.row_stride + k, count, block);
    for (int i = 0; i < count; ++i) {
      const float magnitude = __builtin_fabsf(block[i]);
      if (magnitude > largest) largest = magnitude;
    }
  }
  return largest / 127;
}

inline void convert(float value, float, float* to) { *to = value; }
inline void convert(float value, float, uint16_t* to) { *to = to_bfloat16(value); }
inline void convert(float value, float scale, int8_t* to) { *to = to_int8(value / scale); }

// One panel of weights: 32 rows of any float type become columns of W.
template <class W>
void pack_panel(const LinearPack& p, int64_t panel) {
  const int64_t inputs = p.weight.columns, first = panel * kPanel;
  const int count = p.weight.rows - first < kPanel ? (int)(p.weight.rows - first) : kPanel;
  float scales[kPanel];
  for (int i = 0; i < kPanel; ++i) scales[i] = 1;
  if (p.type == WeightType::int8) {
    for (int i = 0; i < count; ++i) {
      const float scale = scale_of(p, first + i);
      p.scales[first + i] = scale;
      if (scale > 0) scales[i] = scale;
    }
  }
  float block[kPanel][kPackBlock];
  W* packed = static_cast<W*>(p.packed) + panel * inputs * kPanel;
  for (int64_t k = 0; k < inputs; k += kPackBlock) {
    const int length = inputs - k < kPackBlock ? (int)(inputs - k) : kPackBlock;
    for (int i = 0; i < count; ++i) load_floats(p.weight, (first + i) * p.weight.row_stride + k, length, block[i]);
    for (int j = 0; j < length; ++j) {
      for (int i = 0; i < kPanel; ++i) convert(i < count ? block[i][j] : 0, scales[i], packed + (k + j) * kPanel + i);
    }
  }
}

template <class W>
void pack(const LinearPack& p) {
  const int64_t count = (p.weight.rows + kPanel - 1) / kPanel;
  const int threads = threads_for(count * kPanel * p.weight.columns * (int64_t)sizeof(W), count);
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t panel = 0; panel < count; ++panel) pack_panel<W>(p, panel);
}

}  // namespace

void linear_pack(const LinearPack& p) {
  switch (p.type) {
    case WeightType::float32:
      return pack<float>(p);
    case WeightType::bfloat16:
      return pack<uint16_t>(p);
    case WeightType::int8:
      return pack<int8_t>(p);
  }
}

void linear_skinny(const LinearSkinny& p) {
  switch (p.type) {
    case WeightType::float32:
      return skinny<float>(p);
    case WeightType::bfloat16:
      return skinny<uint16_t>(p);
    case WeightType::int8:
      return skinny<int8_t>(p);
  }
}

SPECDEC_ISA_END
