"""How long the stage `report` takes on one core: a study shaped like the pocket study, rendered by a fresh process each time.

python benchmarks/report.py [root config]    prints JSON: medians of three renders, in seconds and MB, imports included

Without arguments the study is made up by tests/report/study_tree.py (arms, seeds, datasets and logs of config/config.yaml, 200 items per
dataset); with them it is `root` (results/<study>) and its config. Linux only.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "config/config.yaml"
REPEATS = 3
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
# What workflow/scripts/report.py does, but for its card.
STAGE = """
import json, sys
from pathlib import Path
from mtkv.config.study import read_study
from mtkv.stages.report import render
facts = render(read_study(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
print(json.dumps({"figures": facts["figures"], "bytes": facts["bytes"], "torch": "torch" in sys.modules}))
"""


def write_tree(root: Path) -> None:
    """A made-up study with logs, maps, cards, questions and predictions."""
    from mtkv.config.study import read_study

    spec = importlib.util.spec_from_file_location("study_tree", REPOSITORY / "tests/report/study_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_study_tree(root, read_study(CONFIG), answers=True)


def rendered(config: Path, root: Path, output: Path) -> dict:
    """CPU and wall seconds of one render in a process bound to one core, and what it made."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", STAGE, str(config), str(root), str(output)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | ONE_CORE,
        preexec_fn=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]),
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    return json.loads(done.stdout) | {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "peak_memory_mb": after.ru_maxrss / 1024,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, config = (Path(argument).resolve() for argument in sys.argv[1:3] or (f"{folder}/pocket", CONFIG))
        if not sys.argv[1:]:
            write_tree(root)
        runs = [rendered(config, root, Path(folder) / f"report{i}/index.html") for i in range(REPEATS)]
    medians = {
        name: round(statistics.median(run[name] for run in runs), 2)
        for name in ("cpu_seconds", "wall_seconds", "peak_memory_mb")
    }
    print(json.dumps({"study": root.name, "renders": REPEATS, **runs[0], **medians}))


if __name__ == "__main__":
    main()
