"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._backend import BACKENDS
from .engine import DTYPES

BackendOption = Annotated[
    str | None, typer.Option(metavar="|".join(BACKENDS), help="Who computes the ops; none: the best there is.")
]

DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda[:N]", help="Where the models run.")]

DtypeOption = Annotated[
    str, typer.Option(metavar="|".join(DTYPES), help="Of the models; int8: the weights only, on the CPU.")
]

CsvOption = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all rows to FILE as CSV.")]
