"""Drafters of the reference decoder."""

from .dflash import DFlashDrafter
from .eagle3 import Eagle3Drafter
from .independent import IndependentDrafter
from .ngram import NgramDrafter
from .protocol import Drafter, Proposal

__all__ = ["DFlashDrafter", "Drafter", "Eagle3Drafter", "IndependentDrafter", "NgramDrafter", "Proposal"]
