// SPDX-License-Identifier: Apache-2.0
// The one header of a kernel: the language of CUDA plus launches, shared memory, clusters and counted global memory
// traffic. The same kernel compiles with nvcc and, with SPECDEC_EMULATED, with a host compiler for the emulator.
#pragma once

#if defined(SPECDEC_EMULATED)
#include "../emulator/emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

// A function of kernels that is called, not inlined: the long steps of a row, of which a kernel has several. It keeps
// compile times and registers down, and costs nothing beside what such a step does.
#define SPECDEC_STEP [[maybe_unused]] static __device__ __noinline__

namespace specdec::cuda {

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  int cluster = 1;  // blocks per cluster, along x
};

// What the current device allows.
struct DeviceLimits {
  int max_cluster;  // 1: it has no clusters
  int64_t shared_bytes;
};

#if defined(SPECDEC_EMULATED)

inline DeviceLimits device_limits() {
  const emulator::Device device = emulator::device();
  return {device.max_cluster, device.shared_bytes};
}

// Clusters of a launch that the device runs at the same time, at most two blocks on a multiprocessor.
template <class... P>
int64_t clusters_at_once(void (*)(P...), const Launch& how) {
  const emulator::Device device = emulator::device();
  const int64_t blocks = 2 * static_cast<int64_t>(how.shared_bytes) <= device.shared_bytes ? 2 : 1;
  return blocks * device.multiprocessors / how.cluster;
}

// Runs the grid before it returns. emulator_last_error() tells more than the code.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& how, A&&... arguments) {
  return run_emulated(kernel, {how.grid, how.block, how.shared_bytes, how.cluster}, std::forward<A>(arguments)...);
}

#else

inline constexpr size_t kPlainSharedBytes = 48 * 1024;  // more must be asked for
inline constexpr int kPortableCluster = 8;              // larger ones must be asked for

inline DeviceLimits device_limits() {
  int device = 0, major = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return {major >= 9 ? kPortableCluster : 1, bytes};
}

// What has been asked of the driver, by kernel and device, for the life of the process. Shared memory is a state of the
// kernel that host threads share: it is set once, to the most that the device allows, never to what one call needs.
class KernelFacts {
 public:
  static KernelFacts& of_process() {
    static KernelFacts facts;
    return facts;
  }

  cudaError_t allow_shared_memory(const void* kernel) {
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!allowed_.insert({kernel, device}).second) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(device_limits().shared_bytes));
    if (error != cudaSuccess) allowed_.erase({kernel, device});
    return error;
  }

  int64_t clusters_at_once(const void* kernel, const Launch& how) {
    int device = 0;
    cudaGetDevice(&device);
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [place, is_new] = clusters_.insert({{kernel, device, how.cluster, how.block.x, how.shared_bytes}, 0});
    if (is_new) place->second = ask(kernel, device, how);
    return place->second;
  }

 private:
  static int64_t ask(const void* kernel, int device, const Launch& how) {
    int count = 0;
    cudaError_t error;
    if (how.cluster > 1) {
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(static_cast<unsigned>(how.cluster));
      config.blockDim = how.block;
      config.dynamicSmemBytes = how.shared_bytes;
      config.attrs = &cluster;
      config.numAttrs = 1;
      error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
    } else {
      int multiprocessors = 0;
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, static_cast<int>(how.block.x),
                                                            how.shared_bytes);
      count *= multiprocessors;
    }
    if (error == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
  }

  std::mutex mutex_;
  std::set<std::pair<const void*, int> > allowed_;
  std::map<std::tuple<const void*, int, int, unsigned, size_t>, int64_t> clusters_;
};

template <class... P>
cudaError_t allow_shared_memory(void (*kernel)(P...), const Launch& how) {
  if (how.shared_bytes <= kPlainSharedBytes) return cudaSuccess;
  return KernelFacts::of_process().allow_shared_memory(reinterpret_cast<const void*>(kernel));
}

// Clusters of a launch that the device runs at the same time; 0 if it cannot run one.
template <class... P>
int64_t clusters_at_once(void (*kernel)(P...), const Launch& how) {
  if (allow_shared_memory(kernel, how) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return KernelFacts::of_process().clusters_at_once(reinterpret_cast<const void*>(kernel), how);
}

template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), const Launch& how, A&&... arguments) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(how.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = &cluster;
  config.numAttrs = how.cluster > 1 ? 1 : 0;
  cudaError_t error = allow_shared_memory(kernel, how);
  if (error == cudaSuccess && how.cluster > kPortableCluster) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, std::forward<A>(arguments)...);
  if (error != cudaSuccess) (void)cudaGetLastError();  // it is reported here, and must not be found by others later
  return error;
}

// A plain struct laid over the dynamic shared memory, which is all the shared memory that kernels use. Poisoned in the
// emulator, undefined on a GPU.
template <class Storage>
__device__ __forceinline__ Storage& shared_storage() {
  static_assert(std::is_trivially_copyable_v<Storage> && alignof(Storage) <= 128);
  extern __shared__ __align__(128) unsigned char specdec_shared_memory[];
  return *reinterpret_cast<Storage*>(specdec_shared_memory);
}

// Global memory that is read once: past the first-level cache, in pieces of 16 bytes. Not for memory that the kernel
// writes.
template <class T>
__device__ __forceinline__ T load_once(const T* pointer) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 16 && alignof(T) == 16) {
    uint4 bits;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
        : "l"(pointer));
    T value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }
#endif
  return *pointer;
}

template <class T>
__device__ __forceinline__ void store(T* pointer, const std::type_identity_t<T>& value) {
  *pointer = value;
}

// ---- clusters: of one block where there are none ----
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define SPECDEC_HAS_CLUSTERS 1
#endif

__device__ __forceinline__ int cluster_rank() {
#if defined(SPECDEC_HAS_CLUSTERS)
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

__device__ __forceinline__ int cluster_size() {
#if defined(SPECDEC_HAS_CLUSTERS)
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}

// A barrier of all threads of the cluster. The last one comes after the last use of another block's shared memory:
// that memory ends with its block.
__device__ __forceinline__ void cluster_sync() {
#if defined(SPECDEC_HAS_CLUSTERS)
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The same place in the shared memory of the cluster's block of that rank.
template <class T>
__device__ __forceinline__ T* cluster_map(T* shared_pointer, int rank) {
#if defined(SPECDEC_HAS_CLUSTERS)
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(shared_pointer), "r"(rank));
  return reinterpret_cast<T*>(address);
#else
  (void)rank;
  return shared_pointer;
#endif
}

#endif  // SPECDEC_EMULATED

}  // namespace specdec::cuda
