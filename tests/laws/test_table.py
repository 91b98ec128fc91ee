"""The table of docs/certify.md has every planted bug."""

import re
from pathlib import Path

from . import test_bottom_up, test_mutations
from .bugs import SEEN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "certify.md"


def test_the_table_has_every_bug_and_no_other():
    section = PAGE.read_text().partition("| bug | rule |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()[2:]]
    planted = {**test_mutations.BUGS, **test_bottom_up.BUGS, **test_mutations.DRAFT_BUGS}
    assert sorted(row[0] for row in rows) == sorted(planted)
    assert {row[0]: row[2] for row in rows if row[2]} == SEEN
    assert all(re.fullmatch(r"0\.\d{3}", row[3]) and re.fullmatch(r"[\d,]+", row[4]) for row in rows)
