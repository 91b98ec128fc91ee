// SPDX-License-Identifier: Apache-2.0
// kv.commit: the accepted rows of all buffers move in one launch. The table of buffers is an argument of the kernel.
//
// Who does what: a block has one buffer, one request and 128 columns of that buffer's rows; a column is a unit of up to
// 16 bytes, at the same offset in every row. A thread owns one column: nobody else reads or writes its bytes, and it
// moves them row by row in ascending order, four rows at a time: four loads, then four stores.
//
// Why that is right in place. Entry j of a path has slot s_j, and its bytes go from context + s_j to context + j. Only
// the longest prefix is moved on which slots increase strictly from at least 0, whatever the data; on it s_j >= j. When
// rows k, ..., k + 3 are stored, at places k to k + 3, all rows up to k + 3 have been loaded. A row that is still to be
// loaded, j > k + 3, lies at s_j >= j, behind all that has been stored. So every row is loaded before it is
// overwritten, as if all were read first. Rows at their place (s_j = j) are neither read nor written.
//
// That is an argument about one request and pages of its own. Where tables name a page twice, what its rows hold
// afterwards depends on who comes first; every access is to a row of the buffer all the same, because pages are checked
// where they are read.
//
// Memory traffic: one read and one write of each row that moves; per block the path, and the table entries of its rows.
// An extra block per request looks at all groups and writes the status.
#pragma once

#include "../../common/kv_params.h"
#include "../../common/status.h"
#include "../device.cuh"

namespace specdec::cuda {

inline constexpr int kCommitThreads = 128;
inline constexpr int kPlacesAtOnce = 64;
inline constexpr int kRowsAtOnce = 4;  // in 64 registers: eight blocks of a multiprocessor keep 64 KB on the way

// What the kernel is given: a part of the buffers, and the groups that they belong to.
template <int kMostBuffers, int kMostGroups>
struct CommitTable {
  CommitCall call;
  int32_t buffer_count = 0;
  int32_t group_count = 0;
  int32_t chunks = 1;        // blocks along the rows of the longest
  bool adds_status = false;  // earlier launches have written some of it
  KvGroupView groups[kMostGroups];
  KvBuffer buffers[kMostBuffers];

  static constexpr int kBuffers = kMostBuffers, kGroups = kMostGroups;
};

using SmallCommit = CommitTable<36, 4>;
static_assert(sizeof(SmallCommit) <= 4096);
#if defined(CUDART_VERSION) && CUDART_VERSION >= 12010
using LargeCommit = CommitTable<320, 32>;  // arguments of 32,764 bytes
static_assert(sizeof(LargeCommit) <= 32764);
#else
using LargeCommit = SmallCommit;
#endif

struct CommitStorage {
  int64_t from[kPlacesAtOnce];
  int64_t to[kPlacesAtOnce];  // -1: this row does not move
  int32_t first_wrong;
};

// How many entries of the path are in order, by all threads of a block.
__device__ inline int32_t entries_in_order(const CommitCall& call, const KvGroupView& group,
                                           const CommitRequest& request, int64_t b, int32_t& first_wrong) {
  for (int32_t base = 0; base < request.count; base += kCommitThreads) {
    const int32_t j = base + static_cast<int32_t>(threadIdx.x);
    const bool good = j >= request.count ||
                      path_entry(call, group, request, b, j).follows(path_entry(call, group, request, b, j - 1));
    if (__syncthreads_and(good)) continue;
    if (threadIdx.x == 0) first_wrong = INT32_MAX;
    __syncthreads();
    if (!good) atomicMin(&first_wrong, j);
    __syncthreads();
    return first_wrong;
  }
  return request.count;
}

template <class Unit>
__device__ __forceinline__ void move_column(const CommitStorage& places, int count, char* column) {
  for (int first = 0; first < count; first += kRowsAtOnce) {
    Unit held[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int j = first + r;
      if (j < count && places.to[j] >= 0) held[r] = *reinterpret_cast<const Unit*>(column + places.from[j]);
    }
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int j = first + r;
      if (j < count && places.to[j] >= 0) store(reinterpret_cast<Unit*>(column + places.to[j]), held[r]);
    }
  }
}

__device__ inline void move_column_of_width(int32_t width, const CommitStorage& places, int count, char* column) {
  switch (width) {
    case 16:
      return move_column<uint4>(places, count, column);
    case 8:
      return move_column<uint2>(places, count, column);
    case 4:
      return move_column<uint32_t>(places, count, column);
    case 2:
      return move_column<uint16_t>(places, count, column);
    default:
      return move_column<uint8_t>(places, count, column);
  }
}

// The status of one request, by one block.
template <class Table>
__device__ inline void report_commit(const Table& p, int64_t b, int32_t& first_wrong) {
  int32_t bits = 0;
  for (int32_t g = 0; g < p.group_count; ++g) {
    const KvGroupView& group = p.groups[g];
    const CommitRequest request = open_commit(p.call, group, b);
    const int32_t good = entries_in_order(p.call, group, request, b, first_wrong);
    bool lost = false;
    for (int32_t j = static_cast<int32_t>(threadIdx.x); j < good; j += kCommitThreads) {
      const int32_t slot = path_entry(p.call, group, request, b, j).slot;
      if (slot == j) continue;
      lost |= place_of(group, request.row, request.context + slot, group.fewest_pages, 0, 0) < 0;
      lost |= place_of(group, request.row, request.context + j, group.fewest_pages, 0, 0) < 0;
    }
    if (__syncthreads_or(lost)) bits |= kStatusPageOutOfRange;
    if (request.malformed || good < request.count) bits |= kStatusMalformed;
  }
  if (threadIdx.x == 0) p.call.status[b] = bits | (p.adds_status ? p.call.status[b] : 0);
}

template <class Table>
__global__ void __launch_bounds__(kCommitThreads, 8) commit_kernel(const __grid_constant__ Table p) {
  auto& shared = shared_storage<CommitStorage>();
  const int64_t b = blockIdx.x / static_cast<unsigned>(p.chunks);
  const int64_t chunk = blockIdx.x % static_cast<unsigned>(p.chunks);
  if (blockIdx.y == static_cast<unsigned>(p.buffer_count)) {
    if (chunk == 0) report_commit(p, b, shared.first_wrong);
    return;
  }
  const KvBuffer& buffer = p.buffers[blockIdx.y];
  const int64_t units = buffer.row.units(), unit = chunk * kCommitThreads + threadIdx.x;
  if (chunk * kCommitThreads >= units) return;
  const KvGroupView& group = p.groups[buffer.group];
  const CommitRequest request = open_commit(p.call, group, b);
  const int32_t good = entries_in_order(p.call, group, request, b, shared.first_wrong);
  const int32_t per_run = buffer.row.units_per_run();
  char* column =
      buffer.data + buffer.row.offset_of_run(static_cast<int32_t>(unit / per_run)) + unit % per_run * buffer.row.width;
  for (int32_t base = 0; base < good; base += kPlacesAtOnce) {
    const int count = good - base < kPlacesAtOnce ? good - base : kPlacesAtOnce;
    __syncthreads();
    if (threadIdx.x < static_cast<unsigned>(count)) {
      const int32_t j = base + static_cast<int32_t>(threadIdx.x);
      const int32_t slot = path_entry(p.call, group, request, b, j).slot;
      int64_t from = -1, to = -1;
      if (slot != j) {
        from = place_of(group, request.row, request.context + slot, buffer.num_pages, buffer.page_stride,
                        buffer.slot_stride);
        to =
            place_of(group, request.row, request.context + j, buffer.num_pages, buffer.page_stride, buffer.slot_stride);
      }
      shared.from[threadIdx.x] = from;
      shared.to[threadIdx.x] = from < 0 ? -1 : to;
    }
    __syncthreads();
    if (unit < units) move_column_of_width(buffer.row.width, shared, count, column);
  }
}

// As many buffers as a table takes from the `next`-th on, with their groups; returns the one after them.
template <class Table>
int64_t fill_commit(const KvCommitParams& p, int64_t next, Table& table) {
  table.call = p.call;
  table.adds_status = next > 0;
  table.buffer_count = table.group_count = 0;
  const int32_t first_group = next < p.buffer_count ? p.buffers[next].group : 0;
  int64_t units = 1;
  while (next < p.buffer_count && table.buffer_count < Table::kBuffers) {
    KvBuffer buffer = p.buffers[next];
    const KvGroupView& group = p.groups[buffer.group];
    buffer.group -= first_group;
    if (buffer.group >= Table::kGroups) break;
    table.groups[buffer.group] = group;
    table.group_count = buffer.group + 1;
    table.buffers[table.buffer_count++] = buffer;
    if (buffer.row.units() > units) units = buffer.row.units();
    ++next;
  }
  table.chunks = static_cast<int32_t>((units + kCommitThreads - 1) / kCommitThreads);
  return next;
}

template <class Table>
cudaError_t launch_commit_with(const KvCommitParams& p, cudaStream_t stream) {
  Table table;
  int64_t next = 0;
  do {
    next = fill_commit(p, next, table);
    const unsigned rows = static_cast<unsigned>(table.buffer_count) + (p.call.status != nullptr ? 1 : 0);
    const dim3 grid(static_cast<unsigned>(p.call.batch * table.chunks), rows);
    const cudaError_t error =
        launch(commit_kernel<Table>, {grid, kCommitThreads, sizeof(CommitStorage), stream}, table);
    if (error != cudaSuccess) return error;
  } while (next < p.buffer_count);
  return cudaSuccess;
}

inline cudaError_t launch_commit(const KvCommitParams& p, cudaStream_t stream) {
  if (p.call.batch == 0 || (p.buffer_count == 0 && p.call.status == nullptr)) return cudaSuccess;
  const bool small = p.buffer_count <= SmallCommit::kBuffers && p.group_count <= SmallCommit::kGroups;
  return small ? launch_commit_with<SmallCommit>(p, stream) : launch_commit_with<LargeCommit>(p, stream);
}

}  // namespace specdec::cuda
