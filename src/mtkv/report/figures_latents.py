"""Whether a study's latent tokens hold anything: accuracy without them, what they say, what they were taught, and what they cost.

In: `Results.latents` and the cards of the predictions. Nothing is drawn for a study without latent tokens.
"""

from typing import Any

from mtkv.report.figure import Figure, Trace, by_seed, interval, label, percent, text
from mtkv.report.figures_latent_cost import latent_cost
from mtkv.report.figures_latent_kept import kept_places
from mtkv.report.figures_latent_tokens import decoded_tokens
from mtkv.report.latents import UNCHANGED, Latents
from mtkv.report.palette import GREYS, OKABE_ITO
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import say

TITLES = {
    UNCHANGED: "as they are",
    "zeroed": "zeroed",
    "swapped": "of another question",
    "half": "first half only",
    "no latents": "none left",
}
COLORS = dict(zip(TITLES, (OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[4], OKABE_ITO[5], GREYS[0]), strict=True))


def latent_figures(results: Results) -> list[Figure]:
    """The figures whose data exist."""
    if results.latents is None:
        return []
    found = [build(results, results.latents) for build in (interventions, decoded_tokens, kept_places, latent_cost)]
    return [figure for figure in found if figure is not None]


def interventions(results: Results, latents: Latents) -> Figure | None:
    """Grouped bars: accuracy of each arm under each condition, one view for the macro average and each dataset."""
    arms = [arm for arm in latents.tokens if arm in set(latents.cells["arm"])]
    columns = [MACRO, *results.datasets]
    if not arms:
        return None
    used = [arm for arm in arms if _falls(latents, arm)]
    caption = say(
        "Accuracy in percent of each arm with its latent tokens as they are and changed, on the first questions of each dataset. "
        "Whiskers: {confidence} interval over questions, for the mean of these runs. The table has each condition minus “as they are”, "
        "paired by question, and that of each seed: where the interval holds 0, nothing shows that these models' answers depend on what "
        "was changed. In the final pass a changed latent still reads the question; “none left” takes that away too.",
        confidence=f"{results.confidence:.0%}",
    )
    if used:
        caption += say(
            " Clearly worse on the macro average with the latents of another question: {arms}.", arms=", ".join(used)
        )
    else:
        caption += say(" No arm is clearly worse on the macro average with the latents of another question.")
    return Figure(
        "latent_interventions",
        "latents",
        "Accuracy with changed latents",
        caption,
        [_bars(results, latents, arms, name, view) for view in columns for name in latents.conditions],
        {
            "barmode": "group",
            "bargap": 0.18,
            "yaxis": {"title": {"text": "Accuracy (%)"}, "range": [0, 100]},
            "xaxis": {"type": "category", "showgrid": False, "automargin": True},
        },
        ["Arm", "Dataset", "Latents", "Accuracy (%)", "Minus “as they are” (points)", "By seed", "n"],
        [
            _row(results, latents, found)
            for view in columns
            for arm in arms
            for name in latents.conditions
            if (found := latents.cell(arm, name, view)) is not None
        ],
        views=[(view, view) for view in columns],
        view_label="Dataset",
        height=440,
    )


def _falls(latents: Latents, arm: str) -> bool:
    found = latents.cell(arm, "swapped", MACRO)
    return found is not None and bool(found["delta_high"] < 0)


def _bars(results: Results, latents: Latents, arms: list[str], condition: str, view: str) -> Trace:
    cells = [latents.cell(arm, condition, view) or {} for arm in arms]
    whiskers = [interval(cell.get("low"), cell.get("high"), cell.get("mean")) for cell in cells]
    seeds = {s: [percent(latents.runs.get((arm, condition, view, s))) for arm in arms] for s in results.seeds}
    return {
        "type": "bar",
        "name": TITLES[condition],
        "offsetgroup": condition,
        "x": [label(arm) for arm in arms],
        "y": [percent(cell.get("mean")) for cell in cells],
        "error_y": {
            "type": "data",
            "array": [high for _, high in whiskers],
            "arrayminus": [low for low, _ in whiskers],
            "thickness": 1.2,
            "width": 2,
        },
        "marker": {"color": COLORS[condition]},
        "meta": {
            "view": view,
            **({"dataset": view} if view != MACRO else {}),
            "points": {"arm": arms},
            "by_seed": by_seed("y", seeds),
        },
        "hovertemplate": "%{fullData.name}<br>%{x}: %{y:.1f} %<extra></extra>",
    }


def _row(results: Results, latents: Latents, found: dict[str, Any]) -> list[str]:
    arm, condition, view = found["arm"], found["condition"], found["dataset"]
    value, low, high = (text(percent(found[name])) for name in ("mean", "low", "high"))
    apart, each = "—", "—"
    if condition != UNCHANGED:
        delta, below, above = (text(percent(found[f"delta{end}"]), sign=True) for end in ("", "_low", "_high"))
        apart = f"{delta} [{below}, {above}]"
        runs = [[latents.runs[arm, name, view, s] for name in (condition, UNCHANGED)] for s in results.runs_of(arm)]
        each = ", ".join(text(percent(changed - unchanged), sign=True) for changed, unchanged in runs)
    return [arm, view, TITLES[condition], f"{value} [{low}, {high}]", apart, each, str(int(found["n_items"]))]
