"""SLURM: its commands, its partitions against the site file, the account, the GPU types."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from mtkv.ops.doctor.checks import DoctorContext, Finding, check
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


@check("slurm")
def slurm(patient: DoctorContext) -> Iterator[Finding]:
    """The commands are there, the controller answers, and every partition, GPU type and account of the site file exists."""
    if not patient.on_slurm:
        return
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        yield Finding(
            "error",
            f"no {', '.join(missing)} on this machine",
            "start from a login node; or load SLURM's module (module load slurm)",
        )
        return
    answer = ask("sinfo", "--noheader", "--format", "%P|%a|%G|%T", timeout=10)
    if answer is None or not answer.good:
        why = (
            "does not answer"
            if answer is None or answer.code is None
            else (answer.error.strip().splitlines() or ["fails"])[-1]
        )
        yield Finding("error", f"sinfo: {why}", "try again later; ask the administrators when it stays so")
        return
    lines = sinfo_lines(answer.text)
    yield from _partitions(patient, lines)
    yield from _gpus(patient, lines)
    yield from _account(patient)


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


def _partitions(patient: DoctorContext, lines: list[Line]) -> Iterator[Finding]:
    there = {line.partition for line in lines}
    for name in sorted(set(patient.site.partitions) - there):
        yield Finding(
            "error",
            f"partition {name} is not one of this cluster's: {', '.join(sorted(there))}",
            f"mend partitions in {SITE}",
        )
    for name in sorted(set(patient.site.partitions or there) & there):
        own = [line for line in lines if line.partition == name]
        if not any(line.up for line in own) or not any(line.usable for line in own):
            named = name in patient.site.partitions
            fix = (
                f"wait, or take it out of partitions in {SITE}"
                if named
                else "wait, or name another one in the site file"
            )
            yield Finding("warning", f"partition {name} takes no jobs now: down or drained", fix)
    if not patient.site.partitions:
        yield Finding(
            "note",
            f"jobs go to the cluster's default partition; it has {', '.join(sorted(there)) or 'none'}",
            f"name partitions and limits in {SITE}",
        )
    elif set(patient.site.partitions) <= there:
        yield Finding("ok", f"partitions {', '.join(patient.site.partitions)}")


def _gpus(patient: DoctorContext, lines: list[Line]) -> Iterator[Finding]:
    resources = patient.study.resources
    if not any(getattr(resources, stage).gpu for stage in ("teachers", "maps", "train", "predict")):
        return
    usable = [line for line in lines if not patient.site.partitions or line.partition in patient.site.partitions]
    types = sorted(set().union(*(line.gpu_types for line in usable)))
    wanted = patient.site.gpu_model
    if not any(line.gpus for line in usable):
        yield Finding(
            "error",
            "the study asks for GPUs, and no node of these partitions has any",
            f"name a partition with GPUs in {SITE}",
        )
    elif wanted and wanted not in types:
        yield Finding(
            "error",
            f"gpu_model {wanted}: the partitions have {', '.join(types) or 'GPUs without a type'}",
            f"mend gpu_model in {SITE}",
        )
    else:
        yield Finding("ok", f"GPUs: {', '.join(types) or 'without a type'}")


def _account(patient: DoctorContext) -> Iterator[Finding]:
    answer = ask(
        "sacctmgr",
        "--noheader",
        "--parsable2",
        "show",
        "assoc",
        f"user={os.environ.get('USER', os.getuid())}",
        "format=account",
        timeout=10,
    )
    accounts = sorted(set(answer.text.split())) if answer and answer.good else []
    wanted = patient.site.account
    if wanted and accounts and wanted not in accounts:
        yield Finding(
            "error", f"account {wanted} is not one of yours: {', '.join(accounts)}", f"mend account in {SITE}"
        )
    elif wanted and not accounts:
        yield Finding(
            "note",
            f"account {wanted}: this cluster does not tell whether it is yours",
            "sbatch will tell when the first job is sent",
        )
    elif len(accounts) > 1 and not wanted:
        yield Finding(
            "note",
            f"you have several accounts ({', '.join(accounts)}); jobs go to your default one",
            f"name one in {SITE} if another shall pay",
        )
