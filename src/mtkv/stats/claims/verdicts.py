"""What the data say about each claim of a study: supported, refuted or undecided, and why.

In: `Answers` and the study's claims. Out: the rows of claims.parquet, in percentage points. First every claim is weighed
alone (`kinds`: estimate, interval and p value against the claim's threshold); then Holm's adjustment runs over all claims of
the study. *Supported* needs the whole interval beyond the threshold and the adjusted p below 1 − confidence, so the chance
that a study supports any false claim is at most 1 − confidence. *Refuted* needs evidence of its own: the whole interval on
the other side, and its p (before adjustment) below 1 − confidence. The burden of proof is the claim's, and a true one is
refuted with half that chance (TOST: all of it). Anything else, missing data first, is *undecided*, with the difference that
the study could have seen.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mtkv.stats.bootstrap import Resamples
from mtkv.stats.claims.kinds import KINDS, Evidence, Weighing
from mtkv.stats.items import Answers
from mtkv.stats.multiplicity import holm
from mtkv.stats.translatable import Sentence, packed, tell

if TYPE_CHECKING:
    from mtkv.config.claims import Claim

__all__ = ["COLUMNS", "Evidence", "claims_table", "grade", "judge"]
COLUMNS = ["claim", "statement", "kind", "level", "arm", "baseline", "twin", "threshold", "delta", "low", "high"]
COLUMNS += ["p", "p_holm", "n", "verdict", "why", "n_seeds", "mdd", "twin_delta", "twin_low", "twin_high"]
COLUMNS += ["why_parts"]
LEVELS = ("minimum", "ideal", "stretch")
NUMBERS = ("threshold", "delta", "low", "high", "p", "mdd", "twin_delta", "twin_low", "twin_high")


def claims_table(
    answers: Answers,
    resamples: Resamples,
    claims: Mapping[str, "Claim"],
    confidence: float,
    margin: float = 0.01,
    unmet: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """claims.parquet: one row per claim, in the order of the config.

    `unmet` maps a claim to a condition apart from the data that it fails ("no control twin is named"): it cannot be supported.
    """
    on = Weighing(answers, resamples, confidence, margin)
    evidence = {name: KINDS[claim.kind](claim, on) for name, claim in claims.items()}
    evidence |= {name: evidence[name].with_(unmet=why) for name, why in (unmet or {}).items()}
    adjusted = holm(np.array([one.p for one in evidence.values()], dtype=float))
    rows = [
        _row(name, claims[name], one, float(p), 1 - confidence)
        for (name, one), p in zip(evidence.items(), adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def judge(evidence: Evidence, p_holm: float, alpha: float) -> tuple[str, Sentence]:
    """The verdict (supported, refuted, undecided) and the sentence that says why. `alpha`: 1 − confidence."""
    if evidence.missing:
        return "undecided", tell("Data are missing: {missing}.", missing=evidence.missing)
    finding = tell("{finding}, Holm p {p}", finding=evidence.finding, p=_p(p_holm))
    doubt, needed = _power(finding, evidence), _needed(evidence)
    against = _place(evidence, passed=False) if evidence.below else evidence.contradicted
    if against and evidence.p < alpha:
        return "refuted", _because(finding, against)
    if against:
        own, level = _p(evidence.p), f"{alpha:.3g}"
        weak = tell("{against}, but its own p {p} is not below {alpha}", against=against, p=own, alpha=level)
        return "undecided", _because(doubt, weak)
    if not evidence.beyond:
        unsure = tell("the data do not place it for sure on either side of {needed}", needed=needed)
        return "undecided", _because(doubt, unsure)
    if evidence.unmet:
        failed = tell("it passes {needed}, but {unmet}", needed=needed, unmet=evidence.unmet)
        return "undecided", _because(doubt, failed)
    passed = _place(evidence, passed=True)
    if not p_holm < alpha:
        weak = tell("{passed}, but the adjusted p is not below {alpha}", passed=passed, alpha=f"{alpha:.3g}")
        return "undecided", _because(doubt, weak)
    return "supported", _because(finding, passed)


def grade(table: pd.DataFrame) -> str:
    """The highest level ("minimum", "ideal", "stretch") whose claims, and those of all lower levels, are all supported; else "none"."""
    reached = "none"
    for level in LEVELS:
        verdicts = table.loc[table["level"] == level, "verdict"]
        if (verdicts != "supported").any():
            break
        if len(verdicts):
            reached = level
    return reached


def _row(name: str, claim: "Claim", evidence: Evidence, p_holm: float, alpha: float) -> dict[str, Any]:
    verdict, why = judge(evidence, p_holm, alpha)
    threshold = evidence.upper if np.isfinite(evidence.upper) else evidence.threshold
    return {
        "claim": name,
        "statement": claim.statement,
        "kind": claim.kind,
        "level": claim.level,
        "arm": claim.arm,
        "baseline": evidence.baseline,
        "twin": getattr(claim, "twin", None),
        **{key: float(getattr(evidence, key)) for key in NUMBERS},
        "threshold": float(threshold),
        "p_holm": p_holm,
        "n": evidence.n,
        "n_seeds": evidence.n_seeds,
        "verdict": verdict,
        "why": str(why),
        "why_parts": packed(why),
    }


def _because(finding: str, reason: str) -> Sentence:
    return tell("{finding}: {reason}.", finding=finding, reason=reason)


def _needed(evidence: Evidence) -> Sentence:
    if np.isfinite(evidence.upper):
        return tell("the margin of ±{value}", value=f"{evidence.upper:g}")
    return tell("the threshold {value}", value=f"{evidence.threshold:g}")


def _place(evidence: Evidence, passed: bool) -> Sentence:
    """Where the whole interval is: on the claim's side (`passed`) or on the other."""
    value = f"{evidence.upper if np.isfinite(evidence.upper) else evidence.threshold:g}"
    if np.isfinite(evidence.upper):
        if passed:
            return tell("the whole interval is inside the margin of ±{value}", value=value)
        return tell("the whole interval is outside the margin of ±{value}", value=value)
    if not passed:
        return tell("the whole interval is below the threshold {value}", value=value)
    if evidence.inclusive:
        return tell("the whole interval is at or above the threshold {value}", value=value)
    return tell("the whole interval is above the threshold {value}", value=value)


def _power(finding: Sentence, evidence: Evidence) -> Sentence:
    if not np.isfinite(evidence.mdd):
        return finding
    return tell("{finding}, smallest detectable difference {mdd}", finding=finding, mdd=f"{evidence.mdd:.1f}")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
