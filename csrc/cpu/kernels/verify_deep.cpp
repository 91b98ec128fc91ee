// SPDX-License-Identifier: Apache-2.0
// The rules that decide a node once what lies below it is known: block and traversal verification, typical acceptance.
#include "verify_request.h"

SPECDEC_ISA_BEGIN
namespace {

// Begins with a node that has the budget `budget`. The row of one without children is not read: it may never be needed.
void enter(Request& request, Visit& visit, int32_t node, double budget) {
  visit.node = node;
  visit.read = false;
  visit.child = request.first_child(node);
  const int32_t end = request.end(node);
  const Law* q = nullptr;
  if (visit.child < end) {
    request.read(node, visit.target);
    visit.read = true;
    if (visit.target.dead() || !request.read_drafts(node, visit.draft, &q)) visit.child = end;
  }
  visit.residual.begin(visit.target, q, request.p.replacement, request.threads, budget);
}

// Emits the drafts of a path of nodes, whose laws are in `space.visits`, up to `limit`.
void emit_drafts(Request& request, size_t length, int64_t limit) {
  for (size_t d = 0; d + 1 < length && request.emitted < limit; ++d) {
    const Visit& visit = request.space.visit(d);
    request.emit(request.token(request.space.visit(d + 1).node), visit.node, visit.target);
  }
}

}  // namespace

// Depth-first; a node is done when its children are, and the first that is done with a coin below the budget that is
// left of it ends the path. python_ref/ops/residual.py has the lemma. `exhausted`: nothing was left although the budget
// was 1, which exact arithmetic does not know.
void verify_bottom_up(Request& request) {
  const int64_t limit = request.call.limit(request.index);
  if (request.nodes.count == 0 || limit <= 0) return;
  Workspace& space = request.space;
  size_t length = 1;
  bool exhausted = false;
  enter(request, space.visit(0), 0, 1.0);
  for (;;) {
    Visit& visit = space.visit(length - 1);
    if (visit.child < request.end(visit.node)) {
      const int32_t child = visit.child;
      const double budget = visit.residual.handed_down(request.token(child));
      if (budget > 0.0) {
        enter(request, space.visit(length++), child, budget);
        continue;
      }
    } else {
      if (length == 1) break;
      const int32_t parent = space.visit(length - 2).node;
      if (accepts(visit.residual.budget(), 1.0, request.coin(parent, visit.node))) break;
      --length;
    }
    Visit& above = space.visit(length - 1);
    if (!above.residual.reject(request.token(above.child))) {
      exhausted = true;
      above.child = request.end(above.node);
    } else {
      above.child = request.next_child(above.node, above.child);
    }
  }
  emit_drafts(request, length, limit);
  if (request.emitted >= limit) return;
  Visit& last = space.visit(length - 1);
  if (!last.read) request.read(last.node, last.target);
  int64_t token = -1;
  if (!last.target.dead()) {
    const Place place = request.place(last.node, Stream::residual, last.node);
    token = exhausted ? -1 : last.residual.draw(place);
    if (token < 0) {
      request.status |= kStatusFallback;
      token = draw(last.target, place);
    }
  }
  request.emit(token, last.node, last.target);
}

void verify_typical(Request& request) {
  const int64_t limit = request.call.limit(request.index);
  if (request.nodes.count == 0 || limit <= 0) return;
  Workspace& space = request.space;
  space.passed.assign((size_t)request.nodes.count, 0);
  space.passed[0] = 1;
  int32_t deepest = 0;
  Law& law = space.visit(0).target;
  for (int32_t node = 0; node < request.nodes.count; ++node) {
    if (!space.passed[(size_t)node]) continue;
    if (request.depth(node) > request.depth(deepest)) deepest = node;
    int32_t child = request.first_child(node);
    const int32_t end = request.end(node);
    if (child == end) continue;
    request.read(node, law);
    if (law.dead()) continue;
    const double least = typical_threshold(request.p, entropy(law, request.threads));
    for (; child < end; child = request.next_child(node, child)) {
      if (law.probability(request.token(child)) > least) space.passed[(size_t)child] = 1;
    }
  }
  const int64_t length = request.depth(deepest) + 1;
  space.ids.resize((size_t)length);
  for (int32_t node = deepest, d = (int32_t)length - 1; d >= 0; node = request.call.tree.parents[request.owner(node)]) {
    space.ids[(size_t)d--] = node;
  }
  for (int64_t d = 0; d < length && request.emitted < limit; ++d) {
    const int32_t node = (int32_t)space.ids[(size_t)d];
    request.read(node, law);
    if (d + 1 < length) {
      const int64_t token = request.token((int32_t)space.ids[(size_t)d + 1]);
      request.emit(token, node, law, 1.0 - law.probability(token));
    } else {
      request.emit(law.dead() ? -1 : request.plain_draw(law, node), node, law);
    }
  }
}

SPECDEC_ISA_END
