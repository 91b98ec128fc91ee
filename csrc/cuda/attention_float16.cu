// SPDX-License-Identifier: Apache-2.0
#include "attention/tensor_launch.cuh"

namespace specdec::cuda {

template void set_up_tensor_cores<__half>(const TreeAttentionParams&, AttentionSetup&);
template cudaError_t launch_tensor_cores<__half>(const TensorCall&, int, cudaStream_t);

}  // namespace specdec::cuda
