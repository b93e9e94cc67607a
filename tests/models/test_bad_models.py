"""Models, tokenizers and rows that cannot work: one clear error each, before anything is trained."""

import json
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers_for_tests import byte_level_bpe
from transformers import AutoTokenizer, ByT5Tokenizer

from mtkv.config.models import ModelConfig
from mtkv.data.checks import check_rows
from mtkv.distill.rows import DistillationRows
from mtkv.models.check import check_weights
from mtkv.models.encode import encode_rows
from mtkv.models.latent import LatentStudent
from mtkv.models.load import load_model, load_tokenizer

WEIGHTS = "model.safetensors"


@pytest.fixture
def llama(tmp_path, model_folder):
    return model_folder("llama", tmp_path / "llama")


def config(folder, **changes):
    return ModelConfig.model_validate({"source": "path", "name": str(folder)} | changes)


def header(path):
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    return 8, 8 + size


@pytest.mark.parametrize("keep", [4, 100, 0.5, -1])
def test_a_cut_safetensors_file_is_refused(llama, keep):
    path = llama / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(
        ValueError, match=r"model\.safetensors: not a sound safetensors file of [\d,]+ bytes.*copy or fetch"
    ):
        load_model(config(llama))


def test_every_flipped_bit_of_a_header_is_refused_or_harmless(llama):
    """Wherever a bit of the header flips, either loading is refused or the very weights come out."""
    path = llama / WEIGHTS
    whole, before = path.read_bytes(), load_file(path)
    start, end = header(path)
    random = np.random.default_rng(0)
    refused = 0
    for place in [0, 3, 7, *random.integers(start, end, 25).tolist()]:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(random.integers(0, 7))
        path.write_bytes(broken)
        try:
            after = load_model(config(llama)).state_dict()
        except ValueError as error:
            refused += str(llama) in str(error)
        else:
            assert all(torch.equal(before[name], after[name]) for name in before)
    assert refused > 20


def test_a_renamed_weight_is_refused_instead_of_drawn_at_random(llama):
    weights = load_file(llama / WEIGHTS)
    weights["model.layers.0.self_attn.k_prof.weight"] = weights.pop("model.layers.0.self_attn.k_proj.weight")
    save_file(weights, llama / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing in its files .*k_proj"):
        load_model(config(llama))


def test_a_missing_shard_is_named(llama):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": WEIGHTS}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors missing"):
        check_weights(llama)
    (llama / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="no model weights"):
        check_weights(llama)


def test_a_slow_tokenizer_is_refused(llama):
    for path in llama.glob("tokenizer*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(llama)
    assert not AutoTokenizer.from_pretrained(llama).is_fast
    with pytest.raises(ValueError, match="slow and reports no offsets"):
        load_tokenizer(config(llama))


def test_a_tokenizer_of_another_model_is_refused(tmp_path, model_folder):
    folder = model_folder("llama", tmp_path, tokenizer=byte_level_bpe(320), vocab_size=300)
    with pytest.raises(ValueError, match=r"320 tokens, but the model only 300 embeddings; 20 tokens have none"):
        load_tokenizer(config(folder))


def test_a_special_token_without_embedding_is_only_refused_in_a_row(tmp_path, model_folder):
    tokenizer = byte_level_bpe(320)
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    folder = model_folder("llama", tmp_path, tokenizer=tokenizer, vocab_size=320)
    loaded = load_tokenizer(config(folder))
    encode_rows(loaded, ["Question"], [" 1"], None)
    with pytest.raises(ValueError, match=r"row number 1 has the token '<image>' \(320\).* only 320 embeddings"):
        encode_rows(loaded, ["Question", "a <image>"], [" 1", " 1"], None)


def test_without_a_pad_token_eos_pads_and_stays_a_target(tmp_path, model_folder):
    tokenizer = byte_level_bpe()
    tokenizer.pad_token = None
    folder = model_folder("llama", tmp_path, tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    loaded = load_tokenizer(config(folder))
    assert loaded.pad_token_id == loaded.eos_token_id
    frame = pd.DataFrame(
        {"id": ["a", "b"], "dataset": ["d", "d"], "prompt": ["Question: 1", "2"], "target": [" long answer", " 1"]}
    )
    batch = DistillationRows(loaded, frame, [], "none", 0, None).collate([0, 1])
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        assert batch["labels"][row, length - 1] == loaded.eos_token_id  # the eos that ends the answer is learned
        assert (batch["labels"][row, length:] == -100).all()  # the eos that pads is not
    assert (batch["input_ids"][1, batch["attention_mask"][1] == 0] == loaded.eos_token_id).all()


def test_a_text_longer_than_the_context_is_refused_before_the_model_sees_it(llama):
    loaded = load_tokenizer(config(llama))
    assert loaded.reading.context == 64
    rows = ["Question", "Question: " + "1 2 " * 40]
    with pytest.raises(ValueError, match=r"row number 1 has \d+ tokens for .*more than its context of 64"):
        encode_rows(loaded, rows, [" 1", " 2"], 512)
    with pytest.raises(ValueError, match=r"more than the limit of 8: raise training\.max_length"):
        encode_rows(loaded, rows, [" 1", " 2"], 8)


@pytest.mark.parametrize("answer", ["", "  \n", None])
def test_an_empty_answer_is_refused(answer):
    frame = pd.DataFrame({"id": ["a", "b"], "prompt": ["q", "r"], "target": [" 1", answer]})
    with pytest.raises(ValueError, match=r"train\.parquet: 1 rows have an empty answer \(target\), 'b' among them"):
        check_rows(frame, "train.parquet")


def test_rows_that_share_an_id_are_refused():
    frame = pd.DataFrame({"id": ["a", "b", "a"], "prompt": ["q", "r", "s"], "target": [" 1"] * 3})
    with pytest.raises(ValueError, match=r"1 ids belong to more than one row, 'a' among them"):
        check_rows(frame, "x")
    check_rows(frame.head(2), "x")


def test_a_model_folder_without_config_is_named(llama):
    shutil.move(llama / "config.json", llama / "other.json")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in .*llama"):
        load_model(config(llama))


def test_a_latent_student_is_not_taken_for_a_plain_model(llama):
    plain = load_model(config(llama))
    LatentStudent.create(plain, tokens=2, iterations=1).save(llama, load_tokenizer(config(llama)))
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=r"holds a latent student \(latent\.safetensors\).*student_view: text"):
            load(config(llama))
