"""The processed law written down a second time: plain Python, id by id, straight from its definition."""

import math
import struct

LARGEST = 3.4028234663852886e38


def better(logits, y, x):
    """Whether id y comes before id x in the order of the filters."""
    return logits[y] > logits[x] or (logits[y] == logits[x] and y < x)


def as_float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def clean(logits, allowed=None):
    values = [-math.inf if math.isnan(value) else min(value, LARGEST) for value in logits]
    return [v if allowed is None or x in allowed else -math.inf for x, v in enumerate(values)]


def law(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, filter_order="top_k_first", allowed=None):
    """Probabilities of all ids, zero everywhere at a dead end; and the least relative distance of a cut from its limit."""
    logits = clean(logits, allowed)
    temperature, top_p, min_p = map(as_float32, (temperature, top_p, min_p))  # as the settings hold them
    alive = [x for x, value in enumerate(logits) if value > -math.inf]
    if not alive:
        return [0.0] * len(logits), math.inf
    best = next(x for x in alive if not any(better(logits, y, x) for y in alive))
    if not temperature > 0:
        return [float(x == best) for x in range(len(logits))], math.inf
    w = {x: math.exp((logits[x] - logits[best]) / temperature) for x in alive}
    near = math.inf

    def keep_top_k(ids):
        if top_k <= 0:
            return ids
        return {x for x in ids if sum(better(logits, y, x) for y in ids) < top_k}

    def keep_top_p(ids):
        nonlocal near
        if not top_p < 1:
            return ids
        total = math.fsum(w[x] for x in ids)
        kept = {best}
        for x in ids - {best}:
            before = math.fsum(w[y] for y in ids if better(logits, y, x)) / total
            near = min(near, abs(before - top_p) / before)
            if before < top_p:
                kept.add(x)
        return kept

    def keep_min_p(ids):
        nonlocal near
        if not min_p > 0:
            return ids
        kept = {best}
        for x in ids - {best}:
            if logits[x] < logits[best]:
                near = min(near, abs(w[x] - min_p) / min_p)
            if w[x] >= min_p:
                kept.add(x)
        return kept

    ids = set(alive)
    if filter_order == "top_k_first":
        ids = keep_min_p(keep_top_p(keep_top_k(ids)))
    elif filter_order == "joint":
        ids = keep_min_p(keep_top_k(ids) & keep_top_p(ids))
    else:
        ids = keep_top_p(keep_top_k(keep_min_p(ids)))
    total = math.fsum(w[x] for x in ids)
    return [w[x] / total if x in ids else 0.0 for x in range(len(logits))], near
