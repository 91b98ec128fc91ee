// SPDX-License-Identifier: Apache-2.0
// Tiles of keys and values on their way from the cache into shared memory, as 16-bit rows that ldmatrix reads.
//
// Three routes: `direct`, asynchronous copies of 16 bytes into a ring of tiles; `widened`, the same copies of float8
// into a ring of raw bytes, which the threads that asked for them turn into the one tile when they have arrived; and
// `slow`, element by element, where rows are not aligned to 16 bytes. A row of a tile is a multiple of 16 elements and
// 8 more, so that eight rows lie in different banks.
#pragma once

#include "fold.cuh"

namespace specdec::cuda {

enum class Route : int32_t { direct, widened, slow };

// A cache as a kernel reads it: its tiles in shared memory.
struct TileStream {
  const void* data = nullptr;
  CacheType type = CacheType::float32;
  Route route = Route::slow;
  int32_t dim = 0;
  int32_t pitch = 0;   // elements from row to row of a tile
  int32_t pieces = 0;  // of 16 bytes in a row of the cache
  int32_t ring = 2;    // tiles on their way: 2 or 3
  int32_t tiles_at = 0, tile_bytes = 0;
  int32_t raw_at = 0, raw_bytes = 0;

  SPECDEC_HD int32_t place_of(int tile) const { return ring == 2 ? tile & 1 : tile % 3; }
  SPECDEC_HD int32_t tile_at(int tile) const {
    return tiles_at + (route == Route::direct ? place_of(tile) * tile_bytes : 0);
  }
  SPECDEC_HD int32_t raw_tile_at(int tile) const { return raw_at + place_of(tile) * raw_bytes; }
};

// The parts of rows that are this thread's: visit(row, column). Eight threads share a row, so that copies of 16 bytes
// come in lines of 128. Not unrolled: the addresses of many rows would be kept in registers all the time.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_parts(int rows, int columns, const Visit& visit) {
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / 8; row < rows; row += kThreads / 8) {
#pragma unroll 2
    for (int column = static_cast<int>(threadIdx.x) % 8; column < columns; column += 8) visit(row, column);
  }
}

// Asks for a tile; `begins` says where its rows begin in the cache.
template <int kThreads, int kKeys>
__device__ inline void request_tile(const TileStream& stream, unsigned char* memory, int tile, const int64_t* begins) {
  if (stream.route == Route::slow) return;
  const bool direct = stream.route == Route::direct;
  unsigned char* to = memory + (direct ? stream.tile_at(tile) : stream.raw_tile_at(tile));
  const int row_bytes = direct ? stream.pitch * 2 : stream.pieces * 16;
  const int shift = direct ? 1 : 0;
  const char* data = static_cast<const char*>(stream.data);
  for_parts<kThreads>(kKeys, stream.pieces, [&](int row, int piece) {
    const int64_t begin = begins[row];
    const char* from = data + (begin < 0 ? 0 : (begin << shift) + piece * 16);
    cp_async_16(to + row * row_bytes + piece * 16, from, begin >= 0);
  });
}

template <class T>
__device__ __forceinline__ unsigned widen_pair(CacheType type, unsigned two) {
  const unsigned halves = type == CacheType::float8_e4m3 ? half2_of_e4m3x2(static_cast<unsigned short>(two))
                                                         : (two & 0xffu) << 8 | (two & 0xff00u) << 16;
  if constexpr (std::is_same_v<T, __half>) {
    return halves;
  } else {
    __half2 value;
    memcpy(static_cast<void*>(&value), &halves, sizeof(halves));
    const float2 pair = __half22float2(value);
    const __nv_bfloat162 narrow = __floats2bfloat162_rn(pair.x, pair.y);
    unsigned bits;
    memcpy(&bits, &narrow, sizeof(bits));
    return bits;
  }
}

// Four bytes are two words of the tile.
template <class T>
__device__ inline void widen_tile_part(CacheType type, const uint4& raw, uint4& low, uint4& high) {
  low = {widen_pair<T>(type, raw.x), widen_pair<T>(type, raw.x >> 16), widen_pair<T>(type, raw.y),
         widen_pair<T>(type, raw.y >> 16)};
  high = {widen_pair<T>(type, raw.z), widen_pair<T>(type, raw.z >> 16), widen_pair<T>(type, raw.w),
          widen_pair<T>(type, raw.w >> 16)};
}

// Element by element.
template <class T, int kThreads, int kKeys>
__device__ __forceinline__ void load_slowly(const TileStream& stream, T* to, const int64_t* begins) {
  const bool narrow = stream.type == CacheType::float8_e4m3 || stream.type == CacheType::float8_e5m2;
  for_parts<kThreads>(kKeys, stream.dim, [&](int row, int column) {
    const int64_t begin = begins[row];
    unsigned short bits = 0;
    if (begin >= 0 && narrow) {
      bits = static_cast<unsigned short>(
          widen_pair<T>(stream.type, static_cast<const unsigned char*>(stream.data)[begin + column]));
    } else if (begin >= 0) {
      bits = static_cast<const unsigned short*>(stream.data)[begin + column];
    }
    memcpy(static_cast<void*>(to + row * stream.pitch + column), &bits, sizeof(bits));
  });
}

// What is left to do when a thread's own copies have arrived; after it and a barrier the tile is there.
template <class T, int kThreads, int kKeys>
__device__ inline void settle_tile(const TileStream& stream, unsigned char* memory, int tile, const int64_t* begins) {
  if (stream.route == Route::direct) return;
  T* to = reinterpret_cast<T*>(memory + stream.tile_at(tile));
  if (stream.route == Route::slow) {
    load_slowly<T, kThreads, kKeys>(stream, to, begins);
    return;
  }
  const uint4* raw = reinterpret_cast<const uint4*>(memory + stream.raw_tile_at(tile));
  for_parts<kThreads>(kKeys, stream.pieces, [&](int row, int piece) {
    uint4* at = reinterpret_cast<uint4*>(to + row * stream.pitch + piece * 16);
    widen_tile_part<T>(stream.type, raw[row * stream.pieces + piece], at[0], at[1]);
  });
}

// Rows of queries of one tile. The caller makes a group of the copies.
template <class T, int kThreads>
__device__ inline void request_queries(const TreeAttentionParams& op, const RowMark* rows, int count, int pitch,
                                       bool aligned, T* to) {
  const unsigned short* from = static_cast<const unsigned short*>(op.query);
  const int dim = static_cast<int>(op.key_dim);
  if (aligned) {
    for_parts<kThreads>(count, dim / 8, [&](int row, int piece) {
      const int64_t begin = rows[row].query;
      cp_async_16(to + row * pitch + piece * 8, from + (begin < 0 ? 0 : begin + piece * 8), begin >= 0);
    });
    return;
  }
  for_parts<kThreads>(count, dim, [&](int row, int column) {
    const int64_t begin = rows[row].query;
    const unsigned short bits = begin < 0 ? 0 : from[begin + column];
    memcpy(static_cast<void*>(to + row * pitch + column), &bits, sizeof(bits));
  });
}

// ---- values that are no numbers ----
//
// A weight of 0 times NaN is NaN: a value that some rows see and others do not must not reach those through the matrix
// product. Where a tile needs a mask and holds such values, they are added to the rows that see them one by one, and
// are zeros for the product.

template <class T>
__device__ __forceinline__ bool is_finite_bits(unsigned short bits) {
  constexpr unsigned short kExponent = std::is_same_v<T, __half> ? 0x7c00 : 0x7f80;
  return (bits & kExponent) != kExponent;
}

template <class T>
__device__ __forceinline__ float widen_bits(unsigned short bits) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(__ushort_as_half(bits));
  } else {
    return __bfloat162float(__ushort_as_bfloat16(bits));
  }
}

template <class T, int kThreads, int kKeys>
__device__ __forceinline__ bool finds_strange(const T* values, int pitch, int dim) {
  bool strange = false;
  for_parts<kThreads>(kKeys, dim / 8, [&](int row, int piece) {
    const uint4 eight = *reinterpret_cast<const uint4*>(values + row * pitch + piece * 8);
    const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (const unsigned word : words) {
      strange |= !is_finite_bits<T>(static_cast<unsigned short>(word & 0xffff)) ||
                 !is_finite_bits<T>(static_cast<unsigned short>(word >> 16));
    }
  });
  return strange;
}

template <class T, int kThreads, int kKeys>
__device__ __forceinline__ void clear_strange(T* values, int pitch, int dim) {
  for_parts<kThreads>(kKeys, dim, [&](int row, int column) {
    unsigned short bits;
    memcpy(&bits, values + row * pitch + column, sizeof(bits));
    if (!is_finite_bits<T>(bits)) values[row * pitch + column] = narrow_to<T>(0.0f);
  });
}

}  // namespace specdec::cuda
