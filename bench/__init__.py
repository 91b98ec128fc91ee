"""Benchmarks of the ops against the limit of the machine and against the same thing in PyTorch.

``specdec bench`` and ``python -m bench`` run them; ``bench/README.md`` explains the columns. Files: :mod:`bench.verify`,
:mod:`bench.linear` and :mod:`bench.overhead` hold one family each, :mod:`bench.suite` runs them, :mod:`bench.runner` measures.
On a GPU :mod:`bench.verify_gpu` takes the place of the first; :mod:`bench.gpu` times calls there, :mod:`bench.placing` makes
large batches, :mod:`bench.peers` are FlashInfer's part, :mod:`bench.plots` draws.
:mod:`bench.serve` measures the loops under load, for ``specdec bench serve``; :mod:`bench.serve_report` and
:mod:`bench.serve_plots` show its rows.
:mod:`bench.data` and :mod:`bench.cases` make inputs whose outcome is known; :mod:`bench.baselines` are the same computations in
PyTorch, :mod:`bench.aims` makes their outcome known, too, and :mod:`bench.gates` decide whether a result is right.
"""
