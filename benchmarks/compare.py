"""Time and memory of the stage `compare` of a study with many arms: `python benchmarks/compare.py [arms …]` (120, 1000).

Made-up scores of so many arms, three seeds, seven datasets of 100 items each. Each size is measured in a process of its own; memory is
its peak, that of the imports included. Seconds do not include writing the scores.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mtkv.config.study import load_study
from mtkv.provenance.files import write_json
from mtkv.stages.compare import compare

DATASETS = [f"pocket_{name}" for name in ("gsm8k", "math500", "bbh", "gpqa", "truthfulqa", "cmmlu", "ceval")]
SEEDS, ITEMS = (42, 43, 44), 100


def study(arms: int) -> dict:
    """The arm `sft` and others that extend it; a claim about the last."""
    other = {f"arm{number:04d}": {"extends": "sft"} for number in range(1, arms)}
    claim = {"statement": "It helps.", "kind": "difference", "arm": f"arm{arms - 1:04d}", "baseline": "sft"}
    return {"study": "many", "seeds": list(SEEDS), "datasets": DATASETS, "claims": {"helps": claim}} | {
        "arms": {"sft": {"training": {"steps": 10}}} | other,
    }


def write_scores(arms: list[str], folder: Path) -> list[Path]:
    """One scores file per run and dataset, with accuracies between 40 and 60 %."""
    rng, paths = np.random.default_rng(0), []
    for dataset in DATASETS:
        ids = [f"{dataset}-{item:04d}" for item in range(ITEMS)]
        difficulty = rng.normal(0, 1, ITEMS)
        for arm in arms:
            skill = rng.normal(0, 0.2)
            for seed in SEEDS:
                right = (difficulty + skill + rng.normal(0, 1, ITEMS) > 0).astype(int)
                facts = {"study": "many", "arm": arm, "seed": seed, "dataset": dataset, "status": "ok", "reason": None}
                items = {"id": ids, "cluster": ids, "correct": right.tolist()}
                paths.append(folder / f"{arm}/seed{seed}/{dataset}.json")
                write_json(paths[-1], facts | {"n": ITEMS, "items": items})
    return paths


def measure(arms: int, folder: Path) -> dict:
    """Seconds of `compare` and megabytes of this process."""
    made = load_study(study(arms))
    paths = sorted((folder / "scores").rglob("*.json"))
    start, work = time.perf_counter(), time.process_time()
    compare(made, paths, [], folder / "compare")
    files = {path.name: round(path.stat().st_size / 1e6, 1) for path in sorted((folder / "compare").iterdir())}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, cpu = (round(one, 1) for one in (time.perf_counter() - start, time.process_time() - work))
    return {"arms": arms, "seconds": seconds, "CPU seconds": cpu, "MB": round(peak), "files (MB)": files}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(int(sys.argv[2]), Path(sys.argv[3]))))
    else:
        for size in [int(word) for word in sys.argv[1:]] or [120, 1000]:
            with tempfile.TemporaryDirectory() as folder:
                write_scores(list(load_study(study(size)).arms), Path(folder) / "scores")
                subprocess.run([sys.executable, __file__, "--measure", str(size), folder], check=True)
