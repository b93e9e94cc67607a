"""Tiny random models of many architectures, built from configs: no download, no weights on disk."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest


def one_thread() -> None:
    """For forks of a test's process, as torch's own data loaders do it: OpenMP's threads are not forked with it, and waiting for them
    would last for ever."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


os.register_at_fork(after_in_child=one_thread)


# What takes longest, beginning with the longest: workers begin with these, so that none is left alone with one at the end.
LONGEST = [
    "tests/slurm",
    "tests/training/test_resume.py",
    "tests/training/test_several_processes.py",
    "tests/workflow/test_reruns.py",
    "tests/plan/test_study.py",
    "tests/distill/test_options.py",
]


SHARED = ("tests/slurm", "tests/browser")  # folders whose files share a cluster, and a page in a browser


def scope_of(nodeid: str) -> str:
    """What one worker does as a whole, with fixtures that are made once: a file, or all files of a folder that share them."""
    folder, _, file = nodeid.partition("::")[0].rpartition("/")
    return folder if folder in SHARED else f"{folder}/{file}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {scope: place for place, scope in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(scope_of(item.nodeid), len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scopes(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    return Scopes(config, log)


def pytest_collection_finish() -> None:
    """Every training ends with a collection of garbage, which would look through all that was imported: half a second each time."""
    gc.collect()
    gc.freeze()


VOCABULARY = 64
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = COMMON | {"intermediate_size": 48, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1}
OPT = COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
# name -> (transformers config class, arguments)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama_mqa_wide": ("LlamaConfig", GROUPED | {"num_key_value_heads": 1, "head_dim": 16}),
    "llama_yarn": ("LlamaConfig", GROUPED | {"rope_parameters": YARN}),
    "mistral": ("MistralConfig", GROUPED | {"sliding_window": 4}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 16}),
    "gemma3": ("Gemma3TextConfig", GROUPED | {"head_dim": 16, "sliding_window": 4}),
    "phi3": ("Phi3Config", GROUPED),
    "glm4": ("Glm4Config", GROUPED | {"head_dim": 8}),
    "gpt_neox": ("GPTNeoXConfig", COMMON | {"intermediate_size": 48, "hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "gpt2": ("GPT2Config", GPT2 | {"eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "opt": ("OPTConfig", OPT),
}
BERT = {key: value for key, value in COMMON.items() if key not in ("bos_token_id", "eos_token_id")}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 12, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4}
# Encoders and encoder–decoders, same form
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", BERT | {"intermediate_size": 48, "hidden_dropout_prob": 0.0}),
    "t5": ("T5Config", T5 | {"d_ff": 48, "dropout_rate": 0.0, "pad_token_id": 0, "decoder_start_token_id": 0}),
}


@pytest.fixture
def build_encoder() -> Callable[..., Any]:
    """`build_encoder(name, seed=0, **overrides)` → an encoder or encoder–decoder without a head, in eval mode."""
    import torch
    import transformers

    def build(name: str, seed: int = 0, **overrides: Any) -> Any:
        class_name, arguments = ENCODERS[name]
        torch.manual_seed(seed)
        config = getattr(transformers, class_name)(**(arguments | overrides))
        return transformers.AutoModel.from_config(config).eval()

    return build


@pytest.fixture
def build_model() -> Callable[..., Any]:
    """`build_model(name, seed=0, **overrides)` → a causal language model with random weights, in eval mode."""
    import torch
    import transformers

    def build(name: str, seed: int = 0, **overrides: Any) -> Any:
        class_name, arguments = ARCHITECTURES[name]
        torch.manual_seed(seed)
        config = getattr(transformers, class_name)(**(arguments | overrides))
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return build
