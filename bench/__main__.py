"""``python -m bench``: the same as ``specdec bench``."""

from __future__ import annotations

import sys

from specdec_kernels.cli.main import app

app(["bench", *sys.argv[1:]], prog_name="specdec")
