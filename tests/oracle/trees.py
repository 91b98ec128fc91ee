"""Trees written down a second time: relations instead of numbers, recursion instead of order."""

import math
import random

import torch

from python_ref.types import TokenTree


def relation(parents):
    """Ancestors of each node, itself included, by climbing."""
    found = []
    for node in range(len(parents)):
        line = []
        while node >= 0:
            line.append(node)
            node = parents[node]
        found.append(line[::-1])
    return found


def pre_order(parents):
    """Nodes depth first by recursion, siblings as they come."""

    def visit(node):
        return [node] + [below for child, parent in enumerate(parents) if parent == node for below in visit(child)]

    return visit(0) if parents else []


def random_parents(numbers, count, depth=99):
    """Parents in a topological order."""
    parents, depths = [-1], [0]
    while len(parents) < count:
        parent = numbers.randrange(len(parents))
        if depths[parent] < depth:
            parents.append(parent)
            depths.append(depths[parent] + 1)
        elif depth == 0:
            break
    return parents


def random_tree(numbers, batch, most=9, padding=True):
    """Ragged trees in depth-first order, with idle requests and garbage in the padding; parents of each request."""
    offsets, columns, shapes = [0], ([], [], [], []), []

    def garbage(count):
        for _ in range(count):
            for column in columns:
                column.append(numbers.choice((-3, 0, 1, 7)))

    for _ in range(batch):
        count = numbers.randint(0, most)
        parents = random_parents(numbers, count) if count else []
        order = pre_order(parents)
        place = {node: i for i, node in enumerate(order)}
        shape = [-1 if parents[node] < 0 else place[parents[node]] for node in order]
        lines = relation(shape)
        for i, parent in enumerate(shape):
            columns[0].append(numbers.randrange(50))
            columns[1].append(parent)
            columns[2].append(len(lines[i]) - 1)
            columns[3].append(max(j for j in range(len(shape)) if i in lines[j]) + 1)
        if not count and numbers.random() < 0.5:
            garbage(1)
            columns[3][-1] = 0
        garbage(numbers.randint(0, 3) if padding and (count or offsets[-1] < len(columns[0])) else 0)
        offsets.append(len(columns[0]))
        shapes.append(shape)
    garbage(2 if padding else 0)
    tensors = [torch.tensor(column, dtype=torch.int32) for column in columns]
    deepest = max((len(line) - 1 for shape in shapes for line in relation(shape)), default=0)
    made = TokenTree(
        torch.tensor(offsets, dtype=torch.int32), tensors[0].long(), *tensors[1:], max_nodes=most, max_depth=deepest
    )
    return made, shapes


def quantised(numbers, *shape):
    """Log-probabilities with many ties, some of them zero, some rising, some absent."""
    values = torch.tensor([-numbers.randrange(5) / 4 for _ in range(math.prod(shape))]).reshape(shape)
    for bad in (-math.inf, math.nan, 0.5, math.inf):
        if numbers.random() < 0.2:
            values[torch.rand(shape, generator=torch.Generator().manual_seed(numbers.randrange(2**31))) < 0.1] = bad
    return values


def seeded(seed):
    return random.Random(seed)
