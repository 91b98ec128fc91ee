"""A GPU: the bandwidth of its memory, and how calls on it are timed.

A call is timed between two events. Before it, a buffer much larger than the second-level cache is read: nothing of the inputs is
left in the cache then, nor are there written lines that the call would have to wait for; and while the GPU reads, the
processor puts the whole call into the queue, so that the time between the events is that of the GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .machine import Bandwidth
from .runner import Stopwatch, Variant

#: How often a sample is taken again, behind twice as much reading, where the GPU came to the call before all of it was queued.
_DOUBLINGS = 5

_SMALLEST_BUFFER = 256 << 20


def missing() -> str | None:
    """Why nothing can be measured on a GPU, None if it can."""
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


class EventStopwatch:
    """Samples by events; see :mod:`bench.gpu`.

    Attributes:
        exposed: names of the variants whose calls the processor could not queue in time: it counts in their times.
    """

    def __init__(self) -> None:
        cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)
        size = max(_SMALLEST_BUFFER, 4 * cache)
        self._buffer = torch.zeros(size // 4, device="cuda")
        self._largest = torch.empty((), device="cuda")
        self._reads: dict[str, int] = {}
        events: Any = torch.cuda.Event  # has no types
        self._start, self._end = (events(enable_timing=True) for _ in range(2))
        self.exposed: set[str] = set()

    def __call__(self, variant: Variant) -> float:
        """Nanoseconds per call."""
        for _ in range(1 if variant.name in self.exposed else _DOUBLINGS):
            reads = self._reads.setdefault(variant.name, 1)
            if not self._sample(variant, reads):
                self.exposed.discard(variant.name)
                break
            self._reads[variant.name] = min(2 * reads, 1 << (_DOUBLINGS - 1))
        else:
            self.exposed.add(variant.name)
        return float(self._start.elapsed_time(self._end)) * 1e6 / variant.inner

    def _sample(self, variant: Variant, reads: int) -> bool:
        """Take a sample; whether the GPU waited for the processor."""
        for _ in range(reads):
            torch.amax(self._buffer, dim=0, out=self._largest)
        self._start.record()
        for _ in range(variant.inner):
            variant.call()
        self._end.record()
        late = bool(self._start.query())
        self._end.synchronize()
        return late


def bandwidth(stopwatch: Stopwatch, size: int = 1 << 30, repeats: int = 15, device: str = "cuda") -> Bandwidth:
    """Median bandwidth of a read and of a copy on the device, over a buffer that no cache holds."""
    source = torch.zeros(size // 4, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {
        "copy": lambda: target.copy_(source),
        "torch.amax": source.amax,
        "torch.sum": source.sum,
    }
    variants = [Variant(label, call, lambda _: None) for label, call in calls.items()]
    times: dict[str, list[float]] = {label: [] for label in calls}
    for turn in range(repeats + 1):
        for variant in variants:
            taken = stopwatch(variant)
            if turn:  # the first one is a warm-up
                times[variant.name].append(taken)
    middle = {label: sorted(taken)[repeats // 2] for label, taken in times.items()}
    reader = min(("torch.amax", "torch.sum"), key=middle.__getitem__)
    return Bandwidth(read=size / middle[reader], copy=2 * size / middle["copy"], reader=reader)


def extra_bytes(call: Callable[[], Any]) -> int:
    """Peak growth of what torch's allocator has given out, during a call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    grown = torch.cuda.max_memory_allocated() - before
    del result
    return grown
