"""Every kind of mistake gives one line with its path, the value, what is allowed and, where it helps, a suggestion."""

import datetime
import math
from pathlib import Path
from typing import Any

import pytest

from mtkv.config.errors import ConfigError
from mtkv.config.overlay import read_yaml
from mtkv.config.study import load_study, read_study

DELETE = object()
FIXED = "arms.fixed.kv.fusion"
ACCURACY = {"kind": "accuracy", "statement": "x", "arm": "sft", "dataset": "macro", "threshold": 50}


def edit(config: dict[str, Any], path: str, value: Any) -> None:
    """Set or delete the value at a dotted path; missing mappings on the way are made."""
    *parents, last = path.split(".")
    for key in parents:
        if not isinstance(config.get(key), dict):
            config[key] = {}
        config = config[key]
    if value is DELETE:
        del config[last]
    else:
        config[last] = value


def lines_of(config: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_study(config)
    assert len(str(caught.value).splitlines()) == len(caught.value.problems)
    return str(caught.value).splitlines()


# One edit of the default study → exactly one line, which starts with the path and holds the fragments.
SINGLE = {
    "weights trained in float16": (
        "student.dtype",
        "float16",
        "student.dtype",
        ["'float16'", "'sft' trains all weights", "bfloat16", "training.lora"],
    ),
    "unknown top key": ("armes", {}, "armes", ["unknown key", "did you mean 'arms'?"]),
    "unknown key in section": ("data.train_row", 1, "data.train_row", ["unknown key", "did you mean 'train_rows'?"]),
    "unknown key in arm": ("arms.sft.trainning", {}, "arms.sft.trainning", ["did you mean 'training'?"]),
    "unknown key deep": ("arms.fixed.kv.loss.lamda_k", 1, "arms.fixed.kv.loss.lamda_k", ["'lambda_k'", "distance"]),
    "unknown key in claim": ("claims.gsm8k_75.treshold", 1, "claims.gsm8k_75.treshold", ["did you mean 'threshold'?"]),
    "key of another kind of claim": ("claims.gsm8k_75.twin", "sft", "claims.gsm8k_75.twin", ["unknown key", "dataset"]),
    "unknown key in teacher": ("teachers.models.gpt2.nam", "x", "teachers.models.gpt2.nam", ["did you mean 'name'?"]),
    "unknown stage": ("resources.training", {}, "resources.training", ["did you mean 'train'?"]),
    "text for whole number": ("data.train_rows", "3", "data.train_rows", ["'3' is not a whole number"]),
    "boolean for whole number": ("data.train_rows", True, "data.train_rows", ["true is not a whole number"]),
    "float for whole number": ("data.train_rows", 3.0, "data.train_rows", ["3.0 is not a whole number"]),
    "text for number": ("comparison.confidence", "0.95", "comparison.confidence", ["'0.95' is not a number"]),
    "boolean for number": ("comparison.confidence", False, "comparison.confidence", ["false is not a number"]),
    "YAML exponent": ("arms.sft.training.learning_rate", "2e-5", "arms.sft.training.learning_rate", ["2.0e-5"]),
    "number for text": ("study", 20241, "study", ["20241 is not text", "in quotes", "--configfile"]),
    "boolean for text": ("student.name", True, "student.name", ["true is not text", "in quotes"]),
    "number for boolean": ("student.trust_remote_code", 1, "student.trust_remote_code", ["1 is not true or false"]),
    "number for list": ("seeds", 42, "seeds", ["42 is not a list"]),
    "list for mapping": ("data", [], "data", ["[] is not a mapping"]),
    "null for mapping": ("data", None, "data", ["null is not a mapping"]),
    "text for arm": ("arms.raw", "x", "arms.raw", ["'x' is not a mapping"]),
    "text for claim": ("claims.gsm8k_75", "x", "claims.gsm8k_75", ["'x' is not a mapping"]),
    "arms as list": ("arms", ["raw"], "arms", ["is not a mapping"]),
    "no arms": ("arms", {}, "arms", ["at least 1 entry"]),
    "missing name": ("student", {"source": "pocket"}, "student.name", ["is missing"]),
    "missing study": ("study", DELETE, "study", ["is missing"]),
    "missing teachers in kv": ("arms.other", {"extends": "sft", "kv": {}}, "arms.other.kv.teachers", ["is missing"]),
    "missing claim kind": ("claims.gsm8k_75.kind", DELETE, "claims.gsm8k_75.kind", ["is missing"]),
    "missing statement": ("claims.gsm8k_75.statement", DELETE, "claims.gsm8k_75.statement", ["is missing"]),
    "unknown claim kind": ("claims.gsm8k_75.kind", "acuracy", "claims.gsm8k_75.kind", ["did you mean 'accuracy'?"]),
    "enum in inheriting arm": (
        "arms.learnable.kv.fusion.strategy",
        "learnabel",
        "arms.learnable.kv.fusion.strategy",
        ["'learnabel' is not one of fixed, similarity, learnable, ", "(did you mean 'learnable'?)"],
    ),
    "enum that children inherit": (f"{FIXED}.entropy", {"target": "diverze"}, f"{FIXED}.entropy.target", ["'diverse'"]),
    "enum in list": ("data.styles", ["cot", "dircet"], "data.styles[1]", ["did you mean 'direct'?"]),
    "source of the other mixture": ("data.sources", ["gsm8k"], "data.sources[0]", ["did you mean 'pocket_gsm8k'?"]),
    "wrong case": ("student.dtype", "Float32", "student.dtype", ["did you mean 'float32'?"]),
    "scheduler": ("arms.sft.training.scheduler", "cosin", "arms.sft.training.scheduler", ["linear, cosine, constant"]),
    "level": ("claims.gsm8k_75.level", "minimun", "claims.gsm8k_75.level", ["did you mean 'minimum'?"]),
    "jobs": ("evaluation.jobs", "per_set", "evaluation.jobs", ["per_run, per_dataset"]),
    "control": (
        "arms.oracle_shuffled.kv.control",
        "shufle_items",
        "arms.oracle_shuffled.kv.control",
        ["'shuffle_items'"],
    ),
    "unknown teacher": ("arms.single.kv.teachers", ["qwen"], "arms.single.kv.teachers[0]", ["did you mean 'qwen2'?"]),
    "unknown teacher as model": (
        "arms.teacher_qwen2.model",
        "gtp2",
        "arms.teacher_qwen2.model",
        ["did you mean 'gpt2'?"],
    ),
    "duplicate teacher": ("arms.fixed.kv.teachers", ["gpt2", "gpt2"], "arms.fixed.kv.teachers", ["'gpt2' given more"]),
    "no teacher": ("arms.single.kv.teachers", [], "arms.single.kv.teachers", ["at least 1 entry"]),
    "weights off by a little": (f"{FIXED}.weights", [0.5, 0.50001], f"{FIXED}.weights", ["sums to 1.00001, not to 1"]),
    "weights too few": (f"{FIXED}.weights", [1.0], f"{FIXED}.weights", ["length 1", "2 teachers"]),
    "weights too many": (f"{FIXED}.weights", [0.5, 0.25, 0.25], f"{FIXED}.weights", ["length 3", "2 teachers"]),
    "channels of a map that learns": (
        "arms.other",
        {"extends": "single", "kv": {"align": {"map": "linear", "side": "teacher"}, "loss": {"unit": "channel"}}},
        "arms.other.kv.loss.unit",
        ["needs a target whose channels have a fixed spread", "align.side student", "allowed: layer"],
    ),
    "channels of relations": (
        "arms.other",
        {"extends": "single", "kv": {"loss": {"unit": "channel", "distance": "relation"}}},
        "arms.other.kv.loss.unit",
        ["not distance relation", "allowed: layer"],
    ),
    "heads of no relation": (
        "arms.single.kv.loss.relation_heads",
        48,
        "arms.single.kv.loss.relation_heads",
        ["48 given, but distance is smooth_l1", "allowed: 1"],
    ),
    "weights negative": (f"{FIXED}.weights", [1.5, -0.5], f"{FIXED}.weights[1]", ["-0.5", "at least 0"]),
    "weights of no task": (
        "arms.oracle.kv.fusion.by_task.pocket_gsm",
        [1, 0],
        "arms.oracle.kv.fusion.by_task.pocket_gsm",
        ["did you mean 'pocket_gsm8k'?"],
    ),
    "weights of a task off by a little": (
        "arms.oracle.kv.fusion.by_task.pocket_gsm8k",
        [1, 0.1],
        "arms.oracle.kv.fusion.by_task.pocket_gsm8k",
        ["sums to 1.1, not to 1"],
    ),
    "a task without weights": (
        "arms.logits_routed.logits.fusion.by_task.pocket_bbh",
        None,
        "arms.logits_routed.logits.fusion.by_task",
        ["has no weights for pocket_bbh"],
    ),
    "tasks of another strategy": (
        "arms.oracle.kv.fusion.strategy",
        "teacher_ce",
        "arms.oracle.kv.fusion.by_task",
        ["given, but strategy is teacher_ce; allowed: null"],
    ),
    "logits weighed by KV": (
        "arms.other",
        {"extends": "sft", "logits": {"teachers": ["reasoning", "knowledge"], "fusion": {"strategy": "similarity"}}},
        "arms.other.logits.fusion.strategy",
        ["weighs teachers by their KV", "teacher_ce"],
    ),
    "merge of an unknown teacher": (
        "teachers.models.merged.merge",
        ["reasoning", "knowlege"],
        "teachers.models.merged.merge[1]",
        ["did you mean 'knowledge'?"],
    ),
    "share of nothing": ("arms.single.kv.loss.share", 0, "arms.single.kv.loss.share", ["more than 0"]),
    "weights for a router": (
        "arms.learnable.kv.fusion.weights",
        [0.5, 0.5],
        "arms.learnable.kv.fusion.weights",
        ["strategy learnable", "allowed: null"],
    ),
    "router over one teacher": (
        "arms.other",
        {"extends": "learnable", "kv": {"teachers": ["gpt2"]}},
        "arms.other.kv.fusion.strategy",
        ["'learnable' needs two teachers", "allowed for one: fixed"],
    ),
    "unknown parent": (
        "arms.single.extends",
        "stf",
        "arms.single.extends",
        ["'stf' is not an arm", "did you mean 'sft'?"],
    ),
    "own parent": ("arms.sft.extends", "sft", "arms.sft.extends", ["extends itself", "sft → sft"]),
    "cycle": ("arms.sft.extends", "learnable", "arms.sft.extends", ["sft → learnable → fixed → single → sft"]),
    "extends is no text": ("arms.raw.extends", 3, "arms.raw.extends", ["3 is not text"]),
    "duplicate seed": ("seeds", [42, 43, 42], "seeds", ["42 given more than once"]),
    "duplicate seed in arm": ("arms.raw.seeds", [1, 1], "arms.raw.seeds", ["1 given more than once"]),
    "no seeds": ("seeds", [], "seeds", ["at least 1 entry"]),
    "negative seed": ("seeds", [-1], "seeds[0]", ["-1", "at least 0"]),
    "seed beyond 32 bits": ("seeds", [2**32], "seeds[0]", ["less than 4294967296"]),
    "duplicate dataset": (
        "datasets",
        ["pocket_gsm8k"] * 2 + ["pocket_bbh"] * 5,
        "datasets",
        ["'pocket_gsm8k', 'pocket_bbh'"],
    ),
    "duplicate style": ("data.styles", ["cot", "cot"], "data.styles", ["'cot' given more than once"]),
    "missing model folder": ("student", {"source": "path", "name": "no/where"}, "student.name", ["not a folder"]),
    "missing teacher folder": (
        "teachers.models.qwen2",
        {"source": "path", "name": "no/where"},
        "teachers.models.qwen2.name",
        ["'no/where' is not a folder"],
    ),
    "folder without a model": (
        "student",
        {"source": "path", "name": str(Path(__file__).parent)},
        "student.name",
        ["no config.json"],
    ),
    "impossible path": ("student", {"source": "path", "name": "a\0b"}, "student.name", ["not a folder"]),
    "unknown pocket model": ("student.name", "studnet", "student.name", ["did you mean 'student'?"]),
    "kv without training": ("arms.raw.kv", {"teachers": ["qwen2"]}, "arms.raw.kv", ["needs training"]),
    "trained teacher": (
        "arms.teacher_qwen2.training",
        {"steps": 1},
        "arms.teacher_qwen2.training",
        ["'qwen2' is a teacher", "allowed: null"],
    ),
    "steps and epochs": ("arms.sft.training.epochs", 3, "arms.sft.training", ["steps 150 and epochs 3 are both given"]),
    "no steps, no epochs": ("arms.sft.training.steps", None, "arms.sft.training", ["neither steps nor epochs"]),
    "untrained latents": ("arms.raw.student_view", "latent", "arms.raw.student_view", ["'latent' needs training"]),
    "unknown view": ("arms.sft.student_view", "latnet", "arms.sft.student_view", ["text, latent"]),
    "claim's arm": ("claims.gsm8k_75.arm", "lernable", "claims.gsm8k_75.arm", ["did you mean 'learnable'?"]),
    "claim's baseline": ("claims.kv_beats_sft.baseline", "stf", "claims.kv_beats_sft.baseline", ["'sft'"]),
    "claim's twin": ("claims.kv_beats_sft.twin", "oracle_shufled", "claims.kv_beats_sft.twin", ["'oracle_shuffled'"]),
    "claim's baselines": (
        "claims.reaches_weakest_teacher.baselines",
        ["teacher_qwen2", "teacher_qwen3"],
        "claims.reaches_weakest_teacher.baselines[1]",
        ["did you mean 'teacher_qwen2'?"],
    ),
    "claim's dataset": (
        "claims.gsm8k_75.dataset",
        "gsm8k",
        "claims.gsm8k_75.dataset",
        ["did you mean 'pocket_gsm8k'?"],
    ),
    "claim against itself": ("claims.kv_beats_sft.baseline", "oracle", "claims.kv_beats_sft.baseline", ["own arm"]),
    "claim against itself among others": (
        "claims.reaches_weakest_teacher.baselines",
        ["teacher_qwen2", "learnable"],
        "claims.reaches_weakest_teacher.baselines[1]",
        ["'learnable' is the claim's own arm", "other arms"],
    ),
    "claim is its own twin": ("claims.kv_beats_sft.twin", "oracle", "claims.kv_beats_sft.twin", ["own arm"]),
    "more datasets than there are": (
        "claims.datasets_improved.at_least",
        8,
        "claims.datasets_improved.at_least",
        ["at most 7"],
    ),
    "accuracy above 100": ("claims.gsm8k_75.threshold", 101, "claims.gsm8k_75.threshold", ["at most 100"]),
    "baseline": ("comparison.baseline", "stf", "comparison.baseline", ["'stf' is not an arm", "did you mean 'sft'?"]),
    "zero": ("arms.sft.training.batch_size", 0, "arms.sft.training.batch_size", ["at least 1"]),
    "nan": ("arms.fixed.kv.loss", {"beta": math.nan}, "arms.fixed.kv.loss.beta", ["nan is not a finite number"]),
    "infinity": (
        "arms.sft.training.learning_rate",
        math.inf,
        "arms.sft.training.learning_rate",
        ["inf is not a finite"],
    ),
    "nan weight": (f"{FIXED}.weights", [math.nan, 1.0], f"{FIXED}.weights[0]", ["nan is not a finite number"]),
    "negative ridge": ("arms.fixed.kv.align", {"ridge": -1e-9}, "arms.fixed.kv.align.ridge", ["-1e-09", "at least 0"]),
    "confidence of 1": ("comparison.confidence", 1, "comparison.confidence", ["less than 1"]),
    "huge number": ("comparison.resamples", 10**5000, "comparison.resamples", ["too large"]),
    "study name with a slash": ("study", "a/b", "study", ["'a/b' is not a usable name"]),
    "study name upwards": ("study", "..", "study", ["not a usable name"]),
    "study name with newline": ("study", "pocket\n", "study", ["not a usable name"]),
    "empty study name": ("study", "", "study", ["not a usable name"]),
    "long study name": ("study", "x" * 81, "study", ["at most 80 characters"]),
    "arm name": ("arms.a b", {}, "arms.'a b'", ["'a b' is not a usable name"]),
    "arm name with leading dot": ("arms", {"sft": {}, "raw": {}, ".x": {}}, "arms.'.x'", ["not a usable name"]),
    "teacher id": ("teachers.models.q/2", {"name": "qwen2"}, "teachers.models.q/2", ["not a usable name"]),
    "claim id": ("claims.50%", ACCURACY, "claims.50%", ["not a usable name"]),
    "arm called student": ("arms.student", {}, "arms.student", ["reserved", "another arm name"]),
    "teacher called student": ("teachers.models.student", {"name": "gpt2"}, "teachers.models.student", ["reserved"]),
    "unknown dataset": (
        "datasets",
        ["pocket_gms8k"],
        "datasets[0]",
        ["mixture pocket", "did you mean 'pocket_gsm8k'?"],
    ),
    "date": ("description", datetime.date(2026, 1, 1), "description", ["put text in quotes"]),
    "object": ("data.seed", object(), "data.seed", ["is not text, a number"]),
    "key that is no text": ("arms", {3: {}}, "arms", ["key 3 is not text"]),
    "key that is a boolean": ("arms", {True: {}}, "arms", ["key true is not text"]),
    "broken Unicode": ("description", "\ud800", "description", ["not valid Unicode"]),
}


@pytest.mark.parametrize(("path", "value", "where", "fragments"), SINGLE.values(), ids=SINGLE)
def test_one_mistake(raw: dict[str, Any], path: str, value: Any, where: str, fragments: list[str]) -> None:
    if path in ("arms", "datasets"):  # what names arms and datasets would rightly complain as well
        raw["claims"] = {}
    edit(raw, path, value)
    lines = lines_of(raw)
    assert any(line.startswith(f"{where}: ") and all(part in line for part in fragments) for line in lines), lines
    consequences = [line for line in lines if not line.startswith(f"{where}: ")]
    assert all("is not an arm" in line and path == "arms" for line in consequences), lines
    assert sum(line.startswith(f"{where}: ") for line in lines) == 1


@pytest.mark.parametrize(("path", "value"), [("loss.share", 0.3), ("control", "random_direction")])
def test_what_is_weighed_in_each_pass_refuses_steps_of_several(raw: dict[str, Any], path: str, value: Any) -> None:
    edit(raw, f"arms.fixed.kv.{path}", value)
    load_study(raw)
    edit(raw, "arms.fixed.training.gradient_accumulation", 2)
    start = "arms.fixed.training.gradient_accumulation: 2 given, but "
    (line,) = (line for line in lines_of(raw) if line.startswith(start))
    assert path.rpartition(".")[2] in line
    assert "allowed with it: 1, with a larger batch_size" in line


def test_all_mistakes_at_once(raw: dict[str, Any]) -> None:
    """A mistake in one place hides none in another, also not between wrong values and references that lead nowhere."""
    edit(raw, "data.train_rows", 0)
    edit(raw, "arms.single.kv.teachers", ["nobody"])
    edit(raw, "arms.sft.training.scheduler", "x")
    edit(raw, "arms.loop", {"extends": "loop"})
    edit(raw, "claims.gsm8k_75.arm", "nobody")
    edit(raw, "claims.training_beats_raw.threshold", "3")
    edit(raw, "teachers.shards", 0)
    edit(raw, "comparison.baseline", "nobody")
    assert [line.split(": ")[0] for line in lines_of(raw)] == [
        "arms.loop.extends",
        "data.train_rows",
        "teachers.shards",
        "arms.sft.training.scheduler",
        "claims.training_beats_raw.threshold",
        "comparison.baseline",
        "claims.gsm8k_75.arm",
    ]
    # arms.single inherits the broken training, so its own references are seen once that is mended.
    edit(raw, "arms.sft.training.scheduler", "cosine")
    assert "arms.single.kv.teachers[0]" in [line.split(": ")[0] for line in lines_of(raw)]


def test_an_inherited_mistake_is_named_where_it_is_written(raw: dict[str, Any]) -> None:
    """Five arms inherit sft's training; one line says so."""
    edit(raw, "arms.sft.training.warmup_ratio", 2)
    assert lines_of(raw) == ["arms.sft.training.warmup_ratio: 2 is not allowed; allowed: at most 1"]


def test_a_conflict_that_arises_by_inheritance_is_named_at_the_heir(raw: dict[str, Any]) -> None:
    edit(raw, "arms.one", {"extends": "fixed", "kv": {"teachers": ["gpt2"]}})
    assert [line.split(": ")[0] for line in lines_of(raw)] == ["arms.one.kv.fusion.weights"]


@pytest.mark.parametrize("config", [None, [], "text", 3, {3: 4}])
def test_what_is_no_config(config: Any) -> None:
    assert lines_of(config)


def test_self_containing_values(raw: dict[str, Any]) -> None:
    raw["arms"]["raw"]["kv"] = raw
    raw["seeds"].append(raw["seeds"])
    assert [line.split(": ", 1) for line in lines_of(raw)] == [
        ["seeds[5]", "the value contains itself"],
        ["arms.raw.kv", "the value contains itself"],
    ]


def test_deep_nesting(raw: dict[str, Any]) -> None:
    for _ in range(2000):
        raw["data"] = {"data": raw["data"]}
    (line,) = lines_of(raw)
    assert line.startswith("data.data.")
    assert line.endswith("nested more than 30 levels deep")


YAML_MISTAKES = {
    "duplicate key": ("study: a\nseeds: [1]\nstudy: b\n", ["'study' is given twice", "line 3"]),
    "duplicate arm": ("arms:\n  sft: {}\n  sft: {}\n", ["'sft' is given twice", "line 3"]),
    "octal": ("seeds: [42, 010]\n", ["010 means 8 there; write 8, or '010' in quotes", "line 1, column 13"]),
    "octal with a sign": ("seeds: [-0_17]\n", ["-0_17 means -15 there"]),
    "hexadecimal": ("seeds: [0x1f]\n", ["0x1f means 31 there"]),
    "binary": ("seeds: [0b101]\n", ["0b101 means 5 there"]),
    "minutes": ("resources: {train: {runtime: 1:30}}\n", ["1:30 means 90 there"]),
    "seconds": ("data: {x: 1:30.5}\n", ["1:30.5 means 90.5 there"]),
    "syntax": ("arms: [1, 2\nstudy: x\n", ["not valid YAML", "line 2"]),
    "tab": ("arms:\n\tsft: {}\n", ["not valid YAML", "line 2"]),
    "list at top": ("- study\n", ["holds ['study'], not a mapping"]),
    "text at top": ("study\n", ["holds 'study', not a mapping"]),
    "number as key": ("arms: {1: {}}\n", ["arms: key 1 is not text"]),
    "list as key": ("? [a, b]\n: 1\n", ["not valid YAML"]),
    "recursive alias": ("seeds: &s [*s]\n", ["seeds[0]: the value contains itself"]),
    "Python object": ("study: !!python/object/apply:os.getcwd []\n", ["not valid YAML", "python/object"]),
    "impossible date": ("study: 2026-99-99\n", ["not valid YAML"]),
    "control character": ("study: a\x07b\n", ["not valid YAML"]),
    "two documents": ("study: a\n---\nstudy: b\n", ["not valid YAML"]),
    "bottomless list": ("seeds: " + "[" * 1500, ["not valid YAML"]),
}


@pytest.mark.parametrize(("text", "fragments"), YAML_MISTAKES.values(), ids=YAML_MISTAKES)
def test_yaml_mistakes(tmp_path: Path, text: str, fragments: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_study(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert all(part in line for part in fragments), line


def test_decimal_numbers_and_quoted_ones_stay_what_they_are(tmp_path: Path) -> None:
    numbers = "[0, -1, +2, 1_000, 0.5, .5, 0.5e+1, -0.0, 1.0e-5, '010', \"0x1f\", '1:30', 1e3, 08]"
    (tmp_path / "good.yaml").write_text(f"x: {numbers}\n", encoding="utf-8")
    expected = [0, -1, 2, 1000, 0.5, 0.5, 5.0, 0.0, 1e-5, "010", "0x1f", "1:30", "1e3", "08"]
    assert read_yaml(tmp_path / "good.yaml") == {"x": expected}


def test_files_that_cannot_be_read(tmp_path: Path, config_folder: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"study: caf\xe9\n")
    for path, why in [("none.yaml", "no such file"), ("", "cannot be read"), ("latin.yaml", "not UTF-8")]:
        with pytest.raises(ConfigError, match=why):
            read_study(config_folder / "config.yaml", tmp_path / path)
