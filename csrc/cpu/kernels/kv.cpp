// SPDX-License-Identifier: Apache-2.0
// The paged cache: rows are written (kv_write), moved in place (kv_commit), collected (kv_gather). All three read each
// byte once and write it once; rows are independent of each other, so that threads do not change a result.
#include "kv.h"

#include <cstring>

#include "../../common/status.h"
#include "cache_store.h"
#include "parallel.h"

SPECDEC_ISA_BEGIN
namespace {

void raise(int32_t* status, int64_t b, int32_t bits) {
  if (status != nullptr && bits != 0) __atomic_fetch_or(&status[b], bits, __ATOMIC_RELAXED);
}

// ---- kv.write ----

constexpr int kChunk = 128;  // elements that are converted at a time

// All heads of a row.
void write_row(const KvSide& side, int64_t heads, int64_t row, int64_t page, int64_t slot) {
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t from = row * side.row_stride + h * side.head_stride;
    const int64_t to = page * side.to.page_stride + slot * side.to.slot_stride + h * side.to.head_stride;
    if (same_type(side.type, side.to.type) && !side.scale) {
      const int64_t element = bytes_of(side.to.type);
      std::memcpy(static_cast<char*>(side.to.data) + to * element, static_cast<const char*>(side.from) + from * element,
                  static_cast<size_t>(side.dim * element));
      continue;
    }
    const RowsView source{side.from, side.type, 0, 0, 0};
    for (int64_t d = 0; d < side.dim; d += kChunk) {
      const int count = static_cast<int>(side.dim - d < kChunk ? side.dim - d : kChunk);
      alignas(64) float values[kChunk];
      load_floats(source, from + d, count, values);
      if (side.scale) {
        const float scale = side.scale[h];
        for (int i = 0; i < count; ++i) values[i] /= scale;
      }
      store_narrow(values, count, side.to.type, side.to.data, to + d);
    }
  }
}

void write_request(const KvWriteParams& p, int64_t b, int threads) {
  if (p.active && !p.active[b]) return;
  const RequestNodes nodes = open_request(p.tree, b);
  int64_t context = p.context_lens[b];
  raise(p.status, b, nodes.malformed || (nodes.count > 0 && context < 0) ? kStatusMalformed : 0);
  context = context < 0 ? 0 : context > INT64_MAX / 2 ? INT64_MAX / 2 : context;
  int64_t begin = nodes.first, end = nodes.first + nodes.count;
  if (p.queries.cu) {
    begin = p.queries.cu[b];
    end = p.queries.cu[b + 1];
    if (begin < 0 || begin > end || end > p.queries.total) return raise(p.status, b, kStatusMalformed);
  }
  const PagedView& pages = p.sides[0].to;
  const int64_t table_row = p.table.row_of(b);
  for_pieces(end - begin, threads, [&](int64_t i) {
    const int64_t node = p.queries.cu ? p.queries.nodes[begin + i] : i;
    if (node < 0 || node >= nodes.count) return;
    const int64_t slot = p.slots ? p.slots[nodes.first + node] : node, position = context + slot;
    if (slot < 0) return raise(p.status, b, kStatusMalformed);
    const int64_t page = p.table.page(table_row, position / pages.page_size, pages.num_pages);
    if (page < 0) return raise(p.status, b, kStatusPageOutOfRange);
    for (int32_t s = 0; s < p.side_count; ++s) {
      write_row(p.sides[s], p.heads, begin + i, page, position % pages.page_size);
    }
  });
}

// ---- rows of bytes ----

void copy_row(const RowShape& row, const char* from, char* to) {
  const size_t run = static_cast<size_t>(row.run);
  for (int32_t i = 0; i < row.counts[0]; ++i) {
    for (int32_t j = 0; j < row.counts[1]; ++j) {
      const int64_t outer = i * row.strides[0] + j * row.strides[1];
      for (int32_t k = 0; k < row.counts[2]; ++k) {
        const int64_t at = outer + k * row.strides[2];
        std::memmove(to + at, from + at, run);  // a tensor whose rows overlap is moved somehow, and within bounds
      }
    }
  }
}

// ---- kv.commit ----

constexpr int kMovesAtOnce = 64;
constexpr int64_t kBuffersOfPiece = 8;  // that a thread moves the rows of one request in

// From where to where a row moves; page -1: there is none.
struct Move {
  int64_t from_page, from_slot;
  int64_t to_page, to_slot;
};

// The moves of one request in one group, some at a time and in ascending order.
class Moves {
 public:
  Moves(const CommitCall& call, const KvGroupView& group, int64_t b)
      : call_(call), group_(group), b_(b), request_(open_commit(call, group, b)) {
    if (request_.malformed) status = kStatusMalformed;
  }

  // How many have been found, after those found before; 0: there are no more.
  int next() {
    int count = 0;
    for (; next_ < request_.count && count < kMovesAtOnce; ++next_) {
      const PathEntry entry = path_entry(call_, group_, request_, b_, next_);
      if (!entry.follows(before_)) {
        status |= kStatusMalformed;
        next_ = request_.count;
        break;
      }
      before_ = entry;
      if (entry.slot == next_) continue;
      Move& move = moves[count++];
      place(request_.context + entry.slot, move.from_page, move.from_slot);
      place(request_.context + next_, move.to_page, move.to_slot);
    }
    return count;
  }

  Move moves[kMovesAtOnce];
  int32_t status = 0;

 private:
  void place(int64_t position, int64_t& page, int64_t& slot) const {
    page = group_.table.page(request_.row, position >> group_.page_shift, INT64_MAX);
    slot = position & ((int64_t{1} << group_.page_shift) - 1);
  }

  const CommitCall& call_;
  const KvGroupView& group_;
  int64_t b_;
  CommitRequest request_;
  PathEntry before_;
  int32_t next_ = 0;
};

// Moves rows in ascending order: row j lies at slot s_j >= j behind the context and slots ascend, so that what a row
// overwrites is the source of an earlier row or of none. False if a row has no page in this buffer.
bool move_rows(const KvBuffer& buffer, const Move* moves, int count) {
  bool complete = true;
  const auto there = [&](int64_t page) { return page >= 0 && page < buffer.num_pages; };
  for (int i = 0; i < count; ++i) {
    const Move& move = moves[i];
    if (!there(move.from_page) || !there(move.to_page)) {
      complete = false;
      continue;
    }
    copy_row(buffer.row, buffer.data + move.from_page * buffer.page_stride + move.from_slot * buffer.slot_stride,
             buffer.data + move.to_page * buffer.page_stride + move.to_slot * buffer.slot_stride);
  }
  return complete;
}

// Rows that move in one buffer of a group, if all paths are in order.
int64_t most_moves(const CommitCall& call, const KvGroupView& group) {
  int64_t moves = 0;
  for (int64_t b = 0; b < call.batch; ++b) {
    const CommitRequest request = open_commit(call, group, b);
    for (int32_t j = 0; j < request.count; ++j) moves += path_entry(call, group, request, b, j).slot != j;
  }
  return moves;
}

// Buffers [begin, end) of one group.
int32_t move_request(const KvCommitParams& p, int64_t begin, int64_t end, int64_t b) {
  Moves found(p.call, p.groups[p.buffers[begin].group], b);
  while (const int count = found.next()) {
    for (int64_t i = begin; i < end; ++i) {
      if (!move_rows(p.buffers[i], found.moves, count)) found.status |= kStatusPageOutOfRange;
    }
  }
  return found.status;
}

}  // namespace

void kv_write(const KvWriteParams& p) {
  const int64_t batch = p.tree.batch;
  if (p.status != nullptr) std::memset(p.status, 0, static_cast<size_t>(batch) * sizeof(int32_t));
  if (batch == 0) return;
  int64_t bytes = 0;
  for (int32_t s = 0; s < p.side_count; ++s) bytes += p.queries.total * p.heads * p.sides[s].dim * 4;
  const int64_t rows = (p.queries.total + batch - 1) / batch;
  spread(batch, bytes / batch, rows, [&](int64_t b, int threads) { write_request(p, b, threads); });
}

void kv_commit(const KvCommitParams& p) {
  const CommitCall& call = p.call;
  if (call.status != nullptr) std::memset(call.status, 0, static_cast<size_t>(call.batch) * sizeof(int32_t));
  int64_t bytes = 0, moves = 0;
  for (int64_t i = 0; i < p.buffer_count; ++i) {
    const int32_t group = p.buffers[i].group;
    if (i == 0 || group != p.buffers[i - 1].group) moves = most_moves(call, p.groups[group]);
    bytes += moves * p.buffers[i].row.runs() * p.buffers[i].row.run;
  }
  const int64_t slices = (p.buffer_count + kBuffersOfPiece - 1) / kBuffersOfPiece, pieces = slices * call.batch;
  for_pieces(pieces, threads_for(2 * bytes, pieces, kCopiedPerThread), [&](int64_t piece) {
    const int64_t b = piece % call.batch, first = piece / call.batch * kBuffersOfPiece;
    const int64_t last = first + kBuffersOfPiece < p.buffer_count ? first + kBuffersOfPiece : p.buffer_count;
    for (int64_t begin = first; begin < last;) {
      int64_t end = begin + 1;
      while (end < last && p.buffers[end].group == p.buffers[begin].group) ++end;
      raise(call.status, b, move_request(p, begin, end, b));
      begin = end;
    }
  });
}

void kv_gather(const KvGatherParams& p) {
  const int64_t pieces = p.batch * p.width, bytes = p.row.runs() * p.row.run;
  for_pieces(pieces, threads_for(2 * pieces * bytes, pieces, kCopiedPerThread), [&](int64_t piece) {
    const int64_t row = gathered_row(p, piece / p.width, piece % p.width);
    char* to = p.out + piece * p.out_row_bytes;
    if (row < 0) {
      std::memset(to, 0, static_cast<size_t>(bytes));
      return;
    }
    const char* from = p.values + row * p.row_stride;
    const int64_t runs = p.row.runs();
    for (int64_t i = 0; i < runs; ++i, to += p.row.run) {
      std::memcpy(to, from + p.row.offset_of_run(static_cast<int32_t>(i)), static_cast<size_t>(p.row.run));
    }
  });
}

SPECDEC_ISA_END
