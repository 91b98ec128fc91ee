// SPDX-License-Identifier: Apache-2.0
// Last-line checks of the launchers, in the one error grammar `<op>: <argument> must <requirement>, got <actual>`, and
// the conversion of tensors to torch-free views. The Python functions have checked already and raise ValueError or
// TypeError; what is repeated here protects memory and raises RuntimeError.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "../common/views.h"

namespace specdec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] inline void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

#define SPECDEC_CHECK(condition, ...)               \
  do {                                              \
    if (!(condition)) ::specdec::fail(__VA_ARGS__); \
  } while (0)

inline std::string shape_text(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << "]";
  return text.str();
}

// Where a tensor lies. Never null, because a null view is an absent argument, and a tensor without elements may lie
// nowhere.
inline void* address_of(const Tensor& tensor) {
  alignas(64) static char nowhere[64];
  void* data = tensor.data_ptr();
  return data == nullptr ? nowhere : data;
}

// The device that a module's kernels read.
enum class Device { cpu, cuda };

// Checks and converts the arguments of one call; `op` is the public name, such as "verify.match".
class Arguments {
 public:
  Arguments(const char* op, Device device) : op_(op), device_(device) {}

  const char* op() const { return op_; }

  void check_device(const char* name, const Tensor& tensor) const {
    if (device_ == Device::cpu) {
      SPECDEC_CHECK(tensor.is_cpu(), op_, ": ", name, " must be on the CPU, got another device");
    } else {
      SPECDEC_CHECK(tensor.is_cuda(), op_, ": ", name, " must be on a CUDA device, got another device");
      // The first tensor says on which one.
      const int32_t index = tensor.get_device_index();
      if (index_ < 0) index_ = index;
      SPECDEC_CHECK(index == index_, op_, ": ", name, " must be on cuda:", index_, ", got cuda:", index);
    }
  }

  void check_rank(const char* name, const Tensor& tensor, int64_t rank) const {
    check_device(name, tensor);
    SPECDEC_CHECK(tensor.dim() == rank, op_, ": ", name, " must have ", rank, " dimensions, got shape ",
                  shape_text(tensor));
  }

  void check_size(const char* name, const Tensor& tensor, int64_t size) const {
    check_rank(name, tensor, 1);
    SPECDEC_CHECK(tensor.size(0) == size, op_, ": ", name, " must have shape [", size, "], got ", shape_text(tensor));
  }

  void check_shape(const char* name, const Tensor& tensor, int64_t rows, int64_t columns) const {
    check_rank(name, tensor, 2);
    SPECDEC_CHECK(tensor.size(0) == rows && tensor.size(1) == columns, op_, ": ", name, " must have shape [", rows,
                  ", ", columns, "], got ", shape_text(tensor));
    SPECDEC_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, op_, ": ", name,
                  " must have unit stride in its last dimension, got stride ", tensor.stride(1));
  }

  // A [size] tensor of int32 or int64.
  IndexView index(const char* name, const Tensor& tensor, int64_t size) const {
    check_size(name, tensor, size);
    return {address_of(tensor), tensor.stride(0), is_wide(name, tensor)};
  }
  IndexView index(const char* name, const OptionalTensor& tensor, int64_t size) const {
    return tensor ? index(name, *tensor, size) : IndexView{};
  }
  MutableIndexView index_out(const char* name, const Tensor& tensor, int64_t size) const {
    check_size(name, tensor, size);
    return {tensor.data_ptr(), tensor.stride(0), is_wide(name, tensor)};
  }

  // A [size] tensor of exactly the element type T (float, int32_t, int64_t, bool).
  template <class T>
  Strided<T> vector(const char* name, const Tensor& tensor, int64_t size) const {
    check_size(name, tensor, size);
    check_type<T>(name, tensor);
    return {static_cast<T*>(address_of(tensor)), tensor.stride(0)};
  }
  template <class T>
  Strided<T> vector(const char* name, const OptionalTensor& tensor, int64_t size) const {
    return tensor ? vector<T>(name, *tensor, size) : Strided<T>{};
  }

  // The same without gaps, as a pointer.
  template <class T>
  T* contiguous(const char* name, const Tensor& tensor, int64_t size) const {
    const Strided<T> view = vector<T>(name, tensor, size);
    SPECDEC_CHECK(size <= 1 || view.stride == 1, op_, ": ", name, " must be contiguous, got stride ", view.stride);
    return view.data;
  }

  // [rows, columns] without gaps.
  void check_contiguous_rows(const char* name, const Tensor& tensor, int64_t rows, int64_t columns) const {
    check_shape(name, tensor, rows, columns);
    SPECDEC_CHECK(rows <= 1 || columns == 0 || tensor.stride(0) == columns, op_, ": ", name,
                  " must be contiguous, got row stride ", tensor.stride(0));
  }
  template <class T>
  T* contiguous_rows(const char* name, const Tensor& tensor, int64_t rows, int64_t columns) const {
    check_contiguous_rows(name, tensor, rows, columns);
    check_type<T>(name, tensor);
    return static_cast<T*>(tensor.data_ptr());
  }

  // [rows, columns] of float32, bfloat16 or float16 with unit column stride and any row stride.
  RowsView rows(const char* name, const Tensor& tensor) const {
    check_rank(name, tensor, 2);
    SPECDEC_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, op_, ": ", name,
                  " must have unit stride in its last dimension, got stride ", tensor.stride(1));
    return {tensor.data_ptr(), float_type(name, tensor), tensor.size(0), tensor.size(1), tensor.stride(0)};
  }

  template <class T>
  void check_type(const char* name, const Tensor& tensor) const {
    SPECDEC_CHECK(tensor.scalar_type() == scalar_type_of<T>(), op_, ": ", name, " must have dtype ", type_name<T>(),
                  ", got another dtype");
  }

  FloatType float_type(const char* name, const Tensor& tensor) const {
    switch (tensor.scalar_type()) {
      case ScalarType::Float:
        return FloatType::float32;
      case ScalarType::BFloat16:
        return FloatType::bfloat16;
      case ScalarType::Half:
        return FloatType::float16;
      default:
        fail(op_, ": ", name, " must have dtype float32, bfloat16 or float16, got another dtype");
    }
  }

  bool is_wide(const char* name, const Tensor& tensor) const {
    const bool wide = tensor.scalar_type() == ScalarType::Long;
    SPECDEC_CHECK(wide || tensor.scalar_type() == ScalarType::Int, op_, ": ", name,
                  " must have dtype int32 or int64, got another dtype");
    return wide;
  }

 private:
  template <class T>
  static constexpr ScalarType scalar_type_of() {
    if constexpr (std::is_same_v<T, float>) return ScalarType::Float;
    if constexpr (std::is_same_v<T, int32_t>) return ScalarType::Int;
    if constexpr (std::is_same_v<T, int64_t>) return ScalarType::Long;
    if constexpr (std::is_same_v<T, bool>) return ScalarType::Bool;
    if constexpr (std::is_same_v<T, int8_t>) return ScalarType::Char;
    if constexpr (std::is_same_v<T, uint8_t>) return ScalarType::Byte;
  }
  template <class T>
  static constexpr const char* type_name() {
    if constexpr (std::is_same_v<T, float>) return "float32";
    if constexpr (std::is_same_v<T, int32_t>) return "int32";
    if constexpr (std::is_same_v<T, int64_t>) return "int64";
    if constexpr (std::is_same_v<T, bool>) return "bool";
    if constexpr (std::is_same_v<T, int8_t>) return "int8";
    if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  }

  const char* op_;
  Device device_;
  mutable int32_t index_ = -1;  // of the CUDA device of the tensors so far
};

}  // namespace specdec
