"""Which loss term moves the student: each one's share of the gradient on its weights (method.md §4)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mtkv.training.data_parallel import LossTerm, all_reduce_sum, world_size

KV_FACTOR = LossTerm("kv_factor", "rows")  # no part of the loss: what its KV terms are multiplied by (kv.loss.share)


def gradient_shares(parts: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """‖∇ part‖ / Σ ‖∇ part‖ for every part, with L2 norms over all `parameters`; they sum to 1, or are all 0 without any gradient.

    `parts` are the terms as they enter the loss: times their weights. The graph is kept for the backward pass that follows.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {name: gradient_norm(part, trained) for name, part in parts.items()}
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


def balanced_loss(
    loss: Tensor, kv: Tensor, student: Iterable[nn.Parameter], share: float | None, random: bool = False
) -> tuple[Tensor, float]:
    """The loss with its part `kv` weighed anew, and the factor: ‖factor·∇kv‖ = share·‖∇(loss − kv)‖ on the student's weights.

    `share` None: the factor is 1. `random` (control `random_direction`): the student gets a direction drawn at random, of the norm that
    the KV gradient would have; the value stays. A KV loss without a gradient keeps its weight.
    """
    trained = [parameter for parameter in student if parameter.requires_grad]
    rest = loss - kv
    norm = gradient_norm(kv, trained)
    factor = share * gradient_norm(rest, trained) / norm if share is not None and norm > 0 else 1.0
    if not random:
        return rest + factor * kv, factor
    drawn = [torch.randn_like(parameter) for parameter in trained]
    size = torch.stack([torch.linalg.vector_norm(one) for one in drawn]).norm()
    along = sum((parameter * one).sum() for parameter, one in zip(trained, drawn, strict=True)) * (factor * norm / size)
    return rest + factor * kv.detach() + along - along.detach(), factor


def gradient_norm(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """L2 norm of d loss / d parameters; a loss without a gradient and parameters that it does not reach count as 0. Collective."""
    if not loss.requires_grad or not parameters:
        return 0.0
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    if world_size() > 1:  # a process may lack what another has
        full = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
        gradients = tuple(all_reduce_sum(gradient) / world_size() for gradient in full)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
