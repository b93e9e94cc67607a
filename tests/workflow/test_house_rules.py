"""The frame stays small: every rule says what code it depends on and where it logs, scripts hold no logic."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RULE_FILES = sorted((REPOSITORY / "workflow/rules").glob("*.smk"))
SCRIPTS = sorted((REPOSITORY / "workflow/scripts").glob("*.py"))
RULES = [
    pytest.param(match[2], id=match[1])
    for file in RULE_FILES
    for match in re.finditer(r"^rule (\w+):\n((?:    .*\n|\n)*)", file.read_text(encoding="utf-8"), re.MULTILINE)
]


def test_rules_without_a_script_only_gather():
    gathering = [rule.id for rule in RULES if "script:" not in rule.values[0]]
    assert gathering == []


def test_snakefile_is_short():
    assert len((REPOSITORY / "Snakefile").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("text", [rule for rule in RULES if "script:" in rule.values[0]])
def test_every_rule_logs_and_knows_the_code_it_runs(text):
    assert "    log:\n" in text
    assert "code=code(" in text
    assert "config/config.yaml" not in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_unpack_and_call_only(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.While, ast.Try)
    assert not [node for node in ast.walk(tree) if isinstance(node, forbidden)]


def test_every_script_belongs_to_a_rule():
    used = {name for file in RULE_FILES for name in re.findall(r"scripts/(\w+\.py)", file.read_text(encoding="utf-8"))}
    assert used == {script.name for script in SCRIPTS}


def test_there_is_no_implicit_default_profile():
    assert not (REPOSITORY / "profiles/default").exists()


def test_no_machine_paths_in_tracked_text():
    for folder in ("src", "workflow", "config", "docs", "profiles", "tests"):
        for path in (REPOSITORY / folder).rglob("*"):
            if (
                path.suffix in {".py", ".smk", ".yaml", ".md", ".j2", ".js", ".css"}
                and path.name != Path(__file__).name
            ):
                assert "/work/" not in path.read_text(encoding="utf-8"), path
