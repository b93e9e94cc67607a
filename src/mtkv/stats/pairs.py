"""The table of paired differences: which arms are compared, and Holm's adjustment inside each family.

In: `Answers` and the study's arms and claims. Out: the rows of pairs.parquet. A pair is in the first family that names it:
`baseline` (every arm against the study's baseline), `extends` (every arm against the arm it is made from), `claim` and
`twin` (what the claims name), `transfer` (an arm with KV against the same without, and against its control twin).
Holm's families are the macro differences of one such family, and the datasets of one pair.

`outcome` says in a word what may be said of a pair: `better` or `worse` (the interval is on one side of 0 and the adjusted p
below 1 − confidence), `equivalent` (the difference is inside ± the study's margin, TOST), `undecided`, or `missing`. An
undecided pair is never "as good as": `mdd` beside it is the difference that this study would have seen.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.multiplicity import holm
from mtkv.stats.paired_tests import difference
from mtkv.stats.power import classic, equivalence_p
from mtkv.stats.transfers import transfers

if TYPE_CHECKING:
    from mtkv.config.claims import Claim
    from mtkv.config.study import Study

COLUMNS = ["arm", "baseline", "dataset", "delta", "low", "high", "p", "p_holm", "n_items", "n_seeds", "sd_seeds"]
COLUMNS += ["sd_items", "mdd", "family", "se", "p_items", "p_tost", "t_seeds", "p_seeds", "cohens_d"]
COLUMNS += ["interval", "outcome"]
NUMBERS = [
    *("delta", "low", "high", "p", "sd_seeds", "sd_items", "mdd"),
    *("se", "p_items", "p_tost", "t_seeds", "p_seeds", "cohens_d"),
]


def families(study: "Study") -> dict[tuple[str, str], str]:
    """(arm, baseline) → family, for every pair a study looks at."""
    named: list[tuple[str, str | None, str]] = [(arm, study.comparison.baseline, "baseline") for arm in study.arms]
    named += [(name, arm.extends, "extends") for name, arm in study.arms.items()]
    named += [(claim.arm, other, "claim") for claim in study.claims.values() for other in opponents(claim)]
    named += [(claim.arm, getattr(claim, "twin", None), "twin") for claim in study.claims.values()]
    named += [(one.arm, other, "transfer") for one in transfers(study) if one.twin for other in (one.without, one.twin)]
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
    answers: Answers,
    resamples: Resamples,
    pairs: Mapping[tuple[str, str], str],
    confidence: float,
    margin: float = 0.01,
) -> pd.DataFrame:
    """pairs.parquet, in 0..1: every pair on every dataset and on "macro". A pair that cannot be compared has NaN.

    `margin` (0..1) is how far apart two arms may be and still count as equivalent.
    """
    rows = [
        {"arm": arm, "baseline": baseline, "dataset": column, "family": family}
        | _numbers(answers, resamples, arm, baseline, column, confidence, margin)
        for (arm, baseline), family in pairs.items()
        for column in answers.columns
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    pair = table["arm"] + " " + table["baseline"]
    groups = pair.where(table["dataset"] != MACRO, MACRO).str.cat(table["family"], sep=" ")
    table["p_holm"] = table.groupby(groups)["p"].transform(lambda p: holm(p.to_numpy(dtype=float)))
    table["outcome"] = outcomes(table, 1 - confidence)
    return table.astype(dict.fromkeys([*NUMBERS, "p_holm"], float))


def outcomes(table: pd.DataFrame, alpha: float) -> list[str]:
    """The word for each row of a table with delta, low, high, p_holm and p_tost."""
    names = ["delta", "low", "high", "p_holm", "p_tost"]
    return [_outcome(*map(float, row), alpha=alpha) for row in table[names].to_numpy(dtype=float)]


def _outcome(delta: float, low: float, high: float, p_holm: float, p_tost: float, *, alpha: float) -> str:
    if delta != delta:
        return "missing"
    if p_holm < alpha and not low <= 0 <= high:
        return "better" if low > 0 else "worse"
    return "equivalent" if p_tost < alpha else "undecided"


def _numbers(
    answers: Answers, resamples: Resamples, arm: str, baseline: str, column: str, confidence: float, margin: float
) -> dict[str, Any]:
    found = difference(answers, resamples, arm, baseline, column, confidence)
    if isinstance(found, str):
        return dict.fromkeys(NUMBERS, float("nan")) | {"n_items": 0, "n_seeds": 0, "interval": None}
    of = found.estimate
    own = ("low", "high", "n_items", "n_seeds", "sd_seeds", "sd_items")
    return {
        "delta": of.value,
        "se": of.safe.se,
        "p": found.p,
        "p_items": found.p_items,
        "p_tost": equivalence_p(of.safe, margin),
        "mdd": found.mdd,
        "interval": of.method,
        **{name: getattr(of, name) for name in own},
        **vars(classic(answers, arm, baseline, column, of)),
    }
