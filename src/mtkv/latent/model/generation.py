"""Inference behind question and latents: transformers' own `generate`, continued from the refined latents' cache, and log-likelihoods.

In: token ids of questions. Out: new tokens, what the latents decode to, or the log-likelihoods of given continuations (`score`). Scoring
takes the path of training, one row for each continuation: slower than all choices of a question at once
(`mtkv.evaluate.loglikelihood`), but it asks nothing of the model: no masks, positions or cache.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from mtkv.latent.model.interventions import Intervention
from mtkv.latent.model.jacobi import followed, placed, refine
from mtkv.models.cross_entropy import IGNORED_LABEL, logits_only_at

if TYPE_CHECKING:
    from mtkv.latent.model.student import LatentStudent


def left_aligned(
    input_ids: Int[Tensor, "batch time"], attention_mask: Int[Tensor, "batch time"] | None
) -> tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """Ids and mask with each row's tokens at its end, whichever side was padded."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids.dtype)
    order = mask.argsort(dim=1, stable=True)
    ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    used = int(mask.sum(1).max())
    return ids[:, -used:], mask[:, -used:]


@torch.no_grad()
def generate(
    student: "LatentStudent",
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Int[Tensor, "batch time"] | None = None,
    intervene: Intervention | None = None,
    **settings: Any,
) -> Any:
    """What transformers' `generate` says after question and latents: new tokens `[batch, new]` alone. Padding on either side.

    `settings` are those of `generate`, and its output classes are kept; `max_length` counts question, slots and new tokens.
    `intervene` changes the refined latents (`mtkv.latent.model.interventions`). A method of `LatentStudent`, as are the two below.
    """
    ids, mask = left_aligned(input_ids, attention_mask)
    model: Any = student.model
    if not student.slots:
        with _counted(student):
            said = model.generate(input_ids=ids, attention_mask=mask, **settings)
        return _new_tokens(said, ids.shape[1])
    embeds, seen, positions, cache = begun(student, ids, mask)
    latents, read = refine(student, embeds, seen, positions, cache)
    if intervene is not None:
        latents = intervene(latents)
    end = student.latent.slot_inputs(embeds.dtype)[student.latent.before + student.latent.tokens :]
    embeds = torch.cat([embeds, latents, end.expand(len(ids), -1, -1)], dim=1)
    if read == embeds.shape[1]:
        cache.crop(-1)  # nothing was left behind the question, and something must be read
    settings = _in_new_tokens(student, settings, embeds.shape[1])
    cache.batch_repeat_interleave(_rows_per_question(student, settings))
    seen = F.pad(mask, (0, embeds.shape[1] - mask.shape[1]), value=1)
    with _counted(student):
        # The ids are for penalties and stop texts; what is read are the embeddings.
        said = model.generate(
            input_ids=ids, inputs_embeds=embeds, attention_mask=seen, past_key_values=cache, **settings
        )
    return _new_tokens(said, ids.shape[1])


@torch.no_grad()
def decode_latents(
    student: "LatentStudent",
    input_ids: Int[Tensor, "batch time"],
    attention_mask: Int[Tensor, "batch time"] | None = None,
    k: int = 5,
) -> tuple[Int[Tensor, "batch M k"], Float[Tensor, "batch M k"]]:
    """The k likeliest tokens at each latent's last hidden state in the final pass, and their probabilities."""
    ids, mask = left_aligned(input_ids, attention_mask)
    embeds, seen, positions, cache = begun(student, ids, mask)
    latents, read = refine(student, embeds, seen, positions, cache)
    tokens = student.latent.tokens
    seen, positions = followed(seen, positions, tokens)
    inputs = torch.cat([embeds, latents], dim=1)[:, read:]
    student.forward_passes += 1
    logits = student.model(
        inputs_embeds=inputs,
        attention_mask=seen,
        past_key_values=cache,
        use_cache=True,
        **placed(student, positions[:, read:]),
    ).logits[:, inputs.shape[1] - tokens :]
    likeliest = logits.float().softmax(-1).topk(k)
    return likeliest.indices, likeliest.values


def begun(
    student: "LatentStudent", ids: Int[Tensor, "batch time"], mask: Int[Tensor, "batch time"]
) -> tuple[
    Float[Tensor, "batch columns hidden"], Int[Tensor, "batch columns"], Int[Tensor, "batch columns"], DynamicCache
]:
    """Embeddings, mask and positions of questions padded on the left and the begin marker, and an empty cache.

    The cache is made without the model's config: layers with a sliding window would drop what is read again after the latents.
    """
    embeds = student.model.get_input_embeddings()(ids)
    begin = student.latent.slot_inputs(embeds.dtype)[: student.latent.before]
    seen = F.pad(mask, (0, student.latent.before), value=1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    return torch.cat([embeds, begin.expand(len(ids), -1, -1)], dim=1), seen, positions, DynamicCache()


def _setting(student: "LatentStudent", settings: dict[str, Any], name: str) -> Any:
    """A setting as `generate` finds it: given, in the given generation config, in the model's own."""
    found = settings.get(name)
    configs = (settings.get("generation_config"), student.model.generation_config)
    return (
        found
        if found is not None
        else next((value for c in configs if (value := getattr(c, name, None)) is not None), None)
    )


def _in_new_tokens(student: "LatentStudent", settings: dict[str, Any], read: int) -> dict[str, Any]:
    """`settings` with max_length and min_length, which count everything, as numbers of new tokens: `generate` would count embeddings or
    ids, but not both. `read`: columns before the first new token."""
    settings = dict(settings)
    for whole, new, least in (("max_length", "max_new_tokens", 1), ("min_length", "min_new_tokens", 0)):
        length = _setting(student, settings, whole)
        settings.pop(whole, None)
        if _setting(student, settings, new) is None and length:
            settings[new] = max(int(length) - read, least)
    return settings


def _rows_per_question(student: "LatentStudent", settings: dict[str, Any]) -> int:
    """How many rows `generate` makes of each question: its beams, or the answers that are drawn."""
    return max(_setting(student, settings, name) or 1 for name in ("num_beams", "num_return_sequences"))


def _new_tokens(said: Any, columns: int) -> Any:
    """What `generate` returned, its sequences without the question's `columns`."""
    if isinstance(said, Tensor):
        return said[:, columns:]
    said.sequences = said.sequences[:, columns:]
    return said


@contextmanager
def _counted(student: "LatentStudent") -> Iterator[None]:
    """Count every pass of the model inside."""

    def count(*_: Any) -> None:
        student.forward_passes += 1

    hook = student.model.register_forward_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def score(
    student: "LatentStudent", questions: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> list[tuple[float, bool]]:
    """Log-likelihood in nats of each continuation after its question and latents, and whether it is the greedy one.

    All rows are read in one batch. Continuations are not empty.
    """
    rows = [student.layout(question, said) for question, said in zip(questions, continuations, strict=True)]
    ids = _padded([ids for ids, _ in rows], 0).to(student.device)
    starts = torch.tensor([start for _, start in rows], device=student.device)
    # The state before each token of the continuation predicts it.
    said = [
        [IGNORED_LABEL] * (len(ids) - len(own) - 1) + [*own] for (ids, _), own in zip(rows, continuations, strict=True)
    ]
    labels = _padded(said, IGNORED_LABEL).to(student.device)
    keep = torch.nn.functional.pad(labels != IGNORED_LABEL, (0, ids.shape[1] - labels.shape[1]))
    embeds = student.embed(ids, starts)
    student.forward_passes += student.passes(1)
    with logits_only_at(student.model, keep):
        logits = student.model(inputs_embeds=embeds, use_cache=False).logits
    tokens = labels[labels != IGNORED_LABEL]
    taken = logits.log_softmax(-1, dtype=torch.float32).gather(1, tokens[:, None])[:, 0]
    greedy = logits.argmax(-1) == tokens
    lengths = [len(own) for own in continuations]
    parts = zip(taken.split(lengths), greedy.split(lengths), strict=True)
    return [(float(logs.sum()), bool(best.all())) for logs, best in parts]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
