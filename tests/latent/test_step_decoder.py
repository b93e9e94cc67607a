"""SIM-CoT's term against a loop over rows and pieces; what the second decoder learns and what is left of it."""

import numpy as np
import pandas as pd
import pytest
import torch
from latent_setting import ROWS, Setting
from tiny_study import TinyStudy, same, weights

from mtkv.config.latent import LatentConfig
from mtkv.latent.training.step_decoder import StepDecoder
from mtkv.models.cross_entropy import IGNORED_LABEL
from mtkv.training.data_parallel import amounts

INDICES = [0, 2, 1, 3]
TOKENS = 4


@pytest.fixture
def setting(tmp_path, build_model):
    return Setting(tmp_path, build_model)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return TinyStudy(tmp_path_factory.mktemp("study"))


def chain_of(setting, index):
    """Token ids of the chain without its last step, by the tokenizer alone: no token of these rows reaches across its ends."""
    chain = {0: " 3+4=7. 7-2=5.", 1: "", 2: " 8/2=4.", 3: "5+3=8。"}[index]
    assert ROWS["target"][index].startswith(chain)
    return setting.tokenizer(chain, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def test_the_term_is_the_mean_over_all_tokens_of_all_pieces(setting):
    distiller, rows = setting.make(step_weight=0.25, chain_weight=0)
    batch = rows.collate(INDICES)
    terms = distiller(**batch)
    model, latent = distiller.student.model, distiller.student.latent
    for parameter in distiller.step_decoder.parameters():  # not the student's own any more
        parameter.mul_(1.1)
    changed = distiller(**batch)["step_ce"]
    found, pieces = [], 0
    for index in INDICES:
        row = rows.encoded[index]
        embeds = distiller.student.embed(torch.tensor(row.input_ids)[None], torch.tensor([row.latent_start]))
        hidden = model.base_model(inputs_embeds=embeds).last_hidden_state[0]
        chain = chain_of(setting, index)
        sizes = [len(chain) // TOKENS + (place < len(chain) % TOKENS) for place in range(TOKENS)]
        for place, size in enumerate(sizes):
            piece, chain = chain[:size], chain[size:]
            pieces += bool(piece)
            for said, token in enumerate(piece):
                seen = latent.projection(hidden[row.latent_start + place])[None, None]
                before = model.get_input_embeddings()(torch.tensor(piece[:said], dtype=torch.long))[None]
                logits = model(inputs_embeds=torch.cat([seen, before], 1)).logits[0, -1]
                found.append(-logits.log_softmax(-1)[token])
    assert pieces == len(batch["step_labels"])
    assert amounts(batch)["step_targets"] == len(found)
    torch.testing.assert_close(terms["step_ce"], torch.stack(found).mean())
    torch.testing.assert_close(terms["loss"], terms["ce"] + 0.25 * terms["step_ce"])
    assert not torch.isclose(changed, terms["step_ce"])
    torch.testing.assert_close(distiller(**batch)["ce"], terms["ce"])


def test_it_teaches_the_latents_and_the_student_through_the_whole_question(setting):
    distiller, rows = setting.make(step_weight=1.0)
    distiller(**rows.collate(INDICES))["step_ce"].backward()
    for part in (distiller.student.latent.latents, distiller.student.model.get_input_embeddings().weight):
        assert part.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in distiller.step_decoder.model.model.parameters())


def test_a_batch_without_a_chain_adds_nothing(setting):
    distiller, rows = setting.make(step_weight=1.0)
    terms = distiller(**rows.collate([1]))  # its one step gives the answer away
    assert float(terms["step_ce"].detach()) == 0
    assert torch.isfinite(terms["loss"])


def test_padding_does_not_count(build_model):
    decoder = StepDecoder(build_model("llama", vocab_size=300))
    latents = torch.randn(2, decoder.model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[5, 6, 7, 8], [9, 10, IGNORED_LABEL, IGNORED_LABEL]])
    with torch.no_grad():
        whole = decoder(latents, labels)
        parts = decoder(latents[:1], labels[:1]), decoder(latents[1:], labels[1:, :2])
    torch.testing.assert_close(whole, (4 * parts[0] + 2 * parts[1]) / 6)


def test_a_training_logs_the_term_and_saves_no_decoder(study):
    settings = {"tokens": 4, "iterations": 2, "keep_last_step": True}
    taught, _ = study.train("steps", latent=LatentConfig(**settings, step_weight=1.0))
    plain, _ = study.train("no_steps", latent=LatentConfig(**settings))
    assert weights(taught).keys() == weights(plain).keys()
    assert not same(weights(taught), weights(plain))
    log = pd.read_parquet(taught / "training.parquet")
    curve = log[(log["term"] == "step_ce") & (log["split"] == "val")].sort_values("step")["value"].to_numpy()
    assert np.isfinite(curve).all()
    assert curve[-1] < curve[0]
    assert "step_ce" not in set(pd.read_parquet(plain / "training.parquet")["term"])
