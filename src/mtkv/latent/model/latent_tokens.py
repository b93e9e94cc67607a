"""The small trained part of a latent student: first inputs of M latent tokens, two markers, and the projection of hidden states.

Projection: Linear → GELU → Linear → LayerNorm at the model's width, as in CODI (arXiv 2502.21074) and PCCoT (arXiv 2506.18582). There
the norm begins at scale 1, many times a word's embedding (0.02 a channel in Llama): a latent would drown what the first layers add to
it. Here the norm begins with the mean and standard deviation of each channel of the embedding table, so that the first latents are as
large as words, in a model of any width. Everything is kept in float32, like low-rank adapters, and enters the model in the model's
own format.

On disk a latent student is an ordinary model folder plus `latent.safetensors` with the tensors of `LatentTokens` in float32; its metadata
hold the format, M, T and which parts there are, in one entry: safetensors writes several in random order, and the same latents would not
give the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.models.integrity import causal_class, load_checked
from mtkv.models.paths import LATENT_FILE
from mtkv.models.tokenization import end_answers, frame_of

TABLE_ROWS = 4096  # embeddings that the mean and the deviation are taken of, evenly spread over the vocabulary


class LatentTokens(nn.Module):
    """M latents refined T times. `latents [M, hidden]`; `begin` and `end [hidden]` or None; `projection` or None (hidden states are
    then inputs as they are, as in Coconut, arXiv 2412.06769). Without latents there are no markers, without iterations no projection.
    """

    def __init__(self, width: int, tokens: int, iterations: int, projection: bool = True, markers: bool = True) -> None:
        """Raises ValueError for a negative number of tokens or iterations."""
        super().__init__()
        for name, value in {"tokens": tokens, "iterations": iterations}.items():
            if value < 0:
                raise ValueError(f"latent.{name}: {value} is negative; 0 turns them off")
        self.width, self.tokens, self.iterations = width, tokens, iterations if tokens else 0
        self.markers = bool(markers and tokens)
        self.latents = nn.Parameter(torch.zeros(tokens, width))
        self.begin = nn.Parameter(torch.zeros(width)) if self.markers else None
        self.end = nn.Parameter(torch.zeros(width)) if self.markers else None
        self.projection = _projection(width) if projection and self.iterations else None

    @property
    def slots(self) -> int:
        """Positions that a row gives up: M, and two for the markers."""
        return self.before + self.tokens + int(self.markers)

    @property
    def before(self) -> int:
        """Positions between question and first latent: the begin marker, or nothing."""
        return int(self.markers)

    def settings(self) -> dict[str, int | bool]:
        """What the module was made with, by the names of its arguments."""
        return {
            "width": self.width,
            "tokens": self.tokens,
            "iterations": self.iterations,
            "projection": self.projection is not None,
            "markers": self.markers,
        }

    @torch.no_grad()
    def initialise(self, mean: Float[Tensor, " hidden"], std: Float[Tensor, " hidden"]) -> None:
        """Draw latents and markers like embeddings of that mean and deviation; draws on the CPU's global generator."""
        for parameter in (self.latents, self.begin, self.end):
            if parameter is not None:
                parameter.copy_(mean + std * torch.randn(parameter.shape))
        if self.projection is not None:
            norm: Any = self.projection[-1]
            norm.weight.copy_(std)
            norm.bias.copy_(mean)

    def slot_inputs(self, dtype: torch.dtype) -> Float[Tensor, "slots hidden"]:
        """First inputs of all positions: begin, latents, end."""
        parts: list[Tensor] = [self.latents]
        if self.begin is not None and self.end is not None:
            parts = [self.begin[None], self.latents, self.end[None]]
        return torch.cat(parts).to(dtype)

    def next_inputs(self, before: Float[Tensor, "batch M hidden"]) -> Float[Tensor, "batch M hidden"]:
        """New inputs of the latents from the last hidden states at the positions before them."""
        if self.projection is None:
            return before
        projected: Tensor = self.projection(before.to(self.latents.dtype))
        return projected.to(before.dtype)


def _projection(width: int) -> nn.Sequential:
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    for layer in (first, second):
        nn.init.zeros_(layer.bias)  # what all positions have in common would only make them more alike
    return nn.Sequential(first, nn.GELU(), second, nn.LayerNorm(width))


@torch.no_grad()
def table_statistics(model: PreTrainedModel) -> tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"]]:
    """Mean and standard deviation of each channel of the embeddings as they enter the model (Gemma scales its own), on the CPU."""
    table: Any = model.get_input_embeddings()
    count = int(table.num_embeddings)
    ids = torch.linspace(0, count - 1, min(count, TABLE_ROWS)).long()
    rows = table(ids.to(table.weight.device)).float().cpu()
    return rows.mean(0), rows.std(0)


def embedding_width(model: PreTrainedModel) -> int:
    """Width of what enters the model."""
    table: Any = model.get_input_embeddings()
    return int(table.embedding_dim)


FORMAT = 2


def save_latent_folder(
    folder: Path, model: PreTrainedModel, latent: LatentTokens, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write model, tokenizer and latents into `folder`; the generation config knows the token that ends an answer."""
    end_answers(model, frame_of(tokenizer).end_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in latent.state_dict().items()}
    settings = {"format": FORMAT} | {name: int(value) for name, value in latent.settings().items()}
    save_file(tensors, Path(folder) / LATENT_FILE, metadata={"latent": json.dumps(settings)})


def load_latent_folder(folder: Path, **model_options: Any) -> tuple[PreTrainedModel, LatentTokens]:
    """Model and latents of a folder. Raises FileNotFoundError and ValueError as `load_latents` does,
    ValueError as `load_checked`."""
    latent = load_latents(folder)  # first: milliseconds, and its errors say more
    options = {"dtype": "auto", "local_files_only": True} | model_options
    return load_checked(causal_class(AutoConfig.from_pretrained(folder)), folder, **options), latent


def load_latents(folder: Path) -> LatentTokens:
    """The latents of a folder. Raises FileNotFoundError where there are none, ValueError naming what is wrong with the file."""
    path = Path(folder) / LATENT_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {LATENT_FILE}, so this is no latent student; load it as a plain model")
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {}).get("latent", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a sound safetensors file ({error}); train or copy it again") from None
    if settings.get("format") != FORMAT:
        raise ValueError(f"{path}: format {settings.get('format')!r}, this version reads {FORMAT!r}; train it again")
    latent = LatentTokens(**_checked(path, settings))
    wanted = {name: tuple(tensor.shape) for name, tensor in latent.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{path}: {name} has shape {found.get(name, 'none: it is missing')}, its metadata ask for "
            f"{wanted.get(name, 'no such tensor')}; train or copy it again"
        )
    latent.load_state_dict(tensors)
    return latent


def _checked(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    numbers, switches = ("width", "tokens", "iterations"), ("projection", "markers")
    if absent := [name for name in numbers + switches if not isinstance(settings.get(name), int)]:
        raise ValueError(f"{path}: its metadata do not say {', '.join(absent)}; train or copy it again")
    return {name: settings[name] for name in numbers} | {name: bool(settings[name]) for name in switches}
