// SPDX-License-Identifier: Apache-2.0
#include "../binding/cuda_call.h"
#include "../binding/kv_inject_launcher.h"
#include "../binding/kv_launchers.h"
#include "kv/commit.cuh"
#include "kv/gather.cuh"
#include "kv/inject.cuh"
#include "kv/write.cuh"

namespace specdec::cuda {
namespace {

struct Backend {
  static constexpr Device kDevice = kDeviceOfKernels;
  static void write(const KvWriteParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_kv_write(p, call.stream()));
  }
  static void commit(const KvCommitParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_commit(p, call.stream()));
  }
  static void gather(const KvGatherParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_kv_gather(p, call.stream()));
  }
  static void inject(const KvInjectParams& p, const Arguments& a, const Tensor& anchor) {
    const Call call(a, anchor);
    call.check(launch_kv_inject(p, call.stream()));
  }
};

}  // namespace

SPECDEC_CUDA_LIBRARY(library) {
  register_kv<Backend>(library);
  register_kv_inject<Backend>(library);
}

}  // namespace specdec::cuda
