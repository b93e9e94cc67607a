"""What each latent says through the lm head: its likeliest token per dataset, and in the table the next ones and single questions."""

from typing import Any

import pandas as pd

from mtkv.report.figure import Figure, Trace, Verbatim, label, percent, text, tick
from mtkv.report.figures_alignment import SHOWN_LETTERS
from mtkv.report.latents import Latents
from mtkv.report.palette import CELL_TEXT, SEQUENTIAL
from mtkv.report.results import Results
from mtkv.report.strings import say

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
        {
            "xaxis": {"type": "category", "showgrid": False, "tickangle": 0},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False},
            "margin": {"l": 90, "r": 24, "t": 16, "b": 56},
        },
        [
            "Arm",
            "Seed",
            "Dataset",
            "Question",
            "Latent",
            "Tokens (probability in %)",
            "The first is the likeliest in (%)",
        ],
        rows,
        views=[(_view(arm, seed), say("{arm}, seed {seed}", arm=arm, seed=seed)) for arm, seed in groups],
        view_label="Run",
        height=max(240, 100 + 30 * max(latents.tokens[arm] for arm, _ in groups)),
    )


def shown(token: str) -> str:
    """A token with its blanks visible; of a long one the beginning."""
    visible = token.translate(SHOWN_LETTERS)
    return visible if len(visible) <= LONGEST else visible[: LONGEST - 1] + "…"


def _view(arm: str, seed: int) -> str:
    return f"{arm} · {seed}"


def _map(arm: str, seed: int, part: pd.DataFrame, names: list[str], tokens: int) -> Trace:
    likeliest = part[part["item"].isna() & (part["rank"] == 1)]
    keys = zip(likeliest["slot"], likeliest["dataset"], strict=True)
    cells = dict(zip(keys, zip(likeliest["shown"], likeliest["probability"], strict=True), strict=True))
    slots = range(1, tokens + 1)
    return {
        "type": "heatmap",
        "name": "probability",
        "x": [tick(name) for name in names],
        "y": [say("latent {latent}", latent=slot) for slot in slots],
        "z": [[percent(cells.get((slot, name), (None, None))[1]) for name in names] for slot in slots],
        "text": [[label(cells.get((slot, name), ("", None))[0]) for name in names] for slot in slots],
        "zmin": 0,
        "zmax": 100,
        "colorscale": SEQUENTIAL,
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "texttemplate": "%{text}",
        "textfont": CELL_TEXT,
        "hovertemplate": "%{y}, %{x}: %{text}, %{z:.1f} %<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0},
        "meta": {
            "view": _view(arm, seed),
            "arm": arm,
            "seed": seed,
            "rows": {},
            "columns": {"dataset": names},
        },
    }


def _rows(arm: str, seed: int, part: pd.DataFrame) -> list[list[str]]:
    """Per dataset, one row for each latent with its tokens over all questions, then one for each single question with the likeliest
    token of every latent."""
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
    """Tokens with their probability in percent."""
    pairs = zip(tokens["shown"], tokens["probability"], strict=True)
    return Verbatim(", ".join(f"{token} {text(percent(probability), 0)}" for token, probability in pairs))
