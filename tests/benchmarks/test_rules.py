"""Rules on chains and on static trees: cases whose outcome is known, baselines that compute the same, rows."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import python_ref.ops as oracle
import specdec_kernels as sk
from bench import baselines, contest, gates, memory, rules, rules_baselines, rules_cases, static_tree
from bench.cases import CLEAR, Laws
from bench.data import MissingData, Sizes, normal
from bench.rules_cases import Batch
from bench.runner import admit
from bench.static_tree import TREE, chain
from python_ref.ops.walk import Walk

from .conftest import make_setting

SETTINGS = [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}]
DTYPES = [torch.float32, torch.bfloat16]
KINDS = [(chain(6), "token"), (chain(6), "block"), (TREE, "token"), (TREE, "traversal")]
ALL_KINDS = [*KINDS, (TREE, "greedy_plus_one")]
REQUESTS, VOCAB = 4, 200


def kind_id(value):
    return value.name if isinstance(value, static_tree.StaticTree) else str(value)


def batch_of(tree, settings=SETTINGS[0], dtype=torch.float32, requests=REQUESTS):
    logits = rules.logits("normal", tree, Sizes(requests, tree.nodes, VOCAB)).to(dtype)
    return Batch(logits, Laws(logits, settings), tree, requests)


def made(tree, rule, settings=SETTINGS[0], dtype=torch.float32):
    """A case and its baselines."""
    batch = batch_of(tree, settings, dtype)
    case = rules_cases.rejection(batch, rule)
    return case, contest.variants(contest.rule(case, batch, rule), compiled=False)


def refusals(variants):
    return {variant.name: refused.reason for variant in variants if (refused := admit(variant)) is not None}


class TestShapes:
    def test_the_tree_has_three_children_where_it_has_any(self):
        assert TREE.nodes == 16 and TREE.depth == 3
        assert TREE.inner == (0, 1, 2, 8, 12)
        assert [TREE.children[v] for v in TREE.inner] == [(1, 8, 12), (2, 6, 7), (3, 4, 5), (9, 10, 11), (13, 14, 15)]
        assert TREE.draft_row == (0, 1, 2, -1, -1, -1, -1, -1, 3, -1, -1, -1, 4, -1, -1, -1)
        assert TREE.post_order == [3, 4, 5, 2, 6, 7, 1, 9, 10, 11, 8, 13, 14, 15, 12, 0]
        assert TREE.path(5) == [0, 1, 2, 5]

    def test_a_chain_has_a_row_of_the_draft_at_each_node(self):
        assert chain(3)[1:] == ((-1, 0, 1), ((1,), (2,), ()), (0, 1, 2), (3, 3, 3), (0, 1), (0, 1, 2))
        assert chain(3).post_order == [2, 1, 0]

    def test_the_trees_of_the_ops_have_the_same_shape(self):
        for tree in (TREE, chain(4)):
            trees = batch_of(tree).tokens_tree(torch.arange(2 * tree.nodes).view(2, -1))
            assert trees.depths.tolist() == [*tree.depths] * 2 and trees.ends.tolist() == [*tree.ends] * 2
            assert trees.tokens.tolist() == list(range(2 * tree.nodes))

    def test_tables_list_nodes_level_by_level(self):
        tables = static_tree.tables(TREE)
        assert [level.nodes for level in tables.levels] == [(0,), (1, 8, 12), (2,)]
        assert [level.draft_rows for level in tables.levels] == [(0,), (1, 3, 4), (2,)]
        assert tables.levels[1].siblings == ((2, 9, 13), (6, 10, 14), (7, 11, 15))
        assert tables.children[2].tolist() == [3, 4, 5] and tables.children[3].tolist() == [-1, -1, -1]
        assert tables.paths[4].tolist() == [1, 2, 4] and tables.paths[8].tolist() == [8, 0, 0]
        assert tables.place.tolist() == [0, 1, 4, -1, -1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1]
        with pytest.raises(ValueError, match="must have the same number of children"):
            static_tree.tables(static_tree.static_tree("uneven", (-1, 0, 1, 0, 3, 3)))


class TestCases:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("tree, rule", ALL_KINDS, ids=kind_id)
    def test_half_of_the_drafts_is_accepted_clearly(self, tree, rule, settings, dtype):
        batch = batch_of(tree, settings, dtype)
        case = rules_cases.rejection(batch, rule)
        margin = torch.empty(REQUESTS, dtype=torch.float64)
        result = oracle.verify.rejection(**case.arguments, margin=margin)
        for name in ("tokens", "num_tokens", "path", "status"):
            assert torch.equal(getattr(case.expected, name), getattr(result, name)), name
        assert float(margin.min()) >= CLEAR
        assert case.arguments["rule"] == rule
        assert case.accepted == [{5: 2, 3: 1}[tree.depth], {5: 3, 3: 2}[tree.depth]] * 2
        assert case.expected.num_tokens.tolist() == [n + 1 for n in case.accepted]
        for variant in contest.backends(case, ("cpu",)):
            assert admit(variant) is None

    @pytest.mark.parametrize("tree, rule", [(chain(6), "block"), (TREE, "traversal")], ids=kind_id)
    def test_bottom_up_some_paths_end_at_a_node_that_was_not_sure_to_be_accepted(self, tree, rule):
        batch = batch_of(tree)
        case = rules_cases.rejection(batch, rule)
        for b in range(1, REQUESTS, 2):
            tokens = case.arguments["tree"].tokens.view(REQUESTS, -1)[b].tolist()
            end = int(case.expected.path[b, case.accepted[b]])
            assert rules_cases.Tried(batch, b, tokens, rule).handed[end] < 1

    @pytest.mark.parametrize("rule", ["traversal", "greedy_plus_one"])
    def test_drafts_are_those_that_are_drawn_with_the_seeds_of_the_requests(self, rule):
        batch = batch_of(TREE)
        case = rules_cases.rejection(batch, rule)
        given = case.arguments
        count = len(TREE.inner)
        depths = torch.tensor([TREE.depths[v] for v in TREE.inner] * REQUESTS)
        requests = torch.arange(REQUESTS).repeat_interleave(count)
        drawn = oracle.sample.draft(
            given["draft_logits"],
            given["draft_sampling"],
            given["context_lens"][requests] + depths + 1,
            3,
            requests=requests,
            depths=depths,
            nodes=torch.tensor(TREE.inner * REQUESTS),
            top=2 if rule == "greedy_plus_one" else 0,
        )
        tokens = given["tree"].tokens.view(REQUESTS, TREE.nodes)
        children = torch.tensor([TREE.children[v] for v in TREE.inner])
        assert torch.equal(tokens[:, children], drawn.view(REQUESTS, count, 3))

    @pytest.mark.parametrize("settings", SETTINGS)
    def test_drafts_of_chains_are_ones_that_their_law_draws(self, settings):
        batch = batch_of(chain(6), settings)
        tokens = rules_cases.rejection(batch, "block").arguments["tree"].tokens.view(REQUESTS, 6)
        for b in range(REQUESTS):
            assert all(batch.law("draft", b, v)[tokens[b, v + 1]] > 0 for v in range(5))

    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("tree, rule", ALL_KINDS, ids=kind_id)
    def test_rows_that_must_be_read_are_those_that_the_oracle_reads(self, tree, rule, settings):
        """A row that is read tells of a NaN in it."""
        case = rules_cases.rejection(batch_of(tree, settings), rule)
        count = 0
        for name in ("logits", "draft_logits"):
            for row in range(len(case.arguments[name])):
                poisoned = case.arguments[name].clone()
                poisoned[row, -1] = torch.nan
                result = oracle.verify.rejection(**case.arguments | {name: poisoned})
                count += int((result.status & 1).sum())
        assert count == case.row_reads

    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("tree", [chain(6), TREE], ids=kind_id)
    def test_means_need_the_rows_of_both_that_the_oracle_reads(self, tree, settings, monkeypatch):
        batch = batch_of(tree, settings)
        case = rules_cases.expect(batch, rules_cases.rejection(batch, "token"))
        [variant] = contest.backends(case, ("cpu",))
        assert case.op == "verify_expect" and admit(variant) is None
        read = []
        row = Walk.row
        monkeypatch.setattr(Walk, "row", lambda walk, node: read.append((walk.request, node)) or row(walk, node))
        oracle.verify.expect(**case.arguments)
        assert case.row_reads == 2 * len(set(read)) == 2 * len(read)

    def test_an_outcome_that_the_laws_forbid_is_reported(self):
        batch = batch_of(TREE)
        logits = batch.logits._replace(draft=batch.logits.target.view(REQUESTS, 16, -1)[:, TREE.inner].flatten(0, 1))
        batch = batch._replace(logits=logits, laws=Laws(logits, SETTINGS[0]))  # the first child is never rejected
        with pytest.raises(RuntimeError, match=r"no seed in 400 decides requests \[0, 1, 2, 3\] clearly"):
            rules_cases.rejection(batch, "token")

    def test_means_that_are_off_are_refused(self):
        expected = sk.Expectation(*(torch.tensor([2.0, 0.5]) for _ in range(4)))
        check = gates.means(expected)
        assert check(expected) is None
        assert check(expected._replace(token=torch.tensor([2.0001, 0.5]))) is None
        for off in ([2.001, 0.5], [2.0, 0.5005], [torch.nan, 0.5]):
            assert check(expected._replace(bound=torch.tensor(off))).startswith("bound must be within 1e-04, got")
        assert check(expected._replace(token=torch.tensor([2.0]))) == "token must be float32 [2], got float32 [1]"
        assert check(None) == "token must be a tensor, got NoneType"


def no_filter(law):
    return lambda logits, settings: law(logits, settings._replace(top_p=None))


def hotter(law):
    return lambda logits, settings: law(logits, settings._replace(temperature=1.2 * settings.temperature))


def shifted(law):
    return lambda logits, settings: law(logits, settings).roll(1, -1)


def of_another_row(law):
    return lambda logits, settings: law(logits, settings).flip(-2)


class TestBaselines:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("settings", SETTINGS)
    @pytest.mark.parametrize("tree, rule", KINDS, ids=kind_id)
    def test_they_end_where_they_should(self, tree, rule, settings, dtype):
        _, variants = made(tree, rule, settings, dtype)
        assert [variant.name for variant in variants] == ["eager"] and not refusals(variants)

    def test_rules_without_one_have_none(self):
        assert made(TREE, "greedy_plus_one")[1] == []

    @pytest.mark.parametrize("bug", [no_filter, hotter, shifted, of_another_row])
    @pytest.mark.parametrize("tree, rule", KINDS, ids=kind_id)
    def test_another_law_is_refused(self, tree, rule, bug, monkeypatch):
        _, variants = made(tree, rule, {"temperature": 0.7, "top_p": 0.8})
        monkeypatch.setattr(baselines, "law", bug(baselines.law))
        assert "eager" in refusals(variants)

    @pytest.mark.parametrize("change", [1, -1])
    @pytest.mark.parametrize("tree, rule", KINDS, ids=kind_id)
    def test_one_that_accepts_too_much_or_too_little_is_refused(self, tree, rule, change, monkeypatch):
        _, variants = made(tree, rule)
        emit = baselines.emit

        def wrong(drafts, accepted, bonus):
            return emit(drafts, (accepted + change).clamp(0, drafts.shape[1]), bonus)

        monkeypatch.setattr(baselines, "emit", wrong)
        assert "eager" in refusals(variants)

    @pytest.mark.parametrize("tree, rule", KINDS, ids=kind_id)
    def test_one_that_samples_the_target_instead_of_the_residual_is_refused(self, tree, rule, monkeypatch):
        case, variants = made(tree, rule)
        ends = case.expected.path.gather(1, torch.tensor(case.accepted).unsqueeze(1)).flatten()
        rows = case.arguments["logits"].view(REQUESTS, tree.nodes, -1)[torch.arange(REQUESTS), ends.long()]
        draw = baselines.draw
        monkeypatch.setattr(baselines, "draw", lambda weights, noise: draw(rows.softmax(-1), noise))
        assert "eager" in refusals(variants)

    @pytest.mark.parametrize(
        "tree, rule, other", [(chain(6), "block", "token"), (TREE, "traversal", "token")], ids=kind_id
    )
    def test_the_other_kind_of_rule_is_refused(self, tree, rule, other):
        batch = batch_of(tree)
        for name, function in ((rule, other), (other, rule)):
            [right] = contest.rule(rules_cases.rejection(batch, name), batch, name)
            [wrong] = contest.rule(rules_cases.rejection(batch, function), batch, function)
            assert refusals(contest.variants([right._replace(function=wrong.function)], compiled=False))

    @pytest.mark.parametrize("rule", ["token", "traversal"])
    def test_siblings_in_another_order_or_with_replacement_are_refused(self, rule, monkeypatch):
        batch = batch_of(TREE)
        [right] = contest.rule(rules_cases.rejection(batch, rule), batch, rule)
        tables = right.given[-1]
        levels = tuple(level._replace(siblings=level.siblings[::-1]) for level in tables.levels)
        reversed_ = tables._replace(levels=levels, children=tables.children.flip(1))
        wrong = right._replace(given=(*right.given[:-1], reversed_))
        assert refusals(contest.variants([wrong], compiled=False))
        monkeypatch.setattr(torch.Tensor, "scatter_", lambda self, *arguments: self)
        assert refusals(contest.variants([right], compiled=False))

    def test_paths_may_end_at_any_node(self):
        """Coins that accept one node and reject all others end the path there, from the root to the deepest leaf."""
        batch = batch_of(TREE)
        [made] = contest.rule(rules_cases.rejection(batch, "traversal"), batch, "traversal")
        target, draft, drafts, settings, coins, noise, tables = made.given
        for node in range(TREE.nodes):
            coins = torch.full_like(coins, 1e9)
            coins[:, TREE.path(node)] = -1.0
            accepted = TREE.depths[node]
            for function in (rules_baselines.traversal, rules_baselines.token):
                tokens, num_tokens = function(target, draft, drafts, settings, coins, noise, tables)
                assert num_tokens.tolist() == [accepted + 1] * REQUESTS
                assert torch.equal(tokens[:, :accepted], drafts[:, TREE.path(node)[1:]])
                assert bool((tokens[:, accepted] >= 0).all()) and bool((tokens[:, accepted + 1 :] == -1).all())

    def test_all_drafts_of_a_chain_may_be_accepted(self):
        batch = batch_of(chain(6))
        [made] = contest.rule(rules_cases.rejection(batch, "block"), batch, "block")
        target, draft, drafts, settings, coins, noise = made.given
        tokens, num_tokens = rules_baselines.block(target, draft, drafts, settings, coins * 0 - 1, noise)
        assert num_tokens.tolist() == [6] * REQUESTS and torch.equal(tokens[:, :5], drafts)
        last = baselines.draw(target.view(REQUESTS, 6, -1)[:, 5].softmax(-1), noise)
        assert torch.equal(tokens[:, 5], last)


@pytest.fixture
def light(monkeypatch):
    """No fresh processes, no compiler, and random logits in the place of recorded ones."""
    monkeypatch.setattr(memory, "extra_bytes", lambda case, backend: 4096)
    monkeypatch.setattr(baselines, "compiled", lambda function: function)
    monkeypatch.setattr(
        rules, "recorded", lambda sizes, branching=None: normal(sizes, seed=1)._replace(data="recorded")
    )


def grouped(setting, **sizes):
    found = list(rules.groups(setting, **sizes))
    assert len(found) == rules.count(setting)
    return found


SMALL = {"requests": 2, "vocab": 64}


class TestFamily:
    def test_every_case_has_its_rows_and_goals(self, light, setting):
        groups = grouped(setting, **SMALL)
        rows = [row for group in groups for row in group]
        assert not [row for row in rows if row.note]
        expected = {
            (f"{part.label}, {label}", dtype, data)
            for part in rules.PARTS
            for label in ("T=1", "T=1, top-p 0.9")
            for dtype in ("float32", "bfloat16")
            for data in ("recorded", "normal")
        }
        assert {(group[0].case, group[0].dtype, group[0].data) for group in groups} == expected
        counts = Counter(row.variant for row in rows)
        assert counts.pop("transformers") == 8  # chains under the rule token
        assert counts == {"cpu": 56, "amax": 56, "eager": 32, "compile": 32}
        goals = {(row.case.partition(", T")[0], row.goal) for row in rows if row.variant == "cpu"}
        assert goals == {
            ("token, chain", "<= 3 units; <= 1e+06 bytes extra"),
            ("block, chain", "<= 5 units; <= 1e+06 bytes extra"),
            ("token, tree", "<= 6 units; <= 1e+06 bytes extra"),
            ("traversal, tree", "<= 8 units; <= 1e+06 bytes extra"),
            ("greedy_plus_one, tree", None),
            ("expect, chain", None),
            ("expect, tree", None),
        }
        assert all(row.goal is None for row in rows if row.variant != "cpu")
        assert {(row.op, row.accepted) for row in rows} == {("verify_rejection", "half"), ("verify_expect", None)}

    def test_the_unit_reads_all_that_the_op_is_given(self, light):
        for group in grouped(make_setting(quick=True), **SMALL):
            found = {row.variant: row for row in group}
            given = 2 * (8 + 8) if "chain" in group[0].case else 2 * (16 + 5)
            size = {"float32": 4, "bfloat16": 2}[group[0].dtype]
            assert found["amax"].needed_bytes == given * 64 * size
            assert found["cpu"].needed_bytes <= found["amax"].needed_bytes
            assert found["cpu"].units == pytest.approx(found["cpu"].time_us / found["amax"].time_us)
            assert found["cpu"].extra_bytes == 4096

    def test_recorded_logits_that_are_missing_leave_rows_that_say_so(self, light, setting, monkeypatch):
        def missing(sizes, branching=None):
            raise MissingData("no recorded logits: nothing there")

        monkeypatch.setattr(rules, "recorded", missing)
        rows = [row for group in grouped(setting, **SMALL) for row in group]
        absent = [row for row in rows if row.data == "recorded"]
        assert len(absent) == 28 and all(row.note == "no recorded logits: nothing there" for row in absent)
        quick = [row for group in grouped(replace(setting, quick=True), **SMALL) for row in group]
        assert all(row.note.startswith("normal instead of recorded logits: ") for row in quick)

    def test_an_outcome_that_cannot_be_is_a_row_with_a_reason(self, light, setting, monkeypatch):
        def impossible(batch, rule):
            raise RuntimeError("no seed in 400 decides requests [0] clearly")

        monkeypatch.setattr(rules_cases, "rejection", impossible)
        rows = [row for group in grouped(replace(setting, quick=True), **SMALL) for row in group]
        assert {row.note for row in rows} == {"not measured: no seed in 400 decides requests [0] clearly"}
        assert all(row.met is False for row in rows if row.goal)

    def test_a_wrong_op_is_not_timed(self, light, setting, monkeypatch):
        right = sk.verify.rejection

        def wrong(*arguments, **options):
            result = right(*arguments, **options)
            return result._replace(tokens=result.tokens + 1)

        monkeypatch.setattr(sk.verify, "rejection", wrong)
        rows = [row for group in grouped(replace(setting, quick=True), **SMALL) for row in group]
        refused = [row for row in rows if row.op == "verify_rejection" and row.variant == "cpu"]
        assert len(refused) == 20 and all(row.time_us is None for row in refused)
        assert all(row.note.startswith("wrong result: tokens[0, 0] must be") for row in refused)
