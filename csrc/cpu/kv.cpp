// SPDX-License-Identifier: Apache-2.0
#include "kernels/kv.h"

#include "../binding/kv_inject_launcher.h"
#include "../binding/kv_launchers.h"

namespace specdec::cpu {
namespace {

struct Backend {
  static constexpr Device kDevice = Device::cpu;
  static void write(const KvWriteParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(kv_write, p); }
  static void commit(const KvCommitParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(kv_commit, p); }
  static void gather(const KvGatherParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(kv_gather, p); }
  static void inject(const KvInjectParams& p, const Arguments&, const Tensor&) { SPECDEC_DISPATCH(kv_inject, p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(specdec, CPU, library) {
  register_kv<Backend>(library);
  register_kv_inject<Backend>(library);
}

}  // namespace specdec::cpu
