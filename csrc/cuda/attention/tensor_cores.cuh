// SPDX-License-Identifier: Apache-2.0
// Tree attention on tensor cores, for queries of 16 bits over a cache of the same type or of float8.
//
// A block has one tile of rows and reads the keys of its splits once, tile by tile: while one is multiplied the next
// two are on their way. Loads (load.cuh), products and softmax (fragments.cuh), and what is visible (visible.cuh) are
// apart, and meet in attend_split.
#pragma once

#include "fragments.cuh"
#include "load.cuh"

namespace specdec::cuda {

// Shared memory behind the storage of a family, as byte offsets from its beginning.
struct TileMemory {
  TileStream key, value;
  bool shared = false;         // values are the first columns of the keys
  bool fewer = false;          // values fit into kFewer columns
  bool aligned_query = false;  // to 16 bytes
  int32_t steps = 0;           // of 16 columns of the keys
  int32_t query_pitch = 0, query_at = 0;
  int32_t weights_at = 0, scratch_at = 0;
  int64_t bytes = 0;
};

struct TensorCall {
  AttentionCall call;
  TileMemory memory;
};

template <class Shape>
struct TileStorage {
  ScheduleStorage schedule;
  TileMark common;
  KeyRing<Shape::kKeys> keys;
  // Of the rows of each key warp, where they share weights.
  float largest[Shape::kExchange ? Shape::kKeyWarps : 1][Shape::kExchange ? Shape::kRows : 1];
  float sums[Shape::kExchange ? Shape::kKeyWarps : 1][Shape::kExchange ? Shape::kRows : 1];
  RowMark rows[Shape::kRows];  // the last member: where no tile is wide, what lies behind the narrow rows is used
};

// The shapes for values of up to so many columns: few rows are spread over the keys, many over the rows.
template <int kValues>
struct Family {
  using Narrow = TileShape<1, 4, 64, kValues>;
  using Wide = TileShape<4, 1, 64, kValues>;
  static constexpr int kFewer = kValues == 128 ? 96 : kValues, kBlocks = kValues == 64 ? 3 : 2;
};
template <>
struct Family<256> {
  using Narrow = TileShape<2, 2, 32, 256>;
  using Wide = TileShape<4, 1, 32, 256>;
  static constexpr int kFewer = 192, kBlocks = 2;
};
template <>
struct Family<512> {
  using Narrow = TileShape<4, 2, 32, 512, true>;
  using Wide = Narrow;
  static constexpr int kFewer = 512, kBlocks = 1;
};

// Values for the product of a tile that needs a mask: what is no number reaches only the rows that see it.
template <class T, class Shape, class Storage>
__device__ __forceinline__ void isolate_strange(const TensorCall& p, Storage& storage, T* values, int tile,
                                                const int32_t (&node)[2], const int32_t (&bound)[2], bool idle,
                                                FragmentState<Shape>& state) {
  const int pitch = p.memory.value.pitch, dim = p.memory.value.dim;
  if (__syncthreads_or(finds_strange<T, Shape::kThreads, Shape::kKeys>(values, pitch, dim)) == 0) return;
  const int from = Shape::kExchange ? 0 : state.key_warp() * Shape::kWarpKeys;
  for (int k = from; k < from + Shape::kProductKeys && !idle; ++k) {
    const KeyMark key = storage.keys.mark[storage.keys.place_of(tile)][k];
    const bool seen[2] = {sees(node[0], bound[0], key), sees(node[1], bound[1], key)};
    const T* row = values + k * pitch + state.column();
    state.each(dim, [&](int r, int offset, float& first, float& second) {
      if (!seen[r]) return;
      unsigned bits;
      memcpy(&bits, row + offset, sizeof(bits));
      const unsigned short low = static_cast<unsigned short>(bits & 0xffff);
      const unsigned short high = static_cast<unsigned short>(bits >> 16);
      if (!is_finite_bits<T>(low)) first += widen_bits<T>(low);
      if (!is_finite_bits<T>(high)) second += widen_bits<T>(high);
    });
  }
  __syncthreads();
  clear_strange<T, Shape::kThreads, Shape::kKeys>(values, pitch, dim);
  __syncthreads();
}

// The warps that had the keys of a tile between them merge what they have into the first one's.
template <class Shape>
__device__ __forceinline__ void gather_key_warps(float* scratch, FragmentState<Shape>& state) {
  constexpr int kFloats = 4 + Shape::kWarpValues / 2;  // of a lane
  const int lane = state.lane(), row_warp = state.warp() % Shape::kRowWarps, mine = state.key_warp();
  const auto place = [&](int key_warp) {
    return scratch + ((key_warp - 1) * Shape::kRowWarps + row_warp) * (kFloats * 32) + lane;
  };
  __syncthreads();
  if (mine > 0) {
    float* to = place(mine);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      to[r * 32] = state.maximum[r];
      to[(2 + r) * 32] = state.sum[r];
    }
#pragma unroll
    for (int n = 0; n < Shape::kWarpValues / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(4 + 4 * n + i) * 32] = state.values[n][i];
    }
  }
  __syncthreads();
  for (int w = 1; w < Shape::kKeyWarps && mine == 0; ++w) {
    const float* from = place(w);
    MergeWeights weights[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      weights[r] = weigh_states(true, state.maximum[r], from[r * 32]);
      state.maximum[r] = weights[r].maximum;
      state.sum[r] = merged(weights[r], state.sum[r], from[(2 + r) * 32]);
    }
#pragma unroll
    for (int n = 0; n < Shape::kWarpValues / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        state.values[n][i] = merged(weights[i / 2], state.values[n][i], from[(4 + 4 * n + i) * 32]);
      }
    }
  }
}

// What a lane knows of its rows.
template <class T>
struct LaneRows {
  const T* queries;  // of the warp's first row
  int32_t node[2], bound[2];
  bool idle;  // the warp has no rows
};

// Scores of a warp's keys of a tile, as powers of 2; -inf where they are not visible.
template <class T, class Shape, class Storage>
__device__ __forceinline__ void score_tile(const TensorCall& p, const Storage& storage, const Scoring& scoring,
                                           const LaneRows<T>& lane_rows, const T* keys, int tile,
                                           float (&scores)[Shape::kWarpKeys / 8][4]) {
  const int key_warp = FragmentState<Shape>::key_warp(), pitch = p.memory.key.pitch;
  multiply_keys<T>(scores, lane_rows.queries, p.memory.query_pitch, keys + key_warp * Shape::kWarpKeys * pitch, pitch,
                   p.memory.steps);
  scoring(scores);
  if (!storage.keys.masked(tile)) return;
  const KeyMark* marks = storage.keys.mark[storage.keys.place_of(tile)] + key_warp * Shape::kWarpKeys +
                         FragmentState<Shape>::lane() % 4 * 2;
#pragma unroll
  for (int n = 0; n < Shape::kWarpKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const KeyMark key = marks[n * 8 + i];
      if (!sees(lane_rows.node[0], lane_rows.bound[0], key)) scores[n][i] = -INFINITY;
      if (!sees(lane_rows.node[1], lane_rows.bound[1], key)) scores[n][2 + i] = -INFINITY;
    }
  }
}

// Adds values by weights.
template <class T, class Shape, int kFewer>
__device__ __forceinline__ void mix_tile(const TensorCall& p, const T* weights_in_memory,
                                         const unsigned (&weights)[Shape::kWarpKeys / 16][4], const T* values,
                                         FragmentState<Shape>& state) {
  const int pitch = p.memory.value.pitch;
  const auto product = [&](const unsigned (&a)[4], const T* from) {
    if (kFewer < Shape::kValues && p.memory.fewer) {
      multiply_values<T, (kFewer < Shape::kValues ? kFewer : Shape::kWarpValues) / 16>(state.values, a, from, pitch);
    } else {
      multiply_values<T, Shape::kWarpValues / 16>(state.values, a, from, pitch);
    }
  };
  if constexpr (Shape::kExchange) {
    constexpr int kPitch = Shape::kKeys + 8;
    const int lane = state.lane();
    const T* mine = weights_in_memory + (state.warp() % Shape::kRowWarps * 16 + lane % 16) * kPitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < Shape::kKeys / 16; ++k) {
      unsigned a[4];
      ldmatrix_x4(a, mine + k * 16);
      product(a, values + k * 16 * pitch + state.key_warp() * Shape::kWarpValues);
    }
  } else {
#pragma unroll
    for (int k = 0; k < Shape::kWarpKeys / 16; ++k) {
      product(weights[k], values + (state.key_warp() * Shape::kWarpKeys + k * 16) * pitch);
    }
  }
}

// One split: its state in `state`. All threads of the block.
template <class T, class Shape, int kFewer, class Storage>
__device__ __forceinline__ void attend_split(const TensorCall& p, Storage& storage, unsigned char* memory,
                                             int32_t split, const Scoring& scoring, const LaneRows<T>& lane_rows,
                                             FragmentState<Shape>& state) {
  constexpr int kThreads = Shape::kThreads, kKeys = Shape::kKeys, kTiles = KeyRing<kKeys>::kTiles;
  const TileMemory& m = p.memory;
  const Run& run = storage.schedule.run;
  const KeyRange range = keys_of_split(p.call, run.plan, storage.common, split);
  const int tiles = range.tiles<kKeys>();
  const bool looks = threadIdx.x < kKeys, late = m.shared && m.key.ring == 2;
  auto& ring = storage.keys;
  const auto key_of = [&](int tile) { return range.begin + static_cast<int64_t>(tile) * kKeys + threadIdx.x; };
  const auto locate = [&](int tile) { return locate_key(p.call, run.plan, key_of(tile)); };
  const auto mark = [&](int tile, const KeyPlace& place) {
    mark_key(p.call, run, storage.common, storage.rows, key_of(tile), range.end, place, ring, tile);
  };
  const auto request_key = [&](int tile) {
    if (tile >= 0 && tile < tiles) request_tile<kThreads, kKeys>(m.key, memory, tile, ring.key[ring.place_of(tile)]);
  };
  const auto request_value = [&](int tile) {
    if (tile >= 0 && tile < tiles && !m.shared)
      request_tile<kThreads, kKeys>(m.value, memory, tile, ring.value[ring.place_of(tile)]);
  };
  T* const shared_weights = reinterpret_cast<T*>(memory + m.weights_at);

  state.clear();
  // A tile is looked up three rounds before it is multiplied, its keys are asked for two rounds before, and its values
  // one. Groups of copies in order: keys 0, values 0, keys 1, values 1 and so on. Where values are keys and only two
  // tiles fit, keys are asked for when else the values were.
  for (int tile = 1 - kTiles; tile < tiles; ++tile) {
    if (tile >= 0) {
      if (late) {
        cp_async_wait<0>();
      } else {
        cp_async_wait<2>();
      }
      if (m.shared && m.key.route != Route::direct) __syncthreads();  // the one tile is free
      settle_tile<T, kThreads, kKeys>(m.key, memory, tile, ring.key[ring.place_of(tile)]);
    }
    __syncthreads();  // the keys are there, and the values before are done with
    if (late) {
      request_key(tile + 1);
    } else {
      request_value(tile + 1);
    }
    cp_async_commit();
    KeyPlace next{-1, 0, -1};
    if (looks) next = locate(tile + kTiles - 1);
    if (tile < 0) {
      if (!late) request_key(tile + 2);
      cp_async_commit();
      if (looks) mark(tile + kTiles - 1, next);
      continue;
    }

    const T* keys = reinterpret_cast<const T*>(memory + m.key.tile_at(tile));
    float scores[Shape::kWarpKeys / 8][4], largest[2] = {-INFINITY, -INFINITY};
    unsigned weights[Shape::kWarpKeys / 16][4];
    if (!lane_rows.idle) {
      score_tile<T, Shape>(p, storage, scoring, lane_rows, keys, tile, scores);
      largest_of_rows(scores, largest);
    }
    if constexpr (Shape::kExchange) {
      if (state.lane() % 4 == 0) {
        storage.largest[state.key_warp()][state.row(0)] = largest[0];
        storage.largest[state.key_warp()][state.row(1)] = largest[1];
      }
      __syncthreads();
#pragma unroll
      for (int w = 0; w < Shape::kKeyWarps; ++w) {
        largest[0] = fmaxf(largest[0], storage.largest[w][state.row(0)]);
        largest[1] = fmaxf(largest[1], storage.largest[w][state.row(1)]);
      }
    }
    if (!lane_rows.idle) {
      state.raise(largest);
      const float reference[2] = {state.reference(0), state.reference(1)};
#pragma unroll
      for (int n = 0; n < Shape::kWarpKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          scores[n][i] = exp2_fast(scores[n][i] - reference[i / 2]);
          state.sum[i / 2] += scores[n][i];
        }
        const unsigned pairs[2] = {pack<T>(scores[n][0], scores[n][1]), pack<T>(scores[n][2], scores[n][3])};
        weights[n / 2][n % 2 * 2] = pairs[0];
        weights[n / 2][n % 2 * 2 + 1] = pairs[1];
        if constexpr (Shape::kExchange) {
          const int column = state.key_warp() * Shape::kWarpKeys + n * 8 + state.lane() % 4 * 2;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            memcpy(static_cast<void*>(shared_weights + state.row(r) * (kKeys + 8) + column), &pairs[r],
                   sizeof(unsigned));
          }
        }
      }
    }
    if (looks) mark(tile + kTiles - 1, next);
    if (!m.shared) {
      cp_async_wait<2>();
      settle_tile<T, kThreads, kKeys>(m.value, memory, tile, ring.value[ring.place_of(tile)]);
    }
    __syncthreads();  // the values are there, and the keys are done with
    if (!late) request_key(tile + 2);
    cp_async_commit();
    T* values = reinterpret_cast<T*>(memory + (m.shared ? m.key.tile_at(tile) : m.value.tile_at(tile)));
    if (ring.masked(tile)) {
      isolate_strange<T, Shape>(p, storage, values, tile, lane_rows.node, lane_rows.bound, lane_rows.idle, state);
    }
    if (!lane_rows.idle) mix_tile<T, Shape, kFewer>(p, shared_weights, weights, values, state);
  }
  cp_async_wait<0>();
  state.total();
  if constexpr (Shape::kExchange) {
    if (state.lane() % 4 == 0) {
      storage.sums[state.key_warp()][state.row(0)] = state.sum[0];
      storage.sums[state.key_warp()][state.row(1)] = state.sum[1];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] = 0.0f;
#pragma unroll
      for (int w = 0; w < Shape::kKeyWarps; ++w) state.sum[r] += storage.sums[w][state.row(r)];
    }
  } else if constexpr (Shape::kKeyWarps > 1) {
    gather_key_warps<Shape>(reinterpret_cast<float*>(memory + m.scratch_at), state);
  }
  __syncthreads();  // all of the shared memory but the rows is free
}

// Some consecutive splits of one group.
template <class T, class Shape, int kFewer, class Storage>
__device__ inline void attend_run(const TensorCall& p, Storage& storage, unsigned char* memory) {
  const Run& run = storage.schedule.run;
  if (threadIdx.x / 32 == Shape::kThreads / 32 - 1) {
    mark_rows(p.call, run, Shape::kRows, storage.rows, storage.common);
  }
  __syncthreads();
  if (threadIdx.x == 0 && run.first == 0) flag_unreachable(p.call, run, storage.common);
  T* queries = reinterpret_cast<T*>(memory + p.memory.query_at);
  request_queries<T, Shape::kThreads>(p.call.op, storage.rows, Shape::kRows, p.memory.query_pitch,
                                      p.memory.aligned_query, queries);
  cp_async_commit();
  FragmentState<Shape> state;
  LaneRows<T> lane_rows;
  const int row_warp = state.warp() % Shape::kRowWarps;
  lane_rows.queries = queries + row_warp * 16 * p.memory.query_pitch;
  lane_rows.idle = row_warp * 16 >= storage.common.rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    lane_rows.node[r] = storage.rows[state.row(r)].node;
    lane_rows.bound[r] = storage.rows[state.row(r)].bound;
  }
  const Scoring scoring(p.call.op, run.kv_head);
  Fold fold(p.call, run);
  for (int32_t split = run.first; split < run.last; ++split) {
    attend_split<T, Shape, kFewer>(p, storage, memory, split, scoring, lane_rows, state);
    if (fold.add(state, split)) write_result<T>(p.call, state, storage.rows);
  }
  __syncthreads();  // the rows are free
}

// Columns between the size of a head and the next multiple of 16 are zeros, in queries and keys.
template <class T, int kThreads>
__device__ inline void clear_edge(T* rows, int count, int pitch, int dim) {
  const int columns = (dim + 15) / 16 * 16 - dim;
  if (columns == 0) return;
  for_parts<kThreads>(count, columns,
                      [&](int row, int column) { rows[row * pitch + dim + column] = narrow_to<T>(0.0f); });
}

template <class T, int kValues>
__global__ void __launch_bounds__(Family<kValues>::Wide::kThreads, Family<kValues>::kBlocks)
    tensor_attention_kernel(const __grid_constant__ TensorCall p) {
  using Shapes = Family<kValues>;
  using Storage = TileStorage<typename Shapes::Wide>;
  constexpr int kThreads = Shapes::Wide::kThreads, kFewer = Shapes::kFewer;
  auto& storage = shared_storage<Storage>();
  unsigned char* memory = reinterpret_cast<unsigned char*>(&storage);
  const TileMemory& m = p.memory;
  clear_edge<T, kThreads>(reinterpret_cast<T*>(memory + m.query_at), p.call.geometry.wide_rows, m.query_pitch,
                          m.key.dim);
  for (int tile = 0; tile < (m.key.route == Route::direct ? m.key.ring : 1); ++tile) {
    clear_edge<T, kThreads>(reinterpret_cast<T*>(memory + m.key.tile_at(tile)), Shapes::Wide::kKeys, m.key.pitch,
                            m.key.dim);
  }
  for_each_run(p.call, storage.schedule, [&] {
    if (storage.schedule.run.plan.rows == Shapes::Narrow::kRows) {
      attend_run<T, typename Shapes::Narrow, kFewer>(p, storage, memory);
    } else if constexpr (!std::is_same_v<typename Shapes::Narrow, typename Shapes::Wide>) {
      attend_run<T, typename Shapes::Wide, kFewer>(p, storage, memory);
    }
  });
}

}  // namespace specdec::cuda
