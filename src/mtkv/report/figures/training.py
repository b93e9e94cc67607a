"""Training as pictures: every logged term over the steps, and whether learning the teachers' KV went with learning the task.

In: the long frames of `arms/*/seed*/training.parquet` and the accuracies of every run. Out: `Figure`s: curves per term; KV loss above
the validation cross-entropy it should help; final KV loss beside task accuracy; validation minus training. Lines are means over
seeds, bands their range. Of a long log every k-th point is kept, first and last always, so that all lines together stay below
`MAX_NUMBERS`. A run that was resumed says where in its card (`result.resumed_at`, steps).
"""

from typing import Any

import pandas as pd

from mtkv.report.figures.figure import Figure, Trace, by_seed, label, mean, number, percent, text
from mtkv.report.figures.palette import ArmStyle, arm_styles, margin
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import say

MAX_POINTS = 120
MIN_POINTS = 15
MAX_NUMBERS = 150_000
KV_TERMS = ("key", "value")
# Shown first; other terms follow in alphabetical order.
TERM_ORDER = (
    "ce", "loss", "key", "value", "cosine", "entropy", "share.ce", "share.key", "share.value", "share.cosine",
    "cos.key", "cos.value", "cos.cosine", "learning_rate", "grad_norm"
)  # fmt: skip
SPLIT_DASH = {"val": "solid", "train": "dot"}
Key = tuple[str, str, str]


def training_figures(results: Results) -> list[Figure]:
    """Curves, KV loss with validation CE and beside accuracy, and validation minus training; nothing without a training log."""
    if results.training.empty:
        return []
    found = (curves(results), kv_and_ce(results), kv_and_accuracy(results), gap(results))
    return [figure for figure in found if figure is not None]


def logged(results: Results) -> dict[Key, pd.DataFrame]:
    """`by_line` of the study's training logs, made once."""
    if "_logged" not in results.__dict__:
        results.__dict__["_logged"] = by_line(results.training)
    return results.__dict__["_logged"]


def by_line(frame: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """(arm, term, split) → table step × seed, thinned so that all lines together have about `MAX_NUMBERS` numbers."""
    wide = frame.pivot_table(index=["arm", "term", "split", "step"], columns="seed", values="value", aggfunc="last")
    found: dict[Key, pd.DataFrame] = {}
    for (arm, term, split), part in wide.groupby(level=[0, 1, 2]):  # type: ignore[misc]
        found[str(arm), str(term), str(split)] = part.droplevel([0, 1, 2]).dropna(axis=1, how="all")
    lines = sum(part.shape[1] for part in found.values())
    points = max(MIN_POINTS, min(MAX_POINTS, MAX_NUMBERS // max(1, lines)))
    return {key: part.iloc[thin(len(part), points)] for key, part in found.items()}


def curves(results: Results) -> Figure:
    """One view per term: training (dotted) and validation (solid) of every arm; marks where a run was resumed."""
    lines = {key: part for key, part in logged(results).items() if not key[1].startswith("route.")}
    present = {term for _, term, _ in lines}
    terms = [t for t in TERM_ORDER if t in present] + sorted(present - set(TERM_ORDER))
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for term in terms:
        for arm in results.trained:
            for split in SPLIT_DASH:
                if (arm, term, split) in lines:
                    line = run_line(lines[arm, term, split], arm, split, styles[arm])
                    line["meta"]["view"] = term
                    marks = resume_marks(results, line, arm, styles[arm])
                    traces += [line, *([marks] if marks else [])]
                    rows.append([term, arm, split, *ends(line)])
    return Figure(
        "curves",
        "training",
        "Training curves",
        "Every term of the loss, its share of the gradient, the cosine (cos) of a KV term's gradient with the cross-entropy's, the "
        "learning rate and the gradient norm over the steps. "
        "Solid: validation; dotted: training. Lines are means over seeds, bands the range of the seeds. A cross: a run was resumed there.",
        traces,
        steps_layout("Value", automargin=True, exponentformat="e"),
        ["Term", "Arm", "Split", "First", "Last"],
        rows,
        views=[(term, term) for term in terms],
        view_label="Term",
        height=430,
    )


def kv_and_ce(results: Results) -> Figure | None:
    """KV loss (key + value) above the validation CE, with one step axis; None without KV arms."""
    frame = results.training
    split = "val" if ((frame["split"] == "val") & frame["term"].isin(KV_TERMS)).any() else "train"
    summed = by_line(kv_sums(frame, split))
    if not summed:
        return None
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for arm in results.trained:
        upper, lower = summed.get((arm, "key + value", split)), logged(results).get((arm, "ce", "val"))
        for part, axis in ((upper, "y"), (lower, "y2")):
            if part is not None:
                line = run_line(part, arm, split, styles[arm], arm)
                traces.append(line | {"yaxis": axis, "showlegend": axis == "y2" or lower is None})
                rows.append(["key + value" if axis == "y" else "ce", arm, split if axis == "y" else "val", *ends(line)])
    return Figure(
        "kv_and_ce",
        "training",
        "KV loss and validation cross-entropy together",
        say(
            "Above: the KV loss, key + value ({split}). Below: validation cross-entropy of all trained arms. A KV loss that falls while "
            "the cross-entropy does not follow means that the match costs what it was meant to bring.",
            split=split,
        ),
        traces,
        {
            "margin": margin(bottom=104),
            "xaxis": {"title": {"text": "Step"}, "anchor": "y2"},
            "yaxis": {"title": {"text": "KV loss"}, "domain": [0.56, 1], "automargin": True},
            "yaxis2": {"title": {"text": "Validation CE"}, "domain": [0, 0.44], "automargin": True},
        },
        ["Term", "Arm", "Split", "First", "Last"],
        rows,
        height=520,
    )


def kv_sums(frame: pd.DataFrame, split: str) -> pd.DataFrame:
    """The rows of a log with key + value added up, as term "key + value" of `split`."""
    kv = frame[frame["term"].isin(KV_TERMS) & (frame["split"] == split)]
    summed = kv.groupby(["arm", "seed", "step"], as_index=False)["value"].sum()
    return summed.assign(term="key + value", split=split)


def steps_layout(title: str, across: str = "Step", **yaxis: Any) -> dict[str, Any]:
    """Layout of lines over the steps, with room for a legend of all arms below."""
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": title}, **yaxis}}
    return {"margin": margin(bottom=104), **axes}


def run_line(wide: pd.DataFrame, arm: str, split: str, style: ArmStyle, name: str | None = None) -> Trace:
    """The mean over seeds of a table step × seed, as a line that carries the seeds for the page's filter.

    Named and dashed by arm and split; with a `name` by that and by the arm's style.
    """
    seeds: dict[int, list[Any]] = {int(s): [number(v, 5) for v in wide[s]] for s in wide.columns}
    dash = style.dash if name else SPLIT_DASH.get(split, "solid")
    return {
        "type": "scatter",
        "mode": "lines" if len(wide) > 1 else "markers",
        "name": label(name or say("{arm} · {split}", arm=arm, split=split)),
        "legendgroup": arm,
        "x": [int(step) for step in wide.index],
        "y": [number(mean(values), 5) for values in zip(*seeds.values(), strict=True)],
        "line": {"color": style.color, "width": 2 if split == "val" else 1.4, "dash": dash},
        "marker": {"color": style.color, "symbol": style.symbol},
        "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
        "meta": {"arm": arm, "by_seed": by_seed("y", seeds, band=True)},
    }


def resume_marks(results: Results, line: Trace, arm: str, style: ArmStyle) -> Trace | None:
    """A cross on a line at every step from which a run of the arm went on after an interruption."""
    steps = {
        (seed, int(step))
        for seed in results.runs_of(arm)
        for step in (results.cards.get(f"arms/{arm}/seed{seed}", {}).get("result") or {}).get("resumed_at") or []
    }
    if not steps:
        return None
    shown = sorted(steps)
    nearest = [min(range(len(line["x"])), key=lambda i: abs(line["x"][i] - step)) for _, step in shown]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(say("{arm} · resumed", arm=arm)),
        "showlegend": False,
        "legendgroup": arm,
        "x": [step for _, step in shown],
        "y": [line["y"][i] for i in nearest],
        "marker": {"color": style.color, "symbol": "x", "size": 9},
        "hovertemplate": "%{fullData.name} at step %{x}<extra></extra>",
        "meta": {"arm": arm, "view": line["meta"]["view"], "points": {"seed": [seed for seed, _ in shown]}},
    }


def thin(count: int, points: int) -> list[int]:
    """Positions of at most about `points` of `count` points, first and last included."""
    stride = max(1, -(-count // points))
    kept = list(range(0, count, stride))
    return kept if not count or kept[-1] == count - 1 else [*kept, count - 1]


def ends(line: Trace) -> list[str]:
    """First and last known value of a line, as text."""
    known = [value for value in line["y"] if value is not None]
    return [text(known[0], 4), text(known[-1], 4)] if known else ["—", "—"]


GAP_TERMS = ("ce", "key", "value", "cosine", "loss")


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
        steps_layout("Accuracy (%)", "Validation KV loss at the end", automargin=True),
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


def _points(arm: str, name: str, points: list[tuple[int, float, float | None]], style: ArmStyle) -> Trace:
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
    terms += [term for term in sorted(present) if term not in terms and term.startswith("kd")]
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for term in terms:
        for arm in results.trained:
            if (arm, term, "val") in lines:
                line = run_line(lines[arm, term, "val"], arm, "val", styles[arm], arm)
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
        steps_layout("Validation − training", zeroline=True, automargin=True),
        ["Term", "Arm", "First", "Last"],
        rows,
        views=[(term, term) for term in terms],
        view_label="Term",
        height=380,
    )


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """arm, seed, term, step, value: each validation value minus the last training value logged at or before its step."""
    keys = ["arm", "seed", "term"]
    sides = {split: frame[frame["split"] == split].sort_values("step") for split in ("val", "train")}
    joined = pd.merge_asof(sides["val"], sides["train"], on="step", by=keys, suffixes=("", "_train"))
    joined = joined.dropna(subset="value_train")
    return joined.assign(value=joined["value"] - joined["value_train"])[[*keys, "step", "value"]]
