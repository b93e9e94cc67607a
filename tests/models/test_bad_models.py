"""Models, tokenizers and rows that cannot work: one clear error each, before anything is trained."""

import json
import re
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import ENCODERS
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers_for_tests import CORPUS, KINDS, byte_level_bpe
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from mtkv.config.models import ModelConfig
from mtkv.data.rows import check_rows
from mtkv.distill.dataset import DistillationRows
from mtkv.evaluate.lm_eval_model import load_folder
from mtkv.latent.model.student import LatentStudent
from mtkv.models.integrity import check_weights
from mtkv.models.load import load_model, load_tokenizer
from mtkv.models.tokenization import encode_rows
from mtkv.original_api.extractor import TeacherKVExtractor

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


def changed(folder, file="config.json", **settings):
    """The folder with other settings in one of its files."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_weights_that_the_config_has_no_place_for_are_refused(tmp_path, model_folder):
    """A third layer where config.json counts two, biases where it says there are none: transformers leaves them out with a warning."""
    deep = changed(model_folder("llama", tmp_path / "deep"), num_hidden_layers=2)
    biased = changed(model_folder("llama", tmp_path / "biased", attention_bias=True), attention_bias=False)
    encoder = changed(model_folder("gpt2", tmp_path / "gpt2"), n_layer=2)
    for folder, some in [(deep, r"layers\.2\.input_l"), (biased, r"k_proj\.bias"), (encoder, r"h\.2\.")]:
        for load in (lambda folder: load_model(config(folder)), load_folder, TeacherKVExtractor):
            with pytest.raises(ValueError, match=rf"\d+ weights are in its files, but in no place of \w+ as .*{some}"):
                load(folder)


def test_another_head_and_what_models_make_by_themselves_are_no_fault(llama):
    before = load_model(config(llama)).state_dict()
    extra = {"v_head.summary.weight": torch.ones(1, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    extra |= {"model.layers.0.attn.masked_bias": torch.ones(1), "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4)}
    save_file(load_file(llama / WEIGHTS) | extra, llama / WEIGHTS, {"format": "pt"})
    after = load_model(config(llama)).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_neither_missing_nor_unused(tmp_path, model_folder, tied):
    folder = model_folder("llama", tmp_path, tie_word_embeddings=tied)
    assert ("lm_head.weight" in load_file(folder / WEIGHTS)) is not tied
    model = load_model(config(folder))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_an_encoder_is_read_from_a_model_with_a_head_or_a_decoder(tmp_path):
    tokenizer = byte_level_bpe()
    bert, t5 = (ENCODERS[name][1] | {"vocab_size": len(tokenizer)} for name in ("bert", "t5"))
    BertForMaskedLM(BertConfig(**bert)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(T5Config(**t5)).save_pretrained(tmp_path / "t5")
    for name, left_out in [("bert", "cls."), ("t5", "decoder.")]:
        assert any(key.startswith(left_out) for key in load_file(tmp_path / name / WEIGHTS))
        load_model(config(tmp_path / name))
    with pytest.raises(ValueError, match=r"\d+ weights are in its files, but in no place of BertModel .*layer\.2"):
        load_model(config(changed(tmp_path / "bert", num_hidden_layers=2)))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_full_weights_is_refused(llama, file):
    """transformers applies it where peft is installed, and leaves it out where it is not."""
    peft = pytest.importorskip("peft", reason="the extra mtkv[lora] is not installed")
    plain = load_model(config(llama))
    peft.get_peft_model(plain, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(llama / "adapter")
    shutil.move(llama / "adapter" / file, llama / file)
    for load in (lambda folder: load_model(config(folder)), load_folder):
        with pytest.raises(ValueError, match=rf"holds an adapter \({file}\); merge it into the weights"):
            load(llama)


@pytest.mark.parametrize("latent", [False, True])
def test_what_an_adapter_left_is_not_evaluated_with_random_weights(llama, latent):
    """A folder as training on top of an applied adapter saved it: every name begins with peft's prefix."""
    if latent:
        LatentStudent.create(load_model(config(llama)), tokens=2, iterations=1).save(
            llama, load_tokenizer(config(llama))
        )
    weights = {f"base_model.model.{name}": tensor for name, tensor in load_file(llama / WEIGHTS).items()}
    save_file(weights, llama / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"\d+ weights are missing in its files .*lm_head"):
        load_folder(llama)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.lm_head.weight",
        "transformer.h.0.attn.q_proj.lora_B.weight",
        "module.model.norm.weight",
    ],
)
def test_tensors_of_a_wrapper_beside_complete_weights_are_refused(llama, name):
    """transformers would leave them out with a warning: an adapter that somebody trained and never merged."""
    save_file(load_file(llama / WEIGHTS) | {name: torch.ones(2, 2)}, llama / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"1 weights are in its files, but in no place .*{re.escape(name)}"):
        load_folder(llama)


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


def whole_texts_bpe():
    """A byte-level BPE that merges across blanks and digits: its tokenizer.json splits no text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.mark.parametrize(
    ("architecture", "named"),
    [("llama", "GPT2Tokenizer"), ("llama", "Qwen2TokenizerFast"), ("qwen2", "LlamaTokenizerFast")],
)
def test_a_tokenizer_that_transformers_builds_by_its_class_is_refused(tmp_path, model_folder, architecture, named):
    """The reference is the file itself, read by the package tokenizers. What the message advises is then tried."""
    folder = model_folder(architecture, tmp_path / "model", tokenizer=whole_texts_bpe())
    changed(folder, "tokenizer_config.json", tokenizer_class=named)
    stated = Tokenizer.from_file(str(folder / "tokenizer.json"))
    by_class = AutoTokenizer.from_pretrained(folder)
    assert by_class(CORPUS[0])["input_ids"] != stated.encode(CORPUS[0]).ids
    advice = re.escape('write "tokenizer_class": "TokenizersBackend" into its tokenizer_config.json')
    found = r"Qwen2?Tokenizer|GPT2Tokenizer"
    for load in (lambda folder: load_tokenizer(config(folder)), load_folder, TeacherKVExtractor):
        with pytest.raises(
            ValueError, match=rf"model: ({found}) reads 'Question: Tom.*' as \d+ tokens that .*{advice}"
        ):
            load(folder)
    changed(folder, "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    for loaded in (load_tokenizer(config(folder)), load_folder(folder)[1], TeacherKVExtractor(folder).tokenizer):
        assert all(loaded(text)["input_ids"] == stated.encode(text).ids for text in CORPUS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_cuts_and_pads_is_compared_without_that(tmp_path, model_folder, kind):
    tokenizer = KINDS[kind]()
    folder = model_folder("llama", tmp_path, tokenizer=tokenizer)
    stated = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stated.enable_truncation(5)
    stated.enable_padding(length=300)
    stated.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(config(folder))("Question")["input_ids"] == tokenizer("Question")["input_ids"]


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


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT", "'vit' is neither a causal language model nor a multimodal one"),
        ("Qwen2Audio", "'qwen2_audio' is neither"),
        ("Florence2", "'florence2' has no encoder of text"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(name, reason, llama):
    getattr(transformers, f"{name}Config")().save_pretrained(llama)
    with pytest.raises(ValueError, match=f"model type {reason}"):
        load_model(config(llama))
