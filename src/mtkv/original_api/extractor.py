"""The extractor of the original design: texts in, keys before RoPE and values of every layer out.

Studies use `mtkv.kv.extract`, which writes the sharded store; this is the same capture for a notebook or a script.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from mtkv.kv.capture import KVCapture, check_keys, read
from mtkv.models.integrity import check_loaded
from mtkv.models.load import read_tokenizer
from mtkv.models.rope_scaling import context_length
from mtkv.provenance.files import atomic_path


@dataclass(frozen=True)
class TextKV:
    """KV of one text, without padding, on the CPU.

    `input_ids [time]`: the teacher's own tokens, its special tokens among them. `keys` (before RoPE) and `values`: one tensor
    `[kv_heads, time, head_dim]` per layer.
    """

    input_ids: Int[Tensor, " time"]
    keys: list[Float[Tensor, "kv_heads time head_dim"]]
    values: list[Float[Tensor, "kv_heads time head_dim"]]


class TeacherKVExtractor:
    """Reads texts with one teacher: `name` is a hub id or a folder, or `model` and `tokenizer` are given loaded.

    Of an encoder–decoder the encoder is read. The model is put in eval mode, a model loaded by name on the GPU when there is one.
    """

    def __init__(
        self,
        name: str | Path | None = None,
        batch_size: int = 8,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        if (name is None) == (model is None) or (model is None) != (tokenizer is None):
            raise ValueError("give either a name or folder, or both model= and tokenizer=")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: at least 1")
        self.batch_size = batch_size
        self.tokenizer: PreTrainedTokenizerBase = tokenizer or read_tokenizer(Path(str(name)))
        self.model: PreTrainedModel = (model or _load(str(name))).eval()

    @torch.no_grad()
    def extract_kvs(self, texts: Sequence[str]) -> list[TextKV]:
        """One `TextKV` per text, in order. Raises ValueError for a text without tokens or longer than the model's context."""
        if isinstance(texts, str):
            raise TypeError("extract_kvs takes a list of texts, not one string")
        rows = [torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long) for text in texts]
        limit = context_length(self.model.config)
        for index, row in enumerate(rows):
            if not len(row) or (limit is not None and len(row) > limit):
                raise ValueError(f"text {index} has {len(row)} tokens; the model reads 1 to {limit or 'any number'}")
        check_keys(self.model)
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        return [kv for batch in batches for kv in self._read(batch)]

    def save_kvs(self, kvs: Sequence[TextKV], path: str | Path) -> None:
        """Write to one safetensors file; see `save_kvs`."""
        save_kvs(kvs, path)

    def _read(self, rows: list[Int[Tensor, " time"]]) -> list[TextKV]:
        pad = self.tokenizer.pad_token_id or 0
        input_ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad).to(self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        mask = (torch.arange(input_ids.shape[1], device=self.model.device) < lengths[:, None]).long()
        with KVCapture(self.model) as capture:
            read(self.model, input_ids=input_ids, attention_mask=mask)
        keys, values = ([layer.cpu() for layer in layers] for layers in (capture.keys(), capture.values()))
        return [
            TextKV(row, *([layer[index, :, : len(row)].clone() for layer in layers] for layers in (keys, values)))
            for index, row in enumerate(rows)
        ]


def save_kvs(kvs: Sequence[TextKV], path: str | Path) -> None:
    """Write atomically to one safetensors file: `<text>.input_ids`, `<text>.keys.<layer>`, `<text>.values.<layer>`."""
    tensors: dict[str, Tensor] = {}
    for index, kv in enumerate(kvs):
        tensors[f"{index}.input_ids"] = kv.input_ids
        for kind in ("keys", "values"):
            tensors |= {f"{index}.{kind}.{i}": layer.contiguous() for i, layer in enumerate(getattr(kv, kind))}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_kvs(path: str | Path) -> list[TextKV]:
    """What `save_kvs` wrote."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        texts = sum(name.endswith(".input_ids") for name in names)
        layers = sum(name.startswith("0.keys.") for name in names)
        return [
            TextKV(
                file.get_tensor(f"{index}.input_ids"),
                [file.get_tensor(f"{index}.keys.{layer}") for layer in range(layers)],
                [file.get_tensor(f"{index}.values.{layer}") for layer in range(layers)],
            )
            for index in range(texts)
        ]


def _load(name: str) -> PreTrainedModel:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, info = AutoModel.from_pretrained(name, output_loading_info=True)
    check_loaded(name, model, info)
    loaded: PreTrainedModel = model.to(torch.device(device))
    return loaded
