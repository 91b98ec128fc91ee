"""The reference decoder: plain and speculative decoding with a paged cache, and ops that it is given."""

from .attention import PagedAttention, Rows
from .batch import Batch
from .cache import PagedCache
from .decoder import Decoder, generate
from .overlapped import OverlappedDecoder
from .request import Output, Request
from .statistics import Statistics

__all__ = [
    "Batch",
    "Decoder",
    "Output",
    "OverlappedDecoder",
    "PagedAttention",
    "PagedCache",
    "Request",
    "Rows",
    "Statistics",
    "generate",
]
