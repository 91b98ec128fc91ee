"""The lemma behind every lossless rule: what is left of the target's law while the children of a node are tried.

A node is visited with a budget ``a``: with probability ``a`` it must be emitted, and then what follows has the law
``P`` of the target. Its next child ``c`` is drawn from ``Q``. Handed down to ``c`` is the budget
``min(1, a P(c) / Q(c))``; should ``c`` come to nothing, then what is left of the node's need is

    a P = max(a P - Q, 0) / D,    a = S / D,    S = sum(max(a P - Q, 0)),  D = S + 1 - a

for ``D`` is the probability to come this far. With the budget 1 that is the residual ``max(P - Q, 0) / S`` of Leviathan
et al. 2023, arXiv 2211.17192, and of its repetition over siblings (Chen et al. 2024, arXiv 2402.12374); handed down, it
is block verification (Sun et al. 2024, arXiv 2403.10444) on chains and traversal verification (Weng et al. 2025, arXiv
2505.12398) on trees.
"""

from __future__ import annotations

import torch

from .mass import Mass

#: A doubt that leaves nothing certain.
_NOTHING_KNOWN = 1e30


def whole() -> Mass:
    """The budget of a root, which is emitted already."""
    return scalar(1.0)


def scalar(value: float, doubt: float = 0.0) -> Mass:
    """One number with its doubt."""
    return Mass(torch.tensor([value], dtype=torch.float64), torch.tensor([doubt], dtype=torch.float64))


class Residual:
    """One node while its children are tried.

    Attributes:
        w: ``a P``, what is left to be emitted.
        q: the law of the next child; None: every child is deterministic.
        budget: ``a``, one entry.
        exhausted: whether nothing is left although the budget is 1, which exact arithmetic does not know.
    """

    def __init__(self, p: Mass, q: Mass | None, replacement: bool, budget: Mass | None = None) -> None:
        self.budget = whole() if budget is None else budget
        self.w = Mass(p.w * self.budget.w, p.doubt * self.budget.w + p.w * self.budget.doubt)
        self.q, self.replacement = q, replacement
        self.exhausted = False

    def law_of(self, token: int) -> Mass:
        """The law that the next child, which holds ``token``, was drawn from."""
        return one_hot(token, self.w) if self.q is None else self.q

    def exclude(self, tokens: list[int]) -> None:
        """Take ids out of the law of the next child: it was drawn from the rest."""
        if self.q is not None:
            self.q = self.q.without(tokens).normalised()

    def handed_down(self, token: int) -> Mass:
        """The budget of the next child, ``min(1, a P(c) / Q(c))``: 1 where ``Q(c)`` is 0 and ``P(c)`` is not."""
        law = self.law_of(token)
        w, q, w_doubt, q_doubt = (float(x[token]) for x in (self.w.w, law.w, self.w.doubt, law.doubt))
        if not q > 0:
            uncertain = q_doubt > 0 or (w_doubt > 0 and not w > 0)
            return scalar(float(w > 0), _NOTHING_KNOWN * uncertain)
        ratio = w / q
        doubt = (w_doubt + ratio * q_doubt) / q
        return scalar(min(1.0, ratio), doubt if ratio < 1 + doubt else 0.0)

    def reject(self, token: int) -> None:
        """The next child came to nothing: what is left for those after it."""
        rest = residual(self.w, self.law_of(token))
        total, slack = rest.w.sum().reshape(1), rest.doubt.sum().reshape(1)
        reached = total + (1 - self.budget.w)  # the probability to come this far
        if not float(total) > 0:
            self.w = rest
            if float(self.budget.w) < 1:
                self.budget = Mass(total, slack)
            else:
                self.exhausted = True
        else:
            doubt = slack + self.budget.doubt
            share = total / reached
            self.w = Mass(rest.w / reached, (rest.doubt + rest.w / reached * doubt) / reached)
            self.budget = Mass(share, (slack + share * doubt) / reached)
            if float(self.budget.w) == 1.0:
                self.budget = whole()
        if self.q is not None and not self.replacement:
            self.q = without(self.q, token)


def one_hot(token: int, like: Mass) -> Mass:
    """The law of a deterministic draft."""
    w = torch.zeros_like(like.w)
    w[token] = 1.0
    return Mass(w, torch.zeros_like(w))


def residual(w: Mass, q: Mass) -> Mass:
    """What a rejected draft from ``q`` leaves: ``max(w - q, 0)``."""
    return w.minus(q)


def without(q: Mass, token: int) -> Mass:
    """The law of the next draw without replacement; all zero if nothing is left."""
    return q.without([token]).normalised()
