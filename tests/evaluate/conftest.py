"""A small data folder as the data stage leaves it, and saved models that can answer some of it."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

ENGLISH_WORDS = ["newton", "joule", "watt", "pascal", "two words"]
CHINESE_WORDS = ["北京", "上海市", "广州", "深圳", "🙂"]
GENERATION = ["pocket_gsm8k", "pocket_math500", "pocket_bbh"]
ENGLISH_CHOICE = ["pocket_gpqa", "pocket_truthfulqa"]
CHINESE_CHOICE = ["pocket_cmmlu", "pocket_ceval"]
ITEMS = 12


def generation_item(rng: random.Random) -> dict[str, Any]:
    a, b = rng.randint(1, 60), rng.randint(1, 60)
    filler = " please" * rng.randint(0, 3)  # prompts of different lengths, so that batches are padded
    return {"question": f"Tom has {a} apples and buys {b} more{filler}. How many?", "reasoning": f"{a}+{b}={a + b}"} | {
        "choices": [],
        "gold": -1,
        "answer": str(a + b),
    }


def choice_item(rng: random.Random, words: list[str], template: str) -> dict[str, Any]:
    choices = rng.sample(words, 4)
    gold = rng.randrange(4)
    question = template.format(number=rng.randint(0, 999), options=", ".join(choices))
    return {"question": question, "reasoning": "", "choices": choices, "gold": gold, "answer": choices[gold]}


def make_items(dataset: str, count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(f"{dataset}-{seed}")
    if dataset in GENERATION:
        items = [generation_item(rng) for _ in range(count)]
    elif dataset in ENGLISH_CHOICE:
        items = [choice_item(rng, ENGLISH_WORDS, "Unit {number}? Options: {options}") for _ in range(count)]
    else:
        items = [choice_item(rng, CHINESE_WORDS, "城市{number}？选项：{options}") for _ in range(count)]
    return [
        item | {"id": f"{dataset}-{index:06d}", "cluster": f"{dataset}-t{index % 3}"}
        for index, item in enumerate(items)
    ]


def write_data_folder(folder: Path, count: int) -> Path:
    """data/test/<dataset>.parquet with the columns of the data stage, and a train.parquet of other questions."""
    train = []
    for dataset in GENERATION + ENGLISH_CHOICE + CHINESE_CHOICE:
        test = pd.DataFrame(make_items(dataset, count, seed=0)).drop(columns="reasoning")
        (folder / "test").mkdir(parents=True, exist_ok=True)
        test.assign(question_hash=test["id"]).to_parquet(folder / "test" / f"{dataset}.parquet", index=False)
        for item in make_items(dataset, 8, seed=1):
            train += [
                {"dataset": dataset, "style": style} | texts for style, texts in written_out(dataset, item).items()
            ]
    pd.DataFrame(train).to_parquet(folder / "train.parquet", index=False)
    return folder


def written_out(dataset: str, item: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Prompt and target of an item in both styles."""
    question, reasoning, answer = item["question"], item["reasoning"], item["answer"]
    if dataset in CHINESE_CHOICE:
        cot = {"prompt": f"问题：{question}\n推理：", "target": f"{reasoning}\n答案：{answer}"}
        direct = {"prompt": f"问题：{question}\n答案：", "target": answer}
    else:
        cot = {"prompt": f"Question: {question}\nReason:", "target": f" {reasoning}\nAnswer: {answer}"}
        direct = {"prompt": f"Question: {question}\nAnswer:", "target": f" {answer}"}
    return {"cot": {"question": question} | cot, "direct": {"question": question} | direct}


def expected_prompt(dataset: str, question: str) -> str:
    style = "cot" if dataset in GENERATION else "direct"
    return written_out(dataset, {"question": question, "reasoning": "", "answer": ""})[style]["prompt"]


def evaluation_config(**changes: Any) -> Any:
    from mtkv.config.evaluation import EvaluationConfig

    return EvaluationConfig(**({"batch_size": 5, "max_new_tokens": 20} | changes))


def train_tokenizer(texts: list[str], merges_punctuation: bool = False) -> Any:
    """A byte-level BPE. `merges_punctuation`: words may begin with a punctuation mark, as in Qwen's tokenizers."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if merges_punctuation:
        pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
        words = [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), *words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def fit(model: Any, tokenizer: Any, texts: list[str], steps: int) -> None:
    """Make the model remember the texts, so that generation ends at eos and some answers are right."""
    import torch

    batch = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def known_rows(count: int) -> list[dict[str, str]]:
    """Prompt and target of the first test items of each generation dataset."""
    return [written_out(name, item)["cot"] for name in GENERATION for item in make_items(name, ITEMS, seed=0)[:count]]


@pytest.fixture(scope="session", autouse=True)
def results_without_environment() -> Iterator[None]:
    """lm-eval's results otherwise list the machine's packages and hardware, which takes seconds for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("data"), ITEMS)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved `llama` (RoPE, grouped queries) and `gpt2` (learned positions) that know half of the generation items.

    `merging` is an untrained one whose tokenizer merges the end of a Chinese prompt with the answer.
    """
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    items = {dataset: make_items(dataset, ITEMS, seed=0) for dataset in GENERATION + ENGLISH_CHOICE + CHINESE_CHOICE}
    everything = [
        texts["prompt"] + texts["target"]
        for dataset, item in itertools.chain.from_iterable(
            zip([name] * ITEMS, its, strict=True) for name, its in items.items()
        )
        for texts in written_out(dataset, item).values()
    ]
    known = known_rows(ITEMS // 2)
    tokenizer = train_tokenizer(everything)
    merging = train_tokenizer(everything, merges_punctuation=True)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    ids["initializer_range"] = 0.1  # with the usual 0.02 so small a model learns slowly
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=160,
        **ids,
    )
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=160,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **ids,
    )
    folders = {}
    for name, config in {"llama": llama, "gpt2": gpt2}.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        fit(model, tokenizer, [texts["prompt"] + texts["target"] for texts in known], steps=45)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    folders["merging"] = tmp_path_factory.mktemp("merging")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(llama).save_pretrained(folders["merging"])
    merging.save_pretrained(folders["merging"])
    return folders


@pytest.fixture(scope="session")
def study_tools() -> SimpleNamespace:
    """What tests of this folder share: the datasets' names, prompts written by hand and a config."""
    return SimpleNamespace(
        generation=GENERATION,
        choice=ENGLISH_CHOICE + CHINESE_CHOICE,
        datasets=GENERATION + ENGLISH_CHOICE + CHINESE_CHOICE,
        expected_prompt=expected_prompt,
        config=evaluation_config,
        known_rows=known_rows,
        train_tokenizer=train_tokenizer,
        fit=fit,
        items=ITEMS,
    )
