// SPDX-License-Identifier: Apache-2.0
// What the CUDA launchers need of torch: the device of a tensor and its current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "checks.h"

// Declared here because the header hides it from builds without CUDA; weak, because a CPU-only torch does not have it
// and the module must still be importable there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace specdec {

inline cudaStream_t current_stream(const char* op, const Tensor& tensor) {
  void* stream = nullptr;
  SPECDEC_CHECK(aoti_torch_get_current_cuda_stream != nullptr &&
                    aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream) == 0,
                op, ": torch must give the current CUDA stream, got none");
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op, cudaError_t error) {
  SPECDEC_CHECK(error == cudaSuccess, op, ": the launch must succeed, got ", cudaGetErrorString(error));
}

}  // namespace specdec
