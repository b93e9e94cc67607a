"""Where in the chain of thought the tokens stand whose KV teaches each latent: what the selector kept.

In: the stage's table `kept` (teacher, layer, slot, tenth, count, place, rows, heads, chain_tokens, short) of every run.
"""

from typing import Any

import pandas as pd

from mtkv.report.figure import Figure, Trace, by_seed, mean, percent, text
from mtkv.report.latents import Latents
from mtkv.report.palette import CELL_TEXT, SEQUENTIAL
from mtkv.report.results import Results
from mtkv.report.strings import say

TENTHS = [f"{tenth * 10}–{tenth * 10 + 10} %" for tenth in range(10)]


def kept_places(results: Results, latents: Latents) -> Figure | None:
    """Heatmap latent × tenth of the chain, one view per arm and teacher: where the tokens stand whose KV teaches each latent."""
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
            "xaxis": {
                "type": "category",
                "showgrid": False,
                "tickangle": 0,
                "title": {"text": "Place in the chain"},
            },
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
            "margin": {"l": 90, "r": 24, "t": 16, "b": 56},
        },
        [
            "Arm",
            "Teacher",
            "Latent",
            "Mean place (%)",
            "With KV (%)",
            "Tokens per chain",
            "Chains with fewer tokens (%)",
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
    return {
        "type": "heatmap",
        "name": "share",
        "x": TENTHS,
        "y": [say("latent {latent}", latent=slot) for slot in slots],
        "z": [[mean(one[i][j] for one in first) for j in range(len(TENTHS))] for i in range(len(slots))],
        "zmin": 0,
        "zmax": 100,
        "colorscale": SEQUENTIAL,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "texttemplate": "%{z:.0f}",
        "textfont": CELL_TEXT,
        "hovertemplate": "%{y}<br>%{x}: %{z:.1f} %<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "meta": {"view": f"{arm} · {teacher}", "arm": arm, "by_seed": by_seed("z", seeds)},
    }


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
