// SPDX-License-Identifier: Apache-2.0
// mma, ldmatrix and cp.async in the emulator: products against double precision, and copies that arrive when they must.
#include <cstdlib>

#include "emulator_kernels.cuh"
#include "testing.h"

using namespace specdec;
using namespace specdec::cuda;
using testing::Guarded;
using testing::Numbers;

namespace {

template <class T>
T narrow(float x) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half(x);
  } else {
    return __float2bfloat16(x);
  }
}

float widen(__half x) { return __half2float(x); }
float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
struct Operands {
  explicit Operands(int size, bool transposed) : k(size), a(storage(size)), b(storage(size)) {
    Numbers numbers(static_cast<uint64_t>(size));
    for (int i = 0; i < 16 * k; ++i) a[i] = narrow<T>(numbers.symmetric());
    for (int i = 0; i < 16 * k; ++i) b[i] = narrow<T>(numbers.symmetric());
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 16; ++column) {
        double sum = 0;
        for (int i = 0; i < k; ++i) {
          sum +=
              static_cast<double>(widen(a[row * k + i])) * widen(transposed ? b[i * 16 + column] : b[column * k + i]);
        }
        expected[row * 16 + column] = sum;
      }
    }
  }
  ~Operands() {
    std::free(a);
    std::free(b);
  }
  // Exactly so many bytes, aligned to 16: the address sanitizer sees one too many.
  static T* storage(int size) {
    void* memory = nullptr;
    CHECK(posix_memalign(&memory, 16, sizeof(T) * 16 * static_cast<size_t>(size)) == 0);
    return static_cast<T*>(memory);
  }
  int k;
  T* a;
  T* b;
  double expected[256];
};

template <class T, bool kTransposed>
void test_product() {
  for (const int k : {8, 16, 24, 32, 256, 264}) {
    const Operands<T> operands(k, kTransposed);
    for (const emulator::Schedule& schedule :
         {emulator::in_order(), emulator::reverse(), emulator::shuffled(3), emulator::one_warp_ahead(3)}) {
      const emulator::UseSchedule use(schedule);
      Guarded<float> c(256);
      const cudaError_t error = launch(product_kernel<T, kTransposed>, {1, 32, sizeof(ProductStorage<T>)},
                                       ProductCall{operands.a, operands.b, c.data(), k});
      CHECK(error == cudaSuccess, "%s", emulator_last_error());
      CHECK(c.intact());
      for (int i = 0; i < 256; ++i) {
        CHECK(std::fabs(c[i] - operands.expected[i]) <= 1e-6 * k, "k %d, element %d: %g, %g", k, i, c[i],
              operands.expected[i]);
      }
      CHECK(emulator::last_launch().global_bytes_read == 2 * 16 * k * static_cast<int64_t>(sizeof(T)));
    }
  }
}

// Without a wait the operands are poison: not a number.
template <class T>
void test_missing_wait() {
  const Operands<T> operands(32, false);
  Guarded<float> c(256);
  const cudaError_t error = launch(product_kernel<T, false, false>, {1, 32, sizeof(ProductStorage<T>)},
                                   ProductCall{operands.a, operands.b, c.data(), 32});
  CHECK(error == cudaSuccess, "%s", emulator_last_error());
  for (int i = 0; i < 256; ++i) CHECK(std::isnan(c[i]));
}

// ---- when copies arrive ----
struct CopyStorage {
  alignas(16) uint4 to[4];
};

// out[i]: first word of copy i after a wait for all but two, all but one and all groups of {0, 1}, {2}, {3
// uncommitted}.
__global__ void copy_kernel(const uint4* from, unsigned* out) {
  auto& shared = shared_storage<CopyStorage>();
  cp_async_16(&shared.to[0], from);
  cp_async_16(&shared.to[1], from + 1, false);
  cp_async_commit();
  cp_async_16(&shared.to[2], from + 2);
  cp_async_commit();
  cp_async_16(&shared.to[3], from + 3);
  const auto look = [&] {
    for (int i = 0; i < 4; ++i) *out++ = shared.to[i].x;
  };
  cp_async_wait<2>();
  look();
  cp_async_wait<1>();
  look();
  cp_async_wait<0>();
  look();
  cp_async_commit();
  cp_async_wait<0>();
  look();
}

void test_copies() {
  alignas(16) const uint4 from[4] = {{1, 0, 0, 0}, {2, 0, 0, 0}, {3, 0, 0, 0}, {4, 0, 0, 0}};
  constexpr unsigned kNone = ~0u;
  const unsigned expected[16] = {kNone, kNone, kNone, kNone, 1, 0, kNone, kNone, 1, 0, 3, kNone, 1, 0, 3, 4};
  unsigned out[16] = {};
  const cudaError_t error = launch(copy_kernel, {1, 1, sizeof(CopyStorage)}, from, out);
  CHECK(error == cudaSuccess, "%s", emulator_last_error());
  for (int i = 0; i < 16; ++i) CHECK(out[i] == expected[i], "%d: %u, %u", i, out[i], expected[i]);
  CHECK(emulator::last_launch().global_bytes_read == 3 * 16);
}

}  // namespace

int main() {
  test_product<__half, false>();
  test_product<__half, true>();
  test_product<__nv_bfloat16, false>();
  test_product<__nv_bfloat16, true>();
  test_missing_wait<__half>();
  test_missing_wait<__nv_bfloat16>();
  test_copies();
  std::puts("ok");
  return 0;
}
