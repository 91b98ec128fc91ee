"""A complete speculative decoder over tiny table models: what the enumeration of laws runs."""

from dataclasses import dataclass, replace

import torch

from python_ref import ops

from .definition import law


@dataclass(frozen=True)
class Case:
    """One configuration. ``shape[d]`` is the number of children of each node of depth ``d``, or a tuple of them."""

    target: torch.Tensor
    drafter: torch.Tensor
    shape: tuple = (1,)
    rule: str = "rejection"
    replacement: bool = False
    target_settings: tuple = ()
    draft_settings: tuple = ()
    draft_to_target: tuple | None = None
    allowed: tuple | None = None
    mask_drafts: bool = False
    deterministic_depths: tuple = ()
    coupled: bool = False
    top: int = 0
    options: tuple = ()  # of a lossy rule
    stops: tuple = ()  # bounds of the drafter's law, below or above which there are no children
    seed: int = 11

    @property
    def vocab(self):
        return self.target.shape[1]

    def mask(self):
        if self.allowed is None:
            return None
        return torch.tensor([[sum(1 << x for x in self.allowed)]], dtype=torch.int32)

    def expected(self, history, length):
        """The law of the next ``length`` tokens of plain sampling, from the definition alone."""
        laws = {(): 1.0}
        for _ in range(length):
            longer = {}
            for text, probability in laws.items():
                last = (*history, *text)[-1]
                row = law(self.target[last].tolist(), **dict(self.target_settings), allowed=self.allowed)[0]
                for token, p in enumerate(row):
                    if p > 0:
                        longer[(*text, token)] = probability * p
            laws = longer
        return laws


def _draft(case, history):
    """Draw a tree; per node (parent, depth, token) in breadth-first order, and per depth the drafter's rows."""
    nodes = [(-1, 0, history[-1])]
    level = [0]
    settings = ops.Sampling.of(1, seed=case.seed, **dict(case.draft_settings))
    maps = {} if case.draft_to_target is None else {"draft_to_target": torch.tensor(case.draft_to_target)}
    if case.mask_drafts:
        maps |= {"allowed": case.mask()}
    maps |= {name: torch.tensor([bound]) for name, bound in case.stops}
    for depth, branching in enumerate(case.shape):
        counts = branching if isinstance(branching, tuple) else (branching,) * len(level)
        level = [v for v, count in zip(level, counts, strict=True) if count]  # a leaf draws nothing
        counts = [count for count in counts if count]
        num, rows, following = max(counts), len(level), []
        if case.mask_drafts:
            maps["allowed_rows"] = torch.zeros(rows, dtype=torch.int64)
        drawn_by = settings
        if depth in case.deterministic_depths:
            drawn_by = settings._replace(temperature=torch.zeros(1))
        drafts = ops.sample.draft(
            torch.stack([case.drafter[max(nodes[v][2], 0)] for v in level]),
            drawn_by,
            torch.full((rows,), len(history) + depth),
            num,
            replacement=case.replacement,
            requests=torch.zeros(rows, dtype=torch.int64),
            depths=torch.full((rows,), depth),
            nodes=torch.tensor(level),
            coupled=case.coupled,
            top=num - 1 if case.rule == "greedy_plus_one" else case.top,
            **maps,
        )
        for row, (v, count) in enumerate(zip(level, counts, strict=True)):
            for token in drafts[row, :count].tolist():
                following.append(len(nodes))
                nodes.append((v, depth + 1, token if nodes[v][2] >= 0 else -1))
        level = following
    return nodes


def _in_preorder(nodes):
    children = {}
    for v, (parent, _, _) in enumerate(nodes):
        children.setdefault(parent, []).append(v)
    order, stack = [], [0]
    while stack:
        v = stack.pop()
        order.append(v)
        stack += reversed(children.get(v, []))
    place = {v: i for i, v in enumerate(order)}
    ends = [i + 1 for i in range(len(order))]
    for i in reversed(range(1, len(order))):
        parent = place[nodes[order[i]][0]]
        ends[parent] = max(ends[parent], ends[i])
    i32 = torch.int32
    return ops.TokenTree(
        cu_nodes=torch.tensor([0, len(order)], dtype=i32),
        tokens=torch.tensor([nodes[v][2] for v in order]),
        parents=torch.tensor([place.get(nodes[v][0], -1) for v in order], dtype=i32),
        depths=torch.tensor([nodes[v][1] for v in order], dtype=i32),
        ends=torch.tensor(ends, dtype=i32),
        max_nodes=len(order),
        max_depth=max(nodes[v][1] for v in order),
    )


def step(case, history):
    """One step of speculative decoding: draft, verify, and return the tokens to emit."""
    tree = _in_preorder(_draft(case, history))
    rows = tree.tokens.clamp(min=0)
    context = torch.tensor([len(history) - 1])
    settings = ops.Sampling.of(1, seed=case.seed, **dict(case.target_settings))
    law_maps = {}
    if case.allowed is not None:
        law_maps = {"allowed": case.mask(), "allowed_rows": torch.zeros_like(tree.tokens)}
    if case.rule == "match":
        result = ops.verify.match(tree, case.target[rows], settings, context, **law_maps)
    elif case.rule in ("threshold", "typical", "synthetic"):
        rule = getattr(ops.verify, case.rule)
        result = rule(tree, case.target[rows], settings, context, **dict(case.options), **law_maps)
    else:
        if case.draft_to_target is not None:
            to_target = torch.tensor(case.draft_to_target)
            to_draft = torch.full((case.vocab,), -1)
            to_draft[to_target] = torch.arange(len(to_target))
            law_maps |= {"draft_to_target": to_target, "target_to_draft": to_draft}
        if case.mask_drafts:
            law_maps["draft_allowed_rows"] = torch.zeros_like(tree.tokens)
        fixed = torch.tensor([int(d) in case.deterministic_depths for d in tree.depths])
        result = ops.verify.rejection(
            tree,
            case.target[rows],
            case.drafter[rows],
            settings,
            ops.Sampling.of(1, **dict(case.draft_settings)),
            context,
            rule="token" if case.rule == "rejection" else case.rule,
            replacement=case.replacement,
            draft_rows=torch.where(fixed, -1, torch.arange(len(rows))),
            **law_maps,
        )
    assert int(result.status[0]) == 0
    return tuple(result.tokens[0, : int(result.num_tokens[0])].tolist())


def deterministic(case):
    """The same case with drafts at temperature 0."""
    return replace(case, draft_settings=(("temperature", 0.0),))
