// SPDX-License-Identifier: Apache-2.0
// What a plain test program needs: a check that stays in release builds, repeatable numbers, and arrays between
// sentinels.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define CHECK(condition, ...)                                                   \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::fprintf(stderr, "%s:%d: %s failed", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, " " __VA_ARGS__);                                    \
      std::fprintf(stderr, "\n");                                               \
      std::exit(1);                                                             \
    }                                                                           \
  } while (0)

namespace specdec::testing {

// A small generator (xorshift): the same numbers on every machine.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  int64_t below(int64_t limit) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(limit)); }
  // In [-1, 1), a multiple of 2^-23.
  float symmetric() { return static_cast<float>(static_cast<int64_t>(bits() >> 40) - (1 << 23)) / (1 << 23); }

 private:
  uint64_t state_;
};

// `size` elements, poisoned, between two runs of sentinel bytes.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t size) : size_(size), bytes_(kGuard + size * sizeof(T) + kGuard, kSentinel) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + kGuard); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return size_; }
  bool intact() const {
    for (size_t i = 0; i < kGuard; ++i) {
      if (bytes_[i] != kSentinel || bytes_[bytes_.size() - 1 - i] != kSentinel) return false;
    }
    return true;
  }
  // True if element i still holds the poison, byte for byte.
  bool untouched(int64_t i) const {
    for (size_t j = 0; j < sizeof(T); ++j) {
      if (bytes_[kGuard + i * sizeof(T) + j] != kSentinel) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kSentinel = 0xa5;
  int64_t size_;
  std::vector<unsigned char> bytes_;
};

template <class T>
bool same_bits(const T* a, const T* b, int64_t count) {
  return count == 0 || std::memcmp(a, b, static_cast<size_t>(count) * sizeof(T)) == 0;
}

}  // namespace specdec::testing
