"""How teachers are weighted: the mean weight per teacher over the steps, and dataset × teacher at the end.

In: the `route.<teacher>` terms of the training logs and `routing.parquet`. Weights of one arm sum to 1.
"""

from typing import Any

from mtkv.report.figure import Figure, Trace, by_seed, label, mean, number, text, tick
from mtkv.report.figures_training import run_line
from mtkv.report.palette import DASHES, SEQUENTIAL, SYMBOLS, arm_styles
from mtkv.report.results import Results


def routing_figures(results: Results) -> list[Figure]:
    """The two figures, as far as their data exist."""
    return [figure for figure in (over_steps(results), by_dataset(results)) if figure is not None]


def over_steps(results: Results) -> Figure | None:
    """One line per arm (colour) and teacher (dash)."""
    if results.training.empty:
        return None
    frame = results.training[results.training["term"].str.startswith("route.")]
    teachers = sorted(set(frame["term"].str.removeprefix("route.")))
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for arm in results.trained:
        for i, teacher in enumerate(teachers):
            line = _weight_line(results, frame, arm, teacher, styles[arm])
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
        {
            "margin": {"l": 64, "r": 24, "t": 16, "b": 104},
            "xaxis": {"title": {"text": "Step"}},
            "yaxis": {"title": {"text": "Weight"}, "range": [-0.02, 1.02]},
        },
        ["Arm", "Teacher", "First", "Last"],
        rows,
        height=420,
    )


def _weight_line(results: Results, frame: Any, arm: str, teacher: str, style: Any) -> Trace | None:
    for split in ("train", "val"):
        line = run_line(results, frame, arm, f"route.{teacher}", split, style)
        if line is not None:
            line["name"] = label(f"{arm} · {teacher}")
            line["line"]["width"] = 2
            return line
    return None


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
    trace: Trace = {
        "type": "heatmap",
        "name": "weight",
        "x": [tick(name) for name in names],
        "y": [label(f"{arm} · {teacher}") for arm, teacher in lines],
        "z": z,
        "zmin": 0,
        "zmax": 1,
        "colorscale": SEQUENTIAL,
        "xgap": 2,
        "ygap": 2,
        "texttemplate": "%{z:.2f}",
        "hovertemplate": "%{y}<br>%{x}: %{z:.3f}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "meta": {
            "rows": {"arm": [arm for arm, _ in lines]},
            "columns": {"dataset": names},
            "by_seed": by_seed("z", seeds),
        },
    }
    rows = [[a, t, name, text(z[i][j], 3)] for i, (a, t) in enumerate(lines) for j, name in enumerate(names)]
    return Figure(
        "routing_datasets",
        "routing",
        "Weight of each teacher per dataset",
        "Mean weight of each teacher over the validation rows of a dataset, after training, averaged over seeds.",
        [trace],
        {
            "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
            "margin": {"l": 160, "r": 24, "t": 16, "b": 56},
        },
        ["Arm", "Teacher", "Dataset", "Weight"],
        rows,
        height=max(220, 90 + 30 * len(lines)),
    )
