// SPDX-License-Identifier: Apache-2.0
// What the CUDA launchers need of torch: the device of a tensor, its current stream, and memory for a call. With
// SPECDEC_EMULATED the same launchers serve tensors of the CPU, under a namespace of their own.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"

#if defined(SPECDEC_EMULATED)
#include "../emulator/control.h"
#define SPECDEC_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(specdec_emulated, CPU, library)
#else
#include <torch/csrc/stable/accelerator.h>
#define SPECDEC_CUDA_LIBRARY(library) STABLE_TORCH_LIBRARY_IMPL(specdec, CUDA, library)

// Declared here because the header hides it from builds without CUDA; weak, because a CPU-only torch does not have it
// and the module must still be importable there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);
#endif

namespace specdec::cuda {

#if defined(SPECDEC_EMULATED)
inline constexpr Device kDeviceOfKernels = Device::cpu;
#else
inline constexpr Device kDeviceOfKernels = Device::cuda;
#endif

// One call of an op: while it lives, the device of `anchor` is the current one.
class Call {
 public:
  Call(const Arguments& arguments, const Tensor& anchor)
      : op_(arguments.op()),
        anchor_(anchor)
#if !defined(SPECDEC_EMULATED)
        ,
        guard_(anchor.get_device_index())
#endif
  {
  }

  cudaStream_t stream() const {
    void* stream = nullptr;
#if !defined(SPECDEC_EMULATED)
    SPECDEC_CHECK(aoti_torch_get_current_cuda_stream != nullptr &&
                      aoti_torch_get_current_cuda_stream(anchor_.get_device_index(), &stream) == 0,
                  op_, ": torch must give the current CUDA stream, got none");
#endif
    return static_cast<cudaStream_t>(stream);
  }

  // Uninitialised; torch's allocator gives it in the order of the stream, also while a graph is captured.
  Tensor workspace(int64_t bytes) const { return torch::stable::new_empty(anchor_, {bytes}, ScalarType::Byte); }

  void check(cudaError_t error) const {
    if (error == cudaSuccess) return;
#if defined(SPECDEC_EMULATED)
    fail(op_, ": the launch must succeed, got ", emulator_last_error());
#else
    fail(op_, ": the launch must succeed, got ", cudaGetErrorString(error));
#endif
  }

 private:
  const char* op_;
  const Tensor& anchor_;
#if !defined(SPECDEC_EMULATED)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace specdec::cuda
