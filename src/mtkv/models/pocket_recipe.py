"""Make the three pocket models from nothing, as Hugging Face folders, on a CPU in half an hour.

Tokenizers are trained on generated rows, models by next-token loss on fresh questions of the training bins. The packaged
weights in `pocket/` come from this recipe; `recipe.json` records seed, sizes, versions, accuracies and file digests.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from mtkv.models.content_digest import pocket_folder
from mtkv.models.pocket_measure import measure
from mtkv.models.pocket_tokenizers import TOKENIZERS
from mtkv.models.pocket_training import Schedule, train_model, training_texts
from mtkv.provenance.digest import file_digest
from mtkv.provenance.files import atomic_path, read_json, write_json

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
