"""What the data say about each claim of a study: supported, refuted or undecided, and why.

In: `Answers` and the study's claims. Out: the rows of claims.parquet, in percentage points. First every claim is weighed
alone (`KINDS`: one function per kind gives estimate, interval and p value against the claim's threshold); then Holm's
adjustment runs over all claims of the study but those that count datasets, whose family is the datasets. *Supported* needs
the whole interval beyond the threshold and the adjusted p below 1 − confidence; *refuted* needs the whole interval on the
other side; anything else, missing data first, is *undecided*.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from mtkv.stats.cells import cell, is_binary
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.paired import difference, holm, two_level_p
from mtkv.stats.resampling import Resamples

if TYPE_CHECKING:
    from mtkv.config.claims import AccuracyClaim, Claim, DatasetsImprovedClaim, DifferenceClaim, ReachesClaim

COLUMNS = [
    "claim",
    "statement",
    "kind",
    "level",
    "arm",
    "baseline",
    "twin",
    "threshold",
    "delta",
    "low",
    "high",
    "p",
    "p_holm",
    "n",
    "verdict",
    "why",
]
LEVELS = ("minimum", "ideal", "stretch")
NAN = float("nan")


@dataclass(frozen=True)
class Evidence:
    """What one claim has for and against it, before Holm.

    `delta`, `low`, `high` and `threshold` in percentage points, or numbers of datasets. `n` counts items. `finding` is
    the sentence's first half; `missing` why there is nothing to weigh; `unmet` a further condition that does not hold;
    `own_family` that p is adjusted already.
    """

    finding: str
    threshold: float
    delta: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    n: int = 0
    baseline: str | None = None
    inclusive: bool = False
    missing: str | None = None
    unmet: str | None = None
    own_family: bool = False

    @property
    def beyond(self) -> bool:
        """The whole interval is on the claim's side of the threshold."""
        return self.low >= self.threshold if self.inclusive else self.low > self.threshold

    @property
    def below(self) -> bool:
        """The whole interval is on the other side."""
        return self.high < self.threshold


@dataclass(frozen=True)
class Weighing:
    """What the functions of `KINDS` need besides the claim."""

    answers: Answers
    resamples: Resamples
    confidence: float


def weigh_difference(claim: "DifferenceClaim", on: Weighing) -> Evidence:
    """arm − baseline > threshold; with a twin, arm − twin > 0 as well (then the larger of the two p values counts)."""
    evidence = _macro_difference(on, claim.arm, claim.baseline, claim.threshold)
    if claim.twin is None or evidence.missing:
        return evidence
    against_twin = _macro_difference(on, claim.arm, claim.twin, 0.0)
    if against_twin.missing:
        return Evidence(against_twin.finding, claim.threshold, baseline=claim.baseline, missing=against_twin.missing)
    return _with(
        evidence,
        finding=f"{evidence.finding}; {against_twin.finding}",
        p=max(evidence.p, against_twin.p),
        unmet=None if against_twin.beyond else f"it does not beat its control twin {claim.twin} for sure",
    )


def weigh_datasets_improved(claim: "DatasetsImprovedClaim", on: Weighing) -> Evidence:
    """At least so many datasets improve: interval above 0, and Holm's p (over items) within the datasets significant.

    `delta` counts the datasets whose estimate is up, `low` those that improve, `high` those that do not get worse in the
    same sense. With n datasets and p₍ₖ₎ the k-th smallest p value (over seeds and items) of those that improve, the claim's
    p is (n − k + 1)·p₍ₖ₎, k = `at_least`: the partial-conjunction test (Benjamini & Heller 2008). Its family is the
    datasets, so it takes no part in the adjustment over claims.
    """
    found = {
        dataset: difference(on.answers, on.resamples, claim.arm, claim.baseline, dataset, on.confidence)
        for dataset in on.answers.datasets
    }
    gaps = [gap for gap in found.values() if isinstance(gap, str)]
    if gaps:
        return Evidence("", claim.at_least, baseline=claim.baseline, missing="; ".join(gaps))
    known = [one for one in found.values() if not isinstance(one, str)]
    adjusted = holm(np.array([one.p_items for one in known]))
    sure = [one for one, p in zip(known, adjusted, strict=True) if p < 1 - on.confidence]
    better = sum(one.estimate.low > 0 for one in sure)
    worse = sum(one.estimate.high < 0 for one in sure)
    up = sum(one.estimate.value > 0 for one in known)
    improving = sorted(one.p if one.estimate.low > 0 else 1.0 for one in known)
    total = len(known)
    return Evidence(
        f"{better} of {total} datasets are significantly better than {claim.baseline}, {worse} significantly worse; "
        f"{up} point estimates are up",
        threshold=claim.at_least,
        delta=up,
        low=better,
        high=total - worse,
        p=min(1.0, (total - claim.at_least + 1) * improving[claim.at_least - 1]) if claim.at_least <= total else 1.0,
        n=sum(one.estimate.n_items for one in known),
        baseline=claim.baseline,
        inclusive=True,
        own_family=True,
    )


def weigh_accuracy(claim: "AccuracyClaim", on: Weighing) -> Evidence:
    """The accuracy on one dataset (or "macro") is at least the threshold."""
    found = cell(on.answers, on.resamples, claim.arm, claim.dataset, on.confidence)
    if isinstance(found, str):
        return Evidence("", claim.threshold, missing=f"{claim.arm} has no result ({found})")
    single = claim.dataset != MACRO and found.n_seeds == 1 and is_binary(on.answers, claim.arm, claim.dataset)
    if single:
        right = round(found.value * found.n_items)
        p = float(stats.binomtest(right, found.n_items, claim.threshold / 100).pvalue)
    else:
        p = two_level_p(found, claim.threshold / 100)
    delta, low, high = (100 * value for value in (found.value, found.low, found.high))
    return Evidence(
        f"{claim.arm} has {delta:.1f} % on {claim.dataset} ({_interval(on, low, high)})",
        claim.threshold,
        *(delta, low, high, p, found.n_items),
        inclusive=True,
    )


def weigh_reaches(claim: "ReachesClaim", on: Weighing) -> Evidence:
    """arm − (the baseline with the lowest macro average) ≥ threshold."""
    gaps = [f"{arm} has no result ({gap})" for arm in claim.baselines if (gap := on.answers.missing(arm, MACRO))]
    if gaps:
        return Evidence("", claim.threshold, missing=" and ".join(gaps))
    means = {
        arm: np.mean([on.answers.matrix(arm, dataset).mean() for dataset in on.answers.datasets])
        for arm in claim.baselines
    }
    weakest = min(means, key=means.__getitem__)
    return _with(_macro_difference(on, claim.arm, weakest, claim.threshold), inclusive=True)


KINDS: dict[str, Callable[[Any, Weighing], Evidence]] = {
    "difference": weigh_difference,
    "datasets_improved": weigh_datasets_improved,
    "accuracy": weigh_accuracy,
    "reaches": weigh_reaches,
}


def claims_table(
    answers: Answers, resamples: Resamples, claims: Mapping[str, "Claim"], confidence: float
) -> pd.DataFrame:
    """claims.parquet: one row per claim, in the order of the config."""
    on = Weighing(answers, resamples, confidence)
    evidence = {name: KINDS[claim.kind](claim, on) for name, claim in claims.items()}
    adjusted = holm(np.array([NAN if one.own_family else one.p for one in evidence.values()]))
    rows = [
        _row(name, claims[name], one, one.p if one.own_family else float(p), 1 - confidence)
        for (name, one), p in zip(evidence.items(), adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(evidence: Evidence, p_holm: float, alpha: float) -> tuple[str, str]:
    """Verdict and the sentence that says why."""
    if evidence.missing:
        return "undecided", f"Data are missing: {evidence.missing}."
    needed = f"the threshold {evidence.threshold:g}"
    finding = f"{evidence.finding}, Holm p {_p(p_holm)}"
    if evidence.below:
        return "refuted", f"{finding}: the whole interval is below {needed}."
    if not evidence.beyond:
        return "undecided", f"{finding}: the data do not place it for sure on either side of {needed}."
    if evidence.unmet:
        return "undecided", f"{finding}: it passes {needed}, but {evidence.unmet}."
    if not p_holm < alpha:
        return (
            "undecided",
            f"{finding}: the interval is beyond {needed}, but the adjusted p is not below {alpha:.3g}.",
        )
    return "supported", f"{finding}: the whole interval is {'at or ' if evidence.inclusive else ''}above {needed}."


def grade(table: pd.DataFrame) -> str:
    """The highest level whose claims, and those of all lower levels, are all supported; "none" without one."""
    reached = "none"
    for level in LEVELS:
        verdicts = table.loc[table["level"] == level, "verdict"]
        if (verdicts != "supported").any():
            break
        if len(verdicts):
            reached = level
    return reached


def _macro_difference(on: Weighing, arm: str, baseline: str, threshold: float) -> Evidence:
    found = difference(on.answers, on.resamples, arm, baseline, MACRO, on.confidence, threshold / 100)
    if isinstance(found, str):
        return Evidence("", threshold, baseline=baseline, missing=found)
    of = found.estimate
    delta, low, high = (100 * value for value in (of.value, of.low, of.high))
    power = "" if low > threshold or high < threshold else f", smallest detectable difference {100 * found.mdd:.1f}"
    finding = f"{arm} − {baseline} = {delta:+.1f} points ({_interval(on, low, high, '+')}, {_sample(of.n_items, of.n_seeds)}{power})"
    return Evidence(finding, threshold, delta, low, high, found.p, of.n_items, baseline)


def _with(evidence: Evidence, **changes: Any) -> Evidence:
    return Evidence(**(vars(evidence) | changes))


def _row(name: str, claim: "Claim", evidence: Evidence, p_holm: float, alpha: float) -> dict[str, Any]:
    verdict, why = judge(evidence, p_holm, alpha)
    return {
        "claim": name,
        "statement": claim.statement,
        "kind": claim.kind,
        "level": claim.level,
        "arm": claim.arm,
        "baseline": evidence.baseline,
        "twin": getattr(claim, "twin", None),
        **{key: float(getattr(evidence, key)) for key in ("threshold", "delta", "low", "high", "p")},
        "p_holm": p_holm,
        "n": evidence.n,
        "verdict": verdict,
        "why": why,
    }


def _interval(on: Weighing, low: float, high: float, sign: str = "") -> str:
    return f"{100 * on.confidence:g} % interval {low:{sign}.1f} to {high:{sign}.1f}"


def _sample(items: int, seeds: int) -> str:
    return f"{items:,} items, {seeds} seed{'s' if seeds > 1 else ''}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
