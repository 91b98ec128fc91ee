"""Statistical proof that a verification function keeps the target's law: ours, or anybody's.

``certify(verifier, rule)`` decodes many texts of small models whose law is known exactly, and tests the joint law of their
first tokens. :mod:`.adapters` holds verifiers for other packages. The command is ``specdec certify``.
"""

from .adapters import PEERS, Peer
from .certificate import FALSE_ALARM, RULES, Certificate, cases_of, certify, exact_cases_of
from .decoding import Decoding, Step, Verifier, fused
from .models import Case, processed
from .statistics import detectable, g_test, quantile

__all__ = [
    "FALSE_ALARM",
    "PEERS",
    "RULES",
    "Case",
    "Certificate",
    "Decoding",
    "Peer",
    "Step",
    "Verifier",
    "cases_of",
    "certify",
    "detectable",
    "exact_cases_of",
    "fused",
    "g_test",
    "processed",
    "quantile",
]
