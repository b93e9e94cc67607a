"""SLURM: its commands, its partitions against the site file, the account, the GPU types."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from mtkv.ops.doctor.checks import DoctorContext, Finding, error, note, ok, warning
from mtkv.ops.slurm.queue import ask

COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
SITE = "profiles/slurm/site.yaml"


@dataclass(frozen=True)
class Line:
    """One line of `sinfo`: a partition, and a kind of node in it."""

    partition: str
    up: bool
    gpu_types: frozenset[str]
    gpus: int
    usable: bool


def slurm(context: DoctorContext) -> Iterator[Finding]:
    """The commands are there, the controller answers, and every partition, GPU type and account of the site file exists."""
    if not context.on_slurm:
        return
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        fix = "start from a login node; or load SLURM's module (module load slurm)"
        yield error(f"no {', '.join(missing)} on this machine", fix)
        return
    answer = ask("sinfo", "--noheader", "--format", "%P|%a|%G|%T", timeout=10)
    if answer is None or not answer.good:
        silent = answer is None or answer.code is None
        why = "does not answer" if silent else (answer.error.strip().splitlines() or ["fails"])[-1]  # type: ignore[union-attr]
        yield error(f"sinfo: {why}", "try again later; ask the administrators when it stays so")
        return
    lines = sinfo_lines(answer.text)
    yield from _partitions(context, lines)
    yield from _gpus(context, lines)
    yield from _account(context)


def sinfo_lines(text: str) -> list[Line]:
    """Parse `sinfo --format "%P|%a|%G|%T"`; a gres is `gpu:a100:4(S:0-1)` or `gpu:2`, several separated by commas."""
    found = []
    for partition, state, gres, nodes in (line.split("|") for line in text.splitlines() if line.count("|") == 3):
        parts = [part.split("(")[0].split(":") for part in re.split(r",(?![^(]*\))", gres)]
        gpus = [part for part in parts if part[0] == "gpu"]
        types = frozenset(part[1] for part in gpus if len(part) == 3)
        count = sum(int(part[-1]) for part in gpus if part[-1].isdigit())
        usable = not nodes.rstrip("*~#!%$@^-").lower().startswith(("down", "drain", "fail", "inval", "unknown"))
        found.append(Line(partition.rstrip("*"), state == "up", types, count, usable))
    return found


def _partitions(context: DoctorContext, lines: list[Line]) -> Iterator[Finding]:
    there, named = {line.partition for line in lines}, context.site.partitions
    names = ", ".join(sorted(there))
    for name in sorted(set(named) - there):
        yield error(f"partition {name} is not one of this cluster's: {names}", f"mend partitions in {SITE}")
    for name in sorted(set(named or there) & there):
        own = [line for line in lines if line.partition == name]
        if not any(line.up for line in own) or not any(line.usable for line in own):
            other = f"take it out of partitions in {SITE}" if name in named else "name another one in the site file"
            yield warning(f"partition {name} takes no jobs now: down or drained", f"wait, or {other}")
    if not named:
        fix = f"name partitions and limits in {SITE}"
        yield note(f"jobs go to the cluster's default partition; it has {names or 'none'}", fix)
    elif set(named) <= there:
        yield ok(f"partitions {', '.join(named)}")


def _gpus(context: DoctorContext, lines: list[Line]) -> Iterator[Finding]:
    resources = context.study.resources
    if not any(getattr(resources, stage).gpu for stage in ("teachers", "maps", "train", "predict")):
        return
    usable = [line for line in lines if not context.site.partitions or line.partition in context.site.partitions]
    types = sorted(set().union(*(line.gpu_types for line in usable)))
    wanted = context.site.gpu_model
    if not any(line.gpus for line in usable):
        fix = f"name a partition with GPUs in {SITE}"
        yield error("the study asks for GPUs, and no node of these partitions has any", fix)
    elif wanted and wanted not in types:
        there = ", ".join(types) or "GPUs without a type"
        yield error(f"gpu_model {wanted}: the partitions have {there}", f"mend gpu_model in {SITE}")
    else:
        yield ok(f"GPUs: {', '.join(types) or 'without a type'}")


def _account(context: DoctorContext) -> Iterator[Finding]:
    user = f"user={os.environ.get('USER', os.getuid())}"
    answer = ask("sacctmgr", "--noheader", "--parsable2", "show", "assoc", user, "format=account", timeout=10)
    accounts = sorted(set(answer.text.split())) if answer and answer.good else []
    wanted = context.site.account
    if wanted and accounts and wanted not in accounts:
        yield error(f"account {wanted} is not one of yours: {', '.join(accounts)}", f"mend account in {SITE}")
    elif wanted and not accounts:
        fix = "sbatch will tell when the first job is sent"
        yield note(f"account {wanted}: this cluster does not tell whether it is yours", fix)
    elif len(accounts) > 1 and not wanted:
        fix = f"name one in {SITE} if another shall pay"
        yield note(f"you have several accounts ({', '.join(accounts)}); jobs go to your default one", fix)
