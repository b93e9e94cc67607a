"""Ablations and controls: every arm beside the arm it extends, and what the KV of which layers and kinds is worth.

In: `Results` with `extends`, `changes` and the settings of each arm's KV loss. Out: a forest plot of arm − parent whose table says
what was changed, and a heatmap layer range × {K, V, K + V} of the macro difference from the study's baseline.
"""

from mtkv.report.figures.figure import Figure, Trace, by_seed, label, mean, percent, text, verdict
from mtkv.report.figures.pairs import forest_figure, significance_note
from mtkv.report.figures.palette import DOWN, centred, heatmap_trace, margin
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import listed, say

KINDS = ("K", "V", "K + V")
LAYERS = ("all", "first", "middle", "last")


def ablation_figures(results: Results) -> list[Figure]:
    """The forest plot and the heatmap, where the study has arms for them."""
    pairs = list(results.extends.items())
    if not pairs:
        return []
    grid = layers_and_kinds(results)
    return [steps(results, pairs), *([grid] if grid else [])]


def steps(results: Results, pairs: list[tuple[str, str]]) -> Figure:
    """Forest plot of every arm against the arm it extends."""
    controls = [arm for arm, _ in pairs if results.kv.get(arm, {}).get("control", "none") != "none"]
    caption = say(
        "Each arm minus the arm it extends, so that only what the arm changes differs (the table says what). Filled: a clear difference; "
        "hollow: not, with the smallest difference this study would have seen."
    )
    if controls:
        caption += say(
            " Controls: {arms}; an arm's KV matters only where it beats its control.", arms=", ".join(controls)
        )
    caption += significance_note(results, pairs)
    figure = forest_figure(results, "ablations", "ablations", "Each arm against the arm it extends", caption, pairs)
    figure.header = [*figure.header, "What it changes"]
    figure.rows = [[*row, listed(results.changes.get(row[1], []), "; ") or "nothing"] for row in figure.rows]
    return figure


def families(results: Results) -> dict[str, dict[tuple[str, str], str]]:
    """Parent → {(layers, kinds): arm} of the arms that differ from it only in which layers or kinds the KV loss supervises.

    The parent is in its own family; families of one arm compare nothing and are left out.
    """
    found: dict[str, dict[tuple[str, str], str]] = {}
    for arm, parent in results.extends.items():
        if parent in results.kv and arm in results.kv and _only_loss(results.changes.get(arm, [])):
            members = found.setdefault(parent, {_place(results, parent): parent})
            members.setdefault(_place(results, arm), arm)
    return {parent: members for parent, members in found.items() if len(members) > 1}


def _only_loss(changed: list[str]) -> bool:
    allowed = ("kv.loss.layers", "kv.loss.lambda_k", "kv.loss.lambda_v", "kv.loss.beta", "kv.loss.gamma")
    return bool(changed) and all(text.split(":")[0] in allowed for text in changed)


def _place(results: Results, arm: str) -> tuple[str, str]:
    return results.kv[arm]["layers"], results.kv[arm]["kinds"]


def layers_and_kinds(results: Results) -> Figure | None:
    """Heatmap layer range × {K, V, K + V} of the macro Δ from the study's baseline, one view per family."""
    groups = families(results)
    if not groups:
        return None
    rows = [
        [
            parent,
            layers,
            kinds,
            arm,
            text(_value(results, arm, None), sign=True),
            verdict(results.pair(arm, MACRO), results.alpha),
        ]
        for parent, members in groups.items()
        for (layers, kinds), arm in members.items()
    ]
    return Figure(
        "layers_kinds",
        "ablations",
        "Which layers, and keys or values",
        say(
            "Macro difference from {baseline} in percentage points, by the student layers that the KV loss supervises and by whether it "
            "is about keys, values or both; scale centred at 0: blue better, orange worse. Blank: no such arm, or no number.",
            baseline=results.baseline,
        ),
        [_family_map(results, parent, members) for parent, members in groups.items()],
        {
            "xaxis": {"type": "category", "showgrid": False, "side": "top"},
            "yaxis": DOWN | {"title": {"text": "Supervised layers"}},
            "margin": margin(120, 24, top=40),
        },
        ["Made from", "Layers", "Kinds", "Arm", "Macro Δ (points)", "Outcome"],
        rows,
        views=[(parent, parent) for parent in groups],
        view_label="Made from",
        height=300,
        stills=len(groups),
    )


def _family_map(results: Results, parent: str, members: dict[tuple[str, str], str]) -> Trace:
    ranges = sorted(
        {layers for layers, _ in members},
        key=lambda name: (LAYERS.index(name) if name in LAYERS else len(LAYERS), name),
    )
    columns = [kind for kind in KINDS if any(kinds == kind for _, kinds in members)]

    def grid(of: int | None) -> list[list[float | None]]:
        return [[_value(results, members.get((layers, kinds)), of) for kinds in columns] for layers in ranges]

    z, seeds = grid(None), {seed: grid(seed) for seed in results.seeds}
    return heatmap_trace(
        label(parent),
        columns,
        ranges,
        z,
        **centred(z),
        texttemplate="%{z:+.1f}",
        hovertemplate="layers %{y}, %{x}: %{z:+.1f} points<extra></extra>",
        meta={"view": parent, "arm": parent, "by_seed": by_seed("z", seeds)},
    )


def _value(results: Results, arm: str | None, seed: int | None) -> float | None:
    """Macro Δ of an arm from the baseline in points, of one seed or over all; the baseline's own is 0."""
    if arm is None:
        return None
    if seed is not None:
        return percent(results.delta(arm, MACRO, seed))
    if arm == results.baseline:
        return 0.0
    if pair := results.pair(arm, MACRO):
        return percent(pair["delta"])
    return mean([percent(results.delta(arm, MACRO, s)) for s in results.runs_of(arm)])
