"""The gate's cosines against gradients by hand, and with targets whose sign is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_study import TRAINING, TinyStudy, kv

from mtkv.align.closed_form_maps import KVMap
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.distill.distiller import Distiller
from mtkv.distill.kv_objective import KVObjective
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv_at
from mtkv.stages.gate import ALL, gate_cosines, measure_gate, train_map
from mtkv.stages.train import arm_parts

PLAIN = {"beta": 0, "gamma": 0}  # the classic loss without what keys and values share
LINEAR = {"align": {"map": "linear", "side": "student"}, "loss": PLAIN | {"unit": "channel"}}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("gate"))


def parts(study, arm, **more):
    torch.manual_seed(0)
    distiller, _, (rows, _) = arm_parts(study.run(study.folder / "none", arm, **more))
    return distiller.eval(), rows


def by_hand(loss, distiller):
    weights = [weight for weight in distiller.student.parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return np.concatenate(
        [
            np.zeros(w.numel()) if g is None else g.flatten().double().numpy()
            for w, g in zip(weights, found, strict=True)
        ]
    )


def cosine(one, other):
    return one @ other / np.sqrt((one @ one) * (other @ other))


@pytest.mark.parametrize("arm", [{"loss": PLAIN}, LINEAR], ids=["ridge", "linear"])
def test_cosines_are_those_of_one_layers_own_loss_and_of_the_whole_loss(study, arm):
    distiller, rows = parts(study, kv(**arm))
    batch = rows.collate([0, 3, 5])
    found = {(row["layer"], row["kind"]): row for row in gate_cosines(distiller, batch)}
    assert len(found) == 3 * 2 + 3
    ce = by_hand(distiller(**batch)["ce"], distiller)
    for kind in ("key", "value"):
        whole = by_hand(distiller(**batch)[f"part.{kind}"], distiller)
        assert found[ALL, kind]["cosine"] == pytest.approx(cosine(ce, whole), abs=1e-5)
        assert found[ALL, kind]["ratio"] == pytest.approx(np.linalg.norm(whole) / np.linalg.norm(ce), rel=1e-4)
    both = by_hand(distiller(**batch)["kv"], distiller)
    assert found[ALL, "both"]["cosine"] == pytest.approx(cosine(ce, both), abs=1e-5)
    for layer in range(3):
        distiller.supervision.layers = (layer, layer)
        for kind in ("key", "value"):
            alone = by_hand(distiller(**batch)[f"part.{kind}"], distiller)
            assert found[layer, kind]["cosine"] == pytest.approx(cosine(ce, alone), abs=1e-5), (layer, kind)
    assert len({round(row["cosine"], 4) for row in found.values()}) == len(found)


def test_terms_that_keys_and_values_share_are_in_both_and_in_the_whole(study):
    arm = kv(loss={"layers": [1, 2], "beta": 0.5, "gamma": 0.5})
    distiller, rows = parts(study, arm)
    batch = rows.collate([1, 2])
    found = {(row["layer"], row["kind"]): row["cosine"] for row in gate_cosines(distiller, batch)}
    assert {layer for layer, _ in found} == {1, 2, ALL}
    ce, whole = (by_hand(distiller(**batch)[name], distiller) for name in ("ce", "kv"))
    assert found[ALL, "both"] == pytest.approx(cosine(ce, whole), abs=1e-5)


@pytest.mark.parametrize("better", [True, False])
def test_the_kv_of_a_model_with_a_lower_cross_entropy_pull_where_it_pulls(build_model, better):
    """To first order ∂KV = −JᵀJ·Δθ; with Δθ = ∓∂CE its product with ∂CE is ±‖J·∂CE‖²."""
    model = build_model("llama").float()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 64, (4, 9), generator=generator)
    sample, position = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(9), indexing="ij"))

    def states():
        with torch.no_grad(), KVCapture(model) as capture:
            model(ids, use_cache=False)
        return packed_kv_at(capture, range(3), sample, position)

    start = {name: value.clone() for name, value in model.state_dict().items()}
    before = float(model(ids, labels=ids).loss)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, maximize=not better)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    assert (float(model(ids, labels=ids).loss) < before) == better
    target = states()
    model.load_state_dict(start)
    width = target.shape[-1]
    ones, zeros = torch.ones(3, 2), torch.zeros(3, 2, width)
    identity = KVMap(
        torch.eye(width).repeat(3, 2, 1, 1), zeros, zeros, ones, ones, ones, zeros + 1, zeros + 1, torch.eye(3)
    )
    config = KVConfig.model_validate({"teachers": ["other"], "align": {"map": "identity"}, "loss": {"distance": "mse"}})
    distiller = Distiller(model, 1.0, KVObjective(config, [identity], (2, [2])))
    context = {"row_seed": torch.arange(4), "likelihood": torch.zeros(4, 1), "task": torch.zeros(4, dtype=torch.long)}
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch |= {"kv_sample": sample, "kv_position": position, "teacher_kv": [target]} | context
    found = {(row["layer"], row["kind"]): row["cosine"] for row in gate_cosines(distiller, batch)}
    assert (found[ALL, "both"] > 0.2) if better else (found[ALL, "both"] < -0.2)
    assert all((found[ALL, kind] > 0) == better for kind in ("key", "value"))


def test_the_map_learns_alone(study):
    distiller, rows = parts(study, kv(**LINEAR))
    batch = rows.collate([0, 3, 5])
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    first = distiller(**batch)
    assert train_map(distiller, [batch] * 30, 1e-2) == 30
    last = distiller(**batch)
    assert float(last["kv"]) < 0.8 * float(first["kv"])
    assert float(last["ce"]) == float(first["ce"])
    assert all(torch.equal(value, before[name]) for name, value in distiller.student.state_dict().items())
    fixed, rows = parts(study, kv())
    assert train_map(fixed, [rows.collate([0])], 1e-2) == 0


@pytest.mark.parametrize(
    "arm", [kv(teachers=["twin"], align={"map": "identity"}), kv(**LINEAR)], ids=["fixed", "linear"]
)
def test_the_stage_writes_every_batch_and_says_means_and_errors(study, tmp_path, arm):
    run = study.run(tmp_path, arm)
    facts = measure_gate(run, 3, 4, tmp_path / "cosines.parquet")
    table = pd.read_parquet(tmp_path / "cosines.parquet")
    assert facts["map_steps"] == (3 if arm.align.trained else 0)
    assert (facts["batches"], facts["batch_size"]) == (4, TRAINING.batch_size)
    layers = 3 if arm.align.trained else len(set(table["layer"])) - 1
    assert len(table) == 2 * 4 * (2 * layers + 3)
    assert set(table["control"]) == {"none", "shuffle_items"}
    for place in facts["cosines"]:
        part = table[(table["layer"] == place["layer"]) & (table["kind"] == place["kind"])].sort_values("batch")
        right, other = (part.loc[part["control"] == c, "cosine"].to_numpy() for c in ("none", "shuffle_items"))
        for name, values in (("right", right), ("other", other), ("difference", right - other)):
            assert place[name] == pytest.approx(values.mean()), name
            assert place[f"{name}_se"] == pytest.approx(values.std(ddof=1) / 2), name
        assert place["ratio"] == pytest.approx(part.loc[part["control"] == "none", "ratio"].mean())
        assert abs(right - other).max() > 0
    again = measure_gate(run, 3, 4, tmp_path / "again.parquet")
    assert again == facts


def test_a_student_with_latents_has_a_gate_too(study, tmp_path):
    own = KVConfig.model_validate(
        {"teachers": ["student"], "align": {"map": "identity"}, "select": {"method": "uniform", "budget": 2}}
    )
    run = study.run(tmp_path, own, latent=LatentConfig(tokens=2, iterations=1, keep_last_step=True))
    facts = measure_gate(run, 0, 2, tmp_path / "cosines.parquet")
    assert all(-1 <= place[name] <= 1 for place in facts["cosines"] for name in ("right", "other"))


@pytest.mark.parametrize(
    ("arm", "batches", "said"),
    [
        (None, 2, "this arm has no kv"),
        (kv(control="gaussian"), 2, "control gaussian"),
        (kv(loss=PLAIN | {"lambda_k": 0, "lambda_v": 0}), 2, "no term of this arm's KV loss has a weight"),
        (kv(), 6, "24 training rows are too few for 6 batches of 4 .* at most 5 batches"),
    ],
)
def test_what_no_gate_can_be_measured_of_is_said(study, tmp_path, arm, batches, said):
    with pytest.raises(ValueError, match=said):
        measure_gate(study.run(tmp_path, arm), 1, batches, tmp_path / "cosines.parquet")
