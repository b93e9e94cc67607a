"""How much of a study's time is work: its wall time ÷ (its stages' own clocks ÷ cores). 1 is all work; the rest is starting and waiting.

python benchmarks/study.py [results/pocket]    prints JSON, from the cards of the last `make study` and Snakemake's log of it

Only for a study that one run of Snakemake made from nothing on this machine, with nothing beside it.
"""

import json
import os
import re
import sys
from pathlib import Path

ELAPSED = re.compile(r"^Elapsed time: (?:(\d+) days?, )?(\d+):(\d+):([\d.]+)$", re.MULTILINE)


def wall_seconds(log: str) -> float:
    """What Snakemake says at the end of its log. Raises ValueError where it does not."""
    found = ELAPSED.findall(log)
    if not found:
        raise ValueError("Snakemake's log has no end: the run is still under way, or was killed")
    days, hours, minutes, seconds = found[-1]
    return ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)


def measure(results: Path, log: Path, cores: int) -> dict:
    """Clocks by stage, in core seconds, and the ratio."""
    clocks: dict[str, float] = {}
    for path in [*results.rglob("card.json"), *results.rglob("*.card.json")]:
        card = json.loads(path.read_text(encoding="utf-8"))
        clocks[card["stage"]] = clocks.get(card["stage"], 0) + card["wall_seconds"]
    wall, work = wall_seconds(log.read_text(encoding="utf-8")), sum(clocks.values())
    return {
        "study": results.name,
        "cores": cores,
        "wall_seconds": round(wall, 1),
        "stage_seconds": {stage: round(seconds, 1) for stage, seconds in sorted(clocks.items())},
        "core_seconds": round(work, 1),
        "ratio": round(wall / (work / cores), 3),
    }


def main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results/pocket")
    log = max(Path(".snakemake/log").glob("*.snakemake.log"))
    print(json.dumps(measure(results, log, len(os.sched_getaffinity(0)))))


if __name__ == "__main__":
    main()
