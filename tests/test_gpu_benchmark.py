"""benchmarks/gpu.py at toy size: every part finds what it is for, or says why not."""

import json
from importlib import import_module
from pathlib import Path

MAY_BE_MISSING = {"QLoRA": "bitsandbytes", "two processes": "needs two cards"}


def test_every_part_finds_something_or_says_why_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu, out = import_module("gpu"), tmp_path / "gpu.json"
    gpu.main(out, minutes=60, toy=True, part=[])
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert all(f"| {name} |" in out.with_suffix(".md").read_text() for name in parts)
    for name, found in parts.items():
        if "missing" in found:
            assert MAY_BE_MISSING.get(name, "nothing may be") in found["missing"], name
        numbers = {key: value for key, value in found.items() if isinstance(value, int | float)}
        assert all(value > 0 for key, value in numbers.items() if not key.startswith("largest difference")), name
    assert parts["extraction"]["largest difference of V ÷ its length"] == 0
    assert parts["extraction"]["largest difference of K ÷ its length"] < 0.01  # bfloat16 rounds to 1/256
    assert parts["resume"]["resumed at"] == [2]
    assert parts["resume"]["weights equal to the bit"] is True
    assert parts["map"]["coverage"] > 0.9  # the teacher's tokenizer is the student's

    gpu.main(out, minutes=0, toy=True, part=[])
    assert all("s are left" in found["missing"] for found in json.loads(out.read_text())["parts"].values())
