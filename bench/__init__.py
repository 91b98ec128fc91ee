"""Benchmarks of the ops against the limit of the machine and against the same thing in PyTorch.

``specdec bench`` and ``python -m bench`` run them; ``bench/README.md`` explains the columns. Files: :mod:`bench.verify`,
:mod:`bench.linear` and :mod:`bench.overhead` hold the cases of one family each; :mod:`bench.runner` measures;
:mod:`bench.baselines` are the same computations in PyTorch, and :mod:`bench.gates` decide whether a result is right.
"""
