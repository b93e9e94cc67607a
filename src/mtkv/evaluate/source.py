"""Where a run's model comes from: the folder its training left, or the model the config names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.evaluate.model import load_folder
from mtkv.models.latent import LatentStudent
from mtkv.models.load import load_model, load_tokenizer, model_folder

if TYPE_CHECKING:
    from mtkv.config.models import ModelConfig

Loader = Callable[[Path], tuple[PreTrainedModel | LatentStudent, PreTrainedTokenizerBase]]


def model_source(trained: Sequence[str], given: "ModelConfig | None") -> tuple[Path, Loader]:
    """Folder and loader of a run's model. `trained` holds the trained folder, or nothing where `given` is evaluated as it comes.

    The folder identifies the weights; the loader decides the number format.
    """
    if given is None:
        return Path(trained[0]), load_folder
    return model_folder(given), lambda _: (load_model(given), load_tokenizer(given))
