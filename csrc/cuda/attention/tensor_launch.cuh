// SPDX-License-Identifier: Apache-2.0
// How the tensor-core kernel is launched: which shape of tiles, and where they lie in shared memory. What it compiles
// to is instantiated in attention_bfloat16.cu and attention_float16.cu: two compilations of half the length.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "tensor_cores.cuh"

namespace specdec::cuda {

inline bool is_float8(CacheType type) { return type == CacheType::float8_e4m3 || type == CacheType::float8_e5m2; }

// Whether rows of `dim` elements begin at multiples of `bytes`.
inline bool rows_aligned(const void* data, int64_t element, std::initializer_list<int64_t> strides, int64_t bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0;
  for (const int64_t stride : strides) aligned &= stride * element % bytes == 0;
  return aligned;
}
inline bool rows_aligned(const PagedView& view, int64_t bytes) {
  return rows_aligned(view.data, bytes_of(view.type), {view.page_stride, view.slot_stride, view.head_stride}, bytes);
}

// The values are the first columns of the keys.
inline bool is_view_of_key(const TreeAttentionParams& p) {
  return p.value.data == p.key.data && p.value.type == p.key.type && p.value.page_stride == p.key.page_stride &&
         p.value.slot_stride == p.key.slot_stride && p.value.head_stride == p.key.head_stride &&
         p.value_dim <= p.key_dim;
}

inline TileStream stream_of(const PagedView& view, int64_t dim, int32_t columns) {
  TileStream stream;
  stream.data = view.data;
  stream.type = view.type;
  stream.dim = static_cast<int32_t>(dim);
  stream.pitch = columns + 8;
  stream.pieces = static_cast<int32_t>(dim * bytes_of(view.type) / 16);
  if (rows_aligned(view, 16) && dim * bytes_of(view.type) % 16 == 0) {
    stream.route = is_float8(view.type) ? Route::widened : Route::direct;
  }
  return stream;
}

// Takes room for the tiles of a stream.
inline void furnish_stream(TileStream& stream, int keys, int64_t& bytes) {
  stream.tile_bytes = keys * stream.pitch * 2;
  stream.tiles_at = static_cast<int32_t>(bytes);
  bytes += stream.tile_bytes * (stream.route == Route::direct ? stream.ring : 1);
  if (stream.route != Route::widened) return;
  stream.raw_bytes = keys * stream.pieces * 16;
  stream.raw_at = static_cast<int32_t>(bytes);
  bytes += stream.raw_bytes * stream.ring;
}

template <int kValues>
TileMemory tile_memory(const TreeAttentionParams& p, int rows, int ring) {
  using Shapes = Family<kValues>;
  using Narrow = typename Shapes::Narrow;
  const auto round_up = [](int64_t value) { return static_cast<int32_t>((value + 15) / 16 * 16); };
  constexpr int kKeys = Narrow::kKeys;
  TileMemory m;
  m.shared = is_view_of_key(p);
  m.fewer = Shapes::kFewer < kValues && p.value_dim <= Shapes::kFewer;
  m.steps = round_up(p.key_dim) / 16;
  m.aligned_query = rows_aligned(p.query, 2, {p.query_row_stride, p.query_head_stride}, 16);
  m.query_pitch = round_up(p.key_dim) + 8;
  const int32_t value_columns = m.fewer ? Shapes::kFewer : kValues;
  const int32_t key_columns = round_up(p.key_dim);
  m.key = stream_of(p.key, p.key_dim, m.shared && value_columns > key_columns ? value_columns : key_columns);
  m.value = stream_of(p.value, p.value_dim, m.shared ? m.key.pitch - 8 : value_columns);
  m.key.ring = m.shared ? ring : 2;
  int64_t bytes = round_up(offsetof(TileStorage<typename Shapes::Wide>, rows) + rows * sizeof(RowMark));
  m.query_at = static_cast<int32_t>(bytes);
  bytes += rows * m.query_pitch * 2;
  m.weights_at = static_cast<int32_t>(bytes);
  if (Narrow::kExchange) bytes += rows * (kKeys + 8) * 2;
  m.scratch_at = static_cast<int32_t>(bytes);
  constexpr int64_t kScratch =
      Narrow::kExchange ? 0 : (Narrow::kKeyWarps - 1) * Narrow::kRowWarps * (4 + Narrow::kWarpValues / 2) * 32 * 4;
  // The tiles may be overwritten between splits, but not the zeros at the edge of their rows.
  const int64_t after_scratch = bytes + kScratch;
  if (p.key_dim % 16 != 0) bytes = after_scratch;
  furnish_stream(m.key, kKeys, bytes);
  if (!m.shared) furnish_stream(m.value, kKeys, bytes);
  m.bytes = bytes > after_scratch ? bytes : after_scratch;
  return m;
}

// The shape of the tiles and the shared memory that hold a call; false if the device has not enough of it.
template <int kValues>
bool choose_tiles(const TreeAttentionParams& p, int64_t limit, Geometry& g, TileMemory& m) {
  using Shapes = Family<kValues>;
  constexpr int kNarrow = Shapes::Narrow::kRows, kWide = Shapes::Wide::kRows;
  g.keys = Shapes::Wide::kKeys;
  g.narrow_rows = kNarrow;
  // Where no request can have more rows than a narrow tile, nothing is set aside for wide ones.
  const bool few = !p.queries.cu && p.max_nodes * (p.heads / p.kv_heads) <= kNarrow;
  for (const int rows : {few ? kNarrow : kWide, kNarrow}) {
    g.wide_rows = rows;
    for (const int ring : {3, 2}) {
      m = tile_memory<kValues>(p, rows, ring);
      if (m.bytes <= limit) return true;
    }
  }
  return false;
}

// What a call needs, settled from shapes alone.
struct AttentionSetup {
  Geometry geometry;
  TileMemory memory;
  int values = 0;  // family of the tensor-core kernel; 0: the plain one
  int64_t bytes = 0;
};

template <class T, int kValues>
void set_up_family(const TreeAttentionParams& p, AttentionSetup& setup) {
  if (!choose_tiles<kValues>(p, device_limits().shared_bytes, setup.geometry, setup.memory)) return;
  const Launch how{1, Family<kValues>::Wide::kThreads, static_cast<size_t>(setup.memory.bytes), nullptr};
  const int64_t blocks = clusters_at_once(tensor_attention_kernel<T, kValues>, how);
  setup.values = kValues;
  setup.geometry.blocks = static_cast<int32_t>(blocks < 1 ? 1 : blocks);
}

// Sets setup.values if the device has room for the tiles.
template <class T>
void set_up_tensor_cores(const TreeAttentionParams& p, AttentionSetup& setup) {
  if (p.value_dim <= 64) {
    set_up_family<T, 64>(p, setup);
  } else if (p.value_dim <= 128) {
    set_up_family<T, 128>(p, setup);
  } else if (p.value_dim <= 256) {
    set_up_family<T, 256>(p, setup);
  } else {
    set_up_family<T, 512>(p, setup);
  }
}

template <class T, int kValues>
cudaError_t launch_family(const TensorCall& p, cudaStream_t stream) {
  const Launch how{static_cast<unsigned>(p.call.geometry.blocks), Family<kValues>::Wide::kThreads,
                   static_cast<size_t>(p.memory.bytes), stream};
  return launch(tensor_attention_kernel<T, kValues>, how, p);
}

template <class T>
cudaError_t launch_tensor_cores(const TensorCall& p, int values, cudaStream_t stream) {
  switch (values) {
    case 64:
      return launch_family<T, 64>(p, stream);
    case 128:
      return launch_family<T, 128>(p, stream);
    case 256:
      return launch_family<T, 256>(p, stream);
    default:
      return launch_family<T, 512>(p, stream);
  }
}

#if !defined(SPECDEC_EMULATED)
extern template void set_up_tensor_cores<__half>(const TreeAttentionParams&, AttentionSetup&);
extern template void set_up_tensor_cores<__nv_bfloat16>(const TreeAttentionParams&, AttentionSetup&);
extern template cudaError_t launch_tensor_cores<__half>(const TensorCall&, int, cudaStream_t);
extern template cudaError_t launch_tensor_cores<__nv_bfloat16>(const TensorCall&, int, cudaStream_t);
#endif

}  // namespace specdec::cuda
