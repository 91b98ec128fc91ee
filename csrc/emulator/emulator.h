// SPDX-License-Identifier: Apache-2.0
// The device side of CUDA for a host compiler; kernels reach it through cuda/device.cuh. docs/emulator.md has the rules
// that make a kernel run here.
#pragma once

// CUDA's headers and those of the C++ library come first: macros below would change their meaning.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "engine.h"
#include "intrinsics.h"
#include "warp.h"

#define threadIdx (::specdec::emulator::thread_index())
#define blockIdx (::specdec::emulator::block_index())
#define blockDim (::specdec::emulator::g_shape.block)
#define gridDim (::specdec::emulator::g_shape.grid)
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "static shared memory is not emulated: use shared_storage()");
#if !defined(__noinline__)
#define __noinline__ __attribute__((noinline))
#endif

template <class T>
T __ldg(const T* pointer, specdec::emulator::Place place = {}) {
  specdec::emulator::check_global(pointer, alignof(T), "__ldg", place);
  specdec::emulator::g_report.global_bytes_read += sizeof(T);
  return *pointer;
}

namespace specdec::cuda {

template <class T>
T load_once(const T* pointer, emulator::Place place = {}) {
  emulator::check_global(pointer, alignof(T), "load_once", place);
  emulator::g_report.global_bytes_read += sizeof(T);
  return *pointer;
}

template <class T>
void store(T* pointer, const std::type_identity_t<T>& value, emulator::Place place = {}) {
  emulator::check_global(pointer, alignof(T), "store", place);
  emulator::g_report.global_bytes_written += sizeof(T);
  *pointer = value;
}

template <class Storage>
Storage& shared_storage(emulator::Place place = {}) {
  static_assert(std::is_trivially_copyable_v<Storage> && alignof(Storage) <= 128);
  return *reinterpret_cast<Storage*>(emulator::shared_memory(sizeof(Storage), place));
}

inline int cluster_rank() { return emulator::g_current->block->rank; }
inline int cluster_size() { return emulator::g_shape.cluster; }
inline void cluster_sync(emulator::Place place = {}) { emulator::cluster_barrier(place); }

template <class T>
T* cluster_map(T* shared_pointer, int rank, emulator::Place place = {}) {
  return reinterpret_cast<T*>(emulator::cluster_memory(shared_pointer, rank, place));
}

// Every thread calls the kernel with its own copy of the arguments.
template <class... P, class... A>
cudaError_t run_emulated(void (*kernel)(P...), const emulator::Shape& shape, A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  };
  const Call call{kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  return emulator::run(shape, {[](const void* data) {
                                 const Call& it = *static_cast<const Call*>(data);
                                 std::apply(it.kernel, it.arguments);
                               },
                               &call});
}

}  // namespace specdec::cuda
