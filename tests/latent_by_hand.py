"""The latent student written out by hand: one question, no padding, no cache, no batch, every position in a Python loop."""

from typing import Any

import torch
from torch import Tensor


def project(latent: Any, hidden: Tensor) -> Tensor:
    """Linear → GELU → Linear → LayerNorm out of the state dict, or nothing."""
    weights = {name: tensor.detach() for name, tensor in latent.state_dict().items()}
    if "projection.0.weight" not in weights:
        return hidden
    x = weights["projection.0.weight"] @ hidden + weights["projection.0.bias"]
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    x = weights["projection.2.weight"] @ x + weights["projection.2.bias"]
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    return x * weights["projection.3.weight"] + weights["projection.3.bias"]


def last_hidden(student: Any, row: Tensor) -> Tensor:
    return student.model.base_model(inputs_embeds=row[None], use_cache=False).last_hidden_state[0]


@torch.no_grad()
def refined(student: Any, question: list[int]) -> tuple[Tensor, Tensor]:
    """Inputs of question and begin marker `[time, hidden]`, and of the refined latents `[M, hidden]`."""
    latent = student.latent
    before = student.model.get_input_embeddings()(torch.tensor(question))
    if latent.begin is not None:
        before = torch.cat([before, latent.begin[None]])
    latents = latent.latents.detach().clone()
    for _ in range(latent.iterations):
        hidden = last_hidden(student, torch.cat([before, latents]))
        latents = torch.stack([project(latent, hidden[len(before) + i - 1]) for i in range(latent.tokens)])
    return before, latents


@torch.no_grad()
def inputs(student: Any, question: list[int], answer: list[int] | None = None, change: Any = None) -> Tensor:
    """The whole row; `change` is applied to the refined latents."""
    before, latents = refined(student, question)
    parts = [before, latents if change is None else change(latents)]
    if student.latent.end is not None:
        parts.append(student.latent.end[None])
    parts.append(student.model.get_input_embeddings()(torch.tensor(answer or [], dtype=torch.long)))
    return torch.cat(parts)


@torch.no_grad()
def next_logits(student: Any, row: Tensor) -> Tensor:
    """Logits `[time, vocabulary]` of a row of inputs."""
    return student.model(inputs_embeds=row[None], use_cache=False).logits[0].float()


@torch.no_grad()
def answer(student: Any, question: list[int], new: int, change: Any = None, penalty: float = 1.0) -> list[int]:
    """Greedy tokens, the whole row read again for each; ends behind eos."""
    said: list[int] = []
    eos, words = student.model.generation_config.eos_token_id, student.model.get_input_embeddings()
    row = inputs(student, question, change=change)
    while len(said) < new and (not said or said[-1] != eos):
        logits = next_logits(student, row)[-1]
        for token in {*question, *said}:
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        said.append(int(logits.argmax()))
        row = torch.cat([row, words(torch.tensor(said[-1:]))])
    return said


@torch.no_grad()
def log_likelihood(student: Any, question: list[int], said: list[int], change: Any = None) -> tuple[float, bool]:
    """Sum of log-probabilities in nats, and whether each token is the likeliest."""
    logits = next_logits(student, inputs(student, question, said, change))
    total, greedy = 0.0, True
    for place, token in enumerate(said, start=len(logits) - len(said) - 1):
        total += float(logits[place].double().log_softmax(-1)[token])
        greedy = greedy and int(logits[place].argmax()) == token
    return total, greedy
