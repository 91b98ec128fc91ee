"""Bugs known from the field, planted one by one: the chi-square of the laws must find each of them."""

from dataclasses import replace

import pytest
import torch
from oracle.enumeration import random_table

from python_ref.ops.philox import DRAFT, exponential

from .texts import FOUND, SOUND, Case, Decoding, check, check_drafts, texts
from .vectorised import Rule

TRIALS = 100_000
P3, Q3 = random_table(3, 1), random_table(3, 2)
P4, Q4 = random_table(4, 3), random_table(4, 4)
CHAIN = Case(P3, Q3)
SIBLINGS = Case(P4, Q4, (-1, 0, 0), length=3)
MATCH = Case(P3, Q3, rule="match", coupled=True)
SURE = Case(P3, torch.tensor([[0.0, -18.0, -20.0]] * 3), (-1, 0, 0), length=3)
TWICE = Case(P3, Q3, (-1, 0, 0), replacement=True)
BLOCK = Case(P3, Q3, (-1, 0, 1), rule="block")
TRAVERSAL = Case(P4, Q4, (-1, 0, 1, 0), length=3, rule="traversal")
PLUS_ONE = Case(P4, Q4, (-1, 0, 0), length=3, rule="greedy_plus_one")
FILTERED = Case(P4, Q4, length=3, draft_settings={"temperature": 0.5, "top_k": 3})
GRAMMAR = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 0]]).bool()
GUARDED = Case(P4, Q4, length=3, allowed=GRAMMAR, drafts_allowed=True)


@pytest.mark.parametrize(
    "case", [CHAIN, SIBLINGS, SURE, TWICE, FILTERED], ids=["chain", "siblings", "sure", "twice", "filtered"]
)
def test_without_a_bug_the_rule_has_the_law_and_decides_as_the_fused_op(case):
    assert check(Rule(case), TRIALS)[0] > SOUND
    seeds = torch.arange(20_000) * 7 - 10**6
    ours, fused = texts(Rule(case), seeds)[0], texts(Decoding(case), seeds)[0]
    assert int((ours != fused).sum()) <= 2  # single against double precision


# ---- bugs inside the rule -----------------------------------------------------------------------------------------------


class DuplicatesAreSkipped(Rule):
    def present(self, tokens, siblings, i):
        fresh = super().present(tokens, siblings, i)
        for other in siblings[:i]:
            fresh &= tokens[:, other] != tokens[:, siblings[i]]
        return fresh


class DraftLawIsNotRenormalised(Rule):
    def without(self, q, tokens):
        return q.scatter(1, tokens.unsqueeze(1), 0.0)


class DraftLawIsFoundBySubtraction(Rule):
    """What is left of a sum of single precision, where the drafter was sure, is rounding."""

    def without(self, q, tokens):
        left = q.scatter(1, tokens.unsqueeze(1), 0.0)
        drawn = (q.sum(1, keepdim=True) - left.sum(1, keepdim=True)).float()
        rest = (1 - drawn).double()
        return torch.where(rest > 0, left / rest, 0.0)


class DraftLawKeepsTheRejectedId(Rule):
    def without(self, q, tokens):
        return q


class ResidualSharesNoiseWithDrafts(Rule):
    def residual_noise(self, seeds, position, depth, node):
        words = self.words(seeds, position, DRAFT, depth, node)
        return exponential(torch.stack(words[: self.case.vocab], 1))


class CoinSharesNoiseWithDrafts(Rule):
    def coin(self, seeds, position, depth, child):
        return (self.words(seeds, position, DRAFT, depth, 0)[0] + 0.5) * 2.0**-32


class CoinsOfSiblingsShareNoise(Rule):
    def coin(self, seeds, position, depth, child):
        return super().coin(seeds, position, depth, 0)


class CoinsOfAllStepsShareNoise(Rule):
    def coin(self, seeds, position, depth, child):
        return super().coin(seeds, torch.zeros_like(position), depth, child)


class ResidualsOfAllStepsShareNoise(Rule):
    def residual_noise(self, seeds, position, depth, node):
        return super().residual_noise(seeds, torch.zeros_like(position), depth, node)


class ResidualIsForgotten(Rule):
    def residual(self, p, q):
        return p


class ResidualLosesTheDraftAlone(Rule):
    """The rule for chosen drafts, where they were drawn."""

    def residual(self, p, q):
        left = p.scatter(1, self.rejected.unsqueeze(1), 0.0)
        return left / left.sum(1, keepdim=True)


class ResidualIsNotNormalised(Rule):
    def residual(self, p, q):
        return (p - q).clamp(min=0)


class ResidualKnowsTheLastRejectionAlone(Rule):
    def verify(self, tokens, lengths, seeds):
        self.roots = self.p[tokens[:, 0]]
        return super().verify(tokens, lengths, seeds)

    def residual(self, p, q):
        return super().residual(self.roots, q) if p.shape == self.roots.shape else super().residual(p, q)


class RatioIsUpsideDown(Rule):
    def accepts(self, p, q, u):
        return (p > 0) & ((q >= p) | (u * p < q))


class DraftsAreAcceptedByTheirProbabilityAlone(Rule):
    """The rule of exact matching without its coupling: min(1, p) instead of min(1, p / q)."""

    def accepts(self, p, q, u):
        return u < p


class AllDraftsOfLikelyIdsAreAccepted(Rule):
    """A threshold, as lossy rules have it."""

    def accepts(self, p, q, u):
        return (p > 0.3) | super().accepts(p, q, u)


# ---- bugs of drivers, around the fused op --------------------------------------------------------------------------------


class RawDraftLaw(Decoding):
    """Verified with the law of the drafter before temperature and filters."""

    def sampling(self, seeds, settings):
        return super().sampling(seeds, {} if self.verifying and settings is self.case.draft_settings else settings)

    verifying = False

    def verify(self, tokens, lengths, seeds):
        self.verifying = True
        made = super().verify(tokens, lengths, seeds)
        self.verifying = False
        return made


class RepeatedDraftsAreRemoved(Decoding):
    def verify(self, tokens, lengths, seeds):
        tokens = tokens.clone()
        tokens[tokens[:, 2] == tokens[:, 1], 2] = -1
        return super().verify(tokens, lengths, seeds)


class SiblingsAreSortedByProbability(Decoding):
    def verify(self, tokens, lengths, seeds):
        scores = self.drafter[tokens[:, 0]].gather(1, tokens[:, 1:])
        best = tokens[:, 1:].gather(1, scores.sort(1, descending=True).indices)
        return super().verify(torch.cat((tokens[:, :1], best), 1), lengths, seeds)


class UnlikelyDraftsAreDropped(Decoding):
    def verify(self, tokens, lengths, seeds):
        scores = self.drafter[tokens[:, 0]].softmax(1).gather(1, tokens[:, 1:])
        kept = torch.where(scores < 0.3, -1, tokens[:, 1:])
        return super().verify(torch.cat((tokens[:, :1], kept), 1), lengths, seeds)


class ReplacementIsNotTold(Decoding):
    """Drawn one way, verified the other."""

    def draft(self, node, num, tokens, lengths, seeds):
        honest = self.case
        self.case = Case(**{**vars(honest), "replacement": not honest.replacement})
        made = super().draft(node, num, tokens, lengths, seeds)
        self.case = honest
        return made


class TheLastChildMayRepeatOthers(Decoding):
    """Drawn with replacement, and verified as if drawn from what the others left."""

    def draft(self, node, num, tokens, lengths, seeds):
        honest = self.case
        self.case = Case(**{**vars(honest), "rule": "rejection", "replacement": True})
        made = super().draft(node, num, tokens, lengths, seeds)
        self.case = honest
        return made


class DraftLawIsNotMasked(Decoding):
    """The drafter keeps to the grammar, its law in the ratio does not."""

    def verify(self, tokens, lengths, seeds):
        honest = self.case
        self.case = replace(honest, drafts_allowed=False)
        made = super().verify(tokens, lengths, seeds)
        self.case = honest
        return made


class ChosenSiblingsAreJudgedAsDrawn(Decoding):
    """The best ids, and the law they were not drawn from."""

    def draft(self, node, num, tokens, lengths, seeds):
        honest = self.case
        self.case = Case(**{**vars(honest), "draft_settings": {"temperature": 0.0}})
        made = super().draft(node, num, tokens, lengths, seeds)
        self.case = honest
        return made


class PositionsStandStill(Decoding):
    """Every step meets the same noise."""

    def step(self, roots, lengths, seeds):
        return super().step(roots, torch.ones_like(lengths), seeds)


class SeedsAreShared(Decoding):
    """All requests of a batch have one seed, so that the trials are no trials."""

    def step(self, roots, lengths, seeds):
        return super().step(roots, lengths, torch.full_like(seeds, int(seeds[0])))


class StaleTarget(Decoding):
    """The target's rows are those of the step before: of the root, whatever the node."""

    def verify(self, tokens, lengths, seeds):
        honest, self.target = self.target, self.target[:1].expand(self.case.vocab, -1)
        made = super().verify(tokens, lengths, seeds)
        self.target = honest
        return made


class RowsAreOffByOne(Decoding):
    """The law after a draft judges the draft."""

    def verify(self, tokens, lengths, seeds):
        return super().verify(torch.roll(tokens, -1, 1), lengths, seeds)


# ---- bugs of drafting ----------------------------------------------------------------------------------------------------


class DrawsShareNoise(Decoding):
    def draft(self, node, num, tokens, lengths, seeds):
        return super().draft(node, 1, tokens, lengths, seeds).expand(-1, num)


class DrawsAreMadeFromTheWholeLaw(Decoding):
    """Without replacement by drawing twice, and once more where the first draw came again."""

    def draft(self, node, num, tokens, lengths, seeds):
        honest = self.case
        self.case = Case(**{**vars(honest), "replacement": True})
        made = super().draft(node, 2 * num, tokens, lengths, seeds)
        self.case = honest
        again = made[:, 1] == made[:, 0]
        second = torch.where(again, (made[:, 0] + 1) % honest.vocab, made[:, 1])
        return torch.stack((made[:, 0], second), 1)


class DraftsOfAllPositionsShareNoise(Decoding):
    def draft(self, node, num, tokens, lengths, seeds):
        return super().draft(node, num, tokens, torch.ones_like(lengths), seeds)


DRAFT_BUGS = {
    "draws share noise": (DrawsShareNoise, TWICE),
    "the second draw takes the next id": (DrawsAreMadeFromTheWholeLaw, CHAIN),
    "positions share noise, without replacement": (DraftsOfAllPositionsShareNoise, CHAIN),
    "positions share noise, with replacement": (DraftsOfAllPositionsShareNoise, TWICE),
}


@pytest.mark.parametrize("name", DRAFT_BUGS)
def test_a_wrong_law_of_drafts_is_found(name):
    implementation, case = DRAFT_BUGS[name]
    assert check_drafts(Decoding(case), TRIALS) > SOUND
    assert check_drafts(implementation(case), TRIALS) < FOUND


# name -> implementation, case
BUGS = {
    "duplicates are skipped": (DuplicatesAreSkipped, TWICE),
    "the draft law is not renormalised": (DraftLawIsNotRenormalised, SIBLINGS),
    "the draft law is found by subtraction": (DraftLawIsFoundBySubtraction, SURE),
    "the draft law keeps the rejected id": (DraftLawKeepsTheRejectedId, SIBLINGS),
    "residual and draft share noise": (ResidualSharesNoiseWithDrafts, CHAIN),
    "coin and draft share noise": (CoinSharesNoiseWithDrafts, CHAIN),
    "coins of siblings share noise": (CoinsOfSiblingsShareNoise, SIBLINGS),
    "coins of all steps share noise": (CoinsOfAllStepsShareNoise, CHAIN),
    "residuals of all steps share noise": (ResidualsOfAllStepsShareNoise, CHAIN),
    "the residual is forgotten": (ResidualIsForgotten, CHAIN),
    "the residual loses the draft alone": (ResidualLosesTheDraftAlone, CHAIN),
    "chosen siblings are judged as if drawn": (ChosenSiblingsAreJudgedAsDrawn, SIBLINGS),
    "the residual is not normalised": (ResidualIsNotNormalised, SIBLINGS),
    "the residual knows the last rejection alone": (ResidualKnowsTheLastRejectionAlone, SIBLINGS),
    "the ratio is upside down": (RatioIsUpsideDown, CHAIN),
    "acceptance by the target's probability alone": (DraftsAreAcceptedByTheirProbabilityAlone, CHAIN),
    "a threshold accepts": (AllDraftsOfLikelyIdsAreAccepted, CHAIN),
    "raw instead of processed draft law": (RawDraftLaw, FILTERED),
    "the draft law is not masked": (DraftLawIsNotMasked, GUARDED),
    "repeated drafts are removed": (RepeatedDraftsAreRemoved, TWICE),
    "siblings are sorted": (SiblingsAreSortedByProbability, SIBLINGS),
    "unlikely drafts are dropped": (UnlikelyDraftsAreDropped, CHAIN),
    "drawn without, verified with replacement": (ReplacementIsNotTold, Case(P3, Q3, (-1, 0, 0), replacement=True)),
    "drawn with, verified without replacement": (ReplacementIsNotTold, SIBLINGS),
    "unlikely drafts are dropped under block": (UnlikelyDraftsAreDropped, BLOCK),
    "drawn without, verified with replacement under traversal": (ReplacementIsNotTold, TRAVERSAL),
    "rows are off by one under traversal": (RowsAreOffByOne, TRAVERSAL),
    "raw instead of processed draft law under block": (
        RawDraftLaw,
        Case(P4, Q4, (-1, 0, 1), length=3, rule="block", draft_settings={"temperature": 0.5, "top_k": 3}),
    ),
    "the last child may repeat others under greedy_plus_one": (TheLastChildMayRepeatOthers, PLUS_ONE),
    "positions stand still": (PositionsStandStill, CHAIN),
    "positions stand still under match": (PositionsStandStill, MATCH),
    "a stale target under match": (StaleTarget, MATCH),
    "seeds are shared": (SeedsAreShared, CHAIN),
    "rows are off by one": (RowsAreOffByOne, CHAIN),
}


@pytest.mark.parametrize("name", BUGS)
def test_a_wrong_law_is_found(name):
    implementation, case = BUGS[name]
    assert check(implementation(case), TRIALS)[0] < FOUND
