"""Whether learning the teachers' KV went with learning the task: final KV loss beside task accuracy, and validation minus training.

In: the training logs and the accuracies of every run. Out: `Figure`s. A point or a line is a run or the mean of an arm's runs.
"""

import pandas as pd

from mtkv.report.figure import Figure, Trace, label, number, percent, text
from mtkv.report.figures_training import TERM_ORDER, by_line, ends, kv_sums, run_line
from mtkv.report.palette import Style, arm_styles
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import say

GAP_TERMS = ("ce", "key", "value", "cosine", "loss")


def learning_figures(results: Results) -> list[Figure]:
    """The figures whose data exist."""
    if results.training.empty:
        return []
    return [figure for figure in (kv_and_accuracy(results), gap(results)) if figure is not None]


def kv_and_accuracy(results: Results) -> Figure | None:
    """One point per run: KV loss on the validation rows at the end of training, and accuracy on the test items."""
    last = last_kv(results.training)
    arms = [arm for arm in results.trained if any(key[0] == arm for key in last)]
    if not arms:
        return None
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for name in [MACRO, *results.datasets]:
        for arm in arms:
            points = [
                (seed, last[arm, seed], percent(results.accuracy(arm, name, seed)))
                for seed in results.runs_of(arm)
                if (arm, seed) in last and results.accuracy(arm, name, seed) is not None
            ]
            if points:
                traces.append(_points(arm, name, points, styles[arm]))
                rows += [[name, arm, str(seed), text(loss, 4), text(score)] for seed, loss, score in points]
    if not traces:
        return None
    return Figure(
        "kv_and_accuracy",
        "training",
        "KV loss and task accuracy",
        "Each point is a run: the KV loss (key + value) on the validation rows at the end of training, and its accuracy on the test items. "
        "Points that go down to the right would mean that a better match of the KV goes with better answers. Losses of arms with other "
        "teachers, layers or maps have other targets: compare points of one arm, and an arm with its control.",
        traces,
        {
            "margin": {"l": 64, "r": 24, "t": 16, "b": 104},
            "xaxis": {"title": {"text": "Validation KV loss at the end"}},
            "yaxis": {"title": {"text": "Accuracy (%)"}, "automargin": True},
        },
        ["Dataset", "Arm", "Seed", "KV loss", "Accuracy (%)"],
        rows,
        views=[(name, name) for name in [MACRO, *results.datasets]],
        view_label="Dataset",
        height=420,
    )


def last_kv(frame: pd.DataFrame) -> dict[tuple[str, int], float]:
    """(arm, seed) → the last logged key + value on validation rows, or on training rows where there are no others."""
    found: dict[tuple[str, int], float] = {}
    for split in ("train", "val"):
        last = kv_sums(frame, split).sort_values("step").drop_duplicates(["arm", "seed"], keep="last")
        found |= {(row["arm"], int(row["seed"])): row["value"] for row in last.to_dict("records")}
    return found


def _points(arm: str, name: str, points: list[tuple[int, float, float | None]], style: Style) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(arm),
        "legendgroup": arm,
        "x": [number(loss, 5) for _, loss, _ in points],
        "y": [score for _, _, score in points],
        "text": [say("seed {seed}", seed=seed) for seed, _, _ in points],
        "marker": {"color": style.color, "symbol": style.symbol, "size": 9},
        "hovertemplate": "%{fullData.name}, %{text}<br>KV loss %{x:.4g}, accuracy %{y:.1f} %<extra></extra>",
        "meta": {
            "view": name,
            "arm": arm,
            "points": {"seed": [seed for seed, _, _ in points]},
            **({} if name == MACRO else {"dataset": name}),
        },
    }


def gap(results: Results) -> Figure | None:
    """Validation minus training loss over the steps, one view per term."""
    differences = gaps(results.training)
    if differences.empty:
        return None
    lines = by_line(differences.assign(split="val"))
    present = {term for _, term, _ in lines}
    terms = [term for term in GAP_TERMS if term in present]
    terms += [
        term
        for term in (*TERM_ORDER, *sorted(present))
        if term in present and term not in terms and term.startswith("kd")
    ]
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for term in terms:
        for arm in results.trained:
            if (arm, term, "val") in lines:
                line = run_line(lines[arm, term, "val"], arm, "val", styles[arm]) | {"name": label(arm)}
                line["line"]["dash"] = styles[arm].dash
                line["meta"]["view"] = term
                traces.append(line)
                rows.append([term, arm, *ends(line)])
    return Figure(
        "gap",
        "training",
        "Gap between validation and training",
        "Loss on the validation rows minus the mean loss on the training rows since the last log line, at every validation. A gap that "
        "grows is overfitting; a KV loss with a gap and a cross-entropy without one has learnt the rows' KV by heart.",
        traces,
        {
            "margin": {"l": 64, "r": 24, "t": 16, "b": 104},
            "xaxis": {"title": {"text": "Step"}},
            "yaxis": {"title": {"text": "Validation − training"}, "zeroline": True, "automargin": True},
        },
        ["Term", "Arm", "First", "Last"],
        rows,
        views=[(term, term) for term in terms],
        view_label="Term",
        height=380,
    )


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """arm, seed, term, step, value: each validation value minus the training value logged last at or before its step."""
    keys = ["arm", "seed", "term"]
    sides = {split: frame[frame["split"] == split].sort_values("step") for split in ("val", "train")}
    joined = pd.merge_asof(sides["val"], sides["train"], on="step", by=keys, suffixes=("", "_train")).dropna(
        subset="value_train"
    )
    return joined.assign(value=joined["value"] - joined["value_train"])[[*keys, "step", "value"]]
