// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include "../binding/checks.h"
#include "../binding/register.h"

namespace specdec::cpu {
namespace {

// Panels [ceil(N/32), K, 32] of float32, bfloat16 or int8, in one piece.
WeightType check_packed(const Arguments& arguments, const Tensor& packed, int64_t outputs, int64_t inputs) {
  arguments.check_rank("packed.data", packed, 3);
  const int64_t panels = (outputs + kPanel - 1) / kPanel;
  SPECDEC_CHECK(packed.size(0) == panels && packed.size(1) == inputs && packed.size(2) == kPanel, arguments.op(),
                ": packed.data must have shape [", panels, ", ", inputs, ", ", kPanel, "], got ", shape_text(packed));
  SPECDEC_CHECK(packed.is_contiguous(), arguments.op(), ": packed.data must be contiguous, got other strides");
  switch (packed.scalar_type()) {
    case ScalarType::Float:
      return WeightType::float32;
    case ScalarType::BFloat16:
      return WeightType::bfloat16;
    case ScalarType::Char:
      return WeightType::int8;
    default:
      fail(arguments.op(), ": packed.data must have dtype float32, bfloat16 or int8, got another dtype");
  }
}

Strided<float> check_scales(const Arguments& arguments, const OptionalTensor& scales, WeightType type,
                            int64_t outputs) {
  const bool wanted = type == WeightType::int8;
  SPECDEC_CHECK(scales.has_value() == wanted, arguments.op(), ": packed.scales must be ",
                wanted ? "given for int8 weights, got None" : "None unless the weights are int8, got a tensor");
  return arguments.vector<float>("packed.scales", scales, outputs);
}

void linear_pack(const Tensor& weight, const Tensor& packed, const OptionalTensor& scales) {
  const Arguments arguments("linear.pack", Device::cpu);
  LinearPack p;
  p.weight = arguments.rows("weight", weight);
  p.type = check_packed(arguments, packed, p.weight.rows, p.weight.columns);
  p.packed = packed.data_ptr();
  p.scales = check_scales(arguments, scales, p.type, p.weight.rows);
  SPECDEC_DISPATCH(linear_pack, p);
}

void linear_skinny(const Tensor& x, const Tensor& packed, const OptionalTensor& scales, const OptionalTensor& bias,
                   const Tensor& out) {
  const Arguments arguments("linear.skinny", Device::cpu);
  const RowsView result = arguments.rows("out", out);
  LinearSkinny p;
  p.x = arguments.rows("x", x);
  SPECDEC_CHECK(result.rows == p.x.rows && result.type == p.x.type, arguments.op(),
                ": out must have the rows and the dtype of x, got shape ", shape_text(out));
  p.type = check_packed(arguments, packed, result.columns, p.x.columns);
  p.packed = packed.data_ptr();
  const Strided<float> scales_view = check_scales(arguments, scales, p.type, result.columns);
  const Strided<float> bias_view = arguments.vector<float>("packed.bias", bias, result.columns);
  p.scales = {scales_view.data, scales_view.stride};
  p.bias = {bias_view.data, bias_view.stride};
  p.outputs = result.columns;
  p.out = out.data_ptr();
  p.out_stride = result.row_stride;
  // Outputs are written while other rows of x are still read.
  const auto bytes_of = [](const RowsView& v) {
    const int64_t element = v.type == FloatType::float32 ? 4 : 2;
    return v.rows == 0 || v.columns == 0 ? 0 : ((v.rows - 1) * v.row_stride + v.columns) * element;
  };
  const char* in = static_cast<const char*>(p.x.data);
  const char* to = static_cast<const char*>(p.out);
  SPECDEC_CHECK(to + bytes_of(result) <= in || in + bytes_of(p.x) <= to, arguments.op(),
                ": out must not overlap x, got memory of both");
  SPECDEC_DISPATCH(linear_skinny, p);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) {
  SPECDEC_IMPL(library, linear_pack, linear_pack);
  SPECDEC_IMPL(library, linear_skinny, linear_skinny);
}

}  // namespace specdec::cpu
