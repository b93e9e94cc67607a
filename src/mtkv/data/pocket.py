"""The registry of the seven pocket datasets: small, synthetic, each shaped like the benchmark in its name."""

from mtkv.data.items import Task
from mtkv.data.pocket_arithmetic import GSM8K, MATH500
from mtkv.data.pocket_chinese import CEVAL, CMMLU
from mtkv.data.pocket_logic import BBH
from mtkv.data.pocket_science import GPQA
from mtkv.data.pocket_truth import TRUTHFULQA

TASKS: dict[str, Task] = {task.name: task for task in (GSM8K, MATH500, BBH, GPQA, TRUTHFULQA, CMMLU, CEVAL)}


def pocket_task(name: str) -> Task:
    """The task called `name`; ValueError with the known names otherwise."""
    if name not in TASKS:
        raise ValueError(f"unknown dataset {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
