"""Training as pictures: every logged term over the steps, and the KV loss above the validation cross-entropy it should help.

In: the long frames of `arms/*/seed*/training.parquet`. Lines are means over seeds, bands their range; at most `MAX_POINTS`
points per line are kept (every k-th, first and last always).
"""

from typing import Any

import pandas as pd

from mtkv.report.figure import Figure, Trace, by_seed, label, mean, number, text
from mtkv.report.palette import Style, arm_styles
from mtkv.report.results import Results

MAX_POINTS = 120
KV_TERMS = ("key", "value")
# What a reader wants first; other terms follow in alphabetical order.
TERM_ORDER = (
    "ce", "loss", "key", "value", "cosine", "entropy", "share.ce", "share.key", "share.value", "share.cosine", "learning_rate", "grad_norm"
)  # fmt: skip
SPLIT_DASH = {"val": "solid", "train": "dot"}


def training_figures(results: Results) -> list[Figure]:
    """Curves per term, and KV loss with validation CE; nothing when there is no training log."""
    if results.training.empty:
        return []
    figures = [curves(results)]
    together = kv_and_ce(results)
    return [*figures, together] if together is not None else figures


def curves(results: Results) -> Figure:
    """One view per term: training (dotted) and validation (solid) of every arm."""
    frame = results.training[~results.training["term"].str.startswith("route.")]
    present = set(frame["term"])
    terms = [t for t in TERM_ORDER if t in present] + sorted(present - set(TERM_ORDER))
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for term in terms:
        for arm in results.trained:
            for split in SPLIT_DASH:
                if (line := run_line(results, frame, arm, term, split, styles[arm])) is not None:
                    line["meta"]["view"] = term
                    traces.append(line)
                    rows.append([term, arm, split, *_ends(line)])
    return Figure(
        "curves",
        "training",
        "Training curves",
        "Every term of the loss, its share of the gradient, the learning rate and the gradient norm over the steps. "
        "Solid: validation; dotted: training. Lines are means over seeds, bands the range of the seeds.",
        traces,
        {
            "margin": {"l": 64, "r": 24, "t": 16, "b": 104},
            "xaxis": {"title": {"text": "Step"}},
            "yaxis": {"title": {"text": "Value"}, "automargin": True, "exponentformat": "e"},
        },
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
    kv = frame[frame["term"].isin(KV_TERMS) & (frame["split"] == split)]
    if kv.empty:
        return None
    summed = kv.groupby(["arm", "seed", "step"], as_index=False)["value"].sum().assign(term="key + value", split=split)
    styles = arm_styles(results.arms, results.trained, results.baseline)
    traces, rows = [], []
    for arm in results.trained:
        upper = run_line(results, summed, arm, "key + value", split, styles[arm])
        lower = run_line(results, frame, arm, "ce", "val", styles[arm])
        for line, axis in ((upper, "y"), (lower, "y2")):
            if line is not None:
                line |= {"name": label(arm), "yaxis": axis, "showlegend": line is lower or lower is None}
                line["line"]["dash"] = styles[arm].dash
                traces.append(line)
                rows.append(
                    ["key + value" if axis == "y" else "ce", arm, split if axis == "y" else "val", *_ends(line)]
                )
    return Figure(
        "kv_and_ce",
        "training",
        "KV loss and validation cross-entropy together",
        f"Above: the KV loss, key + value ({split}). Below: validation cross-entropy of all trained arms. A KV loss that falls while the "
        "cross-entropy does not follow means that the match costs what it was meant to bring.",
        traces,
        {
            "margin": {"l": 64, "r": 24, "t": 16, "b": 104},
            "xaxis": {"title": {"text": "Step"}, "anchor": "y2"},
            "yaxis": {"title": {"text": "KV loss"}, "domain": [0.56, 1], "automargin": True},
            "yaxis2": {"title": {"text": "Validation CE"}, "domain": [0, 0.44], "automargin": True},
        },
        ["Term", "Arm", "Split", "First", "Last"],
        rows,
        height=520,
    )


def run_line(results: Results, frame: pd.DataFrame, arm: str, term: str, split: str, style: Style) -> Trace | None:
    """The mean over seeds of one term as a line that carries its seeds; None when the arm never logged it."""
    part = frame[(frame["arm"] == arm) & (frame["term"] == term) & (frame["split"] == split)]
    if part.empty:
        return None
    wide = part.pivot_table(index="step", columns="seed", values="value", aggfunc="last").sort_index()
    wide = wide.iloc[_thin(len(wide))]
    seeds: dict[int, list[Any]] = {int(s): [number(v, 5) for v in wide[s]] for s in wide.columns}
    return {
        "type": "scatter",
        "mode": "lines" if len(wide) > 1 else "markers",
        "name": label(f"{arm} · {split}"),
        "legendgroup": arm,
        "x": [int(step) for step in wide.index],
        "y": [mean(values) for values in zip(*seeds.values(), strict=True)],
        "line": {"color": style.color, "width": 2 if split == "val" else 1.4, "dash": SPLIT_DASH[split]},
        "marker": {"color": style.color, "symbol": style.symbol},
        "hovertemplate": "%{fullData.name}<br>step %{x}: %{y:.4g}<extra></extra>",
        "meta": {"arm": arm, "by_seed": by_seed("y", seeds, band=True)},
    }


def _thin(count: int) -> list[int]:
    """Positions of at most about MAX_POINTS of `count` points, first and last included."""
    stride = max(1, -(-count // MAX_POINTS))
    kept = list(range(0, count, stride))
    return kept if not count or kept[-1] == count - 1 else [*kept, count - 1]


def _ends(line: Trace) -> list[str]:
    known = [value for value in line["y"] if value is not None]
    return [text(known[0], 4), text(known[-1], 4)] if known else ["—", "—"]
