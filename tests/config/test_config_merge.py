"""Overlays and `extends` against brute-force merges of flattened trees, and against Snakemake's own merging."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkv.config.errors import ConfigError
from mtkv.config.extends import resolve
from mtkv.config.overlay import merged
from mtkv.config.study import load_study, read_study

Tree = dict[str, Any]
keys = st.sampled_from("abc")
leaves = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 1), max_size=2)
trees = st.recursive(
    st.dictionaries(keys, leaves, max_size=3),
    lambda below: st.dictionaries(keys, leaves | below, max_size=3),
    max_leaves=12,
)


def flat(tree: Tree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Path → leaf; an empty mapping is a leaf."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        found |= flat(value, (*path, key)) if isinstance(value, dict) and value else {(*path, key): value}
    return found


def brute_force(base: Tree, over: Tree) -> dict[tuple[str, ...], Any]:
    """Leaf by leaf: a written leaf displaces what stood at, above or below its path; `{}` displaces no mapping."""
    result = flat(base)
    for path, leaf in flat(over).items():
        if leaf == {} and any(old[: len(path)] == path and len(old) > len(path) for old in result):
            continue
        result = {old: value for old, value in result.items() if old[: len(path)] != path and path[: len(old)] != old}
        result[path] = leaf
    return result


def full_mappings(tree: Tree) -> Tree:
    """The tree without empty mappings, which Snakemake does not let replace a value."""
    kept = {key: full_mappings(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value != {}}


@settings(max_examples=100, deadline=None)
@given(trees, trees)
def test_overlay_is_the_brute_force_merge(base: Tree, over: Tree) -> None:
    before = copy.deepcopy((base, over))
    assert flat(merged(base, over)) == brute_force(base, over)
    assert (base, over) == before


@settings(max_examples=100, deadline=None)
@given(trees, trees)
def test_overlay_merges_as_snakemake_does(base: Tree, over: Tree) -> None:
    from snakemake.utils import update_config

    over, theirs = full_mappings(over), copy.deepcopy(base)
    update_config(theirs, over)
    assert merged(base, over) == theirs


@settings(max_examples=100, deadline=None)
@given(st.lists(trees, min_size=1, max_size=5), st.randoms())
def test_extends_merges_the_chain_from_its_root(entries: list[Tree], random: Any) -> None:
    expected: Tree = {}
    written: dict[str, Tree] = {}
    for index, entry in enumerate(entries):
        written[f"arm{index}"] = entry | {"description": str(index)} | ({"extends": f"arm{index - 1}"} if index else {})
    order = list(written)
    random.shuffle(order)
    found = resolve({name: written[name] for name in order})
    assert not found.problems
    for index, entry in enumerate(entries):
        expected = rebuild(brute_force(expected, entry))
        own = {key: value for key, value in found.arms[f"arm{index}"].items() if key not in ("description", "extends")}
        assert flat(own) == flat(expected)
        assert found.arms[f"arm{index}"]["description"] == str(index)
        assert found.ancestors[f"arm{index}"] == [f"arm{below}" for below in range(index - 1, -1, -1)]


def rebuild(leaves_by_path: dict[tuple[str, ...], Any]) -> Tree:
    tree: Tree = {}
    for path, leaf in leaves_by_path.items():
        place = tree
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = leaf
    return tree


def test_description_is_not_inherited_but_all_else_is(raw: Tree) -> None:
    raw["arms"]["raw2"] = {"extends": "raw"}
    study = load_study(raw)
    assert study.arm("raw2").description == ""
    assert study.arm("raw").description
    assert study.arm("raw2").seeds == [42]
    assert study.arm("learnable").training == study.arm("sft").training


def test_null_kv_overrides_the_parents(raw: Tree) -> None:
    raw["arms"]["plain"] = {"extends": "fixed", "kv": None}
    study = load_study(raw)
    assert study.arm("plain").kv is None
    assert study.arm("plain").training is not None


def test_lists_are_replaced(raw: Tree) -> None:
    raw["arms"]["only_gpt2"] = {"extends": "single", "kv": {"teachers": ["gpt2"]}}
    kv = load_study(raw).arm("only_gpt2").kv
    assert kv is not None
    assert kv.teachers == ["gpt2"]


def test_fixed_weights_end_where_a_strategy_makes_its_own(raw: Tree) -> None:
    raw["arms"]["fixed"]["kv"]["fusion"]["weights"] = [0.7, 0.3]
    raw["arms"]["colder"] = {"extends": "fixed", "kv": {"fusion": {"temperature": 0.5}}}
    raw["arms"]["back"] = {"extends": "learnable", "kv": {"fusion": {"strategy": "fixed"}}}
    arms = load_study(raw).arms
    weights = {name: arm.kv.fusion.weights for name, arm in arms.items() if arm.kv}
    given = {name for name, found in weights.items() if found is not None}
    assert given == {"fixed", "colder"}
    assert weights["fixed"] == weights["colder"] == [0.7, 0.3]
    assert {"similarity", "learnable", "oracle", "back"} <= weights.keys() - given


def test_null_deletes_entries(tmp_path: Path, config_folder: Path) -> None:
    overlay = tmp_path / "less.yaml"
    overlay.write_text(
        "arms: {raw: null, single: null, fixed: null, similarity: null, learnable: null, teacher_ce: null, oracle: null,"
        " oracle_shuffled: null, logits_routed: null, merged: null, merged_kv: null, merged_kv_shuffled: null, teacher_reasoning: null,"
        " teacher_knowledge: null, teacher_merged: null}\n"
        "teachers: {models: {merged: null, reasoning: null, knowledge: null, gpt2: null}}\n"
        "claims: null\n"
    )
    study = read_study(config_folder / "config.yaml", overlay)
    assert list(study.arms) == ["sft", "foreign", "foreign_shuffled", "teacher_qwen2"]
    assert list(study.teachers.models) == ["qwen2"]
    assert study.claims == {}


def test_a_deleted_arm_leaves_no_parent_and_no_claim(raw: Tree) -> None:
    raw["arms"]["fixed"] = None
    with pytest.raises(ConfigError) as caught:
        load_study(raw)
    paths = {str(problem).split(": ")[0] for problem in caught.value.problems}
    assert {"arms.similarity.extends", "arms.oracle.extends", "claims.similarity_beats_fixed.baseline"} <= paths


def test_later_overlays_win_and_may_bring_back(tmp_path: Path, config_folder: Path) -> None:
    for name, text in {
        "1": "seeds: [1]\narms: {raw: null}",
        "2": "arms: {raw: {seeds: [7]}}",
        "3": "# nothing",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    study = read_study(config_folder / "config.yaml", *(tmp_path / f"{name}.yaml" for name in "123"))
    assert study.seeds == [1]
    assert study.seeds_of("raw") == [7]
    assert study.arm("raw").description == ""


def test_read_study_and_snakemake_agree(config_folder: Path) -> None:
    """The Snakefile gets its mapping from Snakemake's `configfile:` and `--configfile`; the command line from read_study."""
    from snakemake.common.configfile import load_configfile
    from snakemake.utils import update_config

    paths = [config_folder / "config.yaml", config_folder / "studies" / "pocket-kv-only.yaml"]
    config: Tree = {}
    for path in paths:
        update_config(config, load_configfile(path))
    assert load_study(config) == read_study(*paths)


TWICE = "arms:\n  again: {extends: sft}\n  again: {extends: fixed}\n"


@pytest.mark.parametrize(
    ("overlay", "arguments", "fragments"),
    [
        (TWICE, [], ["given.yaml: is not valid YAML: the key 'again' is given twice (line 3, column 3)"]),
        ("seeds: [010]\n", [], ["given.yaml: ", "010 means 8 there; write 8"]),
        ("seeds: [42]\n", ["--config", "study=2024_1"], ["study: 20241 is not text; put", "in quotes"]),
        (
            "seeds: [42]\n",
            ["--config", "seeds=[010]"],
            ["seeds[0]: '010' is not a whole number"],
        ),  # Snakemake hands on text
        ("study: '2024_1'\nseeds: [42, 1_000]\n", [], None),
    ],
    ids=["twice", "octal", "number", "octal in --config", "quoted"],
)
def test_snakemake_refuses_what_the_command_line_refuses(
    tmp_path: Path, config_folder: Path, overlay: str, arguments: list[str], fragments: list[str] | None
) -> None:
    """Snakemake's own reader takes the last of two keys, and 010 for 8, without a word."""
    shutil.copytree(config_folder, tmp_path / "config")
    (tmp_path / "given.yaml").write_text(overlay)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(config_folder.parent / "Snakefile"), "--dry-run"]
    options = ["--quiet", "--cores", "1", "--configfile", "given.yaml", *arguments, "--directory", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(config_folder.parent / "src")}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == (fragments is None), said
    assert all(part in said for part in fragments or []), said
    assert "Traceback" not in said
