"""Whether a study's latent tokens hold anything: accuracy without them, what they say, what they were taught, and what they cost.

In: `Results.latents` (tables `accuracy`, `kept`, `decoded` of the stage `latents`) and the cards of the predictions. Out: `Figure`s,
none for a study without latent tokens: accuracy under each intervention; where in the chain of thought the selector kept the tokens
whose KV teaches each latent; each latent's likeliest tokens through the lm head; forward passes beside accuracy (`cost.latent_cost`).
"""

from typing import Any

import pandas as pd

from mtkv.report.figures.alignment import SHOWN_LETTERS
from mtkv.report.figures.cost import latent_cost
from mtkv.report.figures.figure import Figure, Trace, Verbatim, by_seed, interval, label, mean, percent, text, tick
from mtkv.report.figures.palette import ACROSS, DOWN, GREYS, OKABE_ITO, SEQUENTIAL, error_bars, heatmap_trace, margin
from mtkv.report.latent_results import UNCHANGED, Latents
from mtkv.report.results import MACRO, Results
from mtkv.report.strings import say

TENTHS = [f"{tenth * 10}–{tenth * 10 + 10} %" for tenth in range(10)]


def kept_places(results: Results, latents: Latents) -> Figure | None:
    """Heatmap latent × tenth of the chain, one view per arm and teacher: where the teacher tokens stand whose KV teaches each latent."""
    if latents.kept.empty:
        return None
    grouped: Any = latents.kept.groupby(["arm", "teacher"], sort=False)
    groups: dict[tuple[str, str], pd.DataFrame] = {(str(arm), str(teacher)): part for (arm, teacher), part in grouped}
    rows = [
        row for (arm, teacher), part in groups.items() for row in _kept_rows(arm, teacher, part, latents.tokens[arm])
    ]
    tallest = max(latents.tokens[arm] for arm, _ in groups)
    return Figure(
        "latent_kept",
        "latents",
        "Where in the chain each latent's KV comes from",
        say(
            "For each latent, the share of its selected teacher tokens that stand in each tenth of the chain, over validation rows, layers "
            "and heads; rows add up to 100 %. A chain with fewer tokens than latents leaves the last ones without KV: the table says for "
            "which share of the rows, layers and heads each latent has one. Twins with another row's KV select in the same way."
        ),
        [_kept_map(results, latents, arm, teacher, part) for (arm, teacher), part in groups.items()],
        {
            "xaxis": ACROSS | {"title": {"text": "Place in the chain"}},
            "yaxis": DOWN,
            "margin": margin(90, 56),
        },
        [
            *("Arm", "Teacher", "Latent", "Mean place (%)", "With KV (%)"),
            *("Tokens per chain", "Chains with fewer tokens (%)"),
        ],
        rows,
        views=[(f"{arm} · {teacher}", f"{arm} · {teacher}") for arm, teacher in groups],
        view_label="Arm and teacher",
        height=max(240, 100 + 26 * tallest),
    )


def _kept_map(results: Results, latents: Latents, arm: str, teacher: str, part: pd.DataFrame) -> Trace:
    slots = range(1, latents.tokens[arm] + 1)

    def grid(table: pd.DataFrame) -> list[list[float | None]]:
        counts = table.groupby(["slot", "tenth"])["count"].sum()
        totals = table.groupby("slot")["count"].sum()
        return [
            [percent(counts.get((s, t), 0) / totals[s]) if s in totals.index else None for t in range(len(TENTHS))]
            for s in slots
        ]

    seeds = {seed: grid(part[part["seed"] == seed]) for seed in results.seeds}
    first = list(seeds.values())
    return heatmap_trace(
        "share",
        TENTHS,
        [say("latent {latent}", latent=slot) for slot in slots],
        [[mean(one[i][j] for one in first) for j in range(len(TENTHS))] for i in range(len(slots))],
        SEQUENTIAL,
        **{"zmin": 0, "zmax": 100, "xgap": 1, "ygap": 1, "texttemplate": "%{z:.0f}"},
        hovertemplate="%{y}<br>%{x}: %{z:.1f} %<extra></extra>",
        meta={"view": f"{arm} · {teacher}", "arm": arm, "by_seed": by_seed("z", seeds)},
    )


def _kept_rows(arm: str, teacher: str, part: pd.DataFrame, tokens: int) -> list[list[str]]:
    # `rows` and `heads` are the same for every layer, and there are as many layers for every seed
    whole = part.groupby(["seed", "layer"])[["rows", "heads"]].first().prod(axis=1).sum()
    seeds = part.groupby("seed")[["chain_tokens", "short"]].first().mean()
    rows = []
    for slot in range(1, tokens + 1):
        own = part[part["slot"] == slot]
        count = own["count"].sum()
        place = (own["place"] * own["count"]).sum() / count if count else None
        filled = [text(percent(place), 0), text(percent(count / whole), 0)]
        rows.append([arm, teacher, str(slot), *filled, text(seeds["chain_tokens"]), text(percent(seeds["short"]), 0)])
    return rows


LONGEST = 12  # letters of a token in a cell
QUESTION = 100  # letters of a question in the table


def decoded_tokens(results: Results, latents: Latents) -> Figure | None:
    """Heatmap latent × dataset, one view per run, coloured by the likeliest token's mean probability."""
    if latents.decoded.empty:
        return None
    frame = latents.decoded.assign(shown=[shown(token) for token in latents.decoded["token"]])
    grouped: Any = frame.groupby(["arm", "seed"], sort=False)
    groups: dict[tuple[str, int], pd.DataFrame] = {(str(arm), int(seed)): part for (arm, seed), part in grouped}
    known = set(frame["dataset"])
    names = [name for name in results.datasets if name in known]
    rows = [row for (arm, seed), part in groups.items() for row in _rows(arm, seed, part)]
    return Figure(
        "latent_tokens",
        "latents",
        "What the latents say",
        "The likeliest token at each latent's last hidden state in the final pass, by its mean probability over the questions of a "
        "dataset. ␣ is a space, ⏎ a new line. The same token for every question means that the latent holds nothing of the question that "
        "the lm head can read; the table has the next tokens, how often each is the first, and single questions.",
        [_map(arm, seed, part, names, latents.tokens[arm]) for (arm, seed), part in groups.items()],
        {"xaxis": ACROSS, "yaxis": DOWN, "margin": margin(90, 56)},
        [
            *("Arm", "Seed", "Dataset", "Question", "Latent"),
            *("Tokens (probability in %)", "The first is the likeliest in (%)"),
        ],
        rows,
        views=[(_view(arm, seed), say("{arm}, seed {seed}", arm=arm, seed=seed)) for arm, seed in groups],
        view_label="Run",
        height=max(240, 100 + 30 * max(latents.tokens[arm] for arm, _ in groups)),
    )


def shown(token: str) -> str:
    """A token with its blanks made visible, cut to `LONGEST` letters."""
    visible = token.translate(SHOWN_LETTERS)
    return visible if len(visible) <= LONGEST else visible[: LONGEST - 1] + "…"


def _view(arm: str, seed: int) -> str:
    return f"{arm} · {seed}"


def _map(arm: str, seed: int, part: pd.DataFrame, names: list[str], tokens: int) -> Trace:
    likeliest = part[part["item"].isna() & (part["rank"] == 1)]
    keys = zip(likeliest["slot"], likeliest["dataset"], strict=True)
    cells = dict(zip(keys, zip(likeliest["shown"], likeliest["probability"], strict=True), strict=True))
    slots = range(1, tokens + 1)
    return heatmap_trace(
        "probability",
        [tick(name) for name in names],
        [say("latent {latent}", latent=slot) for slot in slots],
        [[percent(cells.get((slot, name), (None, None))[1]) for name in names] for slot in slots],
        SEQUENTIAL,
        text=[[label(cells.get((slot, name), ("", None))[0]) for name in names] for slot in slots],
        **{"zmin": 0, "zmax": 100, "texttemplate": "%{text}"},
        hovertemplate="%{y}, %{x}: %{text}, %{z:.1f} %<extra></extra>",
        meta={"view": _view(arm, seed), "arm": arm, "seed": seed, "rows": {}, "columns": {"dataset": names}},
    )


def _rows(arm: str, seed: int, part: pd.DataFrame) -> list[list[str]]:
    """Per dataset one row for each latent, with its tokens over all questions; then one for each single question, with every latent's
    likeliest token.
    """
    run, rows = [arm, str(seed)], []
    of_all = part[part["item"].isna()].sort_values(["slot", "rank"])
    single = part[part["item"].notna() & (part["rank"] == 1)].sort_values("slot")
    for dataset in dict.fromkeys(part["dataset"]):
        for slot, own in of_all[of_all["dataset"] == dataset].groupby("slot"):
            first = text(percent(own["first"].iloc[0]), 0)
            rows.append([*run, dataset, "all", str(slot), _said(own), first])
        for item, own in single[single["dataset"] == dataset].groupby("item"):
            question = Verbatim(f"{item}: {own['question'].iloc[0][:QUESTION]}")
            rows.append([*run, dataset, question, f"1–{len(own)}", _said(own), "—"])
    return rows


def _said(tokens: pd.DataFrame) -> str:
    """Tokens, each with its probability in percent."""
    pairs = zip(tokens["shown"], tokens["probability"], strict=True)
    return Verbatim(", ".join(f"{token} {text(percent(probability), 0)}" for token, probability in pairs))


TITLES = {
    UNCHANGED: "as they are",
    "zeroed": "zeroed",
    "swapped": "of another question",
    "half": "first half only",
    "no latents": "none left",
}
COLORS = dict(zip(TITLES, (OKABE_ITO[0], OKABE_ITO[1], OKABE_ITO[4], OKABE_ITO[5], GREYS[0]), strict=True))


def latent_figures(results: Results) -> list[Figure]:
    """The figures whose data exist; none without latent tokens."""
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
    named = say(
        " Clearly worse on the macro average with the latents of another question: {arms}.", arms=", ".join(used)
    )
    none = say(" No arm is clearly worse on the macro average with the latents of another question.")
    caption += named if used else none
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
        "error_y": error_bars(whiskers, 1.2, 2),
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
