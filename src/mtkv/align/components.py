"""Principal components of a teacher's KV: what a student-side map is compared with, in a fraction of the bytes (method.md §4).

For each student layer and kind (K, V) the teacher's channels, centred and divided by their own deviation, are projected on the `width`
directions in which they vary most, and brought back when they are read. Variance is not relevance: a study says how well the loss's
gradient survives, not this module.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtkv.align.closed_form_maps import KVMap, normalisation_scale

FILE = "components.safetensors"  # beside the shards of the tier


@dataclass(frozen=True)
class Components:
    """`basis`: orthonormal columns, those of the largest variance first; `mean` and `deviation`: of each teacher channel."""

    basis: Float[Tensor, "student_layers 2 teacher_width width"]
    mean: Float[Tensor, "student_layers 2 teacher_width"]
    deviation: Float[Tensor, "student_layers 2 teacher_width"]

    @classmethod
    def fit(cls, x: Float[Tensor, "tokens student_layers 2 teacher_width"], kv_map: KVMap, width: int) -> "Components":
        """From the teacher's KV at matched tokens; `kv_map` has its statistics. A `width` above the teacher's is cut to it."""
        deviation = normalisation_scale(kv_map.x_scale, kv_map.x_channel_std, "channel")
        unit = ((x.float() - kv_map.x_mean) / deviation).double()
        covariance = torch.einsum("nlki,nlkj->lkij", unit, unit) / len(unit)
        basis = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[..., :width].float()
        return cls(basis.contiguous(), kv_map.x_mean, deviation)

    def encode(self, x: Float[Tensor, "tokens student_layers 2 teacher_width"]) -> Tensor:
        """Coordinates `[tokens, student_layers, 2, width]`."""
        return torch.einsum("nlki,lkiw->nlkw", (x.float() - self.mean) / self.deviation, self.basis)

    def decode(self, coordinates: Float[Tensor, "tokens student_layers 2 width"]) -> Tensor:
        """The teacher's KV, as near as the components come: `[tokens, student_layers, 2, teacher_width]`."""
        unit = torch.einsum("nlkw,lkiw->nlki", coordinates.float(), self.basis)
        return unit * self.deviation + self.mean

    def save(self, folder: Path) -> None:
        """Write them into the store's folder, as safetensors."""
        save_file({"basis": self.basis, "mean": self.mean, "deviation": self.deviation}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "Components":
        """What `save` wrote."""
        return cls(**load_file(folder / FILE))
