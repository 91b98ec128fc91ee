"""Drafters of the reference decoder."""

from .independent import IndependentDrafter
from .ngram import NgramDrafter
from .protocol import Drafter, Proposal

__all__ = ["Drafter", "IndependentDrafter", "NgramDrafter", "Proposal"]
