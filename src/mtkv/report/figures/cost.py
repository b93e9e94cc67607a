"""What each arm cost: wall time, GPU-hours, peak memory, tokens per second of its training runs, and the KV it needs on disk.

In: the cards of the stages arms, teachers and maps. Seconds are those of the whole stage; GPU-hours count the training alone.
`latent_cost` sets forward passes per question beside accuracy, as KaVa compares methods; its passes are in the predictions' cards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mtkv.report.figures.figure import Figure, Trace, by_seed, label, mean, number, percent, text
from mtkv.report.figures.palette import DOWN, ArmStyle, arm_styles, margin
from mtkv.report.latent_results import Latents
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import say

Card = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One quantity of the cost figure: how to get it from a run's card, and how many digits to write."""

    title: str
    value: Callable[[Results, str, Card], float | None]
    digits: int = 1


def tokens_per_second(card: Card) -> float | None:
    """Training tokens per second of the training loop; None where the card lacks either."""
    facts = card.get("result") or {}
    tokens, seconds = facts.get("tokens") or card.get("tokens"), facts.get("train_seconds") or card.get("wall_seconds")
    return tokens / seconds if tokens and seconds else None


def gpu_hours(card: Card) -> float | None:
    """Wall time on a GPU in hours; 0 for a run without a GPU."""
    seconds = card.get("wall_seconds")
    used = (card.get("hardware") or {}).get("gpu") is not None or card.get("peak_gpu_memory_mb") is not None
    return None if seconds is None else seconds / 3600 * used


def stored_megabytes(results: Results, arm: str) -> float | None:
    """MB of stored KV that an arm reads: mapped targets where they exist, else raw stores; 0 without KV or with online teachers."""
    part = results.kv.get(arm)
    if part is None:
        return 0.0
    sizes = []
    for teacher, name in zip(part["teachers"], part["aligns"], strict=True):
        card = results.cards.get(f"maps/{name}.targets") or results.cards.get(f"teachers/{teacher}")
        sizes.append(float(((card or {}).get("result") or {}).get("bytes") or 0))
    return sum(sizes) / 1e6


MEASURES = (
    Measure("Wall time (s)", lambda results, arm, card: card.get("wall_seconds")),
    Measure("GPU-hours", lambda results, arm, card: gpu_hours(card), 3),
    Measure("Peak memory (MB)", lambda _, arm, card: card.get("peak_gpu_memory_mb") or card.get("peak_memory_mb")),
    Measure("Tokens per second", lambda results, arm, card: tokens_per_second(card), 0),
    Measure("Stored KV (MB)", lambda results, arm, card: stored_megabytes(results, arm)),
)


def arm_costs(results: Results) -> dict[str, dict[str, dict[int, float | None]]]:
    """Arm → title of a measure → seed → value, for trained arms with a card."""
    costs = {}
    for arm in results.trained:
        cards = {s: results.cards.get(f"arms/{arm}/seed{s}") for s in results.runs_of(arm)}
        known = {s: card for s, card in cards.items() if card}
        if known:
            costs[arm] = {
                one.title: {s: number(one.value(results, arm, card)) for s, card in known.items()} for one in MEASURES
            }
    return costs


def cost_figures(results: Results) -> list[Figure]:
    """One figure with a panel per measure that is not 0 everywhere, or none when no training card exists."""
    costs = arm_costs(results)
    if not costs:
        return []
    arms = list(costs)
    shown = [one for one in MEASURES if any(v for arm in arms for v in costs[arm][one.title].values())]
    traces = [_panel(results, one.title, place, costs) for place, one in enumerate(shown, start=1)]
    rows = [[arm, *(text(mean(costs[arm][one.title].values()), one.digits) for one in MEASURES)] for arm in arms]
    total = sum(value or 0.0 for arm in arms for value in costs[arm]["GPU-hours"].values())
    caption = say(
        "Cost of one training run per arm, mean over seeds: wall time of the whole stage, peak memory (of the GPU where one was used), "
        "tokens per second of the training loop, and the KV of its teachers on disk, which arms share."
    )
    used = say(" GPU-hours of all training runs: {hours}.", hours=text(total, 2))
    caption += used if total else say(" No run used a GPU.")
    header = ["Arm", *(one.title for one in MEASURES)]
    height = max(240, 100 + 34 * len(arms))
    return [Figure("cost", "cost", "Cost of training", caption, traces, _layout(shown), header, rows, height=height)]


def _panel(results: Results, title: str, place: int, costs: dict[str, dict[str, dict[int, float | None]]]) -> Trace:
    arms = list(costs)
    styles = arm_styles(results.arms, results.trained, results.baseline)
    seeds = {s: [costs[arm][title].get(s) for arm in arms] for s in results.seeds}
    return {
        "type": "bar",
        "orientation": "h",
        "name": title,
        "x": [mean(costs[arm][title].values()) for arm in arms],
        "y": [label(arm) for arm in arms],
        "xaxis": "x" if place == 1 else f"x{place}",
        "yaxis": "y",
        "marker": {"color": [styles[arm].color for arm in arms]},
        "texttemplate": "%{x:.3s}",
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:.4g}<extra></extra>",
        "meta": {"points": {"arm": arms}, "by_seed": by_seed("x", seeds)},
    }


def _layout(shown: list[Measure]) -> dict[str, Any]:
    gap = 0.04
    width = (1 - gap * (len(shown) - 1)) / len(shown)
    layout: dict[str, Any] = {
        f"xaxis{'' if i == 0 else i + 1}": {
            "domain": [round(i * (width + gap), 4), round(i * (width + gap) + width, 4)],
            "anchor": "y",
            "title": {"text": one.title},
            "nticks": 4,
        }
        for i, one in enumerate(shown)
    }
    return layout | {
        "yaxis": DOWN,
        "showlegend": False,
        "margin": margin(120, 56),
    }


def passes_per_question(results: Results, arm: str, seed: int) -> float | None:
    """Consecutive forward passes per question of a run, mean over the datasets; None where a dataset's are not known.

    From the cards of the predictions; for a run that copied known answers, from those of the stage `latents`.
    """
    known: dict[str, float] = {}
    for key, card in results.cards.items():
        facts = card.get("result") or {}
        if key == f"latents/{arm}/seed{seed}":
            known = (facts.get("passes_per_question") or {}) | known
        elif f"{key}/".startswith(f"predictions/{arm}/seed{seed}/"):
            counted = (facts.get("datasets") or {}).items()
            known |= {name: one["passes_per_question"] for name, one in counted if "passes_per_question" in one}
    values = [number(known.get(name)) for name in results.datasets]
    return None if None in values else mean(values)


def latent_cost(results: Results, latents: Latents) -> Figure | None:
    """One mark per arm: passes per question across, macro accuracy up."""
    passes = {arm: {s: passes_per_question(results, arm, s) for s in results.runs_of(arm)} for arm in results.arms}
    passes = {arm: values for arm, values in passes.items() if mean(values.values()) is not None}
    if not passes:
        return None
    styles = arm_styles(results.arms, results.trained, results.baseline)
    return Figure(
        "latent_cost",
        "latents",
        "Forward passes and accuracy",
        "Forward passes of the model that one question takes, one after the other, and accuracy; both are means over the datasets and "
        "seeds. A chain of thought costs one pass for each of its tokens, latent tokens one for each iteration, whatever their number; "
        "reading a question's choices at once counts as one.",
        [_mark(results, arm, values, styles[arm]) for arm, values in passes.items()],
        {
            "xaxis": {"title": {"text": "Forward passes per question"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "Macro average (%)"}, "range": [0, 100]},
        },
        ["Arm", "Latents", "Forward passes per question", "Macro average (%)"],
        [
            [arm, str(latents.tokens.get(arm, 0)), text(mean(values.values())), text(percent(found.get("mean")))]
            for arm, values in passes.items()
            if (found := results.cell(arm, MACRO))
        ],
        height=400,
    )


def _mark(results: Results, arm: str, passes: dict[int, float | None], style: ArmStyle) -> Trace:
    seeds = {s: [percent(results.accuracy(arm, MACRO, s))] for s in results.seeds}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(arm),
        "x": [mean(passes.values())],
        "y": [percent(results.cell(arm, MACRO).get("mean"))],
        "marker": {"color": style.color, "symbol": style.symbol, "size": 10},
        "meta": {"arm": arm, "by_seed": by_seed("y", seeds)},
        "hovertemplate": "%{fullData.name}: %{x:.1f} passes, %{y:.1f} %<extra></extra>",
    }
