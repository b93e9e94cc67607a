"""The module that is trained: student, maps and router, with one forward that returns every loss term.

L = δ·CE + λ_K·d(K) + λ_V·d(V) + β·(1 − centred cos) + γ·KL(attention) ± γ_H·H(router) (method.md §8), or with a teacher of the student's
vocabulary α·CE + (1 − α)·T²·KL in place of CE. Saving `student` alone gives a plain Hugging Face model.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.distill.kv_objective import KVObjective
from mtkv.distill.logit_kd import LogitTeachers
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv_at
from mtkv.kv.patch import KVInjection, scattered
from mtkv.models.cross_entropy import target_logits, target_loss
from mtkv.models.tokenization import end_answers, frame_of
from mtkv.training.data_parallel import LossTerm, summed

CE, KD = LossTerm("ce", "targets"), LossTerm("kd", "targets", factor="logits")
ROUTE_CE = LossTerm("route_ce", "targets", factor="router")


class Distiller(nn.Module):
    """Student plus, for KV arms, its supervision. `forward` returns {"loss", "ce", "part.*", …}: `loss` is the sum of the parts."""

    def __init__(
        self,
        student: PreTrainedModel,
        ce_weight: float,
        supervision: KVObjective | None = None,
        logits: LogitTeachers | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.ce_weight = ce_weight
        self.supervision = supervision
        self.logits = logits
        # Modules that FSDP wraps one by one.
        self._no_split_modules = [
            *(getattr(student, "_no_split_modules", None) or []),
            *([] if supervision is None else ["KVObjective"]),
        ]

    @property
    def pools(self) -> bool:
        """Whether a loss term divides by a statistic of the step's rows (see `mtkv.training.step_statistics`)."""
        return self.supervision is not None and self.supervision.pools

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write student and tokenizer into a folder; the student's generation config knows the token that ends an answer."""
        end_answers(self.student, frame_of(tokenizer).end_id)
        self.student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Int[Tensor, "batch time"],
        labels: Int[Tensor, "batch time"],
        kv_sample: Int[Tensor, " tokens"] | None = None,
        kv_position: Int[Tensor, " tokens"] | None = None,
        teacher_kv: list[Tensor] | None = None,
        **context: Tensor,
    ) -> dict[str, Tensor]:
        """All loss terms of one batch of `DistillationRows`; all but `loss` is for the log and the gradient shares.

        `kv_sample` and `kv_position`: row and position of each supervised token; `teacher_kv`: each teacher's KV there. Rows are padded on
        the right. `attention_mask` only counts tokens: causal attention does not need it.
        """
        if self.supervision is None or kv_sample is None or kv_position is None or teacher_kv is None:
            return summed(self._text_terms(input_ids, labels, **context))
        wants_queries = self.supervision.config.loss.gamma > 0
        with KVCapture(self.student, queries=wants_queries) as capture:
            terms = self._text_terms(input_ids, labels, **context)
            layers = range(self.supervision.student_layers)
            student_kv = packed_kv_at(capture, layers, kv_sample, kv_position)
            queries = None
            if wants_queries:
                queries = torch.stack(capture.queries(), 1)[kv_sample, :, :, kv_position]
        terms |= self.supervision(
            student_kv,
            kv_sample,
            teacher_kv,
            len(input_ids),
            queries,
            capture.scaling(0) if wants_queries else None,
            **context,
        )
        fused = terms.pop("fused")
        if self.supervision.config.fusion.objective == "injected_ce":
            terms |= ROUTE_CE(self._injected_ce(input_ids, labels, fused, kv_sample, kv_position), 1.0)
        return summed(terms)

    def _text_terms(self, input_ids: Tensor, labels: Tensor, **context: Tensor) -> dict[str, Tensor]:
        logits, following = target_logits(self.student, input_ids, labels)
        ce = F.cross_entropy(logits.float(), following) if len(following) else logits.sum()
        if self.logits is None:
            return CE(ce, self.ce_weight)
        kd = self.logits.loss(logits, following, input_ids, labels, **context)
        own = CE(ce, self.ce_weight * self.logits.config.alpha) if self.logits.apart else {"ce": ce}
        return own | KD(kd, self.ce_weight)

    def _injected_ce(
        self,
        input_ids: Tensor,
        labels: Tensor,
        fused: Float[Tensor, "tokens student_layers 2 width"],
        sample: Int[Tensor, " tokens"],
        position: Int[Tensor, " tokens"],
    ) -> Float[Tensor, ""]:
        """CE of the student as it is when it attends to the fused KV: a gradient for the router, none for the student."""
        frozen = {name: parameter.detach() for name, parameter in self.student.named_parameters()}
        with KVInjection(self.student, *scattered(fused, sample, position, input_ids)):
            return torch.func.functional_call(
                _TargetLoss(self.student), {f"model.{n}": p for n, p in frozen.items()}, (input_ids, labels)
            )


class _TargetLoss(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        return target_loss(self.model, input_ids, labels)
