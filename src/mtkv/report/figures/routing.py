"""How teachers are weighted: the mean weight per teacher over the steps, its entropy, and dataset × teacher and layer × teacher at the end.

In: the `route.<teacher>` and `entropy` terms of the training logs and `routing.parquet` (dataset, teacher, weight, and `layer` where the
router weighs each layer apart). Weights of one arm sum to 1.
"""

import math
from typing import Any

from mtkv.report.figures.figure import Figure, Trace, by_seed, label, mean, number, text, tick
from mtkv.report.figures.palette import (
    ACROSS,
    DASHES,
    DOWN,
    SEQUENTIAL,
    SYMBOLS,
    ArmStyle,
    arm_styles,
    heatmap_trace,
    margin,
)
from mtkv.report.figures.training import logged, run_line, steps_layout
from mtkv.report.results import Results
from mtkv.report.strings import say

HEATMAP_AXES: dict[str, Any] = {"xaxis": ACROSS, "yaxis": DOWN, "margin": margin(160, 56)}


def routing_figures(results: Results) -> list[Figure]:
    """Weights over steps, entropy, weights by dataset and by layer, as far as their data exist."""
    found = (over_steps(results), entropy(results), by_dataset(results), by_layer(results))
    return [figure for figure in found if figure is not None]


def over_steps(results: Results) -> Figure | None:
    """One line per arm (colour) and teacher (dash)."""
    if results.training.empty:
        return None
    teachers = _teachers(results)
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for arm in results.trained:
        for i, teacher in enumerate(teachers):
            line = _term_line(results, arm, f"route.{teacher}", styles[arm], f"{arm} · {teacher}")
            if line is not None:
                line["line"]["dash"] = DASHES[i % len(DASHES)]
                line["marker"]["symbol"] = SYMBOLS[i % len(SYMBOLS)]
                traces.append(line)
                rows.append([arm, teacher, text(line["y"][0], 3), text(line["y"][-1], 3)])
    if not traces:
        return None
    return Figure(
        "routing_steps",
        "routing",
        "Weight of each teacher over the steps",
        "Mean weight α of each teacher, averaged over layers and rows. Colour: arm; dash: teacher. Lines are means over "
        "seeds, bands their range.",
        traces,
        steps_layout("Weight", range=[-0.02, 1.02]),
        ["Arm", "Teacher", "First", "Last"],
        rows,
        height=420,
    )


def _teachers(results: Results) -> list[str]:
    terms = results.training["term"]
    return sorted(set(terms[terms.str.startswith("route.")].str.removeprefix("route.")))


def _term_line(results: Results, arm: str, term: str, style: ArmStyle, name: str) -> Trace | None:
    """A logged term over the steps as a line: of the training rows, or of the validation rows where only these have it."""
    for split in ("train", "val"):
        if (arm, term, split) in logged(results):
            line = run_line(logged(results)[arm, term, split], arm, split, style, name)
            line["line"]["width"] = 2
            return line
    return None


def entropy(results: Results) -> Figure | None:
    """Entropy of the weights as a share of its largest value, ln(number of teachers); arms with one teacher have none."""
    if results.training.empty:
        return None
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for arm in results.trained:
        count = len(results.kv.get(arm, {}).get("teachers", []))
        line = _term_line(results, arm, "entropy", styles[arm], arm) if count > 1 else None
        if line is None:
            continue
        seeds = line["meta"]["by_seed"]["seeds"]
        for values in (line["y"], *seeds.values()):
            values[:] = [None if value is None else number(value / math.log(count), 5) for value in values]
        traces.append(line)
        rows.append([arm, str(count), text(line["y"][0], 3), text(line["y"][-1], 3)])
    if not traces:
        return None
    return Figure(
        "routing_entropy",
        "routing",
        "How evenly the teachers are mixed",
        "Entropy of a row's weights, as a share of what equal weights have: 1 is an equal mix, 0 is one teacher alone. A router that "
        "is unsure and one that picks different teachers for different rows can have the same mean weights; this tells them apart.",
        traces,
        steps_layout("Entropy / ln(teachers)", range=[-0.02, 1.04]),
        ["Arm", "Teachers", "First", "Last"],
        rows,
        height=360,
    )


def by_dataset(results: Results) -> Figure | None:
    """Heatmap: rows are arm · teacher, columns datasets, colour the mean weight over validation rows."""
    frame = results.routing
    if frame.empty:
        return None
    names = [name for name in results.datasets if name in set(frame["dataset"])]
    lines = [(arm, t) for arm in results.arms for t in sorted(set(frame.loc[frame["arm"] == arm, "teacher"]))]
    weights = frame.groupby(["arm", "teacher", "dataset", "seed"])["weight"].mean().to_dict()
    seeds = {s: [[number(weights.get((a, t, name, s)), 5) for name in names] for a, t in lines] for s in results.seeds}
    z = [[mean(seeds[s][i][j] for s in results.seeds) for j in range(len(names))] for i in range(len(lines))]
    meta = {"rows": {"arm": [arm for arm, _ in lines]}, "columns": {"dataset": names}, "by_seed": by_seed("z", seeds)}
    trace = _weights(z, [tick(name) for name in names], [f"{arm} · {teacher}" for arm, teacher in lines], meta)
    rows = [[a, t, name, text(z[i][j], 3)] for i, (a, t) in enumerate(lines) for j, name in enumerate(names)]
    return Figure(
        "routing_datasets",
        "routing",
        "Weight of each teacher per dataset",
        "Mean weight of each teacher over the validation rows of a dataset, after training, averaged over seeds.",
        [trace],
        HEATMAP_AXES,
        ["Arm", "Teacher", "Dataset", "Weight"],
        rows,
        height=max(220, 90 + 30 * len(lines)),
    )


def by_layer(results: Results) -> Figure | None:
    """Heatmap teacher × layer, one view per arm whose router weighs each layer apart."""
    if "layer" not in results.routing:
        return None
    frame = results.routing.dropna(subset="layer")
    arms = [arm for arm in results.arms if arm in set(frame["arm"])]
    traces, rows = [], []
    for arm in arms:
        part = frame[frame["arm"] == arm]
        teachers, layers = sorted(set(part["teacher"])), sorted({int(layer) for layer in part["layer"]})
        weights = part.groupby(["seed", "teacher", "layer"])["weight"].mean().to_dict()
        seeds = {s: [[number(weights.get((s, t, la)), 5) for la in layers] for t in teachers] for s in results.seeds}
        z = [[mean(seeds[s][i][j] for s in results.seeds) for j in range(len(layers))] for i in range(len(teachers))]
        meta = {"view": arm, "arm": arm, "by_seed": by_seed("z", seeds)}
        traces.append(_weights(z, [say("layer {layer}", layer=layer) for layer in layers], teachers, meta))
        rows += [[arm, t, str(la), text(z[i][j], 3)] for i, t in enumerate(teachers) for j, la in enumerate(layers)]
    if not traces:
        return None
    return Figure(
        "routing_layers",
        "routing",
        "Weight of each teacher per layer",
        "Mean weight of each teacher in each student layer over the validation rows, after training, averaged over datasets and seeds.",
        traces,
        HEATMAP_AXES,
        ["Arm", "Teacher", "Student layer", "Weight"],
        rows,
        views=[(arm, arm) for arm in arms],
        view_label="Arm",
        height=max(220, 100 + 34 * max(len(trace["y"]) for trace in traces)),
    )


def _weights(z: list[list[Any]], columns: list[str], lines: list[str], meta: dict[str, Any]) -> Trace:
    """Weights as a heatmap from 0 to 1."""
    texts = {"texttemplate": "%{z:.2f}", "hovertemplate": "%{y}<br>%{x}: %{z:.3f}<extra></extra>"}
    return heatmap_trace(
        "weight", columns, [label(line) for line in lines], z, SEQUENTIAL, zmin=0, zmax=1, meta=meta, **texts
    )
