"""Make the three pocket models from nothing, as Hugging Face folders, on a CPU in half an hour.

Tokenizers are trained on generated rows, models by next-token loss on fresh questions of the training bins. The packaged
weights in `pocket/` come from this recipe; `recipe.json` records seed, sizes, versions, accuracies and file digests.

The tokenizers are two byte-level BPEs and one Unigram. Each splits numbers into single digits, gives back exactly the text it read and
keeps the end of a prompt a token boundary (log-likelihood scoring cuts there). None adds a beginning-of-text token: rows start with their
prompt, as in training.
"""

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from mtkv.models.paths import pocket_folder
from mtkv.models.pocket_training import Schedule, measure, train_model, training_texts
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path, read_json, write_json

END = "<|end|>"
PAD = "<|pad|>"
UNKNOWN = "<unk>"  # Unigram asks for one; the bytes stand in before it is used
BYTE_SCORE = -20.0  # far below every learned piece, so bytes serve only characters without a piece
DIGITS = pre_tokenizers.Digits(individual_digits=True)
SIGNS = pre_tokenizers.Split(Regex(r"[\p{P}\p{S}\n]"), behavior="isolated")
# Clean-up would eat the spaces before punctuation, and decoding could not give the text back.
NAMES: dict[str, Any] = {
    "eos_token": END,
    "pad_token": PAD,
    "clean_up_tokenization_spaces": False,
    "padding_side": "right",
}


def byte_level_bpe(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits words as GPT-2 does; 256 bytes, two special tokens and learned merges."""
    tokenizer = _learned_bpe(texts, vocabulary, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def byte_level_bpe_of_qwen(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in Qwen2's own tokenizer class, which is what transformers loads for every model of that family.

    That class lets a word begin with a sign. The merges are learned with signs apart, so no piece joins the end of a prompt to
    the first letter of an answer.
    """
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learned = json.loads(_learned_bpe(texts, vocabulary, SIGNS, words, byte_level).to_str())["model"]
    merges = [(left, right) for left, right in learned["merges"]]
    # Without an `unk_token` of its own the class would add a token that the model has no embedding for.
    return Qwen2Tokenizer(vocab=learned["vocab"], merges=merges, unk_token=END, **NAMES)  # type: ignore[arg-type]


def unigram(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Unigram over characters in the manner of SentencePiece: spaces are `▁`, unknown characters fall back to bytes.

    The pieces come from merges of characters and their scores are log frequencies: unlike the library's trainer of Unigram
    models, this gives the same pieces every time.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, SIGNS, pre_tokenizers.Metaspace(prepend_scheme="never")])
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 256 - 3, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    counts = Counter(piece for encoding in learner.encode_batch(list(texts)) for piece in encoding.tokens)
    total = counts.total()
    learned = [(piece, math.log((counts[piece] + 0.5) / total)) for piece in sorted(learner.get_vocab())]
    special = [(END, 0.0), (PAD, 0.0), (UNKNOWN, 0.0)]
    fallback = [(f"<0x{byte:02X}>", BYTE_SCORE) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([*special, *fallback, *learned], unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


TOKENIZERS: dict[str, Callable[[Sequence[str], int], PreTrainedTokenizerFast]] = {
    "byte_level_bpe": byte_level_bpe,
    "byte_level_bpe_of_qwen": byte_level_bpe_of_qwen,
    "unigram": unigram,
}


def _learned_bpe(texts: Sequence[str], vocabulary: int, *splits: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, *splits])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TOKENIZER_TEXTS = 6000
TEST_ITEMS = 200  # per dataset, those of the default study
RECIPE = "recipe.json"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class PocketModel:
    """One model to make: its tokenizer and vocabulary, its architecture, how long it is trained and on what."""

    tokenizer: str
    vocabulary: int
    architecture: Callable[..., PreTrainedConfig]
    sizes: dict[str, Any]
    schedule: Schedule
    start: str | None = None  # goes on from this model of the package; None: from random weights
    tasks: tuple[str, ...] = ()  # what it is trained on; none: all tasks


TEACHER_SCHEDULE = Schedule(steps=5000, batch_size=32, learning_rate=2e-3, warmup=100)
# Initial weights are near 1 / sqrt(width): with the usual 0.02 so narrow a model learns almost nothing in the first half of its steps.
MODELS: dict[str, PocketModel] = {
    # Few steps on purpose: it has learned the format and little else, which leaves room for a study's training to improve it.
    "student": PocketModel(
        "byte_level_bpe",
        768,
        LlamaConfig,
        {
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "initializer_range": 0.08,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "tie_word_embeddings": True,
        },
        Schedule(steps=200, batch_size=64, learning_rate=4e-3, warmup=20),
    ),
    "qwen2": PocketModel(
        "byte_level_bpe_of_qwen",
        1024,
        Qwen2Config,
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "initializer_range": 0.06,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "tie_word_embeddings": True,
        },
        TEACHER_SCHEDULE,
    ),
    "gpt2": PocketModel(
        "unigram",
        896,
        GPT2Config,
        {
            "n_embd": 144,
            "n_layer": 4,
            "n_head": 6,
            "initializer_range": 0.06,
            "n_positions": 192,
            "activation_function": "gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        TEACHER_SCHEDULE,
    ),
}

# The student, tuned further on some tasks each: complementary teachers of its own origin, whose KV is in its own basis.
EXPERT_SCHEDULE = Schedule(steps=2000, batch_size=32, learning_rate=2e-3, warmup=100)
MODELS["expert_reasoning"] = replace(
    MODELS["student"],
    schedule=EXPERT_SCHEDULE,
    start="student",
    tasks=("pocket_gsm8k", "pocket_math500", "pocket_bbh"),
)
MODELS["expert_knowledge"] = replace(
    MODELS["student"],
    schedule=EXPERT_SCHEDULE,
    start="student",
    tasks=("pocket_gpqa", "pocket_truthfulqa", "pocket_cmmlu", "pocket_ceval"),
)


def make_pocket_models(
    output: Path,
    seed: int = 0,
    names: Sequence[str] | None = None,
    steps: int | None = None,
    test_items: int = TEST_ITEMS,
) -> dict[str, Any]:
    """Make the models `names` (all by default) under `output`, one folder each, and record them in `recipe.json`.

    `steps` replaces every model's own number of steps and `test_items` the questions measured per dataset, for a short trial of the
    whole recipe. Earlier entries of models that are not made again stay in the record, which is returned.
    """
    torch.set_num_threads(1)
    path = Path(output) / RECIPE
    for name in names or MODELS:
        pocket = MODELS[name]
        if steps is not None:
            pocket = replace(pocket, schedule=replace(pocket.schedule, steps=steps))
        made = make_model(pocket, seed, Path(output) / name, test_items)
        recorded = read_json(path)["models"] if path.exists() else {}
        versions = {package: version(package) for package in PACKAGES}
        environment = {"python": platform.python_version(), "packages": versions}
        write_json(path, {"seed": seed, **environment, "models": dict(sorted((recorded | {name: made}).items()))})
    return read_json(path)


def collect_recipes(records: Sequence[Path], output: Path) -> None:
    """Join the records of models that were made separately. Raises ValueError when they differ in seed or environment."""
    parts = [read_json(path) for path in records]
    settings = [{key: value for key, value in part.items() if key != "models"} for part in parts]
    if any(other != settings[0] for other in settings):
        raise ValueError(f"made with different seeds or packages: {settings}")
    models = {name: made for part in parts for name, made in part["models"].items()}
    write_json(output, settings[0] | {"models": dict(sorted(models.items()))})


def make_model(pocket: PocketModel, seed: int, folder: Path, test_items: int = TEST_ITEMS) -> dict[str, Any]:
    """Make one model in `folder`; returns its entry of the record. A model that goes on from another takes the one in the package."""
    started = time.monotonic()
    tokenizer = make_tokenizer(pocket, seed)
    torch.manual_seed(seed)
    model = untrained_model(pocket, tokenizer)
    if pocket.start:
        model = AutoModelForCausalLM.from_pretrained(pocket_folder(pocket.start), dtype=torch.float32)
    losses = train_model(model, tokenizer, pocket.schedule, seed, names=pocket.tasks)
    save_model(model, tokenizer, folder)
    seconds = time.monotonic() - started
    # Measured on what was saved: half precision may have changed the weights.
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    accuracy = measure(saved, tokenizer, test_items)
    print(f"{folder.name}: {accuracy}", flush=True)
    return {
        "tokenizer": pocket.tokenizer,
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "schedule": asdict(pocket.schedule),
        "wall_seconds": round(seconds, 1),
        "losses": [round(loss, 4) for loss in losses],
        "accuracy": {dataset: round(value, 4) for dataset, value in accuracy.items()},
        "sha256": file_digests(folder),
    }


def make_tokenizer(pocket: PocketModel, seed: int) -> PreTrainedTokenizerFast:
    """The model's tokenizer, trained on rows of the training bins."""
    random = Random(f"pocket tokenizer {pocket.tokenizer} {seed}")
    texts = [prompt + target for prompt, target in islice(training_texts(random), TOKENIZER_TEXTS)]
    return TOKENIZERS[pocket.tokenizer](texts, pocket.vocabulary)


def untrained_model(pocket: PocketModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the right architecture with random weights."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = pocket.architecture(vocab_size=len(tokenizer), **pocket.sizes, **ids)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**ids)
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder in half precision, atomically."""
    with atomic_path(folder) as temporary:
        model.to(torch.float16).save_pretrained(temporary)  # type: ignore[arg-type]
        tokenizer.save_pretrained(temporary)


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}
