"""Muon for matrices, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values are driven to about 1.

    Source: the quintic Newton-Schulz iteration of Muon (Jordan et al. 2024); in bfloat16 where that is fast, on CUDA.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrix / (matrix.norm() + 1e-7)).to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then orthogonalisation of the update, scaled to the shape of the matrix.

    ``decay`` shrinks the weights by ``lr * decay`` per step.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "base": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                buffer = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(buffer, group["momentum"]))
                scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def optimizers(
    model: nn.Module, matrix_rate: float, other_rate: float, matrix_decay: float
) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms; ``base`` keeps the full rate."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if inside else others).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": others, "base": other_rate}], lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    return Muon(matrices, matrix_rate, matrix_decay), adamw
