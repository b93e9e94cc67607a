"""Prompts are read as rows are, and answers end where those of rows do, by every way of asking a model."""

import json
import shutil
from pathlib import Path

import latent_by_hand as by_hand
import pandas as pd
import pytest
import torch
from lm_eval.api.instance import Instance
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from mtkv.config.models import ModelConfig
from mtkv.evaluate.lm_eval_model import EvaluationModel
from mtkv.evaluate.predictions import read_predictions
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.latent.model.student import LatentStudent
from mtkv.models.tokenization import encode_rows
from mtkv.models.tokenizer_limits import Reading
from mtkv.stages.predict import ModelSource, predict

CHATML = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
QUESTION = "Question: Tom has 12 apples and buys 30 more. How many?\nReason:"
WAYS = {"ours": True, "lm-eval's": False}
DAY = "2024-07-26"  # that templates are told
LIMIT = 24


def asked(model, prompts, **settings):
    given = {"until": ["\n\n"], "max_gen_toks": LIMIT, "do_sample": False} | settings
    return model.generate_until(
        [Instance("generate_until", {}, (text, dict(given)), place) for place, text in enumerate(prompts)]
    )


def tokenizer_with(folder, before, behind):
    """The tokenizer of a folder, putting these special tokens before and behind texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*before, "$0", *behind], special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("behind", [[], ["<eos>"]])
@pytest.mark.parametrize("before", [[], ["<bos>"]])
def test_the_model_reads_the_very_tokens_that_its_rows_begin_with(
    build_model, model_folders, monkeypatch, before, behind, chat, way
):
    """Generation and choices; a chat template that writes no bos gets none, whatever the tokenizer puts before plain texts."""
    tokenizer = tokenizer_with(model_folders["llama"], before, behind)
    tokenizer.chat_template = CHATML
    tokenizer.reading = Reading("chat" if chat else "plain")
    (row,) = encode_rows(tokenizer, [QUESTION], [" 42"])
    expected = row.input_ids[: row.is_target.argmax()].tolist()
    assert (expected[0] == tokenizer.bos_token_id) == (before == ["<bos>"] and not chat)
    text = tokenizer.decode(expected).removeprefix("<bos>")
    del tokenizer.reading
    network = build_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512, eos_token_id=1)
    model = EvaluationModel(network, tokenizer, 1, chat=chat)
    monkeypatch.setattr(model, "_can_share", lambda longest: WAYS[way])
    read = []
    network.register_forward_pre_hook(
        lambda _module, args, given: read.append((args[0] if args else given["input_ids"])[0].tolist()),
        with_kwargs=True,
    )
    asked(model, [text])
    assert read[0] == expected
    read.clear()
    model.loglikelihood([Instance("loglikelihood", {}, (text, " 42"), 0)])
    assert read[0][: len(expected)] == expected
    assert tokenizer.eos_token_id not in read[0]
    (again,) = encode_rows(tokenizer, [QUESTION], [" 42"])
    assert again.input_ids.tolist() == row.input_ids.tolist()


@pytest.mark.parametrize("kind", ["text", "latent"])
def test_a_tokenizer_that_adds_eos_changes_no_answer(tmp_path, data_folder, model_folders, study_tools, kind):
    folder = model_folders["llama"]
    if kind == "latent":
        model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
        torch.manual_seed(0)
        folder = tmp_path / "latent"
        LatentStudent.create(model, 3, 1).save(folder, tokenizer)
    adding = Path(shutil.copytree(folder, tmp_path / "adding"))
    stated = Tokenizer.from_file(str(adding / "tokenizer.json"))
    stated.post_processor = TemplateProcessing(single="$0 <eos>", special_tokens=[("<eos>", 1)])
    stated.save(str(adding / "tokenizer.json"))
    assert AutoTokenizer.from_pretrained(adding)("1")["input_ids"][-1] == 1
    names, found = ["pocket_bbh", "pocket_gpqa"], []
    for each in (folder, adding):
        outputs = {name: tmp_path / f"{len(found)}-{name}.parquet" for name in names}
        predict(ModelSource(each), data_folder, study_tools.config(limit=6), outputs)
        found.append([path.read_bytes() for path in outputs.values()])
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory, study_tools):
    """A base model with a chat template, as fine-tuning on rows in that template leaves it: its own eos is <eos>, answers end in <end>."""
    folder = tmp_path_factory.mktemp("base")
    known = study_tools.known_rows(4)
    tokenizer = study_tools.train_tokenizer([row["prompt"] + row["target"] for row in known])
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<end>", special=True)])
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=200, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.1,
        )
    )  # fmt: skip
    study_tools.fit(
        model, tokenizer, [in_template(tokenizer, row["prompt"]) + row["target"] + "<end>" for row in known], steps=50
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == 1
    return folder, [row["prompt"] for row in known]


def in_template(tokenizer, prompt):
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def by_transformers(folder, prompts):
    """Each answer of greedy search that ends at <eos> or <end>, and its number of tokens."""
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    ends = [1, tokenizer.convert_tokens_to_ids("<end>")]
    found = []
    for prompt in prompts:
        ids = tokenizer(in_template(tokenizer, prompt), add_special_tokens=False, return_tensors="pt")
        said = model.generate(**ids, max_new_tokens=LIMIT, do_sample=False, eos_token_id=ends, pad_token_id=0)
        found.append(said[0, ids["input_ids"].shape[1] :].tolist())
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in found], [len(ids) for ids in found]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_comes_as_it_is_ends_where_its_template_ends_an_answer(base, monkeypatch, way, batch_size):
    folder, prompts = base
    source = ModelSource.of([], ModelConfig(source="path", name=str(folder), prompt="chat"))
    model = EvaluationModel(*source.load(folder), batch_size, chat=True)
    monkeypatch.setattr(model, "_can_share", lambda longest: WAYS[way])
    texts, lengths = by_transformers(folder, prompts)
    assert sum(length < LIMIT for length in lengths) > len(prompts) / 2, "most must end, or nothing is tested"
    assert asked(model, [in_template(model.tokenizer, prompt) for prompt in prompts]) == texts
    assert model.generated_tokens == sum(lengths)


def test_a_dataset_is_asked_so(base, tmp_path, data_folder, study_tools):
    folder, _ = base
    settings = study_tools.config(max_new_tokens=LIMIT, limit=4)
    found = {}
    for chat in (DAY, None):
        facts = predict(ModelSource(folder, chat=chat), data_folder, settings, {"pocket_bbh": tmp_path / "out"})
        found[chat] = facts["datasets"]["pocket_bbh"]["generated_tokens"]
    rows = pd.read_parquet(data_folder / "test" / "pocket_bbh.parquet").head(4)
    texts, lengths = by_transformers(folder, [study_tools.expected_prompt("pocket_bbh", q) for q in rows["question"]])
    assert found[DAY] == sum(lengths) < 4 * LIMIT
    predict(ModelSource(folder, chat=DAY), data_folder, settings, {"pocket_bbh": tmp_path / "out"})
    assert read_predictions(tmp_path / "out")[0]["output"].tolist() == texts


@pytest.mark.parametrize("markers", [True, False])
def test_latents_are_asked_so(base, markers):
    """With markers by our own loop, without them by `LatentStudent.generate`; by hand as the reference."""
    folder, prompts = base
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    torch.manual_seed(0)
    student = LatentStudent.create(model, 1, 0, markers=markers)
    end = tokenizer.convert_tokens_to_ids("<end>")
    texts = [in_template(tokenizer, prompt) for prompt in prompts]
    said = []
    for text in texts:
        ids = by_hand.answer(student, tokenizer(text, add_special_tokens=False)["input_ids"], LIMIT)
        said.append(ids[: ids.index(end) + 1] if end in ids else ids)
    assert any(end in ids for ids in said)
    found = LatentEvaluationModel(student, tokenizer, 3, chat=True)
    assert asked(found, texts) == [tokenizer.decode(ids, skip_special_tokens=True).split("\n\n")[0] for ids in said]
    assert found.generated_tokens == sum(map(len, said))


def test_the_saved_latent_student_knows_the_end(base, tmp_path):
    folder, _ = base
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    for prompt, ends in [("plain", 1), ("chat", [1, tokenizer.convert_tokens_to_ids("<end>")])]:
        tokenizer.reading = Reading(prompt)
        LatentStudent.create(model, 1, 0).save(tmp_path / prompt, tokenizer)
        stated = json.loads((tmp_path / prompt / "generation_config.json").read_text())
        assert stated["eos_token_id"] == ends
