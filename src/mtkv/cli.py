"""The command `mtkv`: what one wants to know about a study besides running it.

mtkv plan                                          what would run, why, for how long (--explain FILE)
mtkv probe                                         the default study's teachers
mtkv probe --configfile config/studies/x.yaml      those of another study
mtkv gate --arm oracle                             whether an arm's KV loss pulls where its cross-entropy does, before training
mtkv doctor --profile profiles/slurm               what would keep a study from running here, and how to mend it
mtkv status --watch                                how far a running study is
mtkv diff results/a results/b                      what differs between two finished studies
mtkv summary results/*                             what finished studies found: every claim and its verdict
mtkv schema                                        the JSON schema of a config
"""

import codecs
import io
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtkv.config.study import Study
from mtkv.ops.plan.command import Overlays, plan, study_or_refusal

if TYPE_CHECKING:
    import pandas as pd


app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)
app.command()(plan)
# Replacements for characters that the terminal's encoding lacks; any other becomes "?".
PLAIN = dict(zip("−–—·✓✗≈", "---.vx~", strict=True)) | {
    "→": "->",
    "…": "...",
    "≥": ">=",
    "Δ": "delta",
    "∂": "d",
    "±": "+-",
}


@app.callback()
def main() -> None:
    """KV distillation from several teachers, compared honestly."""
    codecs.register_error("mtkv", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's streams cannot be reconfigured
            stream.reconfigure(errors="mtkv")


@app.command()
def probe(
    configfile: Overlays = [],  # noqa: B006 (typer copies it)
    teacher: Annotated[list[str], typer.Option(help="Only this teacher; may be repeated.")] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="Also write the table as parquet.")] = None,
) -> None:
    """Held-out error of identity, fitted maps and mean, per teacher, layer and K, V: before any training.

    Relative to predicting the mean: 0 is exact, 1 says nothing. Fitted far below identity: a fixed map will do.
    """
    study = study_or_refusal(configfile)
    unknown = sorted(set(teacher) - set(study.teachers.models))
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: not a teacher of study {study.study}; there are {', '.join(study.teachers.models)}",
            param_hint="--teacher",
        )
    table = _probed(study, teacher or list(study.teachers.models))
    _print(table)
    if output:
        from mtkv.provenance.files import write_parquet

        write_parquet(output, table)


@app.command()
def gate(
    arm: Annotated[str, typer.Option(help="Arm whose KV are matched, and no control.")],
    configfile: Overlays = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=0, help="Steps that a trained map learns alone before.")] = 100,
    batches: Annotated[int, typer.Option(min=2, help="Batches that the cosine is a mean over.")] = 20,
    profile: Annotated[Path, typer.Option(help="Snakemake profile.")] = Path("profiles/local"),
) -> None:
    """cos(∂CE, ∂KV) on the untrained student's weights, by layer, keys and values, with the right row's KV and another row's.

    Snakemake makes what it needs (rows, stores, maps), and results/<study>/gate/<arm>/. A difference near 0: the arm's KV have no content
    that the cross-entropy could use.
    """
    from mtkv.ops.gate import GateError, make_gate, print_gate
    from mtkv.provenance.files import read_json

    study = study_or_refusal(configfile)
    able = [name for name, one in study.arms.items() if one.kv and not one.kv.injected and one.kv.control == "none"]
    if arm not in able:
        message = f"{arm!r} is no arm of study {study.study} that matches KV and has no control; there are {', '.join(able) or 'none'}"
        raise typer.BadParameter(message, param_hint="--arm")
    try:
        folder = make_gate(study.study, arm, steps, batches, configfile, profile)
    except GateError:
        raise typer.Exit(1) from None
    print_gate(read_json(folder / "card.json")["result"], arm, Console())
    typer.echo(f"each batch: {folder / 'cosines.parquet'}")


@app.command()
def export(
    rows: Annotated[Path, typer.Argument(help="A file of rows, for instance results/pocket/data/train.parquet.")],
    jsonl: Annotated[Path, typer.Option(help="File to write.")],
) -> None:
    """Write rows as JSON lines, one object per row."""
    from mtkv.data.rows import write_jsonl

    typer.echo(f"{write_jsonl(rows, jsonl)} rows → {jsonl}")


@app.command()
def schema(output: Annotated[Path, typer.Argument(help="File to write.")] = Path("config/schema.json")) -> None:
    """Write the JSON schema of a config, for completion and checks in editors."""
    from mtkv.config.schema import write_schema

    write_schema(output)


@app.command()
def doctor(
    configfile: Overlays = [],  # noqa: B006
    profile: Annotated[Path | None, typer.Option(help="Snakemake profile to run with, as profiles/slurm.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write it as JSON; - for JSON alone.")] = None,
) -> None:
    """What would keep a study from running here, each line with its remedy. Exits with 1 when something would stop it."""
    from mtkv.ops.doctor.command import examine

    if not examine(study_or_refusal(configfile), profile, configfile, json, Console()):
        raise typer.Exit(1)


@app.command()
def status(
    configfile: Overlays = [],  # noqa: B006
    watch: Annotated[bool, typer.Option(help="Look again and again, until all is done.")] = False,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 5.0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Jobs side by side, for the time left; as many as now.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write it as JSON; - for JSON alone.")] = None,
) -> None:
    """How far a study is: jobs done, running, queued, failed; time left; loss; which log to read. Reads files and SLURM's queue only."""
    from mtkv.ops.status.command import print_status, watch_status

    study = study_or_refusal(configfile)
    if watch:
        watch_status(study, at_once=jobs, interval=interval, console=Console())
    else:
        print_status(study, at_once=jobs, output=json, console=Console())


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="Results of one study, for instance results/pocket.")],
    b: Annotated[Path, typer.Argument(help="Results of another, or of the same one run again.")],
    json: Annotated[Path | None, typer.Option("--json", help="Also write every row as JSON.")] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
) -> None:
    """What differs between two studies: config, data, versions, code, claims and scores (b − a, on the questions both asked)."""
    from mtkv.study_diff.diff import NoComparisonError, diff_studies
    from mtkv.study_diff.tables import difference_json, print_differences

    try:
        found = diff_studies(a, b, confidence=confidence)
    except NoComparisonError as error:
        raise typer.BadParameter(str(error)) from None
    print_differences(found, confidence, Console())
    if json:
        from mtkv.provenance.files import write_json

        write_json(json, difference_json(found, confidence))


@app.command()
def summary(
    studies: Annotated[list[Path], typer.Argument(help="Results of finished studies, for instance results/*.")],
    brief: Annotated[bool, typer.Option(help="Five lines for each study instead of the table.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="Also write the table as Markdown.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write it as an HTML page.")] = None,
) -> None:
    """What finished studies found: every claim with estimate, interval, adjusted p and verdict."""
    from mtkv.report.findings import (
        HEADER,
        NoFindingsError,
        claim_lines,
        five_lines,
        read_findings,
        write_markdown,
        write_page,
    )

    try:
        found = [read_findings(folder) for folder in studies]
    except NoFindingsError as error:
        raise typer.BadParameter(str(error)) from None
    if brief:
        typer.echo("\n".join(line for one in found for line in five_lines(one)))
    else:
        table = Table(*HEADER)
        for line in claim_lines(found):
            table.add_row(*map(Text, line))
        Console().print(table)
    for output, write in ((markdown, write_markdown), (html, write_page)):
        if output:
            write(found, output)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler of `str.encode`: replacements for the characters that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def _probed(study: Study, teachers: list[str]) -> "pd.DataFrame":
    """The probe tables of the teachers, whose models are read now; nothing of a study's results is touched."""
    import pandas as pd

    from mtkv.config.kv import AlignConfig
    from mtkv.data.build import build_data
    from mtkv.stages.fit_map import MapFiles, calibrate_map

    tables = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_data(study.data, study.datasets, folder)
        for name in teachers:
            aligns: list[AlignConfig] = study.aligns(name) or [AlignConfig()]
            for align in aligns:
                files = MapFiles(folder / "map.safetensors", folder / "probe.parquet")
                facts = calibrate_map(study.student, name, study.teachers.models[name], align, None, folder, files)
                found = pd.read_parquet(files.probe)
                tables.append(found.assign(align=align.slug, coverage=facts["coverage"]))
    return pd.concat(tables, ignore_index=True)


def _print(table: "pd.DataFrame") -> None:
    console = Console()
    for (teacher, align, coverage), part in table.groupby(["teacher", "align", "coverage"], sort=False):
        wide = part.pivot_table(index=["layer", "teacher_layer", "kind"], columns="method", values="error")
        methods = [name for name in ("identity", "ridge", "procrustes", "mean") if name in wide]
        shown = Table(title=f"{teacher} ({align}): {coverage:.0%} of the student's tokens have a target")
        for column in ("student layer", "teacher layer", "kind", *methods):
            shown.add_column(column, justify="left" if column == "kind" else "right")
        for row in wide.reset_index().to_dict("records"):
            place = (str(row[name]) for name in ("layer", "teacher_layer", "kind"))
            shown.add_row(*place, *(f"{row[name]:.3f}" for name in methods))
        console.print(shown)
