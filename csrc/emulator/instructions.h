// SPDX-License-Identifier: Apache-2.0
// What the instructions of cuda/instructions.cuh do, in plain code.
#pragma once

#include "emulator.h"

namespace specdec::emulator {

inline float half_of(unsigned bits, int which, const __half*) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits >> (16 * which))));
}
inline float half_of(unsigned bits, int which, const __nv_bfloat16*) {
  return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits >> (16 * which))));
}

struct MmaSlot {
  const unsigned* a;
  const unsigned* b;
  float* d;
};

// Products and sums in double precision, rounded once: closer to the truth than the hardware, not its bits.
template <class T>
void mma_of_warp(void* const* data, unsigned) {
  constexpr const T* kType = nullptr;
  double a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaSlot& slot = slot_of<MmaSlot>(data, lane);
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int i = 0; i < 2; ++i) {
      for (int r = 0; r < 4; ++r) a[group + 8 * (r % 2)][pair + 8 * (r / 2) + i] = half_of(slot.a[r], i, kType);
      for (int r = 0; r < 2; ++r) b[pair + 8 * r + i][group] = half_of(slot.b[r], i, kType);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const MmaSlot& slot = slot_of<MmaSlot>(data, lane);
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;
      double sum = slot.d[r];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      slot.d[r] = static_cast<float>(sum);
    }
  }
}

struct MatrixSlot {
  const unsigned char* row;
  unsigned* result;
  bool transposed;
};

inline void ldmatrix_of_warp(void* const* data, unsigned) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const MatrixSlot& slot = slot_of<MatrixSlot>(data, lane);
    for (int m = 0; m < 4; ++m) {
      unsigned short pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = slot.transposed ? lane % 4 * 2 + i : lane / 4;
        const int column = slot.transposed ? lane / 4 : lane % 4 * 2 + i;
        memcpy(&pair[i], slot_of<MatrixSlot>(data, m * 8 + row).row + column * 2, 2);
      }
      slot.result[m] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
    }
  }
}

inline void ldmatrix(unsigned (&result)[4], const void* row, bool transposed, const Place& place) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail(place, "ldmatrix of a row that is not a multiple of 16");
  if (!is_shared(row, 16)) fail(place, "ldmatrix of a row that is not in this block's shared memory");
  MatrixSlot slot{static_cast<const unsigned char*>(row), result, transposed};
  gather(Wait::ldmatrix, ~0u, place, &slot, ldmatrix_of_warp);
}

}  // namespace specdec::emulator

namespace specdec::cuda {

template <class T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], emulator::Place place = {}) {
  emulator::MmaSlot slot{a, b, d};
  emulator::gather(emulator::Wait::mma, ~0u, place, &slot, emulator::mma_of_warp<T>);
}

inline void ldmatrix_x4(unsigned (&result)[4], const void* row, emulator::Place place = {}) {
  emulator::ldmatrix(result, row, false, place);
}
inline void ldmatrix_x4_trans(unsigned (&result)[4], const void* row, emulator::Place place = {}) {
  emulator::ldmatrix(result, row, true, place);
}

// The bytes arrive at this thread's wait for their group and no earlier; until then the target is poisoned. So a
// missing wait shows, and so does a copy into memory that others still read.
inline void cp_async_16(void* to_shared, const void* from_global, bool valid = true, emulator::Place place = {}) {
  if (reinterpret_cast<uintptr_t>(to_shared) % 16 != 0) {
    emulator::fail(place, "cp_async_16 to an address that is not a multiple of 16");
  }
  if (!emulator::is_shared(to_shared, 16))
    emulator::fail(place, "cp_async_16 to what is not this block's shared memory");
  emulator::check_global(from_global, 16, "cp_async_16", place);
  memset(to_shared, emulator::kPoison, 16);
  emulator::Fiber& self = *emulator::g_current;
  self.copies.push_back({to_shared, valid ? from_global : nullptr, self.copy_groups});
  if (valid) emulator::g_report.global_bytes_read += 16;
}

inline void cp_async_commit() { ++emulator::g_current->copy_groups; }

template <int kPending>
void cp_async_wait() {
  emulator::Fiber& self = *emulator::g_current;
  size_t arrived = 0;
  for (; arrived < self.copies.size(); ++arrived) {
    const emulator::PendingCopy& copy = self.copies[arrived];
    if (copy.group >= self.copy_groups - kPending) break;
    if (copy.from != nullptr) {
      memcpy(copy.to, copy.from, 16);
    } else {
      memset(copy.to, 0, 16);
    }
  }
  self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<ptrdiff_t>(arrived));
}

inline float exp2_fast(float x) { return exp2f(x); }

inline unsigned half2_of_e4m3x2(unsigned short two) { return half2_of_e4m3x2_in_bits(two); }

}  // namespace specdec::cuda
