"""Drafters of the reference decoder."""

from .dflash import DFlashDrafter
from .eagle3 import Eagle3Drafter
from .independent import IndependentDrafter
from .independent_tree import IndependentTreeDrafter
from .ngram import NgramDrafter
from .protocol import RATIO_RULES, Drafter, Proposal

__all__ = [
    "RATIO_RULES",
    "DFlashDrafter",
    "Drafter",
    "Eagle3Drafter",
    "IndependentDrafter",
    "IndependentTreeDrafter",
    "NgramDrafter",
    "Proposal",
]
