"""The module that is trained: student, frozen maps and router, with one forward that returns every loss term.

L = δ·CE + λ_K·d(K) + λ_V·d(V) + β·(1 − centred cos) ± γ·H(router) (method.md §8). Saving `student` alone gives a plain
Hugging Face model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtkv.align.maps import KVMap
from mtkv.distill.crossentropy import target_loss
from mtkv.distill.losses import kv_terms
from mtkv.fuse.entropy import entropy, entropy_loss
from mtkv.fuse.routers import build_router, fuse, pool
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv
from mtkv.kv.store import KEY, VALUE

if TYPE_CHECKING:
    from mtkv.config.kv import KVConfig


class TeacherSupervision(nn.Module):
    """The KV part of an arm: teachers' KV → maps → router → fused target → loss terms.

    `maps`: one per teacher, all fitted against the same raw student. Nothing here is trained but the router.
    """

    def __init__(self, config: "KVConfig", maps: Sequence[KVMap]) -> None:
        super().__init__()
        self.config = config
        self.maps = list(maps)
        self.student_layers, _, self.width = maps[0].y_mean.shape
        self.router = build_router(config.fusion, len(maps), self.student_layers * 2 * self.width)

    def forward(
        self,
        student_kv: Float[Tensor, "tokens student_layers 2 width"],
        sample: Int[Tensor, " tokens"],
        teacher_kv: Sequence[Float[Tensor, "tokens student_layers 2 teacher_width"]],
        batch: int,
    ) -> dict[str, Tensor]:
        """Terms `key`, `value`, `cosine`, `entropy` (scalars), `kv` their weighted sum, and `weights [batch, teachers]`."""
        maps = [kv_map.to(student_kv.device) for kv_map in self.maps]
        scales = torch.stack([kv_map.scale for kv_map in maps])
        kvs = torch.stack(
            [self._target(kv_map, kv) * kv_map.scale[..., None] for kv_map, kv in zip(maps, teacher_kv, strict=True)], 1
        )
        centred = student_kv.float() - torch.stack([kv_map.y_mean for kv_map in maps]).mean(0)
        unit = scales.mean(0)[..., None]
        prototypes = torch.stack([pool(kv / unit, sample, batch) for kv in kvs.unbind(1)], dim=1)
        weights = self.router(pool(centred.detach() / unit, sample, batch), prototypes)
        # The fused target's scale: each teacher's own, mixed with the same weights as its KV.
        scale = fuse(scales.expand(len(kvs), -1, -1, -1), weights.detach(), sample)[..., None]
        fused = fuse(kvs, weights, sample)
        kinds = [
            kind
            for kind, weight in ((KEY, self.config.loss.lambda_k), (VALUE, self.config.loss.lambda_v))
            if weight > 0
        ]
        loss, regulariser = self.config.loss, self.config.fusion.entropy
        terms = kv_terms(centred / scale, fused / scale, loss.distance, kinds)
        total = loss.lambda_k * terms["key"] + loss.lambda_v * terms["value"] + loss.beta * terms["cosine"]
        if any(parameter.requires_grad for parameter in self.router.parameters()):
            total = total + entropy_loss(weights, regulariser.target, regulariser.strength)
        total = total * WEIGHT_OF_CONTROL.get(self.config.control, 1.0)
        return terms | {"entropy": entropy(weights), "kv": total, "weights": weights.detach()}

    def _target(self, kv_map: KVMap, kv: Tensor) -> Tensor:
        if self.config.control == "gaussian":
            return torch.randn(len(kv), *kv_map.channel_std.shape, device=kv.device) * kv_map.channel_std
        return kv_map.target(kv)


# Control arms that change how much the KV term counts (method.md §9).
WEIGHT_OF_CONTROL = {"zero_weight": 0.0}


class Distiller(nn.Module):
    """Student plus, for KV arms, its supervision. `forward` returns {"loss", "ce", …}."""

    def __init__(
        self, student: PreTrainedModel, ce_weight: float, supervision: TeacherSupervision | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.ce_weight = ce_weight
        self.supervision = supervision

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Int[Tensor, "batch time"],
        labels: Int[Tensor, "batch time"],
        kv_sample: Int[Tensor, " tokens"] | None = None,
        kv_position: Int[Tensor, " tokens"] | None = None,
        teacher_kv: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """All loss terms of one batch; `loss` is their weighted sum, the rest is for the log and the gradient shares.

        Rows are padded on the right. `attention_mask` only counts tokens: causal attention does not need it.
        """
        if self.supervision is None or kv_sample is None or kv_position is None or teacher_kv is None:
            ce = target_loss(self.student, input_ids, labels)
            return {"loss": self.ce_weight * ce, "ce": ce}
        with KVCapture(self.student) as capture:
            ce = target_loss(self.student, input_ids, labels)
            student_kv = packed_kv(capture, range(self.supervision.student_layers))[kv_sample, kv_position]
        terms = self.supervision(student_kv, kv_sample, teacher_kv, len(input_ids))
        return {"loss": self.ce_weight * ce + terms["kv"], "ce": ce} | terms
