"""What runs the model: transformers (`hf`, everywhere) or vLLM (`vllm`, an extra, on a GPU)."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.model import EvaluationModel

if TYPE_CHECKING:
    from mtkv.config.evaluation import EvaluationConfig

Loader = Callable[[Path], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def check_backend(config: "EvaluationConfig") -> None:
    """Raises ImportError, before anything is loaded, when the backend's package is not installed."""
    if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "evaluation.backend: 'vllm' needs the package vllm, which is not installed; pip install 'mtkv[vllm]' on a machine with a "
            "GPU, or write backend: hf"
        )


def evaluation_model(folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig") -> Any:
    """The model in lm-eval's interface, from its folder; `load` and `dtype` say in which number format (None: as saved)."""
    return BACKENDS[config.backend](folder, load, dtype, config)


def _hf(folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig") -> Any:
    return EvaluationModel(*load(folder), config.batch_size)


def _vllm(folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig") -> Any:
    from mtkv.evaluate.vllm_model import VllmModel  # imports vllm

    return VllmModel(folder, dtype)


BACKENDS: dict[str, Callable[[Path, Loader, str | None, "EvaluationConfig"], Any]] = {"hf": _hf, "vllm": _vllm}
