"""The registry of the seven pocket datasets: small, synthetic, each shaped like the benchmark in its name."""

from collections.abc import Mapping
from dataclasses import replace

from mtkv.data.items import Task
from mtkv.data.pocket_arithmetic import GSM8K, MATH500
from mtkv.data.pocket_chinese import CEVAL, CMMLU
from mtkv.data.pocket_logic import BBH
from mtkv.data.pocket_science import GPQA
from mtkv.data.pocket_truth import TRUTHFULQA
from mtkv.registry import registered

TASKS: dict[str, Task] = {
    "pocket_gsm8k": GSM8K,
    "pocket_math500": MATH500,
    "pocket_bbh": BBH,
    "pocket_gpqa": GPQA,
    "pocket_truthfulqa": TRUTHFULQA,
    "pocket_cmmlu": CMMLU,
    "pocket_ceval": CEVAL,
}


def pocket_task(name: str, own: Mapping[str, str] | None = None) -> Task:
    """The task called `name`; `own`: import paths of one's own by name. ValueError for what is none."""
    path = (own or {}).get(name, name)
    task = registered(TASKS, path)
    if not isinstance(task, Task):
        raise ValueError(f"data.extra.{name}: {path} is a {type(task).__name__}; mixture pocket needs a Task")
    return replace(task, name=name)
