"""The model of a run in lm-eval's interface: from the folder its training left, or the one the config names.

What runs it is transformers (`evaluation.backend: hf`, everywhere) or vLLM (`vllm`, an extra, on a GPU).
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.lm_eval_model import EvaluationModel, load_folder
from mtkv.latent.evaluation.lm_eval_model import LatentEvaluationModel
from mtkv.latent.model.student import LatentStudent
from mtkv.models.load import load_model, load_tokenizer, model_folder
from mtkv.models.paths import is_latent

if TYPE_CHECKING:
    from mtkv.config.evaluation import EvaluationConfig
    from mtkv.config.models import ModelConfig


Loader = Callable[[Path], tuple[PreTrainedModel | LatentStudent, PreTrainedTokenizerBase]]


def model_source(trained: Sequence[str], given: "ModelConfig | None") -> tuple[Path, Loader]:
    """Folder and loader of a run's model. `trained` holds the trained folder, or nothing where `given` is evaluated as it comes.

    The folder identifies the weights; the loader decides the number format.
    """
    if given is None:
        return Path(trained[0]), load_folder
    return model_folder(given), lambda _: (load_model(given), load_tokenizer(given))


def check_backend(config: "EvaluationConfig") -> None:
    """Raises ImportError, before anything is loaded, when the backend's package is not installed."""
    if config.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ImportError(
            "evaluation.backend: 'vllm' needs the package vllm, which is not installed; pip install 'mtkv[vllm]' on a machine with a "
            "GPU, or write backend: hf"
        )


def evaluation_model(
    folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig", chat: bool = False
) -> Any:
    """The model in lm-eval's interface, from its folder; `load` and `dtype` say in which number format (None: as saved),
    `chat` whether prompts come in the tokenizer's chat template."""
    return BACKENDS[config.backend](folder, load, dtype, config, chat)


def _hf(folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig", chat: bool) -> Any:
    model, tokenizer = load(folder)
    if not isinstance(model, LatentStudent):
        return EvaluationModel(model, tokenizer, config.batch_size, chat=chat)
    if not model.slots:
        return EvaluationModel(model.model, tokenizer, config.batch_size, chat=chat)
    return LatentEvaluationModel(model, tokenizer, config.batch_size, chat=chat)


def _vllm(folder: Path, load: Loader, dtype: str | None, config: "EvaluationConfig", chat: bool) -> Any:
    if is_latent(folder):
        raise ValueError(
            f"evaluation.backend: 'vllm' cannot run the latent student in {folder} (it reads embeddings between question and "
            "answer); write backend: hf"
        )
    from mtkv.evaluate.vllm_model import VllmModel  # imports vllm

    return VllmModel(folder, dtype, chat)


BACKENDS: dict[str, Callable[[Path, Loader, str | None, "EvaluationConfig", bool], Any]] = {"hf": _hf, "vllm": _vllm}
