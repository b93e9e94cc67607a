"""Which loss term moves the student, and whereto: its share of the gradient on the weights (method.md §4), its cosine with CE's."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from mtkv.training.data_parallel import LossTerm, all_reduce_sum, world_size

KV_FACTOR = LossTerm("kv_factor", "rows")  # no part of the loss: what its KV terms are multiplied by (kv.loss.share)


def gradient_log(
    parts: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], matching: Collection[str] = ()
) -> dict[str, float]:
    """`share.<part>`: ‖∇ part‖ / Σ ‖∇ part‖ for every part, with L2 norms over all `parameters`; they sum to 1, or are all 0 without any
    gradient. `cos.<part>` for the parts in `matching`: the cosine between ∇ part and ∇ ce; above 0, a step down the one also goes down the
    other. Left out where either has no gradient.

    `parts` are the terms as they enter the loss: times their weights. The graph is kept for the backward pass that follows.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    ce = gradients(parts["ce"], trained) if "ce" in parts and matching else []
    norms, products = {}, {}
    for name, part in parts.items():
        found = ce if ce and name == "ce" else gradients(part, trained)
        norms[name] = norm_of(found)
        if name in matching:
            pairs = [(x, y) for x, y in zip(ce, found, strict=False) if x is not None and y is not None]
            products[name] = float(sum((x.float() * y.float()).sum() for x, y in pairs))
    total = sum(norms.values()) or 1.0
    shares = {f"share.{name}": norm / total for name, norm in norms.items()}
    both = {name: norms.get("ce", 0.0) * norms[name] for name in products}
    return shares | {f"cos.{name}": products[name] / size for name, size in both.items() if size > 0}


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
    return norm_of(gradients(loss, parameters))


def gradients(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """d loss / d each of `parameters`, over all processes; None for what the loss does not reach. The graph is kept. Collective."""
    if not loss.requires_grad or not parameters:
        return []
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    if world_size() == 1:
        return list(found)
    full = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
    return [all_reduce_sum(gradient) / world_size() for gradient in full]  # a process may lack what another has


def norm_of(found: Iterable[Tensor | None]) -> float:
    """L2 norm of `gradients`."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in found if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0
