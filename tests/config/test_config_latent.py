"""Arms with latent tokens: defaults, what they refuse, and that they change nothing of the settings of other arms."""

import copy
from pathlib import Path

import pytest
import yaml

from mtkv.config.errors import ConfigError
from mtkv.config.study import load_study, read_study

STUDIES = Path(__file__).parents[2] / "config"
TRAINING = {"steps": 5, "styles": ["cot"]}
KV = {"teachers": ["qwen2"], "select": {"method": "uniform"}}


def with_arm(entry, **sections):
    """The default study with the arm `new`."""
    config = yaml.safe_load((STUDIES / "config.yaml").read_text(encoding="utf-8"))
    config["arms"]["new"] = {"training": copy.deepcopy(TRAINING)} | entry
    for section, changes in sections.items():
        config[section] = config[section] | changes
    return config


def latent(**entry):
    return with_arm({"student_view": "latent"} | entry)


def test_the_latent_view_has_latents_by_default():
    arm = load_study(latent()).arms["new"]
    assert arm.latent is not None
    assert (arm.latent.tokens, arm.latent.iterations, arm.latent.chain_weight, arm.latent.codi_weight) == (24, 3, 1, 0)
    assert not arm.latent.keep_last_step
    assert load_study(latent(latent=None)).arms["new"].latent == arm.latent


def test_arms_without_latents_are_written_as_before():
    arms = load_study(latent()).arms
    assert "latent" not in arms["sft"].model_dump(mode="json")
    assert "styles" not in arms["sft"].training.model_dump(mode="json")
    assert arms["new"].model_dump(mode="json")["latent"]["tokens"] == 24
    assert arms["new"].model_dump(mode="json")["training"]["styles"] == ["cot"]
    study = load_study(with_arm({}, evaluation={"style": "task"}))
    assert "style" not in study.evaluation.model_dump(mode="json")
    asked = load_study(with_arm({}, evaluation={"style": "cot"}))
    assert asked.evaluation.model_dump(mode="json")["style"] == "cot"


def test_a_study_that_was_written_is_read_again_as_it_was():
    """Arms are written resolved and with their `extends`: a null that overrides a parent's latents or styles must be in there."""
    for overlay in ("kava-pocket", "kava"):
        study = read_study(STUDIES / "config.yaml", STUDIES / f"studies/{overlay}.yaml")
        assert load_study(study.model_dump(mode="json")) == study
    config = latent()
    config["arms"]["child"] = {"extends": "new", "student_view": "text", "latent": None, "training": {"styles": None}}
    study = load_study(config)
    assert study.arms["child"].training.styles is None
    assert load_study(study.model_dump(mode="json")) == study


REFUSED = {
    "latents of text": (with_arm({"latent": {"tokens": 4}}), "arms.new.latent", "student_view text"),
    "no training": (latent(training=None), "arms.new.student_view", "needs training"),
    "logits": (latent(logits={"teachers": ["qwen2"]}), "arms.new.logits", "student_view is latent"),
    "no slots": (latent(latent={"tokens": 0}, kv=KV), "arms.new.latent.tokens", "1 or more"),
    "full selection": (latent(kv={"teachers": ["qwen2"]}), "arms.new.kv.select.method", "24 latent tokens"),
    "own KV of text": (with_arm({"kv": KV | {"teachers": ["student"]}}), "arms.new.kv.teachers", "student_view latent"),
    "own KV mixed": (latent(kv=KV | {"teachers": ["student", "qwen2"]}), "arms.new.kv.teachers", "[student] alone"),
    "own KV mapped": (latent(kv=KV | {"teachers": ["student"]}), "arms.new.kv.align.map", "identity"),
    "rows of both styles": (latent(training={"steps": 5}), "arms.new.training.styles", "write [cot]"),
    "rows without a chain": (
        latent(training={"steps": 5, "styles": ["direct"]}),
        "arms.new.training.styles",
        "the rows are direct",
    ),
    "styles that are not written": (
        with_arm({"training": {"steps": 5, "styles": ["cot"]}}, data={"styles": ["direct"]}),
        "arms.new.training.styles",
        "data.styles",
    ),
    "negative": (latent(latent={"iterations": -1}), "arms.new.latent.iterations", "-1"),
}


@pytest.mark.parametrize(("config", "path", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(config, path, said):
    with pytest.raises(ConfigError) as caught:
        load_study(config)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: ")
    assert said in line


def test_own_kv_needs_neither_store_nor_map():
    own = KV | {"teachers": ["student"], "align": {"map": "identity"}, "select": {"method": "rkv"}}
    for teachers in ({"mode": "online"}, {"tier": "mapped"}, {}):
        config = latent(kv=own)
        config["teachers"] |= teachers
        config["arms"] = {name: arm for name, arm in config["arms"].items() if name in ("raw", "sft", "new")}
        config["claims"] = {}
        study = load_study(config)
        assert study.teachers_used() == []
        assert study.maps() == []


def test_stored_targets_have_no_chain_to_select_from():
    config = latent(kv=KV)
    config["teachers"] |= {"tier": "mapped"}
    with pytest.raises(ConfigError, match=r"arms.new.kv.select.method: 'uniform' needs the teacher's own KV"):
        load_study(config)


def test_only_some_tasks_can_be_asked_for_a_chain():
    with pytest.raises(ConfigError, match=r"datasets\[1\]: task bbh_cot_zeroshot cannot be asked in evaluation.style"):
        load_study(
            {
                "study": "x",
                "datasets": ["gsm8k", "bbh"],
                "data": {"mixture": "multi_reasoning_cot_direct"},
                "evaluation": {"style": "cot"},
                "arms": {"raw": {}},
                "comparison": {"baseline": "raw"},
            }
        )


@pytest.mark.parametrize("base", ["kava-pocket", "kava"])
@pytest.mark.parametrize(
    "top",
    [[], ["ablations"], ["weights"], ["weights", "longer"], ["experts"], ["natural-language"]],
    ids=["alone", "ablations", "weights", "longer", "experts", "words"],
)
def test_the_overlays_on_top_of_overlays_are_valid(base, top):
    if (base == "kava-pocket") == (top == ["natural-language"]) and top not in ([], ["ablations"]):
        pytest.skip("of real data only, and of pocket data only")
    paths = [STUDIES / "config.yaml", STUDIES / f"studies/{base}.yaml"]
    study = read_study(*paths, *(STUDIES / f"studies/kava/{name}.yaml" for name in top))
    with_kv = [name for name, arm in study.arms.items() if arm.kv and arm.kv.control == "none"]
    assert {
        f"{name}_shuffled" for name in with_kv if not name.startswith(("select", "latents", "iter"))
    } <= study.arms.keys()
    assert ("select_rkv" in with_kv) == (top == ["ablations"])
    trainings = [arm.training.model_copy(update={"phases": []}) for arm in study.arms.values() if arm.training]
    assert all(training == trainings[0] for training in trainings)
