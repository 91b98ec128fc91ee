// SPDX-License-Identifier: Apache-2.0
// Torch-free views of tensors, as kernels see them. Strides are in elements.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SPECDEC_HD __host__ __device__
#define SPECDEC_SHARED static __host__ __device__ inline
// What is long and not in the innermost loops: one copy of it per file keeps compile times and registers down.
#define SPECDEC_SHARED_CALL [[maybe_unused]] static __host__ __device__ __noinline__
#else
#define SPECDEC_HD
#define SPECDEC_SHARED_CALL [[maybe_unused]] static inline
// Internal linkage: every instruction set gets its own copy.
#define SPECDEC_SHARED [[maybe_unused]] static inline
#endif

namespace specdec {

enum class FloatType : int32_t { float32, bfloat16, float16 };

// A one-dimensional int32 or int64 tensor. A null view stands for an absent optional argument.
struct IndexView {
  const void* data = nullptr;
  int64_t stride = 1;
  bool wide = false;  // int64

#if defined(__CUDACC__)
  __host__ __device__ __forceinline__
#elif defined(__GNUC__)
  __attribute__((always_inline))
#endif
      int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i * stride] : static_cast<const int32_t*>(data)[i * stride];
  }
  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
};

// The same, writable.
struct MutableIndexView {
  void* data = nullptr;
  int64_t stride = 1;
  bool wide = false;

#if defined(__CUDACC__)
  __host__ __device__ __forceinline__
#elif defined(__GNUC__)
  __attribute__((always_inline))
#endif
      void set(int64_t i, int64_t value) const {
    if (wide) {
      static_cast<int64_t*>(data)[i * stride] = value;
    } else {
      static_cast<int32_t*>(data)[i * stride] = static_cast<int32_t>(value);
    }
  }
  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
};

// A one-dimensional tensor of a fixed element type; null for an absent optional argument.
template <class T>
struct Strided {
  T* data = nullptr;
  int64_t stride = 1;

#if defined(__CUDACC__)
  __host__ __device__ __forceinline__
#elif defined(__GNUC__)
  __attribute__((always_inline))
#endif
      T& operator[](int64_t i) const {
    return data[i * stride];
  }
  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
};

// Rows of floats in one of three types: unit column stride, any row stride.
struct RowsView {
  const void* data = nullptr;
  FloatType type = FloatType::float32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t row_stride = 0;
  SPECDEC_HD explicit operator bool() const { return data != nullptr; }
};

}  // namespace specdec
