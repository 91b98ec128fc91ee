// SPDX-License-Identifier: Apache-2.0
#include "verify/bottom_up.cuh"

namespace specdec::cuda {

template cudaError_t launch_bottom_up<Rule::bottom_up>(const VerifyParams&, void*, cudaStream_t);
template cudaError_t launch_bottom_up<Rule::typical>(const VerifyParams&, void*, cudaStream_t);

}  // namespace specdec::cuda
