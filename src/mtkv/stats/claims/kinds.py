"""One function per kind of claim (`KINDS`): the data in, `Evidence` for and against the claim out, before any adjustment.

Each p is the chance of data this far on their side of the threshold if the truth were at the threshold. A claim with two conditions
(beat the baseline *and* the control twin) takes the larger p when both hold, and twice the smaller p of those that fail.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.cells import cell, is_binary
from mtkv.stats.items import MACRO, Answers
from mtkv.stats.mixture import MIXTURE, mixture
from mtkv.stats.multiplicity import holm, partial_conjunction
from mtkv.stats.paired_tests import Difference, difference, two_level_p
from mtkv.stats.power import equivalence_p
from mtkv.stats.translatable import both, listed, no_result, tell

if TYPE_CHECKING:
    from mtkv.config import claims as kind


NAN = float("nan")
SHARE_LIMIT = 5.0  # shares farther than this from the estimate are not looked for: the gain is then hardly known


@dataclass(frozen=True)
class Evidence:
    """What one claim has for and against it, before Holm's adjustment.

    The claim holds between `threshold` and `upper`. These, `delta`, `low`, `high` and `mdd` (smallest detectable difference) are
    percentage points, or numbers of datasets; the twin's are differences from the control twin. `p` tests the side of the threshold
    that the interval lies on; `inclusive`: equal to it is enough. `n` counts items. `finding` is the first half of the verdict's
    sentence; `missing` why there is nothing to weigh; `unmet` a further condition that does not hold; `contradicted` one that is refuted.
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
    contradicted: str | None = None
    upper: float = float("inf")
    mdd: float = NAN
    n_seeds: int = 0
    twin_delta: float = NAN
    twin_low: float = NAN
    twin_high: float = NAN

    @property
    def beyond(self) -> bool:
        """The whole interval is on the claim's side of the threshold."""
        past = self.low >= self.threshold if self.inclusive else self.low > self.threshold
        return past and self.high < self.upper

    @property
    def below(self) -> bool:
        """The whole interval is on the other side of the threshold, or beyond `upper`."""
        return self.high < self.threshold or self.low > self.upper

    def with_(self, **changes: object) -> "Evidence":
        """A copy with other fields."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Weighing:
    """What the functions of `kinds.KINDS` need besides the claim. `margin` (0..1): arms closer than this count as equivalent."""

    answers: Answers
    resamples: Resamples
    confidence: float
    margin: float = 0.01


def macro_difference(on: Weighing, arm: str, baseline: str, threshold: float) -> Evidence:
    """arm − baseline in macro accuracy, against a threshold in points."""
    found = difference(on.answers, on.resamples, arm, baseline, MACRO, on.confidence, threshold / 100)
    if isinstance(found, str):
        return Evidence("", threshold, baseline=baseline, missing=found)
    return evidence_of(found, arm, baseline, threshold, on.confidence)


def evidence_of(found: Difference, arm: str, baseline: str, threshold: float, confidence: float) -> Evidence:
    """A paired difference (0..1) as evidence in points, with the finding in words."""
    of = found.estimate
    delta, low, high = (100 * value for value in (of.value, of.low, of.high))
    finding = tell(
        "{arm} − {baseline} = {delta} points ({interval}, {sample})",
        arm=arm,
        baseline=baseline,
        delta=f"{delta:+.1f}",
        interval=interval(confidence, low, high, "+"),
        sample=sample(of.n_items, of.n_seeds),
    )
    return Evidence(
        finding,
        threshold,
        *(delta, low, high, found.p, of.n_items),
        baseline=baseline,
        mdd=100 * found.mdd,
        n_seeds=of.n_seeds,
    )


def interval(confidence: float, low: float, high: float, sign: str = "") -> str:
    """For example `95 % interval 1.0 to 2.0`; `sign` "+" writes plus signs."""
    limits = {"low": f"{low:{sign}.1f}", "high": f"{high:{sign}.1f}"}
    return tell("{confidence} % interval {low} to {high}", confidence=f"{100 * confidence:.4g}", **limits)


def sample(items: int, seeds: int) -> str:
    """For example `1,400 items, 3 seeds`."""
    if seeds > 1:
        return tell("{items} items, {seeds} seeds", items=f"{items:,}", seeds=seeds)
    return tell("{items} items, {seeds} seed", items=f"{items:,}", seeds=seeds)


def weigh_difference(claim: "kind.DifferenceClaim", on: Weighing) -> Evidence:
    """arm − baseline > threshold; with a twin, arm − twin > 0 as well."""
    evidence = macro_difference(on, claim.arm, claim.baseline, claim.threshold)
    if claim.twin is None or evidence.missing:
        return evidence
    against = macro_difference(on, claim.arm, claim.twin, 0.0)
    if against.missing:
        return Evidence("", claim.threshold, baseline=claim.baseline, missing=against.missing)
    failing = [one.p for one in (evidence, against) if one.below]
    return evidence.with_(
        finding=listed([evidence.finding, against.finding]),
        p=min(1.0, 2 * min(failing)) if failing else max(evidence.p, against.p),
        unmet=None if against.beyond else tell("it does not beat its control twin {twin} for sure", twin=claim.twin),
        contradicted=tell("it is worse than its control twin {twin}", twin=claim.twin) if against.below else None,
        twin_delta=against.delta,
        twin_low=against.low,
        twin_high=against.high,
    )


def weigh_equivalent(claim: "kind.EquivalentClaim", on: Weighing) -> Evidence:
    """|arm − baseline| < margin, by two one-sided tests; refuted where the difference is larger than the margin for sure."""
    found = difference(on.answers, on.resamples, claim.arm, claim.baseline, MACRO, on.confidence)
    if isinstance(found, str):
        return Evidence("", claim.margin, baseline=claim.baseline, missing=found)
    # Two one-sided tests at level α are the interval of level 1 − 2α.
    narrow = max(0.0, 2 * on.confidence - 1)
    inside = difference(on.answers, on.resamples, claim.arm, claim.baseline, MACRO, narrow)
    assert not isinstance(inside, str)
    evidence = evidence_of(inside, claim.arm, claim.baseline, -claim.margin, narrow)
    p = equivalence_p(found.estimate.safe, claim.margin / 100)
    return evidence.with_(upper=claim.margin, p=min(p, 1 - p))


def weigh_datasets_improved(claim: "kind.DatasetsImprovedClaim", on: Weighing) -> Evidence:
    """At least `at_least` datasets improve: each with its interval above 0 and a significant Holm p (over items) within the datasets.

    `delta` counts the datasets whose estimate is up, `low` those that improve, `high` those that do not get worse in the
    same sense. The claim's p is that of the partial conjunction "at least k datasets improve", k = `at_least`, over the p
    values (seeds and items) of those that improve; refuting it takes n − k + 1 datasets that get worse.
    """
    pair = claim.arm, claim.baseline
    found = [difference(on.answers, on.resamples, *pair, name, on.confidence) for name in on.answers.datasets]
    if gaps := [gap for gap in found if isinstance(gap, str)]:
        return Evidence("", claim.at_least, baseline=claim.baseline, missing=listed(gaps))
    known = [one for one in found if isinstance(one, Difference)]
    adjusted = holm(np.array([one.p_items for one in known]))
    sure = [one for one, p in zip(known, adjusted, strict=True) if p < 1 - on.confidence]
    better = sum(one.estimate.low > 0 for one in sure)
    worse = sum(one.estimate.high < 0 for one in sure)
    up = sum(one.estimate.value > 0 for one in known)
    total, needed = len(known), claim.at_least
    improving = np.array([one.p if one.estimate.low > 0 else 1.0 for one in known])
    worsening = np.array([one.p if one.estimate.high < 0 else 1.0 for one in known])
    refuted = total - worse < needed
    return Evidence(
        tell(
            "{better} of {total} datasets are significantly better than {baseline}, {worse} significantly worse; "
            "{up} point estimates are up",
            **{"better": better, "total": total, "baseline": claim.baseline, "worse": worse, "up": up},
        ),
        threshold=needed,
        delta=up,
        low=better,
        high=total - worse,
        p=partial_conjunction(worsening, total - needed + 1) if refuted else partial_conjunction(improving, needed),
        n=sum(one.estimate.n_items for one in known),
        n_seeds=max(one.estimate.n_seeds for one in known),
        baseline=claim.baseline,
        inclusive=True,
    )


def weigh_accuracy(claim: "kind.AccuracyClaim", on: Weighing) -> Evidence:
    """The accuracy on one dataset (or "macro") is at least the threshold."""
    found = cell(on.answers, on.resamples, claim.arm, claim.dataset, on.confidence)
    if isinstance(found, str):
        return Evidence("", claim.threshold, missing=no_result(claim.arm, found))
    single = claim.dataset != MACRO and found.n_seeds == 1 and is_binary(on.answers, claim.arm, claim.dataset)
    if single and on.answers.groups(claim.dataset) is None:
        right = round(found.value * found.n_items)
        p = float(stats.binomtest(right, found.n_items, claim.threshold / 100).pvalue)
    else:
        p = float(two_level_p(found, claim.threshold / 100))
    delta, low, high = (100 * value for value in (found.value, found.low, found.high))
    return Evidence(
        tell(
            "{arm} has {accuracy} % on {dataset} ({interval}, {sample})",
            arm=claim.arm,
            accuracy=f"{delta:.1f}",
            dataset=claim.dataset,
            interval=interval(on.confidence, low, high),
            sample=sample(found.n_items, found.n_seeds),
        ),
        claim.threshold,
        *(delta, low, high, p, found.n_items),
        inclusive=True,
        n_seeds=found.n_seeds,
    )


def weigh_reaches(claim: "kind.ReachesClaim", on: Weighing) -> Evidence:
    """arm − (the baseline with the lowest macro average) ≥ threshold."""
    gaps = [no_result(arm, gap) for arm in claim.baselines if (gap := on.answers.missing(arm, MACRO))]
    if gaps:
        return Evidence("", claim.threshold, missing=both(gaps))
    names = on.answers.datasets
    means = {arm: np.mean([on.answers.matrix(arm, name).mean() for name in names]) for arm in claim.baselines}
    weakest = min(means, key=means.__getitem__)
    return macro_difference(on, claim.arm, weakest, claim.threshold).with_(inclusive=True)


def weigh_differ(claim: "kind.DifferClaim", on: Weighing) -> Evidence:
    """Any two of the arms differ in macro accuracy: the pair that differs most clearly, adjusted for the choice (Bonferroni).

    Refuted where all pairs are equivalent within the study's margin.
    """
    arms = [claim.arm, *claim.baselines]
    gaps = [no_result(arm, gap) for arm in arms if (gap := on.answers.missing(arm, MACRO))]
    if gaps:
        return Evidence("", 0.0, missing=both(gaps))
    pairs = list(combinations(arms, 2))
    level = 1 - (1 - on.confidence) / len(pairs)
    found = {pair: difference(on.answers, on.resamples, *pair, MACRO, level) for pair in pairs}
    known = {pair: one for pair, one in found.items() if isinstance(one, Difference)}
    # Of pairs with equal p the one that differs more, seen from the better arm.
    first, second = min(known, key=lambda pair: (known[pair].p, -abs(known[pair].estimate.value)))
    if known[first, second].estimate.value < 0:
        first, second = second, first
    clearest = difference(on.answers, on.resamples, first, second, MACRO, level)
    assert not isinstance(clearest, str)
    evidence = evidence_of(clearest, first, second, 0.0, level)
    equal = max(equivalence_p(one.estimate.safe, on.margin) for one in known.values())
    if equal < 1 - on.confidence and evidence.low <= 0:
        close = tell("all {count} arms are within {points} points", count=len(arms), points=f"{100 * on.margin:g}")
        return evidence.with_(p=equal, contradicted=close)
    return evidence.with_(p=min(1.0, evidence.p * len(pairs)))


def weigh_recovers(claim: "kind.RecoversClaim", on: Weighing) -> Evidence:
    """(arm − baseline) ÷ (reference − baseline) > threshold, all in percent of the reference's gain.

    The share τ is weighed through the contrast arm − [(1 − τ)·baseline + τ·reference], which is linear; its interval holds the τ at
    which that contrast's interval holds 0 (Fieller 1954). Without a sure gain of the reference there is no share, and so no interval.
    """
    gain = difference(on.answers, on.resamples, claim.reference, claim.baseline, MACRO, on.confidence)
    own = difference(on.answers, on.resamples, claim.arm, claim.baseline, MACRO, on.confidence)
    if gap := next((found for found in (gain, own) if isinstance(found, str)), None):
        return Evidence("", claim.threshold, baseline=claim.baseline, missing=gap)
    assert isinstance(gain, Difference)
    assert isinstance(own, Difference)
    if on.answers.seeds[claim.baseline] != on.answers.seeds[claim.reference]:
        other = tell(
            "{reference} and {baseline} have different seeds", reference=claim.reference, baseline=claim.baseline
        )
        return Evidence("", claim.threshold, baseline=claim.baseline, missing=other)
    if gain.estimate.low <= 0:
        nothing = tell(
            "{reference} does not gain on {baseline} for sure", reference=claim.reference, baseline=claim.baseline
        )
        return Evidence("", claim.threshold, baseline=claim.baseline, missing=nothing)

    def against(share: float) -> Difference:
        mixed = mixture(on.answers, on.resamples, (claim.baseline, claim.reference), share)
        found = difference(*mixed, claim.arm, MIXTURE, MACRO, on.confidence)
        assert isinstance(found, Difference)
        return found

    share = own.estimate.value / gain.estimate.value
    limits = []
    for side in (-1, 1):
        far = share + side * SHARE_LIMIT
        edge = (lambda tau: against(tau).estimate.low) if side < 0 else (lambda tau: against(tau).estimate.high)
        limits.append(float(brentq(edge, *sorted((share, far)), xtol=1e-3)) if edge(far) * side < 0 else far)
    delta, low, high = (100 * value for value in (share, *limits))
    return Evidence(
        tell(
            "{arm} has {share} % of the gain of {reference} over {baseline} ({interval}, {sample})",
            arm=claim.arm,
            share=f"{delta:.0f}",
            reference=claim.reference,
            baseline=claim.baseline,
            interval=interval(on.confidence, low, high),
            sample=sample(own.estimate.n_items, own.estimate.n_seeds),
        ),
        claim.threshold,
        *(delta, low, high, against(claim.threshold / 100).p, own.estimate.n_items),
        baseline=claim.baseline,
        n_seeds=own.estimate.n_seeds,
    )


KINDS: dict[str, Callable[[Any, Weighing], Evidence]] = {
    "difference": weigh_difference,
    "equivalent": weigh_equivalent,
    "datasets_improved": weigh_datasets_improved,
    "accuracy": weigh_accuracy,
    "reaches": weigh_reaches,
    "differ": weigh_differ,
    "recovers": weigh_recovers,
}
