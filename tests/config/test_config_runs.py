"""Trained runs as models, and training on some sources: what is resolved, and what is refused before any compute."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtkv.config.errors import ConfigError
from mtkv.config.study import Study, load_study

ARMS = ("one", "two", "three")
RUN = {"source": "run", "arm": "sft", "seed": 42}
STEPS = {"steps": 1}


def study_of(raw: dict[str, Any], **teachers: dict[str, Any]) -> Study:
    raw["teachers"]["models"] |= teachers
    return load_study(raw)


def test_a_run_without_a_study_is_of_this_one(raw: dict[str, Any]) -> None:
    mix = {"source": "merged", "name": "mix", "merge": ["own", "qwen2"]}
    study = study_of(raw, own=RUN, mix=mix, same=RUN | {"study": "pocket", "name": "called so"})
    own, same = study.teachers.models["own"], study.teachers.models["same"]
    assert (own.study, own.name, str(own.run_folder)) == (
        "pocket",
        "pocket/sft/seed42",
        "results/pocket/arms/sft/seed42",
    )
    assert same == own.model_copy(update={"name": "called so"})
    assert study.teachers.models["mix"].runs == [own]
    assert study.arms_that_teach() == ["sft"]
    assert load_study(study.model_dump(mode="json")) == study


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": "stf"}, "own.arm: 'stf' is not an arm of this study; .*did you mean 'sft'"),
        ({"arm": "raw"}, "own.arm: 'raw' trains nothing; allowed: arms with training"),
        ({"arm": "latents"}, "own.arm: 'latents' makes a latent student, which nothing can be taught by"),
        ({"arm": "reader"}, "own.arm: 'reader' makes a student that reads its teachers' KV"),
        ({"seed": 7}, "own.seed: 7 is not a seed of arm 'sft'; allowed: 42, 43, 44, 45, 46"),
        ({"seed": None}, "own.seed: not given, but source run needs it"),
        ({"arm": None}, "own.arm: not given, but source run needs it"),
        ({"source": "pocket", "name": "qwen2"}, "own.arm: given, but source is pocket; only run has it"),
        (
            {"source": "pocket", "name": "qwen2", "arm": None, "seed": None, "study": "x"},
            "own.study: given, but .* only run",
        ),
        ({"study": "a/b"}, "own.study: "),
    ],
)
def test_what_is_no_run_of_this_study_is_refused_by_field(raw: dict[str, Any], change: Any, message: str) -> None:
    raw["arms"]["latents"] = {"student_view": "latent", "training": STEPS | {"styles": ["cot"]}}
    raw["arms"]["reader"] = {"extends": "foreign", "kv": {"transfer": "inject"}}
    with pytest.raises(ConfigError, match=rf"teachers\.models\.{message}"):
        study_of(raw, own=RUN | change)


def finished(folder: Path, *more: str) -> None:
    (folder / "model").mkdir(parents=True)
    for name in ("card.json", "model/config.json", "model/model.safetensors", *more):
        (folder / name).write_text("{}")


def test_a_run_of_another_study_must_be_there_whole(raw: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    other = RUN | {"study": "before"}
    folder = Path("results/before/arms/sft/seed42")
    finished(folder)
    assert study_of(raw, other=other).arms_that_teach() == []
    for lost in ("card.json", "model/config.json"):
        (folder / lost).rename(folder / "away")
        with pytest.raises(ConfigError) as caught:
            study_of(raw, other=other)
        assert str(caught.value) == (
            f"teachers.models.other.study: arm 'sft', seed 42 of study 'before' is not finished: no {folder / lost}; make it: "
            f"snakemake --profile profiles/local --configfile <the overlay of before> -- {folder}/model"
        )
        (folder / "away").rename(folder / lost)
    (folder / "model/fuser.safetensors").touch()
    with pytest.raises(
        ConfigError, match=r"other\.arm: '.*/model' holds a student that reads its teachers' KV \(fuser"
    ):
        study_of(raw, other=other)
    (folder / "model/fuser.safetensors").unlink()
    (folder / "model/model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"other\.study: .* holds no weights"):
        study_of(raw, other=other)


def chained(taught: dict[str, list[str]]) -> dict[str, Any]:
    """A study in which each arm of `ARMS` has the logits of the runs of some."""
    arms: dict[str, Any] = {name: {"training": STEPS} for name in ARMS}
    for name, others in taught.items():
        if others:
            arms[name]["logits"] = {"teachers": [f"of_{other}" for other in others]}
    models = {f"of_{name}": RUN | {"arm": name} for name in ARMS}
    return {"study": "ring", "arms": arms, "teachers": {"models": models}, "comparison": {"baseline": "one"}}


def test_cycles_are_refused_and_nothing_else_is() -> None:
    """Every graph of three arms, against powers of its matrix."""
    refused = 0
    for bits in product((0, 1), repeat=9):
        graph = np.array(bits).reshape(3, 3)
        circular = any(np.trace(np.linalg.matrix_power(graph, length)) for length in (1, 2, 3))
        rows = zip(ARMS, graph, strict=True)
        study = chained({name: [ARMS[place] for place in np.flatnonzero(row)] for name, row in rows})
        if not circular:
            assert load_study(study).arms_that_teach() == list(ARMS)
            continue
        refused += 1
        with pytest.raises(ConfigError, match="a run cannot be needed by itself: "):
            load_study(study)
    assert refused == 512 - 25  # labelled acyclic graphs of three nodes


def test_a_cycle_is_told_as_its_chain_of_names() -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(chained({"one": ["two"], "two": ["one"]}))
    place, _, told = str(caught.value).partition(": a run cannot be needed by itself: ")
    assert place in ("teachers.models.of_one", "teachers.models.of_two")
    names = told.partition(";")[0].split(" needs ")
    ring = ["arm 'one'", "teacher 'of_two'", "arm 'two'", "teacher 'of_one'"]
    start = ring.index(names[0])
    assert names == [*ring[start:], *ring[:start], names[0]]


@pytest.mark.parametrize(
    ("arm", "student"),
    [
        ({"extends": "sft", "kv": {"teachers": ["mix"]}}, None),  # through a part of a merged teacher
        ({"extends": "sft", "model": "mix"}, None),  # through what it starts from
        ({"extends": "sft"}, RUN | {"arm": "loop"}),  # through the student that it starts from
        (
            {"extends": "sft", "model": "average", "kv": {"teachers": ["qwen2"]}},
            RUN | {"arm": "loop"},
        ),  # through the map
    ],
)
def test_a_cycle_may_go_through_parts_starts_and_the_student(raw: dict[str, Any], arm: Any, student: Any) -> None:
    raw["arms"]["loop"] = arm
    raw["student"] = student or raw["student"]
    parts = {"source": "merged", "name": "mix", "merge": ["own", "qwen2"]}
    models = {"own": RUN | {"arm": "loop"}, "mix": parts} if student is None else {}
    with pytest.raises(ConfigError, match=r"needed by itself: .*arm 'loop'"):
        study_of(raw, average=parts | {"merge": ["qwen2", "gpt2"]}, **models)


def test_a_student_may_be_a_run_of_an_arm_that_starts_elsewhere(raw: dict[str, Any]) -> None:
    raw["arms"]["first"] = {"extends": "sft", "model": "merged"}
    raw["student"] = RUN | {"arm": "first"}
    assert load_study(raw).student.run_folder.parts[-2:] == ("first", "seed42")


def test_unknown_training_sources_are_refused_with_the_known_ones(raw: dict[str, Any]) -> None:
    raw["arms"]["sft"]["training"]["sources"] = ["pocket_bbh", "pocket_bbq"]
    with pytest.raises(ConfigError) as caught:
        load_study(raw)
    (told,) = str(caught.value).splitlines()
    assert told.startswith(
        "arms.sft.training.sources[1]: 'pocket_bbq' is not a training source of this study; allowed: pocket_gsm8k"
    )
    raw["arms"]["sft"]["training"]["sources"] = ["pocket_bbh", "pocket_gpqa"]
    raw["data"]["sources"] = ["pocket_bbh"]
    with pytest.raises(ConfigError, match=r"sources\[1\]: 'pocket_gpqa' is not a training source of this study"):
        load_study(raw)


def test_a_phase_reads_none_but_its_arms_sources(raw: dict[str, Any]) -> None:
    training = raw["arms"]["sft"]["training"]
    training |= {"sources": ["pocket_bbh"], "phases": [{"name": "all", "share": 1.0, "sources": ["pocket_bbh"]}]}
    assert load_study(json.loads(json.dumps(raw))).arms["sft"].training is not None
    training["phases"][0]["sources"] = ["pocket_gsm8k"]
    with pytest.raises(
        ConfigError,
        match=r"phases\[0\]\.sources\[0\]: 'pocket_gsm8k' is not a training source of this arm; allowed: pocket_bbh",
    ):
        load_study(raw)


def test_weights_by_task_are_needed_for_the_arms_own_sources_only(raw: dict[str, Any]) -> None:
    weights = raw["arms"]["oracle"]["kv"]["fusion"]["by_task"]
    weights |= dict.fromkeys(list(weights)[1:])
    with pytest.raises(ConfigError, match=r"arms\.oracle\.kv\.fusion\.by_task: has no weights for pocket_math500"):
        load_study(raw)
    raw["arms"]["oracle"]["training"] = {"sources": ["pocket_gsm8k"]}
    assert load_study(raw).arms["oracle"].training.sources == ["pocket_gsm8k"]  # type: ignore[union-attr]
