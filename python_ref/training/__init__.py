"""How the shipped models were made: corpus, tokenizer, training, evaluation, export. See ``python
-m python_ref.training``."""
