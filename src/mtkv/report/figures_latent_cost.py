"""Forward passes per question beside accuracy: what KaVa compares methods by, for every arm whose cards tell."""

from mtkv.report.figure import Figure, Trace, by_seed, label, mean, number, percent, text
from mtkv.report.latents import Latents
from mtkv.report.palette import Style, arm_styles
from mtkv.report.results import MACRO, Results


def passes_per_question(results: Results, arm: str, seed: int) -> float | None:
    """A run's forward passes per question, one after the other, mean over the datasets; None where a dataset's are not known.

    From the cards of the predictions; of a run that copied known answers, from those of the stage `latents`.
    """
    known: dict[str, float] = {}
    for key, card in results.cards.items():
        facts = card.get("result") or {}
        if key == f"latents/{arm}/seed{seed}":
            known |= {
                name: each for name, each in (facts.get("passes_per_question") or {}).items() if name not in known
            }
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
            [
                arm,
                str(latents.tokens.get(arm, 0)),
                text(mean(values.values())),
                text(percent(results.cell(arm, MACRO).get("mean"))),
            ]
            for arm, values in passes.items()
        ],
        height=400,
    )


def _mark(results: Results, arm: str, passes: dict[int, float | None], style: Style) -> Trace:
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
