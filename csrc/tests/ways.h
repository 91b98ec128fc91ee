// SPDX-License-Identifier: Apache-2.0
// The ways in which a test runs an op, all of which must give the same bits. On the CPU: one thread, two threads, the
// baseline instruction set. With SPECDEC_EMULATED, the CUDA kernels: orders of threads, with and without clusters.
#pragma once

#include <vector>

#include "testing.h"

#if defined(SPECDEC_EMULATED)
#include "../cuda/attention/tree_attention.cuh"
#include "../cuda/draft/budget.cuh"
#include "../cuda/draft/expand.cuh"
#include "../cuda/draft/next_block.cuh"
#include "../cuda/draft/ngram_lookup.cuh"
#include "../cuda/kv/commit.cuh"
#include "../cuda/kv/gather.cuh"
#include "../cuda/kv/inject.cuh"
#include "../cuda/kv/write.cuh"
#include "../cuda/sample/sample.cuh"
#include "../cuda/tree/best_first.cuh"
#include "../cuda/tree/from_beams.cuh"
#include "../cuda/tree/from_chains.cuh"
#include "../cuda/tree/from_parents.cuh"
#include "../cuda/tree/to_dense_mask.cuh"
#include "../cuda/tree/to_links.cuh"
#include "../cuda/tree/to_packed_mask.cuh"
#include "../cuda/tree/to_paths.cuh"
#include "../cuda/verify/expect.cuh"
#include "../cuda/verify/walk.cuh"
#include "../emulator/control.h"
#else
#include <omp.h>

#include "../cpu/kernels/attention.h"
#include "../cpu/kernels/draft.h"
#include "../cpu/kernels/kv.h"
#include "../cpu/kernels/sample.h"
#include "../cpu/kernels/tree.h"
#include "../cpu/kernels/verify.h"
#endif

namespace specdec::testing {

#if defined(SPECDEC_EMULATED)

inline constexpr int kWays = 4;
inline const char* kernels_in_use() { return "emulated"; }

template <class Launch>
void emulate(int way, const Launch& launch) {
  const emulator::Schedule schedules[kWays] = {emulator::in_order(), emulator::one_warp_ahead(1), emulator::shuffled(2),
                                               emulator::reverse()};
  const emulator::UseSchedule use(schedules[way]);
  setenv("SPECDEC_EMULATOR_DEVICE", way == 1 ? "80" : "90", 1);
  CHECK(launch() == cudaSuccess, "%s", emulator_last_error());
}

inline void run(const VerifyParams& p, int way = 0) {
  std::vector<char> workspace(static_cast<size_t>(cuda::VerifyWorkspace::bytes(p.call.tree.batch, p.call.tree.total)),
                              -1);
  emulate(way, [&] { return cuda::launch_verify(p, workspace.data(), nullptr); });
}
inline void run(const ExpectParams& p, int way = 0) {
  std::vector<char> workspace(static_cast<size_t>(cuda::expect_bytes(p.verify.call.tree.total)), -1);
  emulate(way, [&] { return cuda::launch_expect(p, workspace.data(), nullptr); });
}
inline void run(const SampleParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_sample(p, nullptr); });
}
inline void run(const DraftParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_draft(p, nullptr); });
}
inline void run(const NgramParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_ngram_lookup(p, nullptr); });
}
inline void run(const TreeAttentionParams& p, int way = 0) {
  emulate(way, [&] {
    const cuda::AttentionSetup setup = cuda::set_up_attention(p);
    std::vector<char> workspace(static_cast<size_t>(setup.bytes), -1);
    return cuda::launch_tree_attention(p, setup, workspace.data(), nullptr);
  });
}
inline void run(const MergeStatesParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_merge_states(p, nullptr); });
}
inline void run(const KvWriteParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_kv_write(p, nullptr); });
}
inline void run(const KvCommitParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_commit(p, nullptr); });
}
inline void run(const KvGatherParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_kv_gather(p, nullptr); });
}
inline void run(const KvInjectParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_kv_inject(p, nullptr); });
}
inline void run(const DraftBlockParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_draft_block(p, nullptr); });
}
inline void run(const BudgetParams& p, int way = 0) {
  std::vector<char> workspace(static_cast<size_t>(cuda::BudgetCall::bytes(p)), -1);
  emulate(way, [&] { return cuda::launch_draft_budget(p, workspace.data(), nullptr); });
}
inline void run(const FromChainsParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_from_chains(p, nullptr); });
}
inline void run(const FromParentsParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_from_parents(p, nullptr); });
}
inline void run(const FromBeamsParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_from_beams(p, nullptr); });
}
inline void run(const BestFirstParams& p, int way = 0) {
  std::vector<char> workspace(static_cast<size_t>(cuda::BestFirstWorkspace::bytes(p)), -1);
  emulate(way, [&] { return cuda::launch_best_first(p, workspace.data(), nullptr); });
}
inline void run(const DenseMaskParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_to_dense_mask(p, nullptr); });
}
inline void run(const PackedMaskParams& p, int way = 0) {
  std::vector<char> workspace(static_cast<size_t>(cuda::PackedMaskCall::bytes(p)), -1);
  emulate(way, [&] { return cuda::launch_to_packed_mask(p, workspace.data(), nullptr); });
}
inline void run(const LinksParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_to_links(p, nullptr); });
}
inline void run(const PathsParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_to_paths(p, nullptr); });
}
inline void run(const ExpandParams& p, int way = 0) {
  emulate(way, [&] { return cuda::launch_expand(p, nullptr); });
}

#else

inline constexpr int kWays = 3;
inline const char* kernels_in_use() { return cpu::isa_name(cpu::current_isa()); }

#define SPECDEC_TEST_RUN(Params, name)                         \
  inline void name##_dispatched(const Params& p) {             \
    using namespace cpu;                                       \
    SPECDEC_DISPATCH(name, p);                                 \
  }                                                            \
  inline void run(const Params& p, int way = 0) {              \
    omp_set_num_threads(way == 0 ? 1 : 2);                     \
    (way == 2 ? &cpu::baseline::name : &name##_dispatched)(p); \
  }
SPECDEC_TEST_RUN(VerifyParams, verify)
SPECDEC_TEST_RUN(ExpectParams, verify_expect)
SPECDEC_TEST_RUN(SampleParams, sample_tokens)
SPECDEC_TEST_RUN(DraftParams, draft_tokens)
SPECDEC_TEST_RUN(NgramParams, ngram_lookup)
SPECDEC_TEST_RUN(KvWriteParams, kv_write)
SPECDEC_TEST_RUN(KvCommitParams, kv_commit)
SPECDEC_TEST_RUN(KvGatherParams, kv_gather)
SPECDEC_TEST_RUN(KvInjectParams, kv_inject)
SPECDEC_TEST_RUN(DraftBlockParams, draft_block)
SPECDEC_TEST_RUN(BudgetParams, draft_budget)
SPECDEC_TEST_RUN(FromChainsParams, from_chains)
SPECDEC_TEST_RUN(TreeAttentionParams, tree_attention)
SPECDEC_TEST_RUN(MergeStatesParams, merge_states)
SPECDEC_TEST_RUN(FromParentsParams, from_parents)
SPECDEC_TEST_RUN(FromBeamsParams, from_beams)
SPECDEC_TEST_RUN(BestFirstParams, best_first)
SPECDEC_TEST_RUN(DenseMaskParams, to_dense_mask)
SPECDEC_TEST_RUN(PackedMaskParams, to_packed_mask)
SPECDEC_TEST_RUN(LinksParams, to_links)
SPECDEC_TEST_RUN(PathsParams, to_paths)
SPECDEC_TEST_RUN(ExpandParams, expand)
#undef SPECDEC_TEST_RUN

#endif

}  // namespace specdec::testing
