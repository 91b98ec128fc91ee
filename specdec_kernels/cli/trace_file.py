"""Files of traces: what is drawn has been checked, so that the page can rely on it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from python_ref.decoding.trace import FORMAT, VERSION

from .errors import UserError, user_errors
from .output import write_file

Trace = dict[str, Any]


def read_trace(path: Path) -> Trace:
    """The content of a file that ``specdec generate --trace`` wrote.

    Raises:
        UserError: if the file cannot be read, is no trace, one of another version, or not as ``docs/trace.md`` has it.
    """
    with user_errors():
        data = path.read_bytes()
    trace = _parse(path, data)
    if not isinstance(trace, dict) or trace.get("format") != FORMAT:
        raise UserError(f"{path} must be a trace as specdec generate --trace writes it, got other JSON")
    if trace.get("version") != VERSION:
        raise UserError(f"{path} must be a trace of version {VERSION}, got {_brief(trace.get('version'))}")
    _check(path, trace)
    return trace


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace, as compact as JSON can be.

    Raises:
        UserError: if the file cannot be written.
    """
    write_file("--trace", path, json.dumps(trace, separators=(",", ":"), allow_nan=False) + "\n")


def _parse(path: Path, data: bytes) -> Any:
    if not data.strip():
        raise UserError(f"{path} must be a trace, got an empty file")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be a trace, got no UTF-8 text: {error}") from error
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{path} must be a trace, got brackets nested too deeply") from None
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and not text.rstrip().endswith("}"):
            raise UserError(f"{path} must be a whole trace, got one that breaks off after {len(data)} bytes") from None
        raise UserError(f"{path} must be a trace in JSON, got: {error}") from None
    except ValueError:  # the only other one
        raise UserError(f"{path} must be a trace, got a number of too many digits") from None


class _Checker:
    """Complaints about one file, and the shapes that occur in it more than once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: frozenset[int] = frozenset()

    def fail(self, place: str, requirement: str, value: Any) -> NoReturn:
        """Complain of the value at a place."""
        raise UserError(f"{self._path}: {place} must {requirement}, got {_brief(value)}")

    def object(self, place: str, value: Any) -> dict[str, Any]:
        """A value that must be an object."""
        if not isinstance(value, dict):
            self.fail(place, "be an object", value)
        return value

    def scalars(self, place: str, value: Any) -> None:
        """An object of texts, numbers, true, false and null."""
        for name, one in self.object(place, value).items():
            if not (one is None or isinstance(one, (str, int)) or (isinstance(one, float) and math.isfinite(one))):
                self.fail(f"{place}.{_brief(name)}", "be a text or a number", one)

    def numbers(
        self, place: str, value: Any, good: Callable[[Any], bool], each: str, count: int | None = None
    ) -> list[Any]:
        """A list of which every element is good, and of so many elements, if it matters."""
        if not isinstance(value, list):
            self.fail(place, "be a list", value)
        if count is not None and len(value) != count:
            self.fail(place, f"have {count} elements", len(value))
        for i, one in enumerate(value):
            if not good(one):
                self.fail(f"{place}[{i}]", f"be {each}", one)
        return value

    def tokens(self, place: str, value: Any) -> list[int]:
        """A list of tokens of the table."""
        return self.numbers(place, value, lambda one: _is_int(one) and one in self.known, "an id in tokens.ids")


def _check(path: Path, trace: Trace) -> None:
    checker = _Checker(path)
    checker.scalars("info", trace.get("info"))
    _check_tokens(checker, trace.get("tokens"))
    steps = _check_seconds(checker, trace.get("seconds"))
    requests = trace.get("requests")
    if not isinstance(requests, list) or not requests:
        checker.fail("requests", "be a list with at least one request", requests)
    for i, request in enumerate(requests):
        _check_request(checker, f"requests[{i}]", request, steps)


def _check_tokens(checker: _Checker, value: Any) -> None:
    table = checker.object("tokens", value)
    ids = checker.numbers("tokens.ids", table.get("ids"), lambda one: _is_int(one) and one >= 0, "an integer from 0")
    checker.known = frozenset(ids)
    if len(checker.known) != len(ids):
        checker.fail("tokens.ids", f"have {len(ids)} different ids", len(checker.known))
    checker.numbers("tokens.texts", table.get("texts"), _is_text, "a text or a list of bytes", len(ids))


def _check_seconds(checker: _Checker, value: Any) -> int | None:
    """How many steps there are; None: it is not known."""
    count: int | None = None
    for name, series in checker.object("seconds", value).items():
        place = f"seconds.{_brief(name)}"
        count = len(
            checker.numbers(place, series, lambda one: _is_number(one) and one >= 0, "a time in seconds", count)
        )
    return count


def _check_request(checker: _Checker, place: str, value: Any, count: int | None) -> None:
    request = checker.object(place, value)
    if not checker.tokens(f"{place}.prompt", request.get("prompt")):
        checker.fail(f"{place}.prompt", "have at least one token", [])
    checker.scalars(f"{place}.settings", request.get("settings"))
    if not isinstance(request.get("finish_reason"), str):
        checker.fail(f"{place}.finish_reason", "be a text", request.get("finish_reason"))
    steps = request.get("steps")
    if not isinstance(steps, list):
        checker.fail(f"{place}.steps", "be a list", steps)
    before = -1
    for i, step in enumerate(steps):
        where = f"{place}.steps[{i}]"
        number: Any = checker.object(where, step).get("step")
        if not _is_int(number) or number <= before or (count is not None and number >= count):
            limit = "" if count is None else f" and below {count}, the length of the lists in seconds"
            checker.fail(f"{where}.step", f"be an integer above {before}{limit}", number)
        before = number
        _check_step(checker, where, step)


def _check_step(checker: _Checker, place: str, step: dict[str, Any]) -> None:
    if not _is_int(step.get("context")) or step["context"] < 0:
        checker.fail(f"{place}.context", "be an integer from 0", step.get("context"))
    tokens = checker.numbers(
        f"{place}.tokens",
        step.get("tokens"),
        lambda one: _is_int(one) and (one < 0 or one in checker.known),
        "an id in tokens.ids or negative",
    )
    if not tokens:
        checker.fail(f"{place}.tokens", "have at least one node", [])
    parents = checker.numbers(f"{place}.parents", step.get("parents"), _is_int, "an integer", len(tokens))
    _check_order(checker, f"{place}.parents", parents)
    _probabilities(checker, place, step, "probabilities", len(tokens))
    emitted = checker.tokens(f"{place}.emitted", step.get("emitted"))
    _probabilities(checker, place, step, "emitted_probabilities", len(emitted))
    inside = range(len(tokens))
    path = checker.numbers(
        f"{place}.path",
        step.get("path"),
        lambda one: _is_int(one) and one in inside,
        f"an integer from 0 to {len(tokens) - 1}",
    )
    if not path or path[0] != 0 or any(parents[child] != node for node, child in zip(path, path[1:], strict=False)):
        checker.fail(f"{place}.path", "lead from the root from parent to child", path)
    for node, token in zip(path[1:], emitted, strict=False):
        if tokens[node] != token:
            checker.fail(f"{place}.emitted", f"be the tokens of its path, {tokens[node]} at node {node}", token)
    if not len(emitted) <= len(path) <= len(emitted) + 1:
        requirement = f"have {len(emitted)} nodes, as many as there are emitted tokens, or one more"
        checker.fail(f"{place}.path", requirement, len(path))


def _check_order(checker: _Checker, place: str, parents: list[int]) -> None:
    """Parents of nodes in depth-first pre-order: each is the node before, or one of its ancestors."""
    if parents[0] != -1:
        checker.fail(f"{place}[0]", "be -1", parents[0])
    line: list[int] = [0]
    for i, parent in enumerate(parents[1:], 1):
        while line and line[-1] != parent:
            line.pop()
        if not line:
            checker.fail(f"{place}[{i}]", "be the node before it or one of its ancestors", parent)
        line.append(i)


def _probabilities(checker: _Checker, place: str, step: dict[str, Any], name: str, count: int) -> None:
    def good(one: Any) -> bool:
        return one is None or (_is_number(one) and 0 <= one <= 1)

    checker.numbers(f"{place}.{name}", step.get(name), good, "null or a number from 0 to 1", count)


def _is_int(value: Any) -> bool:
    return type(value) is int  # true and false are of a class below it


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(_is_int(b) and 0 <= b < 256 for b in value))


def _brief(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except RecursionError:
        return "brackets nested too deeply"
