"""`mtkv gate`: cos(∂CE, ∂KV) of one arm before it is trained, made by Snakemake from the data, stores and maps that the arm needs."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mtkv.report.gates import ALL

COSINES = ("right", "other", "difference")


class GateError(RuntimeError):
    """Snakemake did not make the gate's files; it has said why itself."""


def make_gate(study: str, arm: str, steps: int, batches: int, overlays: Sequence[Path], profile: Path) -> Path:
    """Have Snakemake make the gate's files, and what they need; returns the folder. Raises GateError."""
    folder = Path(f"results/{study}/gate/{arm}/steps{steps}-batches{batches}")
    given = ["--configfile", *map(str, overlays)] if overlays else []
    command = [sys.executable, "-m", "snakemake", "--profile", str(profile), *given, "--", str(folder / "card.json")]
    if subprocess.run(command, check=False).returncode:
        raise GateError
    return folder


def print_gate(facts: Mapping[str, Any], arm: str, console: Console) -> None:
    """The table of the facts on a gate's card: all layers first."""
    table = Table(title=f"{arm}: cos(∂CE, ∂KV), {facts['batches']} batches of {facts['batch_size']} rows")
    for name in ("layer", "kind", "right row", "other row", "difference", "norm ratio"):
        table.add_column(name, justify="left" if name in ("layer", "kind") else "right")
    for place in sorted(facts["cosines"], key=lambda row: row["layer"]):
        shown = (f"{place[name]:+.3f} ±{place[name + '_se']:.3f}" for name in COSINES)
        layer = "all" if place["layer"] == ALL else str(place["layer"])
        table.add_row(layer, place["kind"], *shown, f"{place['ratio']:.2g}")
    console.print(table)
    if facts["map_steps"]:
        console.print(
            f"What of the arm is not its student (map, router) learnt alone before, for {facts['map_steps']} steps."
        )
    console.print("Above 0: a step down the KV loss also lowers the cross-entropy. ±: a standard error over batches.")
