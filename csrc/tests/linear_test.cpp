// SPDX-License-Identifier: Apache-2.0
// The packed product of few rows against a double-precision product, and its promise: the bits of a row of the result
// depend on that row alone.
#include "../cpu/kernels/linear.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "testing.h"

using namespace specdec;
using namespace specdec::cpu;
using testing::Guarded;
using testing::Numbers;
using testing::same_bits;

namespace {

constexpr FloatType kFloats[] = {FloatType::float32, FloatType::bfloat16, FloatType::float16};
constexpr WeightType kWeights[] = {WeightType::float32, WeightType::bfloat16, WeightType::int8};

size_t bytes_of(FloatType type) { return type == FloatType::float32 ? 4 : 2; }
size_t bytes_of(WeightType type) { return type == WeightType::float32 ? 4 : type == WeightType::bfloat16 ? 2 : 1; }

// ---- Decoding by the definition of the formats, independent of the kernels ----
double decode(FloatType type, const void* data, int64_t i) {
  if (type == FloatType::float32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  const int fraction_bits = type == FloatType::bfloat16 ? 7 : 10;
  const int exponent_bits = 15 - fraction_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1), fraction = bits & ((1 << fraction_bits) - 1);
  double value;
  if (exponent == (1 << exponent_bits) - 1) {
    value = fraction ? NAN : INFINITY;
  } else if (exponent == 0) {
    value = std::ldexp(fraction, 1 - bias - fraction_bits);
  } else {
    value = std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
  }
  return bits & 0x8000 ? -value : value;
}

// The 16-bit pattern nearest to a finite float, ties to the even pattern: bisection over the ordered patterns.
uint16_t nearest(FloatType type, float value) {
  const double magnitude = std::fabs(static_cast<double>(value));
  uint16_t low = 0, high = type == FloatType::bfloat16 ? 0x7f80 : 0x7c00;  // infinity
  const auto size = [&](uint16_t pattern) {
    if (pattern != (type == FloatType::bfloat16 ? 0x7f80 : 0x7c00)) return decode(type, &pattern, 0);
    return type == FloatType::bfloat16 ? std::ldexp(1.0, 128) : std::ldexp(1.0, 16);  // where the next binade starts
  };
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (size(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - size(low), above = size(high) - magnitude;
  const uint16_t chosen = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<uint16_t>(chosen | (std::signbit(value) ? 0x8000 : 0));
}

// An array of one of the three float types, exactly as long as asked for (so that a sanitizer sees a read beyond it).
struct Floats {
  FloatType type;
  std::vector<unsigned char> bytes;
  Floats(FloatType t, int64_t size) : type(t), bytes(static_cast<size_t>(size) * bytes_of(t)) {}
  void set(int64_t i, float value) {
    if (type == FloatType::float32) {
      std::memcpy(bytes.data() + 4 * i, &value, 4);
    } else {
      const uint16_t bits = nearest(type, value);
      std::memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  double operator[](int64_t i) const { return decode(type, bytes.data(), i); }
  RowsView view(int64_t rows, int64_t columns, int64_t stride) const {
    return {bytes.data(), type, rows, columns, stride};
  }
};

struct Layer {
  WeightType type;
  int64_t outputs, inputs;
  std::vector<unsigned char> packed;
  std::vector<float> scales, bias;
  std::vector<double> weight;  // what the packed weights stand for, [N, K]
};

Layer make_layer(WeightType type, int64_t outputs, int64_t inputs, bool bias, uint64_t seed) {
  Numbers numbers(seed);
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  Layer layer{type, outputs, inputs, {}, {}, {}, {}};
  layer.packed.resize(static_cast<size_t>(panels * inputs * kPanel) * bytes_of(type));
  if (type == WeightType::int8) layer.scales.resize(static_cast<size_t>(outputs));
  std::vector<float> values(static_cast<size_t>(outputs * inputs));
  for (float& v : values) v = numbers.symmetric();
  LinearPack pack;
  pack.weight = {values.data(), FloatType::float32, outputs, inputs, inputs};
  pack.type = type;
  pack.packed = layer.packed.data();
  pack.scales = {layer.scales.data(), 1};
  SPECDEC_DISPATCH(linear_pack, pack);
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t k = 0; k < inputs; ++k) {
      const int64_t at = (n / kPanel * inputs + k) * kPanel + n % kPanel;
      double w;
      if (type == WeightType::float32) {
        w = decode(FloatType::float32, layer.packed.data(), at);
      } else if (type == WeightType::bfloat16) {
        w = decode(FloatType::bfloat16, layer.packed.data(), at);
      } else {
        w = static_cast<int8_t>(layer.packed[static_cast<size_t>(at)]) * static_cast<double>(layer.scales[n]);
      }
      layer.weight.push_back(w);
    }
  }
  if (bias) {
    for (int64_t n = 0; n < outputs; ++n) layer.bias.push_back(numbers.symmetric());
  }
  return layer;
}

void run(const Layer& layer, const RowsView& x, void* out, int64_t out_stride) {
  LinearSkinny p;
  p.x = x;
  p.type = layer.type;
  p.packed = layer.packed.data();
  p.scales = {layer.scales.empty() ? nullptr : layer.scales.data(), 1};
  p.bias = {layer.bias.empty() ? nullptr : layer.bias.data(), 1};
  p.outputs = layer.outputs;
  p.out = out;
  p.out_stride = out_stride;
  SPECDEC_DISPATCH(linear_skinny, p);
}

// ---- Packing ----
void test_pack_layout() {
  for (const FloatType source : kFloats) {
    for (const WeightType type : kWeights) {
      for (const auto [outputs, inputs] :
           {std::pair<int64_t, int64_t>{1, 1}, {31, 3}, {33, 65}, {64, 130}, {100, 77}}) {
        const int64_t stride = inputs + 5, panels = (outputs + kPanel - 1) / kPanel;
        Numbers numbers(static_cast<uint64_t>(outputs * 1000 + inputs));
        Floats weight(source, (outputs - 1) * stride + inputs);
        for (int64_t i = 0; i < (outputs - 1) * stride + inputs; ++i) weight.set(i, 3 * numbers.symmetric());
        Guarded<unsigned char> packed(panels * inputs * kPanel * static_cast<int64_t>(bytes_of(type)));
        Guarded<float> scales(outputs);
        LinearPack p;
        p.weight = weight.view(outputs, inputs, stride);
        p.type = type;
        p.packed = packed.data();
        p.scales = {scales.data(), 1};
        SPECDEC_DISPATCH(linear_pack, p);
        CHECK(packed.intact() && scales.intact());
        for (int64_t n = 0; n < panels * kPanel; ++n) {
          float largest = 0;
          for (int64_t k = 0; k < inputs && n < outputs; ++k) {
            largest = std::max(largest, std::fabs(static_cast<float>(weight[n * stride + k])));
          }
          if (type == WeightType::int8 && n < outputs) CHECK(scales[n] == largest / 127);
          if (type != WeightType::int8 && n < outputs) CHECK(scales.untouched(n));
          for (int64_t k = 0; k < inputs; ++k) {
            const int64_t at = (n / kPanel * inputs + k) * kPanel + n % kPanel;
            const float value = n < outputs ? static_cast<float>(weight[n * stride + k]) : 0;
            if (type == WeightType::float32) {
              CHECK(decode(FloatType::float32, packed.data(), at) == value);
            } else if (type == WeightType::bfloat16) {
              uint16_t bits;
              std::memcpy(&bits, packed.data() + 2 * at, 2);
              CHECK(bits == nearest(FloatType::bfloat16, value), "%g gives %04x", value, bits);
            } else {
              const int expected = n < outputs ? static_cast<int>(std::nearbyint(value / (largest / 127))) : 0;
              CHECK(static_cast<int8_t>(packed[at]) == expected);
            }
          }
        }
      }
    }
  }
}

// Ties go to the even integer; a row of zeros, NaN and infinities have a defined result.
void test_pack_int8_edges() {
  const float row[][6] = {{127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f},
                          {0, 0, -0.0f, 0, 0, 0},
                          {NAN, 1, -1, 0.5f, 0, NAN},
                          {INFINITY, 1, -INFINITY, 0, 2, 3},
                          {1e-45f, 0, 0, 0, 0, 0}};
  const int expected[][6] = {
      {127, 0, 2, 2, 0, -2}, {0, 0, 0, 0, 0, 0}, {0, 127, -127, 64, 0, 0}, {0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0}};
  Guarded<int8_t> packed(6 * kPanel);
  Guarded<float> scales(5);
  LinearPack p;
  p.weight = {row, FloatType::float32, 5, 6, 6};
  p.type = WeightType::int8;
  p.packed = packed.data();
  p.scales = {scales.data(), 1};
  SPECDEC_DISPATCH(linear_pack, p);
  for (int n = 0; n < 5; ++n) {
    for (int k = 0; k < 6; ++k) {
      CHECK(packed[k * kPanel + n] == expected[n][k], "row %d column %d: %d", n, k, packed[k * kPanel + n]);
    }
  }
  CHECK(packed.intact() && scales.intact() && scales[0] == 1 && scales[1] == 0);
}

// ---- The product ----
struct Shape {
  int64_t rows, outputs, inputs;
};
constexpr Shape kShapes[] = {{0, 5, 3},     {1, 1, 1},     {1, 32, 64},  {1, 33, 257}, {2, 31, 63},   {3, 65, 129},
                             {4, 7, 1},     {5, 100, 300}, {7, 64, 65},  {8, 96, 513}, {9, 40, 128},  {13, 1, 70},
                             {16, 33, 33},  {17, 64, 2},   {64, 35, 90}, {65, 33, 17}, {130, 2, 100}, {1, 160, 2100},
                             {8, 34, 1700}, {3, 0, 4},     {3, 34, 0}};

void test_product() {
  for (const Shape& shape : kShapes) {
    for (const FloatType type : kFloats) {
      for (const WeightType weights : kWeights) {
        for (const bool bias : {false, true}) {
          const auto [rows, outputs, inputs] = shape;
          const Layer layer = make_layer(weights, outputs, inputs, bias, static_cast<uint64_t>(inputs + 7));
          const int64_t stride = inputs + 3, out_stride = outputs + 9;
          Numbers numbers(static_cast<uint64_t>(rows + 11));
          const int64_t x_size = rows > 0 ? (rows - 1) * stride + inputs : 0;
          Floats x(type, x_size);
          for (int64_t i = 0; i < x_size; ++i) x.set(i, numbers.symmetric());
          const int64_t out_size = rows > 0 ? (rows - 1) * out_stride + outputs : 0;
          const int64_t width = static_cast<int64_t>(bytes_of(type));
          Guarded<unsigned char> out(out_size * width);
          run(layer, x.view(rows, inputs, stride), out.data(), out_stride);
          CHECK(out.intact());
          for (int64_t t = 0; t < rows; ++t) {
            for (int64_t n = 0; n < outputs; ++n) {
              double exact = bias ? layer.bias[static_cast<size_t>(n)] : 0, size = std::fabs(exact);
              for (int64_t k = 0; k < inputs; ++k) {
                const double product = x[t * stride + k] * layer.weight[static_cast<size_t>(n * inputs + k)];
                exact += product;
                size += std::fabs(product);
              }
              const double got = decode(type, out.data(), t * out_stride + n);
              const double roundings =
                  std::min<double>(static_cast<double>(inputs), kSegment) + inputs / kSegment + 3.0;
              const double rounding = type == FloatType::float32 ? 0 : type == FloatType::bfloat16 ? 0x1p-8 : 0x1p-11;
              const double bound = roundings * 0x1p-24 * size * 1.01 + rounding * (std::fabs(exact) + 1e-3) + 1e-30;
              CHECK(std::fabs(got - exact) <= bound, "[%ld, %ld] x %ld: row %ld output %ld: %.9g, not %.9g +- %.3g",
                    (long)rows, (long)outputs, (long)inputs, (long)t, (long)n, got, exact, bound);
            }
            for (int64_t gap = outputs * width; gap < out_stride * width && t + 1 < rows; ++gap) {
              CHECK(out.untouched(t * out_stride * width + gap));
            }
          }
        }
      }
    }
  }
}

// Integers have no rounding: every order of the sums gives the same.
void test_exact_integers() {
  const int64_t rows = 6, outputs = 70, inputs = 333;
  std::vector<float> weight(outputs * inputs), x(rows * inputs), out(rows * outputs);
  Numbers numbers(5);
  for (float& v : weight) v = static_cast<float>(numbers.below(17) - 8);
  for (float& v : x) v = static_cast<float>(numbers.below(17) - 8);
  for (const WeightType type : {WeightType::float32, WeightType::bfloat16}) {
    Layer layer{type, outputs, inputs, std::vector<unsigned char>(3 * kPanel * inputs * bytes_of(type)), {}, {}, {}};
    LinearPack pack;
    pack.weight = {weight.data(), FloatType::float32, outputs, inputs, inputs};
    pack.type = type;
    pack.packed = layer.packed.data();
    SPECDEC_DISPATCH(linear_pack, pack);
    run(layer, {x.data(), FloatType::float32, rows, inputs, inputs}, out.data(), outputs);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t n = 0; n < outputs; ++n) {
        int64_t sum = 0;
        for (int64_t k = 0; k < inputs; ++k) sum += static_cast<int64_t>(x[t * inputs + k] * weight[n * inputs + k]);
        CHECK(out[t * outputs + n] == static_cast<float>(sum));
      }
    }
  }
}

// The bits of a row are the same alone and in the company of any number of other rows, for any number of threads.
void test_row_and_thread_invariance() {
  for (const auto& [outputs, inputs] : {std::pair<int64_t, int64_t>{97, 331}, {33, 2200}, {160, 64}}) {
    for (const WeightType weights : kWeights) {
      const Layer layer = make_layer(weights, outputs, inputs, true, 3);
      for (const FloatType type : kFloats) {
        const int64_t most = 70, width = static_cast<int64_t>(bytes_of(type));
        Numbers numbers(17);
        Floats x(type, most * inputs);
        for (int64_t i = 0; i < most * inputs; ++i) x.set(i, numbers.symmetric());
        std::vector<unsigned char> alone(static_cast<size_t>(most * outputs * width)), together(alone.size());
        omp_set_num_threads(1);
        for (int64_t t = 0; t < most; ++t) {
          const RowsView row{x.bytes.data() + t * inputs * width, type, 1, inputs, inputs};
          run(layer, row, alone.data() + t * outputs * width, outputs);
        }
        for (int64_t rows = 2; rows <= most; rows += rows < 20 ? 1 : 7) {
          omp_set_num_threads(static_cast<int>(1 + rows % 5));
          std::fill(together.begin(), together.end(), 0xa5);
          run(layer, x.view(rows, inputs, inputs), together.data(), outputs);
          CHECK(same_bits(alone.data(), together.data(), rows * outputs * width), "%ld rows", (long)rows);
        }
      }
    }
  }
  omp_set_num_threads(2);
}

// Every 16-bit float through a layer that multiplies by one; then the rounding of products.
void test_conversions() {
  const float one = 1;
  Layer layer{WeightType::float32, 1, 1, std::vector<unsigned char>(kPanel * 4), {}, {}, {}};
  LinearPack pack;
  pack.weight = {&one, FloatType::float32, 1, 1, 1};
  pack.packed = layer.packed.data();
  SPECDEC_DISPATCH(linear_pack, pack);
  std::vector<uint16_t> x(1 << 16), out(1 << 16);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
  for (const FloatType type : {FloatType::bfloat16, FloatType::float16}) {
    run(layer, {x.data(), type, 1 << 16, 1, 1}, out.data(), 1);
    for (size_t i = 0; i < x.size(); ++i) {
      const double in = decode(type, x.data(), static_cast<int64_t>(i));
      const double got = decode(type, out.data(), static_cast<int64_t>(i));
      CHECK(std::isnan(in) ? std::isnan(got) : in == got, "pattern %04zx: %g", i, got);
    }
    Numbers numbers(23);
    for (int scale = -30; scale <= 20; ++scale) {
      const float factor = std::ldexp(1 + std::fabs(numbers.symmetric()), scale);
      pack.weight.data = &factor;
      SPECDEC_DISPATCH(linear_pack, pack);
      for (uint16_t& v : x) v = static_cast<uint16_t>(nearest(type, 2 * numbers.symmetric()));
      run(layer, {x.data(), type, 2000, 1, 1}, out.data(), 1);
      for (int64_t i = 0; i < 2000; ++i) {
        const float product = static_cast<float>(decode(type, x.data(), i)) * factor;
        const uint16_t expected = nearest(type, product);
        CHECK(out[static_cast<size_t>(i)] == expected || (product == 0 && (out[static_cast<size_t>(i)] & 0x7fff) == 0),
              "%.9g gives %04x, not %04x", product, out[static_cast<size_t>(i)], expected);
      }
    }
    pack.weight.data = &one;
    SPECDEC_DISPATCH(linear_pack, pack);
  }
}

}  // namespace

int main() {
  omp_set_num_threads(2);
  test_pack_layout();
  test_pack_int8_edges();
  test_product();
  test_exact_integers();
  test_row_and_thread_invariance();
  test_conversions();
  std::printf("linear (%s): passed\n", isa_name(current_isa()));
  return 0;
}
