"""The average of several models' weights, as a plain Hugging Face folder made on first use ("model soup", arXiv 2203.05482).

Models of one architecture that were tuned from one start can be merged: the baseline that fusing their KV has to face.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtkv.models.paths import card_path, content_digest, models_folder, read_card
from mtkv.provenance.files import atomic_path, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtkv.config.models import ModelConfig


def merged_folder(config: "ModelConfig") -> "Path":
    """Folder of the average of `config.merge`, in the config's dtype, with the first model's tokenizer; made now where it is not there.

    Raises ValueError for models whose weights differ in name or shape.
    """
    from mtkv.models.load import load_model, read_tokenizer
    from mtkv.models.load import model_folder as folder_of

    digest = content_digest(config)
    folder = models_folder() / f"merged-{digest[:16]}-{config.dtype}"
    if read_card(folder) is None:
        models = [load_model(each) for each in config.merge]
        average = average_weights([model.state_dict() for model in models], [each.name for each in config.merge])
        models[0].load_state_dict(average)
        with atomic_path(folder, sum(value.numel() * value.element_size() for value in average.values())) as temporary:
            models[0].to(getattr(torch, config.dtype)).save_pretrained(temporary)
            read_tokenizer(folder_of(config.merge[0])).save_pretrained(temporary)
        names = [each.name for each in config.merge]
        write_json(card_path(folder), {"source": "merged", "of": names, "digest": digest, "dtype": config.dtype})
    return folder


def average_weights(states: "Sequence[dict[str, Tensor]]", names: "Sequence[str]") -> dict[str, Tensor]:
    """The mean of each tensor over `states`, taken in float64. Raises ValueError naming the first tensor that one of them lacks or has in
    another shape."""
    for state, name in zip(states[1:], names[1:], strict=True):
        for key in sorted(states[0].keys() | state.keys()):
            shapes = [list(each[key].shape) if key in each else None for each in (states[0], state)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"cannot merge {names[0]!r} and {name!r}: {key} is {shapes[0]} in the one and {shapes[1]} in the other; "
                    "merge takes models of one architecture"
                )
    return {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }
