"""Drafters of the reference decoder."""

from .eagle3 import Eagle3Drafter
from .independent import IndependentDrafter
from .ngram import NgramDrafter
from .protocol import Drafter, Proposal

__all__ = ["Drafter", "Eagle3Drafter", "IndependentDrafter", "NgramDrafter", "Proposal"]
