"""How well teachers line up with the student: sync coverage, the layer map, one row's tokens, and the probe of the fitted maps.

In: the cards of the stage `maps` (`result.coverage`, `result.layer_map`), and the probe table and the example row of each map
(method.md §2–4). A map is named after its teacher, and after its align settings too where a teacher has several.
"""

from typing import Any

import pandas as pd

from mtkv.report.figures.figure import Figure, Trace, Verbatim, label, mean, number, percent, text
from mtkv.report.figures.palette import ACROSS, DOWN, GREYS, OKABE_ITO, SEQUENTIAL, heatmap_trace, margin, style
from mtkv.report.results import Results
from mtkv.report.strings import say

MAX_TOKENS = 40
SHOWN_LETTERS = str.maketrans({"\n": "⏎", " ": "␣", "\t": "⇥"})
METHOD_COLORS = {"ridge": OKABE_ITO[0], "identity": OKABE_ITO[1], "procrustes": OKABE_ITO[2], "mean": GREYS[1]}


def alignment_figures(results: Results) -> list[Figure]:
    """Coverage, layers, probe and tokens, as far as their data exist."""
    found = (coverage(results), layers(results), tokens(results), probe(results))
    return [figure for figure in found if figure is not None]


def map_facts(results: Results) -> dict[str, dict[str, Any]]:
    """Map → the `result` in its card (coverage, layer map), of the stage `maps`."""
    found = {
        key.removeprefix("maps/"): card.get("result") or {}
        for key, card in results.cards.items()
        if key.startswith("maps/") and "layer_map" in (card.get("result") or {})
    }
    return {_short(name, list(found)): facts for name, facts in found.items()}


def _short(name: str, names: list[str]) -> str:
    """The teacher's part of a name "teacher/settings" if no other map has that teacher; else the whole name."""
    teacher = name.split("/")[0]
    return teacher if sum(other.split("/")[0] == teacher for other in names) == 1 else name


def coverage(results: Results) -> Figure | None:
    """Share of the student's tokens that end where a teacher token ends."""
    known = {name: percent(facts.get("coverage")) for name, facts in map_facts(results).items()}
    known = {name: value for name, value in known.items() if value is not None}
    if not known:
        return None
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "name": "coverage",
        "x": list(known.values()),
        "y": [label(name) for name in known],
        "marker": {"color": [style(i).color for i in range(len(known))]},
        "texttemplate": "%{x:.1f}",
        "textposition": "auto",
        "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
        "meta": {},
    }
    layout = {
        "xaxis": {"title": {"text": "Student tokens with a teacher target (%)"}, "range": [0, 100]},
        "yaxis": DOWN,
        "margin": margin(120, 56),
    }
    return Figure(
        "coverage",
        "alignment",
        "Synchronised boundaries",
        "Share of the student's tokens that end at the same byte as a teacher token. Only these have a KV target; the others "
        "are left out of the loss, not matched to something near.",
        [trace],
        layout,
        ["Map", "Coverage (%)"],
        [[name, text(value)] for name, value in known.items()],
        height=120 + 36 * len(known),
    )


def layers(results: Results) -> Figure | None:
    """Which teacher layer each student layer learns from."""
    maps = {name: facts["layer_map"] for name, facts in map_facts(results).items() if facts.get("layer_map")}
    if not maps:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": label(name),
            "x": list(range(len(targets))),
            "y": list(targets),
            "line": {"color": style(i).color, "width": 2, "dash": style(i).dash},
            "marker": {"color": style(i).color, "symbol": style(i).symbol, "size": 9},
            "hovertemplate": "student layer %{x} ← teacher layer %{y}<extra></extra>",
            "meta": {},
        }
        for i, (name, targets) in enumerate(maps.items())
    ]
    return Figure(
        "layers",
        "alignment",
        "Layer map",
        "The teacher layer whose keys and values each student layer is matched to. Layers count from 0.",
        traces,
        {
            "xaxis": {"title": {"text": "Student layer"}, "dtick": 1},
            "yaxis": {"title": {"text": "Teacher layer"}, "rangemode": "tozero"},
        },
        ["Map", "Student layer", "Teacher layer"],
        [[name, str(i), str(target)] for name, targets in maps.items() for i, target in enumerate(targets)],
        height=340,
    )


def probe(results: Results) -> Figure | None:
    """Held-out relative error per map method; one view per map and kind."""
    if results.probe is None or results.probe.empty:
        return None
    maps = sorted(set(results.probe["map"]))
    groups = {
        (_short(str(m), maps), str(k)): part for (m, k), part in results.probe.groupby(["map", "kind"], sort=True)
    }
    traces, rows = [], []
    for (teacher, kind), part in groups.items():
        for i, method in enumerate(sorted(set(part["method"]), key=lambda name: (name == "mean", name))):
            table = part[part["method"] == method].groupby("layer")["error"].mean().sort_index()
            errors = [number(value, 5) for value in table]
            color = METHOD_COLORS.get(method, style(i + 2).color)
            traces.append(
                {
                    "type": "bar",
                    "name": label(method),
                    "offsetgroup": method,
                    "x": [say("layer {layer}", layer=layer) for layer in table.index],
                    "y": errors,
                    "marker": {"color": color},
                    "hovertemplate": "%{fullData.name}, %{x}: %{y:.3f}<extra></extra>",
                    "meta": {"view": f"{teacher} · {kind}"},
                }
            )
            rows += [[teacher, kind, str(la), method, text(e, 3)] for la, e in zip(table.index, errors, strict=True)]
    fitted = mean(number(e) for e in results.probe.loc[results.probe["method"] == "ridge", "error"])
    return Figure(
        "probe",
        "alignment",
        "Probe of the maps",
        say(
            "Held-out squared error of each map relative to predicting the mean (1 = as bad as the mean), per student layer. Fitted far "
            "below identity: a fixed map will do. Fitted near 1: that teacher layer says nothing the student can express. Mean of ridge: "
            "{error}.",
            error=text(fitted, 2),
        ),
        traces,
        {
            "barmode": "group",
            "yaxis": {"title": {"text": "Relative error"}, "rangemode": "tozero"},
            "xaxis": {"type": "category"},
        },
        ["Map", "Kind", "Student layer", "Method", "Relative error"],
        rows,
        views=[(f"{t} · {k}", say("{map} · {kind}", map=t, kind=k)) for t, k in groups],
        view_label="Map and kind",
        height=380,
        stills=len(groups),
    )


def tokens(results: Results) -> Figure | None:
    """The alignment of one row: which teacher tokens each student token is compared with, and how much each counts."""
    names = list(results.examples)
    if not names:
        return None
    traces, rows = [], []
    for name in names:
        frame, view = results.examples[name], _short(name, names)
        mine, theirs = (_tokens(frame, side)[:MAX_TOKENS] for side in ("student", "teacher"))
        matched = frame.dropna(subset=["student_token", "teacher_token"])
        places = zip(matched["student_token"], matched["teacher_token"], strict=True)
        weights = dict(zip(((int(s), int(t)) for s, t in places), matched["weight"], strict=True))
        z = [[number(weights.get((s, t)), 4) for t, _ in theirs] for s, _ in mine]
        traces.append(
            heatmap_trace(
                "weight",
                [label(shown) for _, shown in theirs],
                [label(shown) for _, shown in mine],
                z,
                SEQUENTIAL,
                **{"zmin": 0, "zmax": 1, "xgap": 1, "ygap": 1, "texttemplate": ""},
                hovertemplate="%{y} ← %{x}: %{z:.2f}<extra></extra>",
                meta={"view": view},
            )
        )
        told = dict(_tokens(frame, "teacher"))
        for s, shown in mine:
            partners = [f"{told[t]} ({text(weight, 2)})" for (i, t), weight in weights.items() if i == s]
            rows.append([view, str(s), shown, "; ".join(partners) or "none"])
    cut = any(
        len(_tokens(frame, side)) > MAX_TOKENS for frame in results.examples.values() for side in ("student", "teacher")
    )
    return Figure(
        "tokens",
        "alignment",
        "One row, token by token",
        say(
            "The tokens of one validation row as the student (down) and the teacher (across) read them, with their numbers; ␣ is a space, "
            "⏎ a new line. A cell says how much of a student token's target comes from that teacher token. An empty line has no target "
            "and is left out of the loss."
        )
        + (say(" The first {count} tokens are shown.", count=MAX_TOKENS) if cut else ""),
        traces,
        {
            "xaxis": ACROSS | {"tickangle": -60, "automargin": True, "title": {"text": "Teacher token"}},
            "yaxis": DOWN | {"title": {"text": "Student token"}},
            "margin": margin(120, 110),
        },
        ["Map", "Number", "Student token", "Compared with (weight)"],
        rows,
        views=[(trace["meta"]["view"], trace["meta"]["view"]) for trace in traces],
        view_label="Map",
        height=max(360, 150 + 16 * max(len(trace["y"]) for trace in traces)),
        stills=len(traces),
    )


def _tokens(frame: pd.DataFrame, side: str) -> list[tuple[int, str]]:
    """(number, "3 ␣apples") of every token of one side, in order; the number keeps equal texts apart."""
    known = frame.dropna(subset=f"{side}_token").drop_duplicates(f"{side}_token").sort_values(f"{side}_token")
    pairs = zip(known[f"{side}_token"], known[f"{side}_text"], strict=True)
    return [(int(i), Verbatim(f"{int(i)} {str(shown).translate(SHOWN_LETTERS)}")) for i, shown in pairs]
