"""The table of paired differences: which arms are compared, and Holm's adjustment inside each family.

In: `Answers` and the study's arms and claims. Out: the rows of pairs.parquet. A pair is in the first family that names it:
`baseline` (every arm against the study's baseline), `extends` (every arm against the arm it is made from), `claim` and
`twin` (what the claims name). Holm's families are the macro differences of one such family, and the datasets of one pair.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from mtkv.stats.items import MACRO, Answers
from mtkv.stats.paired import Difference, difference, holm
from mtkv.stats.resampling import Resamples

if TYPE_CHECKING:
    from mtkv.config.claims import Claim
    from mtkv.config.study import Study

COLUMNS = [
    "arm",
    "baseline",
    "dataset",
    "delta",
    "low",
    "high",
    "p",
    "p_holm",
    "n_items",
    "n_seeds",
    "sd_seeds",
    "sd_items",
    "mdd",
    "family",
]
NUMBERS = ["delta", "low", "high", "p", "sd_seeds", "sd_items", "mdd"]


def families(study: "Study") -> dict[tuple[str, str], str]:
    """(arm, baseline) → family, for every pair a study looks at."""
    named: list[tuple[str, str | None, str]] = [(arm, study.comparison.baseline, "baseline") for arm in study.arms]
    named += [(name, arm.extends, "extends") for name, arm in study.arms.items()]
    named += [(claim.arm, other, "claim") for claim in study.claims.values() for other in opponents(claim)]
    named += [(claim.arm, getattr(claim, "twin", None), "twin") for claim in study.claims.values()]
    pairs: dict[tuple[str, str], str] = {}
    for arm, other, family in named:
        if other is not None and other in study.arms and other != arm:
            pairs.setdefault((arm, other), family)
    return pairs


def opponents(claim: "Claim") -> list[str]:
    """The arms a claim compares its arm with, without its twin."""
    single = getattr(claim, "baseline", None)
    return [single] if single is not None else list(getattr(claim, "baselines", []))


def pairs_table(
    answers: Answers, resamples: Resamples, pairs: Mapping[tuple[str, str], str], confidence: float
) -> pd.DataFrame:
    """pairs.parquet, in 0..1: every pair on every dataset and on "macro". A pair that cannot be compared has NaN."""
    rows = []
    for (arm, baseline), family in pairs.items():
        for column in answers.columns:
            found = difference(answers, resamples, arm, baseline, column, confidence)
            rows.append({"arm": arm, "baseline": baseline, "dataset": column, "family": family} | _numbers(found))
    table = pd.DataFrame(rows, columns=COLUMNS)
    pair = table["arm"] + " " + table["baseline"]
    groups = pair.where(table["dataset"] != MACRO, MACRO).str.cat(table["family"], sep=" ")
    table["p_holm"] = table.groupby(groups)["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    return table.astype(dict.fromkeys([*NUMBERS, "p_holm"], float))


def _numbers(found: Difference | str) -> dict[str, float]:
    if isinstance(found, str):
        return dict.fromkeys(NUMBERS, float("nan")) | {"n_items": 0, "n_seeds": 0}
    of = found.estimate
    return {
        "delta": of.value,
        "low": of.low,
        "high": of.high,
        "p": found.p,
        "n_items": of.n_items,
        "n_seeds": of.n_seeds,
        "sd_seeds": of.sd_seeds,
        "sd_items": of.sd_items,
        "mdd": found.mdd,
    }
