// SPDX-License-Identifier: Apache-2.0
// from_beams: the best candidates of a pool as a tree. One block per request, one launch.
//
// Two candidates are one node iff they have the same tokens on their paths. That is found by doubling: candidates with
// the same last token get the same name, then those with the same name whose ancestors so far up have the same name
// too, and so on; a name is the candidate that came first to a slot of a hash table, whichever that is. The least index
// of those with one name stands for them. The minima of scores along paths are found in the same way, and the keys that
// result are sorted.
//
// 24 bytes of shared memory per candidate: at most 97 KiB. Candidates are read at most three times, from the caches
// after the first.
#pragma once

#include "layout.cuh"

namespace specdec::cuda {

inline constexpr int kBeamsEach = kMaxPool / kMaxBlockThreads;  // candidates of a thread, at most
static_assert(kMaxPool < 1 << 15);

// A candidate, its path up to an ancestor, and whether some node on that part is absent.
struct BeamLink {
  int32_t above;  // -1: the root, or nothing
  int32_t depth;  // length of the part
  bool gone;
};

__device__ __forceinline__ uint32_t pack(const BeamLink& link) {
  return static_cast<uint32_t>(link.above + 1) | static_cast<uint32_t>(link.depth) << 13 | (link.gone ? 1u << 31 : 0u);
}
__device__ __forceinline__ BeamLink unpack(uint32_t bits) {
  return {static_cast<int32_t>(bits & 0x1fff) - 1, static_cast<int32_t>(bits >> 13 & 0x1fff), bits >> 31 != 0};
}

// In shared memory. What is made last lies where what was needed first has been: the layout over links and names, the
// keys over the table.
struct BeamsMemory {
  LayoutStorage* layout;
  uint32_t* links;
  uint16_t* names;
  uint16_t* parents;  // plus 1; after the merge, of the node that stands for the parent
  int32_t* table;
  uint64_t* keys;
  int32_t* first;  // the candidate that stands for a name; then the node of a candidate
  int32_t* best;   // tokens; then scores, as integers in their order
  int table_size;

  SPECDEC_HD static int padded(int64_t pool) { return power_of_two(pool, kWarp); }
  SPECDEC_HD static int64_t early(int64_t pool) {
    const int64_t bytes = padded(pool) * 6ll, layout = static_cast<int64_t>(sizeof(LayoutStorage));
    return bytes > layout ? bytes : layout;
  }
  SPECDEC_HD static int64_t bytes(int64_t pool) {
    return static_cast<int64_t>(sizeof(ScanStorage)) + early(pool) + padded(pool) * 18ll;
  }
  __device__ static BeamsMemory carve(unsigned char* at, int64_t pool) {
    const int size = padded(pool);
    BeamsMemory m;
    at += sizeof(ScanStorage);
    m.layout = reinterpret_cast<LayoutStorage*>(at);
    m.links = reinterpret_cast<uint32_t*>(at);
    m.names = reinterpret_cast<uint16_t*>(m.links + size);
    at += early(pool);
    m.table = reinterpret_cast<int32_t*>(at);
    m.keys = reinterpret_cast<uint64_t*>(at);
    m.table_size = 2 * size;
    m.first = m.table + 2 * size;
    m.best = m.first + size;
    m.parents = reinterpret_cast<uint16_t*>(m.best + size);
    return m;
  }
};

// The candidates of one request, kBeamsEach per thread at most: thread t has t, t + threads, ...
class Beams {
 public:
  __device__ Beams(const BeamsMemory& memory, BlockScan& scan, int length)
      : m_(memory), scan_(scan), length_(length), t_(static_cast<int>(threadIdx.x)) {}

  // Brings the keys of the nodes in order, and their number. Whether a parent was out of range goes into `wrong`.
  __device__ int rank(const FromBeamsParams& p, int64_t b, bool& wrong) {
    read(p, b, wrong);
    name();
    merge(p.max_depth);
    return sort();
  }

  // The node that stands for the parent of one that stands for itself; -1: the root.
  __device__ int parent(int candidate) const { return m_.parents[candidate] - 1; }

 private:
  // visit(e, i) for the candidates of this thread; the e are known when this is compiled.
  template <class Visit>
  __device__ __forceinline__ void each(const Visit& visit) const {
#pragma unroll
    for (int e = 0; e < kBeamsEach; ++e) {
      const int i = e * static_cast<int>(blockDim.x) + t_;
      if (i < length_) visit(e, i);
    }
  }

  __device__ void clear_table() {
    for (int i = t_; i < m_.table_size; i += static_cast<int>(blockDim.x)) m_.table[i] = -1;
  }

  __device__ void read(const FromBeamsParams& p, int64_t b, bool& wrong) {
    const IndexView tokens = p.pool_tokens.row(b), parents = p.pool_parents.row(b);
    const float* scores = p.scores + b * p.score_row_stride;
    clear_table();
    each([&](int e, int i) {
      score_[e] = safe_score(scores[i * p.score_column_stride]);
      const int64_t token = tokens[i], parent = parents[i];
      bool there = score_[e] != kAbsent && is_token(token);
      const bool in_range = parent >= -1 && parent < i;
      wrong |= there && !in_range;
      there = there && in_range;
      const int32_t above = there ? static_cast<int32_t>(parent) : -1;
      m_.links[i] = pack({above, 1, !there});
      m_.parents[i] = static_cast<uint16_t>(above + 1);
      m_.best[i] = static_cast<int32_t>(token);
      there_[e] = there;
    });
    __syncthreads();
  }

  // The slot's owner: of candidates that are the same, the one that came first. The table is never full.
  template <class Same>
  __device__ int find(int candidate, uint32_t hash, const Same& same) {
    const uint32_t last = static_cast<uint32_t>(m_.table_size) - 1;
    for (uint32_t at = hash >> 7;; ++at) {
      const int owner = atomicCAS(&m_.table[at & last], -1, candidate);
      if (owner < 0) return candidate;
      if (same(owner)) return owner;
    }
  }

  __device__ void name() {
    int names[kBeamsEach];
    uint32_t links[kBeamsEach];
    bool more = false;
    each([&](int e, int i) {
      const int32_t token = m_.best[i];
      names[e] = i;
      if (there_[e]) {
        names[e] =
            find(i, static_cast<uint32_t>(token) * 0x9e3779b1u, [&](int owner) { return m_.best[owner] == token; });
      }
      m_.names[i] = static_cast<uint16_t>(names[e]);
      more |= unpack(m_.links[i]).above >= 0;
    });
    // The name of the ancestor behind what the name of a candidate stands for, plus 1; 0 if there is none.
    const auto name_above = [&](int i) {
      const int above = unpack(m_.links[i]).above;
      return above < 0 ? 0u : m_.names[above] + 1u;
    };
    while (__syncthreads_or(more)) {  // paths double: at most 13 times
      clear_table();
      __syncthreads();
      more = false;
      each([&](int e, int i) {
        BeamLink link = unpack(m_.links[i]);
        const uint32_t own = m_.names[i], above = name_above(i);
        if (there_[e]) {
          names[e] = find(i, (own << 16 ^ above) * 0x9e3779b1u,
                          [&](int owner) { return m_.names[owner] == own && name_above(owner) == above; });
        }
        if (link.above >= 0) {
          const BeamLink next = unpack(m_.links[link.above]);
          link = {next.above, link.depth + next.depth, link.gone || next.gone};
        }
        links[e] = pack(link);
        more |= link.above >= 0;
      });
      __syncthreads();
      each([&](int e, int i) {
        m_.names[i] = static_cast<uint16_t>(names[e]);
        m_.links[i] = links[e];
      });
    }
  }

  // One of those with the same name stands for all, with the largest of their scores, and then the smallest on its
  // path.
  __device__ void merge(int64_t max_depth) {
    each([&](int, int i) {
      m_.first[i] = INT32_MAX;
      m_.best[i] = INT32_MIN;
    });
    __syncthreads();
    each([&](int e, int i) {
      const BeamLink link = unpack(m_.links[i]);
      there_[e] = !link.gone && link.depth <= max_depth;
      depth_[e] = link.depth;
      if (there_[e]) atomicMin(&m_.first[m_.names[i]], i);
    });
    __syncthreads();
    bool more = false;
    each([&](int e, int i) {
      int32_t above = -1;
      if (there_[e]) {
        const int stands = m_.first[m_.names[i]];
        atomicMax(&m_.best[stands], ordered(score_[e]));
        const int parent = m_.parents[i] - 1;
        if (parent >= 0) above = m_.first[m_.names[parent]];
        there_[e] = stands == i;
      }
      m_.parents[i] = static_cast<uint16_t>(above + 1);
      m_.links[i] = static_cast<uint32_t>(above + 1);
      more |= above >= 0;
    });
    int32_t least[kBeamsEach], next[kBeamsEach];
    while (__syncthreads_or(more)) {
      more = false;
      each([&](int e, int i) {
        const int32_t above = static_cast<int32_t>(m_.links[i]) - 1;
        least[e] = m_.best[i];
        next[e] = -1;
        if (above < 0) return;
        least[e] = min(least[e], m_.best[above]);
        next[e] = static_cast<int32_t>(m_.links[above]) - 1;
        more |= next[e] >= 0;
      });
      __syncthreads();
      each([&](int e, int i) {
        m_.best[i] = least[e];
        m_.links[i] = static_cast<uint32_t>(next[e] + 1);
      });
    }
  }

  __device__ int sort() {
    int mine = 0;
    each([&](int e, int) { mine += there_[e]; });
    const Prefix place = scan_.sum(mine);
    int at = place.before;
    each([&](int e, int i) {
      if (there_[e]) m_.keys[at++] = beam_key(from_ordered(m_.best[i]), depth_[e], i);
    });
    __syncthreads();
    sort_keys(m_.keys, place.all);
    return place.all;
  }

  const BeamsMemory& m_;
  BlockScan& scan_;
  int length_, t_;
  float score_[kBeamsEach];
  int32_t depth_[kBeamsEach];
  bool there_[kBeamsEach];
};

[[maybe_unused]] static __global__ void __launch_bounds__(kMaxBlockThreads)
    from_beams_kernel(const __grid_constant__ FromBeamsParams p) {
  auto& shared = shared_storage<ScanStorage>();
  const BeamsMemory memory = BeamsMemory::carve(reinterpret_cast<unsigned char*>(&shared), p.pool);
  BlockScan scan(shared);
  const int64_t b = blockIdx.x, nodes = p.tree.max_nodes;
  write_offsets(p.tree, p.batch, b);
  if (b >= p.batch) return;
  const int i = static_cast<int>(threadIdx.x);
  const int64_t budget = budget_of(p.budgets, nodes, b), root = p.root_tokens[b];
  int count = 0, candidate = -1;
  bool wrong = false;
  Placed placed;
  if (budget > 0 && is_token(root)) {
    int64_t length = p.lengths ? p.lengths[b] : p.pool;
    wrong = length < 0 || length > p.pool;
    if (wrong) length = 0;
    Beams beams(memory, scan, static_cast<int>(length));
    const int found = beams.rank(p, b, wrong);
    count = 1 + (found < budget - 1 ? found : static_cast<int>(budget - 1));
    int parent = -1;
    if (i > 0 && i < count) {
      candidate = index_of_beam_key(memory.keys[i - 1]);
      memory.first[candidate] = i;
      parent = beams.parent(candidate);
    }
    __syncthreads();
    if (i > 0 && i < count) parent = parent < 0 ? 0 : memory.first[parent];
    placed = lay_out(*memory.layout, count, parent);
  }
  wrong = __syncthreads_or(wrong) != 0;
  if (i == 0) p.tree.status[b] = wrong ? kStatusMalformed : 0;
  if (i >= nodes) return;
  const bool live = i < count;
  const int64_t row = b * nodes + (live ? placed.place : i);
  int64_t token = root;
  if (live && i > 0) token = p.pool_tokens.row(b)[candidate];
  write_row(p.tree, row, live, placed, token);
  p.order[row] = candidate;
}

inline cudaError_t launch_from_beams(const FromBeamsParams& p, cudaStream_t stream) {
  const int64_t most = p.pool > p.tree.max_nodes ? p.pool : p.tree.max_nodes;
  return launch(from_beams_kernel,
                {blocks_of_requests(p.batch), static_cast<unsigned>(block_threads(most)),
                 static_cast<size_t>(BeamsMemory::bytes(p.pool)), stream},
                p);
}

}  // namespace specdec::cuda
