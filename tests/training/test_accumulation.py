"""The rows of an optimiser step are one step however they are cut into forward passes, for every term of the loss."""

import numpy as np
import pandas as pd
import pytest
import torch
from classic_kv import classic
from safetensors.torch import load_file
from tiny_study import TRAINING, TinyStudy, kv, rows, weights

from mtkv.config.fusion import LogitConfig
from mtkv.config.kv import KVConfig
from mtkv.config.latent import LatentConfig
from mtkv.provenance.files import write_parquet
from mtkv.training.data_parallel import LOSS_TERMS
from mtkv.training.gradient_shares import KV_FACTOR
from mtkv.training.step_statistics import looked_at, mean_of_step, pooling

CUTS = ((8, 1), (4, 2), (2, 4), (1, 8))  # rows of a pass × passes of a step
ALL_CUTS = ("sft", "closed form, every term", "its own teacher")  # the others: whole and in single rows
KV_TERMS = {"ce", "key", "value", "cosine", "attention"}
# what an arm's log must hold, so that no term is without a test
TERMS = {
    "closed form, every term": KV_TERMS | {"entropy", "route_ce"},
    "logits": {"ce", "kd"},
    "its own teacher": KV_TERMS | {"chain_ce", "codi", "step_ce"},
}
ROUTED = {"strategy": "learnable", "entropy": {"strength": 0.1}}
EVERY = {"beta": 0.3, "gamma": 0.5, "lambda_k": 2}
ARMS = {
    "sft": {},
    "closed form, every term": {"kv": kv(loss=EVERY, fusion=ROUTED | {"objective": "injected_ce"})},
    "trained map of the teachers": {"kv": kv(loss=EVERY, fusion=ROUTED, align={"map": "linear", "side": "teacher"})},
    "shared space": {"kv": kv(loss=EVERY, fusion=ROUTED, align={"map": "z_space"})},
    "trained map of the student": {"kv": kv(loss=EVERY, fusion=ROUTED, align={"map": "linear", "side": "student"})},
    "relation": {"kv": kv(loss={"distance": "relation"} | EVERY)},
    "logits": {"logits": LogitConfig(teachers=["twin"])},
    "its own teacher": {
        "kv": {"teachers": ["student"], "align": {"map": "identity"}, "select": {"method": "rkv"}, "loss": EVERY},
        "latent": {"codi_weight": 0.5, "chain_weight": 0.7, "step_weight": 0.6},
    },
    "latents and a trained map": {
        "kv": {"teachers": ["qwen3"], "align": {"map": "z_space"}, "select": {"method": "uniform"}},
        "latent": {"codi_weight": 0.5},
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rows whose chains have one to six steps, so that no two parts of a step hold alike."""
    study = TinyStudy(tmp_path_factory.mktemp("study"))
    for split, path in study.paths.items():
        frame = rows(split, len(pd.read_parquet(path)))
        steps = np.random.default_rng(3).integers(1, 7, len(frame))
        prompts = [f"Question: {i}?\nReason:" for i in range(len(frame))]
        chains = ["".join(f" {i}+{j}={i + j}." for j in range(count)) for i, count in enumerate(steps)]
        frame["prompt"], frame["prompt_end"] = prompts, [len(prompt) for prompt in prompts]
        frame["target"] = [f"{chain}\nAnswer: {i}" for i, chain in enumerate(chains)]
        frame["reasoning_end"] = frame["prompt_end"] + [len(chain) for chain in chains]
        write_parquet(path, frame)
    return study


def train(study, name, cut, kv=None, latent=None, logits=None):
    """Weights and log of three steps."""
    size, passes = cut
    changes = {"batch_size": size, "gradient_accumulation": passes, "steps": 3, "logging_steps": 1, "eval_steps": 3}
    settings = {"latent": LatentConfig.model_validate({"tokens": 4, "iterations": 2} | latent)} if latent else {}
    if logits:
        settings |= {"logits": logits, "logit_teachers": [study.models["twin"]]}
    config = KVConfig.model_validate(classic(kv)) if isinstance(kv, dict) else kv
    training = TRAINING.model_copy(update=changes)
    output, _ = study.train(f"{name} {size}", config, training=training, **settings)
    own = load_file(output / "model" / "latent.safetensors") if latent else {}
    return weights(output) | own, pd.read_parquet(output / "training.parquet")


@pytest.mark.parametrize("arm", ARMS)
def test_a_step_is_one_however_it_is_cut(study, arm):
    cuts = CUTS if arm in ALL_CUTS else (CUTS[0], CUTS[-1])
    found = {cut: train(study, arm, cut, **ARMS[arm]) for cut in cuts}
    whole, log = found[CUTS[0]]
    assert TERMS.get(arm, {"ce"}) <= set(log["term"])
    logged = (
        log[~log["term"].str.startswith(("share.", "cos."))].set_index(["step", "split", "term"])["value"].sort_index()
    )
    assert not logged.index.duplicated().any()
    for cut in cuts[1:]:
        other = found[cut][1]
        values = other[~other["term"].str.startswith(("share.", "cos."))].set_index(["step", "split", "term"])["value"]
        assert set(values.index) == set(logged.index)
        pd.testing.assert_series_equal(values.sort_index(), logged, rtol=2e-4, atol=1e-6)
        for name, weight in whole.items():
            torch.testing.assert_close(
                found[cut][0][name], weight, rtol=0, atol=2e-5, msg=lambda text, n=name: n + text
            )


@pytest.mark.parametrize("name", ["share", "control"])
def test_what_is_weighed_in_each_pass_refuses_a_step_of_several(study, name):
    """Also for a control of one's own, which the config does not look into."""
    changes = {"share": {"loss": {"share": 0.3}}, "control": {"control": "random_direction"}}[name]
    with pytest.raises(NotImplementedError, match=r"steps of one pass \(gradient_accumulation 1\)"):
        train(study, name, (4, 2), kv=kv(**changes))


def test_every_term_of_the_loss_is_among_the_arms():
    assert set().union(*TERMS.values()) == set(LOSS_TERMS) - {
        KV_FACTOR.name
    }  # no term: each part of a step has its own


def test_what_a_step_measures_is_that_of_all_its_rows():
    x = torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))
    seen = []

    def forward(part):
        mean, count = mean_of_step("x", part, (0, 2))
        seen.append((mean, float(count)))

    before = torch.get_rng_state()
    pooled = looked_at(forward, [{"part": x[:1]}, {"part": x[1:9]}, {"part": x[9:]}])
    assert torch.equal(torch.get_rng_state(), before)
    seen.clear()
    with pooling(pooled):
        forward(x[:1])
    torch.testing.assert_close(seen[0][0], x.double().mean((0, 2)))
    assert seen[0][1] == 48
    with pytest.raises(KeyError, match="other"), pooling(pooled):
        mean_of_step("other", x, (0,))
    mean, count = mean_of_step("x", x[:1], (0, 2))  # a pass that is a step of its own
    torch.testing.assert_close(mean, x[:1].double().mean((0, 2)))
    assert count == 4
