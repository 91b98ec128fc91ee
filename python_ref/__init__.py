"""The reference implementation: the ops in plain PyTorch, a small decoder, drafters and models."""
