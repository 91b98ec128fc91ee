"""Builders and exports of trees against their definitions: recursion, brute force, a heap, the relation itself."""

import heapq
import itertools
import math

import pytest
import torch

from python_ref.ops import tree as oracle
from python_ref.types import MALFORMED

from .trees import pre_order, quantised, random_parents, random_tree, relation, seeded

INF = math.inf


def request(tree, b):
    """Tokens, parents, depths and ends of the live nodes of a request."""
    first, after = (int(row) for row in tree.cu_nodes[b : b + 2])
    count = int(tree.ends[first]) if after > first else 0
    return [column[first : first + count].tolist() for column in tree[1:5]]


def check_shape(parents, depths, ends):
    """Every parent comes before its child; depths and ends follow from the parents, and the order is depth first."""
    assert all(parent == -1 if node == 0 else 0 <= parent < node for node, parent in enumerate(parents))
    lines = relation(parents)
    assert depths == [len(line) - 1 for line in lines]
    assert ends == [max((i for i, line in enumerate(lines) if node in line)) + 1 for node in range(len(parents))]
    assert pre_order(parents) == list(range(len(parents)))


# ---- from_parents -----------------------------------------------------------------------------------------------------


def test_from_parents_is_a_depth_first_walk():
    for seed in range(300):
        numbers = seeded(seed)
        shapes = [random_parents(numbers, numbers.randint(1, 12)) for _ in range(numbers.randint(1, 4))]
        offsets = torch.tensor([0, *itertools.accumulate(map(len, shapes))], dtype=torch.int32)
        tokens = torch.arange(int(offsets[-1])) * 7
        parents = torch.tensor([parent for shape in shapes for parent in shape])
        tree, order = oracle.from_parents(tokens, parents, offsets, max_nodes=12, max_depth=11, slots=True)
        assert tree.cu_nodes is offsets and tree.status.tolist() == [0] * len(shapes)
        assert tree.tokens.tolist() == tokens[order].tolist()
        for b, shape in enumerate(shapes):
            first = int(offsets[b])
            local = (order[first : first + len(shape)] - first).tolist()
            assert local == pre_order(shape)
            _, above, depths, ends = request(tree, b)
            assert [-1 if p < 0 else local[p] for p in above] == [shape[node] for node in local]
            check_shape(above, depths, ends)
            assert tree.slots[first : first + len(shape)].tolist() == local


BAD = {
    "a cycle": ([-1, 2, 1], {}),
    "a parent of itself": ([-1, 1, 0], {}),
    "a parent behind its child": ([-1, 0, 3, 0], {}),
    "two roots": ([-1, 0, -1], {}),
    "no root": ([0, 0, 0], {}),
    "a parent below -1": ([-1, -2, 0], {}),
    "a huge parent": ([-1, 2**31 - 1, 0], {}),
    "too deep": ([-1, 0, 1], {"max_depth": 1}),
    "too many": ([-1, 0, 0], {"max_nodes": 2}),
    "a negative length": ([-1, 0, 0], {"lengths": -1}),
    "a length past the rows": ([-1, 0, 0], {"lengths": 4}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_request_is_its_root_alone(case):
    parents, options = BAD[case]
    lengths = options.pop("lengths", len(parents))
    bounds = {"max_nodes": 9, "max_depth": 9} | options
    count = len(parents)
    tokens, offsets = torch.arange(2 * count + 2), torch.tensor([0, 1, 1 + count, 2 + count], dtype=torch.int32)
    given = torch.tensor([-1, *parents, -1, *parents])
    tree, order = oracle.from_parents(
        tokens, given[: 2 * count + 2], offsets, lengths=torch.tensor([1, lengths, 1]), slots=True, **bounds
    )
    options["lengths"] = lengths
    assert tree.status.tolist() == [0, MALFORMED, 0]
    assert request(tree, 1) == [[1], [-1], [0], [1]]
    assert order.tolist() == list(range(2 * count + 2))
    assert tree.tokens.tolist() == [0, 1, *[-1] * (count - 1), 1 + count, *[-1] * count]
    assert tree.slots.tolist() == [0, *range(count), 0, *[0] * count]
    assert request(tree, 0) == [[0], [-1], [0], [1]] and request(tree, 2)[0] == [1 + count]


def test_no_room_even_for_the_root():
    tree, _ = oracle.from_parents(
        torch.tensor([5]), torch.tensor([-1]), torch.tensor([0, 1], dtype=torch.int32), max_nodes=0, max_depth=0
    )
    assert tree.ends.tolist() == [0] and tree.status.tolist() == [MALFORMED]


@pytest.mark.parametrize(
    ("offsets", "status", "roots"),
    [
        ([0, 2, 4], [0, 0], [0, 2]),
        ([1, 2, 4], [0, 0], [1, 2]),
        ([0, 0, 4], [8, 0], [0]),  # a length of 1 without a row
        ([0, 4, 2], [0, 8], [0]),
        ([0, 3, 2, 5], [0, 8, 8], [0]),  # the third would begin among the rows of the first
        ([-1, 2, 4], [8, 0], [2]),
        ([0, 2, 7], [0, 8], [0]),
        ([7, 2, 4], [8, 8], []),
        ([0, -5, 2, 4], [8, 8, 0], [2]),
        ([-(2**31), 2**31 - 1], [8], []),
    ],
)
def test_offsets_out_of_order_never_share_a_row(offsets, status, roots):
    lengths, cu_nodes = torch.ones(len(status)).int(), torch.tensor(offsets, dtype=torch.int32)
    given = torch.arange(5), torch.full((5,), -1)
    tree, order = oracle.from_parents(*given, cu_nodes, lengths=lengths, max_nodes=9, max_depth=9)
    assert tree.status.tolist() == status
    assert tree.tokens.tolist() == [row if row in roots else -1 for row in range(5)]
    assert tree.ends.tolist() == [int(row in roots) for row in range(5)]
    assert order.tolist() == list(range(5))


# ---- from_beams -------------------------------------------------------------------------------------------------------


def merged_pool(tokens, parents, scores, max_depth):
    """Texts of the pool: path of tokens -> (score, lowest index); a path stands for all candidates that spell it."""
    paths, texts = {-1: ()}, {}
    for i, (token, parent, score) in enumerate(zip(tokens, parents, scores, strict=True)):
        if score > -INF and token >= 0 and -1 <= parent < i and parent in paths and len(paths[parent]) < max_depth:
            paths[i] = (*paths[parent], token)
            old = texts.get(paths[i], (-INF, i))
            texts[paths[i]] = (max(old[0], score), old[1])
    return texts


def best_closed_set(texts, count):
    """Of all sets of texts closed under prefixes the one that comes first, by trying all of them."""
    effective = {path: min(texts[path[:n]][0] for n in range(1, len(path) + 1)) for path in texts}
    key = {path: (-effective[path], len(path), texts[path][1]) for path in texts}
    closed = [
        chosen
        for size in range(min(count, len(texts)) + 1)
        for chosen in itertools.combinations(texts, size)
        if all(path[:-1] in chosen or len(path) == 1 for path in chosen)
    ]
    best = min(closed, key=lambda chosen: (-len(chosen), sorted(key[path] for path in chosen)))
    return best, key


def test_from_beams_is_the_best_closed_set():
    merged = deep = 0
    for seed in range(400):
        numbers = seeded(seed)
        pool = numbers.randint(0, 9)
        tokens = [numbers.choice((-1, 0, 1, 2, 3)) for _ in range(pool)]
        parents = [numbers.choice((-1, -1, *range(i), *range(i))) for i in range(pool)]
        scores = quantised(numbers, pool)
        budget, depth = numbers.randint(1, 8), numbers.randint(0, 4)
        tree, order = oracle.from_beams(
            torch.tensor([9]),
            torch.tensor([tokens], dtype=torch.int64).reshape(1, pool),
            torch.tensor([parents], dtype=torch.int64).reshape(1, pool),
            scores.reshape(1, pool),
            budget,
            max_depth=depth,
        )
        texts = merged_pool(tokens, parents, scores.tolist(), depth)
        chosen, key = best_closed_set(texts, budget - 1)
        names, above, depths, ends = request(tree, 0)
        check_shape(above, depths, ends)
        assert tree.status.tolist() == [0] and order[len(names) :].tolist() == [-1] * (budget - len(names))
        lines = relation(above)
        made = [tuple(names[j] for j in line[1:]) for line in lines]
        assert set(made) == {(), *chosen} and len(made) == len(chosen) + 1
        assert [texts[path][1] for path in made[1:]] == order[1 : len(names)].tolist()
        for node in range(len(names)):  # siblings best first
            children = [key[made[c]] for c, parent in enumerate(above) if parent == node]
            assert children == sorted(children)
        merged += len(texts) < sum(1 for s, t in zip(scores.tolist(), tokens, strict=True) if s > -INF and t >= 0)
        deep += max(depths) > 1
    assert merged > 50 and deep > 50


def test_children_of_merged_siblings_come_together():
    tree, order = oracle.from_beams(
        torch.tensor([9]),
        torch.tensor([[4, 4, 6, 7, 6, 8]]),
        torch.tensor([[-1, -1, 0, 0, 1, 4]]),
        torch.tensor([[-3.0, -1.0, -2.0, -4.0, -1.5, -1.75]]),
        6,
        max_depth=3,
    )
    # 0 and 1 are one node of score -1, with the children 6 (2 and 4, score -1.5, above it 8) and 7.
    assert tree.tokens.tolist() == [9, 4, 6, 8, 7, -1]
    assert tree.parents.tolist() == [-1, 0, 1, 2, 1, -1]
    assert order.tolist() == [-1, 0, 2, 5, 3, -1]


def test_a_pool_with_bad_indices():
    pool = {"tokens": torch.full((5, 3), 4), "scores": torch.full((5, 3), -1.0)}
    parents = torch.tensor([[-1, 0, 1], [-1, 1, 0], [0, -1, 1], [-2, -1, 1], [-1, 0, 2**31 - 1]])
    roots = torch.full((5,), 9)
    tree, _ = oracle.from_beams(roots, parents=parents, budget=9, max_depth=5, **pool)
    assert tree.status.tolist() == [0, 8, 8, 8, 8]
    assert [len(request(tree, b)[0]) for b in range(5)] == [4, 3, 3, 3, 3]
    absent = pool | {"scores": torch.full((5, 3), -INF)}  # padding may hold anything
    tree, _ = oracle.from_beams(roots, parents=parents, budget=9, max_depth=5, **absent)
    assert tree.status.tolist() == [0] * 5
    lengths = torch.tensor([3, 4, -1, 0, 1])
    tree, _ = oracle.from_beams(roots, parents=parents, budget=9, max_depth=5, lengths=lengths, **pool)
    assert tree.status.tolist() == [0, 8, 8, 0, 0]
    assert [len(request(tree, b)[0]) for b in range(5)] == [4, 1, 1, 1, 2]
    budgets = torch.tensor([0, -1, 1, 2, 99])
    tree, _ = oracle.from_beams(roots, parents=parents[:1].expand(5, 3), budget=budgets, max_depth=5, **pool)
    assert tree.max_nodes == 4 and tree.cu_nodes.tolist() == [0, 4, 8, 12, 16, 20]
    assert [len(request(tree, b)[0]) for b in range(5)] == [0, 0, 1, 2, 4]


# ---- best_first -------------------------------------------------------------------------------------------------------


def safe_rows(log_probs):
    """The running minimum, by hand."""
    made = []
    for row in log_probs.tolist():
        least, safe = 0.0, []
        for value in row:
            least = -INF if math.isnan(value) else min(least, value)
            safe.append(least)
        made.append(safe)
    return made


def add(a, b):
    return float(torch.tensor(a) + torch.tensor(b))


def popped(log_probs, ids, count):
    """What a heap pops: (score, depth, place in the depth, text of ranks), best first."""
    rows = [
        [(lp, r) for r, lp in enumerate(row) if lp > -INF and ids[d][r] >= 0]
        for d, row in enumerate(safe_rows(log_probs))
    ]
    heap, done, at = [], [], [0] * (len(rows) + 2)

    def push(score, depth, parent_place, parent_path, k):
        if depth <= len(rows) and k < len(rows[depth - 1]):
            lp, rank = rows[depth - 1][k]
            total = add(score, lp)
            if total > -INF:
                heapq.heappush(heap, (-total, depth, parent_place, k, parent_path, score, (*parent_path, rank)))

    push(0.0, 1, 0, (), 0)
    while heap and len(done) < count:
        negative, depth, parent_place, k, parent_path, above, path = heapq.heappop(heap)
        place = at[depth]
        at[depth] += 1
        done.append((-negative, depth, place, path))
        push(above, depth, parent_place, parent_path, k + 1)
        push(-negative, depth + 1, place, path, 0)
    return done


def random_laws(numbers, batch, depth, ranks):
    log_probs = quantised(numbers, batch, depth, ranks)
    if numbers.random() < 0.7 and ranks:
        log_probs = log_probs.sort(-1, descending=True).values
    if numbers.random() < 0.1:
        log_probs = log_probs * 1e38
    ids = torch.tensor([numbers.choice((3, 4, 5, 6, -1)) for _ in range(batch * depth * ranks)])
    return log_probs, ids.reshape(batch, depth, ranks).long()


def read(tree, b, ids, reached):
    """Text of ranks -> score; ids of this test are unique within a law, or -1."""
    names, above, depths, ends = request(tree, b)
    check_shape(above, depths, ends)
    lines = relation(above)
    first = int(tree.cu_nodes[b])
    return [(tuple(names[j] % 100 for j in line[1:]), float(reached[first + i])) for i, line in enumerate(lines)]


def test_best_first_is_what_a_heap_pops():
    ties = nodes = 0
    for seed in range(3000):
        numbers = seeded(seed)
        batch, depth, ranks = numbers.randint(1, 2), numbers.randint(0, 5), numbers.randint(0, 5)
        log_probs, ids = random_laws(numbers, batch, depth, ranks)
        ids = torch.where(ids < 0, ids, torch.arange(ranks) + 100 * ids)  # so that a token tells its rank
        budgets = [numbers.randint(-1, 14) for _ in range(batch)]
        same = numbers.random() < 0.3
        width = max(budgets[0], 0) if same else numbers.randint(0, 14)
        reached = torch.full((batch * width,), 77.0)
        tree = oracle.best_first(
            torch.full((batch,), 900),
            log_probs,
            ids,
            width if same else torch.tensor(budgets),
            max_nodes=None if same else width,
            scores=reached,
        )
        assert tree.max_nodes == width and tree.max_depth == depth and tree.status.tolist() == [0] * batch
        for b in range(batch):
            count = width if same else min(budgets[b], width)
            expected = popped(log_probs[b], ids[b].tolist(), count - 1) if count > 0 else []
            made = read(tree, b, ids, reached)
            assert len(made) == (len(expected) + 1 if count > 0 else 0)
            assert dict(made[1:]) == {path: score for score, _, _, path in expected}
            assert [path for path, _ in made[1:]] == sorted(path for path, _ in made[1:])  # siblings by rank
            rest = reached[b * width + len(made) : (b + 1) * width]
            assert rest.tolist() == [-INF] * rest.numel()
            scores = [score for score, *_ in expected]
            ties += len(scores) - len(set(scores))
            nodes += len(scores)
    assert ties > nodes / 3 > 1000


def test_best_first_shares_a_budget():
    cut = 0
    for seed in range(1500):
        numbers = seeded(seed)
        batch, depth, ranks = numbers.randint(0, 5), numbers.randint(1, 4), numbers.randint(1, 4)
        log_probs, ids = random_laws(numbers, batch, depth, ranks)
        ids = torch.where(ids < 0, ids, torch.arange(ranks) + 100 * ids)
        budgets = [numbers.randint(0, 9) for _ in range(batch)]
        roots = [numbers.choice((900, 900, 900, -1)) for _ in range(batch)]
        total = numbers.randint(0, 16)
        reached = torch.full((batch * 9,), 77.0)
        tree = oracle.best_first(
            torch.tensor(roots).long(),
            log_probs,
            ids,
            torch.tensor(budgets).long(),
            max_nodes=9,
            total_budget=total,
            scores=reached,
        )
        live = [n if root >= 0 else 0 for n, root in zip(budgets, roots, strict=True)]
        everything = [
            (-score, d, b, place, path)
            for b, n in enumerate(live)
            for score, d, place, path in (popped(log_probs[b], ids[b].tolist(), n - 1) if n else [])
        ]
        taken = sorted(everything)[: max(total - sum(n > 0 for n in live), 0)]
        for b, n in enumerate(live):
            made = read(tree, b, ids, reached)
            assert len(made) == sum(owner == b for _, _, owner, *_ in taken) + (n > 0)
            assert dict(made[1:]) == {path: -negative for negative, _, owner, _, path in taken if owner == b}
        cut += 0 < len(taken) < len(everything)
    assert cut > 200


def test_best_first_prefers_probable_texts():
    """The nodes with the largest products, by listing every text."""
    generator = torch.Generator().manual_seed(3)
    log_probs = torch.randn(1, 3, 3, generator=generator).log_softmax(-1).sort(-1, descending=True).values
    tree = oracle.best_first(torch.tensor([7]), log_probs, torch.arange(3).expand(1, 3, 3), 12)
    texts = [path for d in (1, 2, 3) for path in itertools.product(range(3), repeat=d)]
    texts.sort(key=lambda path: -float(sum(log_probs[0, d, r].double() for d, r in enumerate(path))))
    names, above, _, _ = request(tree, 0)
    assert {tuple(names[j] for j in line[1:]) for line in relation(above)} == {(), *texts[:11]}


@pytest.mark.parametrize(
    ("depth", "ranks", "nodes"), [(0, 5, 1), (3, 0, 1), (4, 1, 5), (2, 3, 13), (9, 9, 1024), (1, 2000, 1024)]
)
def test_a_tensor_of_budgets_gets_as_many_rows_as_can_exist(depth, ranks, nodes):
    laws = torch.zeros(1, depth, ranks), torch.zeros((1, depth, ranks), dtype=torch.int64)
    assert oracle.best_first(torch.tensor([1]), *laws, torch.tensor([0])).max_nodes == nodes


# ---- exports ----------------------------------------------------------------------------------------------------------


def trees(count):
    for seed in range(count):
        numbers = seeded(seed)
        yield numbers, *random_tree(numbers, numbers.randint(0, 4), numbers.choice((1, 4, 9, 40)))


def test_masks_are_the_relation():
    for numbers, tree, shapes in trees(150):
        size = tree.max_nodes
        dense = oracle.to_dense_mask(tree)
        assert dense.shape == (len(shapes), size, size) and dense.dtype == torch.bool
        for b, shape in enumerate(shapes):
            wanted = torch.zeros(size, size, dtype=torch.bool)
            for i, line in enumerate(relation(shape)):
                wanted[i, line] = True
            assert torch.equal(dense[b], wanted)
        for layout, width, dtype in (("query", 8, torch.uint8), ("words", 32, torch.int32)):
            packed, nothing = oracle.to_packed_mask(tree, layout)
            assert nothing is None and packed.dtype == dtype
            assert packed.shape == (len(shapes), size, -(-size // width))
            bits = (packed.long().unsqueeze(-1) >> torch.arange(width)) & 1
            assert torch.equal(bits.flatten(2)[..., :size].bool(), dense)
            assert not bits.flatten(2)[..., size:].any()
        contexts = torch.tensor([numbers.choice((0, 1, 5, 13, -2, 99)) for _ in shapes]).long()
        mask, indptr = oracle.to_packed_mask(tree, context_lens=contexts, max_context=13)
        assert mask.shape == (len(shapes) * -(-size * (13 + size) // 8),) and int(indptr[0]) == 0
        bits = ((mask.long().unsqueeze(-1) >> torch.arange(8)) & 1).flatten().bool()
        for b, shape in enumerate(shapes):
            context, q = max(int(contexts[b]), 0), len(shape)
            if q * (context + q) > 8 * -(-size * (13 + size) // 8):
                q = 0
            first, after = (8 * int(end) for end in indptr[b : b + 2])
            assert after - first == 8 * -(-q * (context + q) // 8)
            rows = bits[first : first + q * (context + q)].view(q, context + q) if q else torch.zeros(0, 0)
            assert bool(rows[:, : context if q else 0].all())
            assert torch.equal(rows[:, context if q else 0 :].bool(), dense[b, :q, :q])
            assert not bits[first + q * (context + q) : after].any()
        assert not bits[8 * int(indptr[-1]) :].any()


def tree_of_links(links, b):
    """Follows the links back to parents in depth-first order, in the rows of the tree."""
    parents = {}

    def visit(node, parent):
        while node >= 0:
            parents[node] = parent
            visit(int(links.first_child[b, node]), node)
            node = int(links.next_sibling[b, node])

    if links.retrieve_index.shape[1] and links.retrieve_index[b, 0] >= 0:
        visit(0, -1)
    return [parents[node] for node in sorted(parents)]


def test_links_lead_back_to_the_tree():
    for _, tree, shapes in trees(150):
        for dtype in (torch.int32, torch.int64):
            links = oracle.to_links(tree, dtype)
            assert {field.dtype for field in links} == {dtype}
            for b, shape in enumerate(shapes):
                assert tree_of_links(links, b) == shape
                first, rest = int(tree.cu_nodes[b]), tree.max_nodes - len(shape)
                rows = [*range(first, first + len(shape)), *[-1] * rest]
                assert links.retrieve_index[b].tolist() == rows
                assert links.first_child[b, len(shape) :].tolist() == [-1] * rest


def test_paths_lead_back_to_the_tree():
    for _, tree, shapes in trees(150):
        paths, counts = oracle.to_paths(tree)
        assert paths.shape == (len(shapes), tree.max_nodes, tree.max_depth + 1)
        for b, shape in enumerate(shapes):
            lines = [[node for node in line if node >= 0] for line in paths[b].tolist()]
            lines, rest = lines[: int(counts[b])], lines[int(counts[b]) :]
            assert not any(rest)
            assert lines == [line for node, line in enumerate(relation(shape)) if node not in shape]
            parents = {line[i]: line[i - 1] if i else -1 for line in lines for i in range(len(line))}
            assert [parents[node] for node in sorted(parents)] == shape


def test_exports_of_what_is_no_tree():
    tree = oracle.from_chains(torch.tensor([[1, 2, 3]] * 3))._replace(max_nodes=3)
    broken = tree._replace(parents=torch.tensor([-1, 0, 0, -1, 0, 1, -1, 0, 1], dtype=torch.int32))
    small = tree._replace(max_nodes=2)
    flat = tree._replace(max_depth=1)
    alone = [[True, False, False], [False] * 3, [False] * 3]
    assert oracle.to_dense_mask(broken)[0].tolist() == alone
    assert oracle.to_dense_mask(broken)[1].tolist() != alone
    assert oracle.to_dense_mask(small).tolist() == [[[True, False], [False, False]]] * 3
    assert oracle.to_links(small).retrieve_index.tolist() == [[0, -1], [3, -1], [6, -1]]
    assert oracle.to_links(small).first_child.tolist() == [[-1, -1]] * 3
    assert oracle.to_paths(flat)[0].tolist() == [[[0, -1], [-1, -1], [-1, -1]]] * 3
    assert oracle.to_paths(tree._replace(max_nodes=0))[1].tolist() == [0, 0, 0]
