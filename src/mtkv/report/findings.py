"""What finished studies found: five lines for a terminal, or one table of all their claims as text, Markdown and an HTML page.

In: result folders (`results/<study>`) whose comparison is done, with or without a report. Nothing is computed anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from mtkv.provenance.files import atomic_path, read_json
from mtkv.report.figures.figure import text
from mtkv.report.summary import ClaimRow, claim_row
from mtkv.report.tables import as_markdown
from mtkv.stats.items import MACRO

HEADER = ("study", "claim", "estimate", "interval", "p (Holm)", "verdict")
VERDICTS = ("supported", "refuted", "undecided")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Claims of {count} studies</title>
<style>body {{ font: 15px system-ui, sans-serif; margin: 2em }} table {{ border-collapse: collapse }}
td, th {{ border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left }}</style></head>
<body><h1>Claims of {count} studies</h1>
{table}
</body></html>
"""


class NoFindingsError(ValueError):
    """A folder without the comparison of a study."""


@dataclass(frozen=True)
class Findings:
    """One study's answer. `macro`: macro accuracy in percent of each student, best first; arms without one are left out."""

    study: str
    folder: Path
    grade: str
    claims: list[ClaimRow]
    macro: dict[str, float]


def read_findings(folder: Path) -> Findings:
    """What the comparison in `folder` says. Raises NoFindingsError naming the file that is missing or broken, and the command."""
    compared = folder / "compare"
    try:
        study = read_json(compared / "study.json")
        claims, cells = (pd.read_parquet(compared / f"{name}.parquet") for name in ("claims", "cells"))
        grade = str(read_json(compared / "card.json")["result"]["grade"])
        arms = [name for name, arm in study["arms"].items() if arm["training"] or arm["model"] == "student"]
        known = cells[(cells["dataset"] == MACRO) & cells["arm"].isin(arms)].dropna(subset=["mean"])
        best = known.sort_values("mean", ascending=False, kind="stable")
        rows = [claim_row(claim, len(study["datasets"])) for claim in claims.to_dict("records")]
        return Findings(
            str(study["study"]), folder, grade, rows, dict(zip(best["arm"], 100 * best["mean"], strict=True))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoFindingsError(
            f"{folder} has no comparison that can be read ({type(error).__name__}: {error}); "
            f"make it: snakemake --profile profiles/local {compared / 'claims.parquet'} (with the study's --configfile)"
        ) from error


def five_lines(found: Findings) -> list[str]:
    """Macro accuracy of every student, the claims by verdict, the grade."""
    ranked = " · ".join(f"{arm} {text(value)}" for arm, value in found.macro.items())
    by_verdict = {verdict: [row for row in found.claims if row.verdict == verdict] for verdict in VERDICTS}
    return [
        f"{found.study}, macro accuracy in %: {ranked or 'no arm has all datasets'}",
        *(
            f"{verdict} ({len(rows)}): {', '.join(f'{row.id} {row.estimate}' for row in rows) or '—'}"
            for verdict, rows in by_verdict.items()
        ),
        f"grade: {found.grade} (the highest level whose claims are all supported)",
    ]


def claim_lines(findings: Sequence[Findings]) -> list[tuple[str, ...]]:
    """A row of `HEADER` for each claim of each study."""
    return [
        (found.study, row.statement, row.estimate, row.interval, row.p, row.verdict)
        for found in findings
        for row in found.claims
    ]


def write_markdown(findings: Sequence[Findings], output: Path) -> None:
    """Write the table of all claims as Markdown."""
    with atomic_path(output) as temporary:
        temporary.write_text(as_markdown(HEADER, claim_lines(findings)), encoding="utf-8")


def write_page(findings: Sequence[Findings], output: Path) -> None:
    """Write the table of all claims as an HTML page; a study's name leads to its report where there is one."""
    table = pd.DataFrame([[escape(cell) for cell in line] for line in claim_lines(findings)], columns=list(HEADER))
    reports = {escape(found.study): (found.folder / "report/index.html").absolute() for found in findings}
    table["study"] = [
        f'<a href="{escape(reports[name].as_uri())}">{name}</a>' if reports[name].exists() else name
        for name in table["study"]
    ]
    with atomic_path(output) as temporary:
        page = PAGE.format(count=len(findings), table=table.to_html(index=False, border=0, escape=False))
        temporary.write_text(page, encoding="utf-8")
