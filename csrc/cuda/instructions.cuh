// SPDX-License-Identifier: Apache-2.0
// Instructions without a CUDA function, one wrapper each. Fragments have the layouts of the PTX manual.
#pragma once

#include "device.cuh"

namespace specdec::cuda {

// Two e4m3 as two float16, the first in the low half; exact. The bits of an e4m3 are those of a float16 of 2^-8 of its
// value, of a subnormal number too; 0x7f is the one NaN.
__device__ __forceinline__ unsigned half2_of_e4m3x2_in_bits(unsigned two) {
  const unsigned wide = (two & 0xffu) | (two & 0xff00u) << 8;
  const unsigned small = (wide & 0x7f007fu) << 7;
  __half2 value;
  memcpy(static_cast<void*>(&value), &small, sizeof(small));
  value = __hmul2(value, __floats2half2_rn(256.0f, 256.0f));
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  if ((wide & 0x7fu) == 0x7fu) bits |= 0x7e00u;
  if ((wide & 0x7f0000u) == 0x7f0000u) bits |= 0x7e000000u;
  return bits | (wide & 0x800080u) << 8;
}

}  // namespace specdec::cuda

#if defined(SPECDEC_EMULATED)
#include "../emulator/instructions.h"
#else

namespace specdec::cuda {

// d[16, 8] += a[16, 16] b[16, 8] by one warp; T is __half or __nv_bfloat16. All lanes call it together.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8, 16 bytes aligned.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&result)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&result)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, both aligned to 16; zeros if not valid (the address must be aligned all the
// same, and is not read). This thread sees them after a wait for their group, others after a barrier behind that.
__device__ __forceinline__ void cp_async_16(void* to_shared, const void* from_global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)), "l"(from_global),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Makes a group of the copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all groups of this thread but the kPending newest.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x with a relative error of about 2^-22; 0 where that is below 2^-126.
__device__ __forceinline__ float exp2_fast(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// Two e4m3 as two float16, the first in the low half; exact.
__device__ __forceinline__ unsigned half2_of_e4m3x2(unsigned short two) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  unsigned halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(two));
  return halves;
#else
  return half2_of_e4m3x2_in_bits(two);
#endif
}

}  // namespace specdec::cuda

#endif
