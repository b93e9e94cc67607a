"""Every option of an arm, in one line of config each: it trains, it changes what is trained, and controls do what they say."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from tiny_study import TRAINING, TinyStudy, kv, same, weights

from mtkv.config.fusion import LogitConfig
from mtkv.distill.logit_kd import LogitTeachers
from mtkv.fuse.routers import task_number
from mtkv.models.load import load_model

# What differs from the arm `kv()`, by name.
OPTIONS = {
    **{f"time {name}": {"align": {"time": name}} for name in ("overlap", "iou", "resample", "truncate")},
    **{
        f"layers {name}": {"align": {"layers": name}}
        for name in ("uniform", "skip", "last_aligned", "interpolate", "cka")
    },
    **{f"map {name}": {"align": {"map": name}} for name in ("procrustes", "linear", "two_step", "elastic", "z_space")},
    **{f"student {name}": {"align": {"map": name, "side": "student"}} for name in ("linear", "two_step", "elastic")},
    **{
        f"select {name}": {"select": {"method": name, "budget": 0.4}}
        for name in ("keep_first", "keep_last", "uniform", "random", "attention", "cosine", "rkv", "rkv_decode")
    },
    "select count": {"select": {"method": "keep_first", "budget": 5}},
    **{
        f"fusion {name}": {"fusion": {"strategy": name}}
        for name in ("similarity", "learnable", "teacher_ce", "confidence", "random", "oracle")
    },
    "fusion task": {"fusion": {"strategy": "task", "by_task": {"sums": [1, 0], "apples": [0, 1]}}},
    "fusion weights": {"fusion": {"weights": [0.2, 0.8]}},
    **{f"similarity {name}": {"fusion": {"strategy": "similarity", "similarity": name}} for name in ("dot", "l2")},
    **{f"prototypes {name}": {"fusion": {"strategy": "similarity", "prototypes": name}} for name in ("cls", "kmeans")},
    **{f"router {name}": {"fusion": {"strategy": "learnable", "router": name}} for name in ("gate", "attention")},
    "per layer": {"fusion": {"strategy": "learnable", "per_layer": True}},
    "injected CE": {"fusion": {"strategy": "learnable", "objective": "injected_ce"}},
    "diverse": {"fusion": {"strategy": "learnable", "entropy": {"target": "diverse", "strength": 5.0}}},
    **{f"distance {name}": {"loss": {"distance": name}} for name in ("l1", "smooth_l1", "relation")},
    "relation heads": {"loss": {"distance": "relation", "relation_heads": 4}},
    "share": {"loss": {"share": 0.5}},
    "random direction": {"control": "random_direction"},
    "keys only": {"loss": {"lambda_v": 0}},
    "values only": {"loss": {"lambda_k": 0}},
    "no cosine": {"loss": {"beta": 0}},
    "no attention": {"loss": {"gamma": 0}},
    **{f"{name} third": {"loss": {"layers": name}} for name in ("first", "middle", "last")},
    "layer range": {"loss": {"layers": [0, 1]}},
    "annealed": {"loss": {"anneal": 0.5}},
    **{name: {"control": name} for name in ("shuffle_items", "shuffle_time", "gaussian")},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("options"))


@pytest.fixture(scope="module")
def references(study):
    """Weights of the SFT arm and of the KV arm that every option starts from."""
    return weights(study.train("sft")[0]), weights(study.train("kv", kv())[0])


@pytest.fixture(scope="module")
def trained():
    """Weights of the options tried so far, by name."""
    return {}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_trains_and_changes_what_is_trained(study, references, trained, name):
    output, facts = study.train(name, kv(**OPTIONS[name]))
    log = pd.read_parquet(output / "training.parquet")
    assert np.isfinite(log["value"]).all()
    assert {"key", "value"} <= set(log[log["split"] == "val"]["term"])
    found = weights(output)
    assert not any(same(found, reference) for reference in references)
    for other, theirs in trained.items():
        assert not same(found, theirs), f"{name} trains the very model of {other}"
    trained[name] = found
    assert (facts["budget_bites"] is None) == ("select" not in name)
    if "select" in name:
        assert facts["budget_bites"] > 0.9


def test_right_crop_is_keep_last(study):
    crop, last = (
        study.train(name, kv(select={"method": name, "budget": 0.4}))[0] for name in ("right_crop", "keep_last")
    )
    assert same(weights(crop), weights(last))


def test_identity_needs_equal_widths_and_then_works(study):
    output, _ = study.train("identity", kv(teachers=["twin"], align={"map": "identity"}))
    assert np.isfinite(pd.read_parquet(output / "training.parquet")["value"]).all()
    with pytest.raises(ValueError, match="identity needs equal widths"):
        study.train("unequal", kv(teachers=["gpt2"], align={"map": "identity"}))


@pytest.mark.parametrize("map_name", ["linear", "two_step", "elastic", "z_space"])
def test_projector_only_moves_the_map_and_not_the_student(study, map_name):
    unclipped = TRAINING.model_copy(update={"max_grad_norm": 1e6})  # else the map's gradient counts in the norm
    arm = kv(align={"map": map_name}, control="projector_only")
    output, _ = study.train(f"projector {map_name}", arm, training=unclipped)
    sft, _ = study.train("sft unclipped", training=unclipped)
    assert same(weights(output), weights(sft))
    log = pd.read_parquet(output / "training.parquet")
    keys = log[(log["term"] == "key") & (log["split"] == "train")].sort_values("step")["value"].to_numpy()
    assert keys[-1] != keys[0]
    shares = log[log["term"].isin(["share.key", "share.value"])]["value"]
    assert (shares == 0).all()


def test_online_teachers_train_the_very_model_of_stored_ones(study):
    """Against a float32 store: in float16 the numbers would differ by rounding."""
    arm = kv(fusion={"strategy": "similarity"})
    online, _ = study.train("online", arm, tier="online")
    files = study.teachers(arm)
    exact = [
        replace(each, store=study.store(name, "float32"), map=study.map(name, arm.align, stored=False))
        for name, each in zip(arm.teachers, files, strict=True)
    ]
    study.teachers = lambda *_: exact
    try:
        output, _ = study.train("exact", arm)
    finally:
        del study.teachers
    one, other = weights(online), weights(output)
    assert max(float((one[n] - other[n]).abs().max()) for n in one) < 2e-5


def test_the_mapped_tier_trains_the_model_of_the_raw_tier(study, references):
    output, facts = study.train("mapped", kv(), tier="mapped")
    one, other = weights(output), references[1]
    moved = max(float((references[0][n] - other[n]).abs().max()) for n in other)
    assert max(float((one[n] - other[n]).abs().max()) for n in one) < 0.02 * moved
    assert facts["supervised_share"] > 0.2


def test_all_components_train_the_model_of_the_raw_tier(study, references):
    """In the teacher's own channels, by a student-side map, which the mapped tier cannot serve."""
    arm = kv(align={"map": "linear", "side": "student"}, loss={"unit": "channel", "gamma": 0})
    raw, whole = (
        weights(study.train("raw channels", arm)[0]),
        weights(study.train("components", arm, tier="components")[0]),
    )
    moved = max(float((references[0][n] - raw[n]).abs().max()) for n in raw)
    assert max(float((raw[n] - whole[n]).abs().max()) for n in raw) < 0.02 * moved


def test_logit_distillation_with_a_teacher_of_the_same_vocabulary(study, references):
    output, _ = study.train("kd", logits=LogitConfig(teachers=["twin"]), logit_teachers=[study.models["twin"]])
    log = pd.read_parquet(output / "training.parquet")
    assert {"kd", "ce", "share.kd"} <= set(log["term"])
    assert not same(weights(output), references[0])
    only_ce, _ = study.train(
        "kd of CE", logits=LogitConfig(teachers=["twin"], alpha=1.0), logit_teachers=[study.models["twin"]]
    )
    assert same(weights(only_ce), references[0])
    with pytest.raises(ValueError, match="one vocabulary"):
        study.train("strange", logits=LogitConfig(teachers=["gpt2"]), logit_teachers=[study.models["gpt2"]])


def test_logits_of_several_teachers_are_mixed_row_by_row(study, references):
    """The loss against numpy: softened distributions of both teachers, weighed by the row's source."""
    both, same_twice = ["twin", "student"], {"teachers": ["twin", "copy"], "alpha": 0.3, "temperature": 3.0}
    one, _ = study.train(
        "kd one",
        logits=LogitConfig(teachers=["twin"], alpha=0.3, temperature=3.0),
        logit_teachers=[study.models["twin"]],
    )
    two, _ = study.train("kd two", logits=LogitConfig(**same_twice), logit_teachers=[study.models["twin"]] * 2)
    gap = max(float((a - b).abs().max()) for a, b in zip(weights(one).values(), weights(two).values(), strict=True))
    assert gap < 1e-5
    by_task = {"sums": [1.0, 0.0], "apples": [0.25, 0.75]}
    config = LogitConfig.model_validate(
        {"teachers": both, "fusion": {"strategy": "task", "by_task": by_task}, "alpha": 0.0}
    )
    torch.manual_seed(0)
    models = [load_model(study.models[name]) for name in both]
    ids = torch.randint(0, 300, (2, 7))
    labels = ids.clone()
    labels[0, :3] = labels[1, :5] = -100
    logits = torch.randn(6, models[0].config.vocab_size)
    task = torch.tensor([task_number("apples"), task_number("sums")])
    found = LogitTeachers(config, models, 300).loss(
        logits, labels[:, 1:][labels[:, 1:] != -100], ids, labels, task=task
    )
    with torch.no_grad():
        theirs = [softmax(model(input_ids=ids).logits[..., :300].double().numpy() / 2.0, -1) for model in models]
    places = [(0, place) for place in range(2, 6)] + [(1, place) for place in range(4, 6)]
    mixed = [
        sum(w * p[row, place] for w, p in zip(by_task[("apples", "sums")[row]], theirs, strict=True))
        for row, place in places
    ]
    own = softmax(logits[:, :300].double().numpy() / 2.0, -1)
    assert float(found) == pytest.approx(
        4 * np.mean([entropy(p, q) for p, q in zip(mixed, own, strict=True)]), rel=1e-4
    )


@pytest.mark.parametrize("strategy", ["confidence", "teacher_ce"])
def test_routed_logits_are_weighed_by_these_teachers_own_statistics(study, strategy):
    """A loop over rows, teachers and tokens; an arm with KV too has other teachers' statistics in its batch."""
    fusion = {"strategy": strategy, "temperature": 0.5}
    names = ["twin", "student"]
    config = LogitConfig.model_validate({"teachers": names, "fusion": fusion, "alpha": 0.0, "temperature": 1.0})
    models = [load_model(study.models[name]) for name in names]
    for model in models:  # untrained models say everything with the same probability
        model.get_output_embeddings().weight.data.mul_(20)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 300, (2, 7), generator=generator)
    labels = ids.clone()
    labels[0, :3] = labels[1, :5] = -100
    logits = torch.randn(6, models[0].config.vocab_size, generator=generator)
    following = labels[:, 1:][labels[:, 1:] != -100]
    foreign = {name: torch.full((2, 3), torch.nan) for name in ("entropy", "likelihood")}
    found = LogitTeachers(config, models, 300).loss(logits, following, ids, labels, **foreign)
    own, divergences, shares = softmax(logits[:, :300].double().numpy(), -1), [], []
    for row, first in ((0, 3), (1, 5)):
        noted, theirs = [], []
        for model in models:
            with torch.no_grad():
                p = softmax(model(input_ids=ids[row : row + 1]).logits[0, first - 1 : -1].double().numpy(), -1)
            said = np.log(p[np.arange(len(p)), ids[row, first:].numpy()])
            noted.append(-np.mean([entropy(each) for each in p]) if strategy == "confidence" else said.mean())
            theirs.append(softmax(np.log(p[:, :300]), -1))
        shares.append(softmax(np.array(noted) / 0.5))
        for place in range(7 - first):
            mixed = sum(share * p[place] for share, p in zip(shares[-1], theirs, strict=True))
            divergences.append(entropy(mixed, own[len(divergences)]))
    assert float(found) == pytest.approx(np.mean(divergences), rel=1e-4)
    assert abs(shares[0] - shares[1]).max() > 0.02  # what makes the case worth it


def test_gradient_checkpointing_changes_nothing(study, references):
    checkpointed = TRAINING.model_copy(update={"gradient_checkpointing": True})
    output, _ = study.train("checkpointed", kv(), training=checkpointed)
    found = weights(output)
    assert max(float((found[n] - references[1][n]).abs().max()) for n in found) < 1e-6


@pytest.mark.parametrize("align", [{}, {"map": "z_space"}, {"time": "overlap", "map": "elastic", "side": "student"}])
@pytest.mark.parametrize("tier", ["raw", "online"])
def test_encoders_and_encoder_decoders_may_be_teachers(study, references, align, tier):
    arm = kv(teachers=["bert", "t5", "gpt2"], align=align)
    output, facts = study.train(f"encoders {tier} {len(align)}", arm, tier=tier)
    assert np.isfinite(pd.read_parquet(output / "training.parquet")["value"]).all()
    assert facts["supervised_share"] > 0.1
    assert not same(weights(output), references[0])


def test_an_encoder_cannot_be_the_student(study):
    encoder = TinyStudy.__new__(TinyStudy)
    encoder.__dict__ = study.__dict__ | {"models": study.models | {"student": study.models["bert"]}}
    with pytest.raises(ValueError, match="causal language model is needed"):
        encoder.train("bert student")
