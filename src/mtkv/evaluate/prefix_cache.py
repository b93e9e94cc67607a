"""Prompts that begin alike: their common beginning is read once, its KV given to each of them.

Instructions, solved examples and TruthfulQA's six questions in front are the same for many prompts, and lm-eval's loop reads them
again for every one, and for every choice of every question.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import DynamicCache

Forward = Callable[..., Any]  # the model's forward
MODULES = "transformers."
WORTH = 256  # tokens that must be saved for a beginning to be read on its own
LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Group:
    """Prompts (by their place in the list) whose first `shared` tokens are the same."""

    shared: int
    members: tuple[int, ...]


def shared_beginnings(prompts: Sequence[Sequence[int]], overhead: int) -> list[Group]:
    """The cheapest way to read token ids in groups of a common beginning: least tokens read + `overhead` tokens per group.

    Every prompt keeps at least its last token for itself. Members are in order of length, longest first.
    """
    order = sorted(range(len(prompts)), key=lambda place: tuple(prompts[place]))
    groups = _cheapest(prompts, order, 0, overhead)[1] if order else []
    return [Group(shared, tuple(sorted(members, key=lambda place: -len(prompts[place])))) for shared, members in groups]


def _cheapest(
    prompts: Sequence[Sequence[int]], order: list[int], known: int, overhead: int
) -> tuple[int, list[tuple[int, list[int]]]]:
    """Cost and groups of prompts in lexicographic order that share at least `known` tokens: one group, or one for each next token."""
    first, last = prompts[order[0]], prompts[order[-1]]  # what these two share, all between them do
    shared = known
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    usable = min(shared, min(len(prompts[place]) for place in order) - 1)
    if usable * (len(order) - 1) < WORTH:
        usable = 0
    together = usable + sum(len(prompts[place]) - usable for place in order) + overhead
    one = (together, [(usable, order)])
    if len(order) < 3 or shared == len(last):
        return one
    longer = [place for place in order if len(prompts[place]) > shared]
    ended = [place for place in order if len(prompts[place]) <= shared]
    parts = [list(same) for _, same in groupby(longer, key=lambda place: prompts[place][shared])]
    apart = [_cheapest(prompts, part, shared, overhead) for part in [*parts, *([ended] if ended else [])]]
    cost = sum(part for part, _ in apart)
    return one if together <= cost else (cost, [group for _, groups in apart for group in groups])


def can_share(model: Any, longest: int) -> bool:
    """Whether texts of `longest` tokens may be laid out freely: positions are given, every layer sees all tokens and keeps plain KV.

    Code that did not come with transformers, ALiBi, recurrent layers, and windows shorter than the text are left to lm-eval's loop.
    """
    settings = model.config.get_text_config()
    inputs = set(inspect.signature(model.forward).parameters)
    return (
        type(model).__module__.startswith(MODULES)
        and {"position_ids", "past_key_values", "logits_to_keep"} <= inputs
        and settings._attn_implementation in ("sdpa", "eager")
        and not getattr(model, "_is_stateful", False)
        and not getattr(settings, "alibi", False)
        and set(getattr(settings, "layer_types", None) or ["full_attention"]) <= LAYERS
        and longest <= (getattr(settings, "sliding_window", None) or longest)
    )


def read_beginning(forward: Forward, ids: Sequence[int], device: torch.device) -> DynamicCache | None:
    """KV of a common beginning, [1, heads, tokens, width] a layer; None for none."""
    if not ids:
        return None
    cache = DynamicCache()
    forward(input_ids=torch.tensor([ids], device=device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def for_rows(cache: DynamicCache | None, rows: int) -> DynamicCache:
    """The KV of a beginning for each of `rows` prompts."""
    copy = DynamicCache()
    for layer, held in enumerate(layers_of(cache) if cache is not None else ()):
        copy.update(held.keys.expand(rows, -1, -1, -1), held.values.expand(rows, -1, -1, -1), layer)
    return copy


def layers_of(cache: DynamicCache) -> list[Any]:
    """The layers of a cache, each with `keys` and `values` [rows, heads, tokens, width]: no other kind is made here."""
    return list(cache.layers)
