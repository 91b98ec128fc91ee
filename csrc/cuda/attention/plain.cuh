// SPDX-License-Identifier: Apache-2.0
// Tree attention in single precision, for everything that tensor cores would round: queries or caches of 32 bits, and
// pairs of 16-bit types of which neither holds the other. Also what does not fit into shared memory as tiles.
//
// A block has 16 rows and reads 32 keys at a time, 128 columns after the other. Eight threads share a row: in scores
// each has every eighth key, in values every eighth piece of four columns.
#pragma once

#include "fold.cuh"

namespace specdec::cuda {

inline constexpr int kPlainThreads = 128, kPlainRows = 16, kPlainKeys = 32;
inline constexpr int kChunk = 128;  // columns at a time
inline constexpr int kRowThreads = kPlainThreads / kPlainRows;
inline constexpr int kChunks = static_cast<int>(kMaxValueDim) / kChunk;

struct PlainCall {
  AttentionCall call;
  bool vector_query = false;  // pieces of four elements are aligned
  bool vector_key = false;
  bool vector_value = false;
};

struct PlainStorage {
  ScheduleStorage schedule;
  TileMark common;
  RowMark rows[kPlainRows];
  KeyRing<kPlainKeys> keys;
  float weights[kPlainRows][kPlainKeys + 1];
  alignas(16) float query[kPlainRows][kMaxKeyDim + 4];
  alignas(16) float tile[kPlainKeys][kChunk + 4];
};

__device__ __forceinline__ float load_element(CacheType type, const void* data, int64_t at) {
  switch (type) {
    case CacheType::float32:
      return static_cast<const float*>(data)[at];
    case CacheType::bfloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    case CacheType::float16:
      return __half2float(static_cast<const __half*>(data)[at]);
    case CacheType::float8_e4m3: {
      const unsigned halves = half2_of_e4m3x2(static_cast<const unsigned char*>(data)[at]);
      return __half2float(__ushort_as_half(static_cast<unsigned short>(halves & 0xffff)));
    }
    default:
      return __half2float(
          __ushort_as_half(static_cast<unsigned short>(static_cast<const unsigned char*>(data)[at] << 8)));
  }
}

// Elements [at, at + 4).
SPECDEC_STEP float4 load_four(CacheType type, const void* data, int64_t at, bool vector) {
  float four[4];
  if (vector && type == CacheType::float32) {
    return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
  }
  if (vector && bytes_of(type) == 2) {
    const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(data) + at);
    const unsigned short bits[4] = {
        static_cast<unsigned short>(raw.x & 0xffff), static_cast<unsigned short>(raw.x >> 16),
        static_cast<unsigned short>(raw.y & 0xffff), static_cast<unsigned short>(raw.y >> 16)};
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = load_element(type, bits, i);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) four[i] = load_element(type, data, at + i);
  }
  return make_float4(four[0], four[1], four[2], four[3]);
}

SPECDEC_SHARED CacheType as_cache(FloatType type) {
  return type == FloatType::float32    ? CacheType::float32
         : type == FloatType::bfloat16 ? CacheType::bfloat16
                                       : CacheType::float16;
}

struct PlainState {
  static constexpr bool kBase2 = false;
  static constexpr int kThreadRows = 1;
  float maximum[1], sum[1];  // `sum` is this thread's share until the end of a split
  float values[kChunks][4][4];

  __device__ static int part() { return static_cast<int>(threadIdx.x) % kRowThreads; }
  __device__ static int row(int) { return static_cast<int>(threadIdx.x) / kRowThreads; }
  __device__ static bool holds() { return true; }
  __device__ static bool leads() { return part() == 0; }
  __device__ static int column() { return part() * 4; }

  __device__ void clear() {
    maximum[0] = -INFINITY;
    sum[0] = 0.0f;
    each(kChunks * kChunk, [](int, int, float& first, float& second) { first = second = 0.0f; });
  }
  template <class F>
  __device__ void each(int columns, const F& f) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int offset = c * kChunk + i * 4 * kRowThreads;
        if (offset + column() >= columns) return;
        f(0, offset, values[c][i][0], values[c][i][1]);
        f(0, offset + 2, values[c][i][2], values[c][i][3]);
      }
    }
  }
};

// Columns [from, from + kChunk) of the keys or values of a tile.
__device__ inline void load_chunk(PlainStorage& storage, const PagedView& view, const int64_t* begins, int from,
                                  int dim, bool vector) {
  const int pieces = (dim - from < kChunk ? dim - from : kChunk) / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kPlainKeys * (kChunk / 4); i += kPlainThreads) {
    const int row = i / (kChunk / 4), piece = i % (kChunk / 4);
    if (piece >= pieces) continue;
    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (begins[row] >= 0) four = load_four(view.type, view.data, begins[row] + from + piece * 4, vector);
    *reinterpret_cast<float4*>(&storage.tile[row][piece * 4]) = four;
  }
}

// The product of the thread's row and its keys, columns [from, from + kChunk) of it.
__device__ __forceinline__ void add_scores(const PlainStorage& storage, int from, int dim, float (&scores)[4]) {
  const int columns = dim - from < kChunk ? dim - from : kChunk, part = PlainState::part();
  const float* query = storage.query[PlainState::row(0)] + from;
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (int c = 0; c < columns; c += 4) {
    const float4 q = *reinterpret_cast<const float4*>(query + c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 key = *reinterpret_cast<const float4*>(&storage.tile[part + k * kRowThreads][c]);
      sums[k] = __fmaf_rn(q.x, key.x, sums[k]);
      sums[k] = __fmaf_rn(q.y, key.y, sums[k]);
      sums[k] = __fmaf_rn(q.z, key.z, sums[k]);
      sums[k] = __fmaf_rn(q.w, key.w, sums[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) scores[k] += sums[k];
}

inline constexpr float kUnseen = -1.0f;  // in place of a weight

// Scores of the thread's keys become weights; what was summed before becomes relative to the new maximum.
__device__ __forceinline__ void weigh_scores(const TreeAttentionParams& op, PlainStorage& storage, float scale,
                                             int tile, float (&scores)[4], PlainState& state) {
  const RowMark row = storage.rows[state.row(0)];
  const KeyMark* marks = storage.keys.mark[storage.keys.place_of(tile)];
  float largest = -INFINITY;
  bool seen[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    scores[k] *= scale;
    if (op.softcap > 0.0f) scores[k] = op.softcap * tanhf(scores[k] / op.softcap);
    seen[k] = sees(row.node, row.bound, marks[state.part() + k * kRowThreads]);
    if (!seen[k]) scores[k] = -INFINITY;
    largest = fmaxf(largest, scores[k]);
  }
#pragma unroll
  for (int distance = 1; distance < kRowThreads; distance *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  }
  const float old = state.maximum[0];
  state.maximum[0] = fmaxf(old, largest);
  const float reference = state.maximum[0] == -INFINITY ? 0.0f : state.maximum[0];
  const float factor = expf(old - reference);
  state.sum[0] *= factor;
  state.each(kChunks * kChunk, [&](int, int, float& first, float& second) {
    first *= factor;
    second *= factor;
  });
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float weight = seen[k] ? expf(scores[k] - reference) : 0.0f;
    state.sum[0] += weight;
    storage.weights[state.row(0)][state.part() + k * kRowThreads] = seen[k] ? weight : kUnseen;
  }
}

// Adds values by weights. Values that a row does not see add nothing to it, whatever they are.
__device__ __forceinline__ void add_values(const PlainStorage& storage, float (&values)[4][4]) {
  for (int key = 0; key < kPlainKeys; ++key) {
    const float weight = storage.weights[PlainState::row(0)][key];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 v = *reinterpret_cast<const float4*>(&storage.tile[key][PlainState::column() + i * 4 * kRowThreads]);
      const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        values[i][j] = weight == kUnseen ? values[i][j] : __fmaf_rn(weight, four[j], values[i][j]);
    }
  }
}

__device__ inline void attend_split_plainly(const PlainCall& p, PlainStorage& storage, int32_t split,
                                            PlainState& state) {
  const TreeAttentionParams& op = p.call.op;
  const Run& run = storage.schedule.run;
  const KeyRange range = keys_of_split(p.call, run.plan, storage.common, split);
  const int tiles = range.tiles<kPlainKeys>(), key_dim = static_cast<int>(op.key_dim);
  const int value_dim = static_cast<int>(op.value_dim);
  const float scale = op.scale * (op.key_scale ? op.key_scale[run.kv_head] : 1.0f);
  state.clear();
  for (int tile = 0; tile < tiles; ++tile) {
    const int at = storage.keys.place_of(tile);
    if (threadIdx.x < kPlainKeys) {
      const int64_t key = range.begin + static_cast<int64_t>(tile) * kPlainKeys + threadIdx.x;
      mark_key(p.call, run, storage.common, storage.rows, key, range.end, locate_key(p.call, run.plan, key),
               storage.keys, tile);
    }
    float scores[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int from = 0; from < key_dim; from += kChunk) {
      __syncthreads();
      load_chunk(storage, op.key, storage.keys.key[at], from, key_dim, p.vector_key);
      __syncthreads();
      add_scores(storage, from, key_dim, scores);
    }
    weigh_scores(op, storage, scale, tile, scores, state);
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk * kChunk >= value_dim) break;
      __syncthreads();
      load_chunk(storage, op.value, storage.keys.value[at], chunk * kChunk, value_dim, p.vector_value);
      __syncthreads();
      add_values(storage, state.values[chunk]);
    }
  }
#pragma unroll
  for (int distance = 1; distance < kRowThreads; distance *= 2) {
    state.sum[0] += __shfl_xor_sync(~0u, state.sum[0], distance);
  }
  __syncthreads();
}

[[maybe_unused]] static __global__ void __launch_bounds__(kPlainThreads)
    plain_attention_kernel(const __grid_constant__ PlainCall p) {
  auto& storage = shared_storage<PlainStorage>();
  const TreeAttentionParams& op = p.call.op;
  const Run& run = storage.schedule.run;
  for_each_run(p.call, storage.schedule, [&] {
    if (threadIdx.x < 32) mark_rows(p.call, run, kPlainRows, storage.rows, storage.common);
    __syncthreads();
    if (threadIdx.x == 0 && run.first == 0) flag_unreachable(p.call, run, storage.common);
    const int pieces = static_cast<int>(op.key_dim) / 4;
    for (int i = static_cast<int>(threadIdx.x); i < kPlainRows * pieces; i += kPlainThreads) {
      const int64_t begin = storage.rows[i / pieces].query;
      float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (begin >= 0) four = load_four(as_cache(op.query_type), op.query, begin + i % pieces * 4, p.vector_query);
      *reinterpret_cast<float4*>(&storage.query[i / pieces][i % pieces * 4]) = four;
    }
    Fold fold(p.call, run);
    PlainState state;
    for (int32_t split = run.first; split < run.last; ++split) {
      attend_split_plainly(p, storage, split, state);
      if (!fold.add(state, split)) continue;
      if (op.query_type == FloatType::float32) {
        write_result<float>(p.call, state, storage.rows);
      } else if (op.query_type == FloatType::bfloat16) {
        write_result<__nv_bfloat16>(p.call, state, storage.rows);
      } else {
        write_result<__half>(p.call, state, storage.rows);
      }
    }
    __syncthreads();
  });
}

}  // namespace specdec::cuda
