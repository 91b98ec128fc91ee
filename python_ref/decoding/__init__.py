"""The reference decoder: plain and speculative decoding with a paged cache, and ops that it is given."""

from .attention import PagedAttention, Rows
from .batch import Batch
from .cache import PagedCache
from .calibration import Candidate, Point, calibrate
from .decoder import Decoder, generate
from .overlapped import OverlappedDecoder
from .request import Output, Request
from .statistics import Statistics

__all__ = [
    "Batch",
    "Candidate",
    "Decoder",
    "Output",
    "OverlappedDecoder",
    "PagedAttention",
    "PagedCache",
    "Point",
    "Request",
    "Rows",
    "Statistics",
    "calibrate",
    "generate",
]
