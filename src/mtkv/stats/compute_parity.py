"""Refuses to compare trained arms that did not have the same compute.

In: the cards of the training runs. A difference between two arms is due to the method only if both took the same steps on the
same rows with the same weight on the text; where these differ by more than the tolerance, `check_fairness` raises. Arms with latent
tokens in place of the chain of thought read fewer tokens of the same rows by design: tokens are compared among arms of as many slots,
and among runs of one seed, which draws the rows that a training of less than a pass has.
Phases (`training.phases`) lie inside an arm's steps and count in all of these, those of prompts with the prompts' tokens; an
arm's weight on the text is that before their factors.
Arms that only teach others are not among the cards (`mtkv.stages.compare.only_teachers`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

QUANTITIES = ("steps", "tokens", "rows_seen", "batch_size", "ce_weight")


class UnfairComparison(ValueError):  # noqa: N818 - says what it is
    """Trained arms differ in compute. The message has one line per quantity, with the runs and their numbers."""


def check_fairness(cards: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, list[float]]:
    """Smallest and largest value of each quantity over all cards; raises UnfairComparison beyond `tolerance`.

    `tolerance` is relative to the largest value (0.01: one percent).
    """
    if not cards:
        return {}
    spans, problems = {}, []
    for quantity in QUANTITIES:
        values = {_run(card): card["result"].get(quantity) for card in cards}
        absent = sorted(run for run, value in values.items() if value is None)
        if absent:
            problems.append(f"{quantity}: not in the card of {', '.join(absent)}")
            continue
        spans[quantity] = [float(min(values.values())), float(max(values.values()))]
        kinds = {_run(card): _kind(card) if quantity == "tokens" else None for card in cards}
        for kind in dict.fromkeys(kinds.values()):
            alike = {run: value for run, value in values.items() if kinds[run] == kind}
            problems += _apart(quantity, alike, tolerance)
    if problems:
        raise UnfairComparison("trained arms differ, so their scores cannot be compared:\n" + "\n".join(problems))
    return spans


def _apart(quantity: str, values: Mapping[str, float], tolerance: float) -> list[str]:
    """A line that names the runs with the smallest and largest of `values` (run → number) where these differ too much; else nothing."""
    low, high = (choose(sorted(values), key=values.__getitem__) for choose in (min, max))
    if values[high] - values[low] <= tolerance * abs(values[high]) * (1 + 1e-9):
        return []
    share = (values[high] - values[low]) / abs(values[high])
    return [
        f"{quantity}: {low} has {values[low]:g}, {high} has {values[high]:g}, {share:.1%} apart; allowed: {tolerance:.1%}"
    ]


def _kind(card: Mapping[str, Any]) -> tuple[Any, ...]:
    return card["result"].get("slots"), card["wildcards"]["seed"]


def _run(card: Mapping[str, Any]) -> str:
    wildcards = card["wildcards"]
    return f"{wildcards['arm']}/seed{wildcards['seed']}"
