"""How long Snakemake takes to plan: the default study, and one of 40 arms × 5 seeds × 7 datasets.

python benchmarks/plan.py          prints the median of three dry runs of each, in seconds
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
REPEATS = 3


def large_study() -> dict:
    arms = {f"ablation{i}": {"extends": "fixed", "kv": {"loss": {"lambda_v": i / 40}}} for i in range(31)}
    return {"study": "large", "seeds": [1, 2, 3, 4, 5], "arms": arms}


def seconds(*arguments: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "all", *arguments]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "large.yaml"
        overlay.write_text(yaml.safe_dump(large_study()))
        for name, arguments in {"pocket": [], "40 arms x 5 seeds x 7 datasets": ["--configfile", str(overlay)]}.items():
            print(f"{name}: {statistics.median(seconds(*arguments) for _ in range(REPEATS)):.1f} s")


if __name__ == "__main__":
    main()
