"""Distillation of next-token distributions (Hinton et al. 2015, arXiv 1503.02531, §2), for models with one vocabulary."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.distill.ragged import full_precision
from mtkv.fuse.routers import build_router
from mtkv.kv.row_statistics import ROW_STATISTICS
from mtkv.models.cross_entropy import row_of_targets, target_logits
from mtkv.models.load import load_model, load_tokenizer

if TYPE_CHECKING:
    from mtkv.config.fusion import LogitConfig
    from mtkv.config.models import ModelConfig


def kd_loss(
    student_logits: Float[Tensor, "tokens student_vocabulary"],
    teacher_logits: Float[Tensor, "tokens teacher_vocabulary"],
    labels: Int[Tensor, " tokens"],
    alpha: float,
    temperature: float,
    vocabulary: int,
) -> Float[Tensor, ""]:
    """α·CE + (1 − α)·T²·KL(teacher ‖ student), both softened by T, in nats, mean over tokens, in float32.

    CE is over all the student's logits, KL over the first `vocabulary` of both, each renormalised there (see `shared_vocabulary`); the
    teacher gets no gradient. Logits are those that predict `labels` (`cross_entropy.target_logits`). No tokens: 0 with a gradient path.
    """
    if len(labels) == 0:
        return student_logits.sum()
    student, teacher = full_precision(student_logits), full_precision(teacher_logits.detach())
    log_student, log_teacher = ((x[:, :vocabulary] / temperature).log_softmax(-1) for x in (student, teacher))
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return alpha * F.cross_entropy(student, labels) + (1 - alpha) * temperature**2 * divergence


def shared_vocabulary(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_size: int,
    teacher_size: int,
) -> int:
    """How many leading logits of both models mean the same tokens: the tokenizers' ids, without the padding of either model.

    `student_size` and `teacher_size` are the widths of the logits. Raises ValueError when a token has different ids in the two tokenizers
    or is in one of them only.
    """
    student, teacher = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    different = sorted(student.items() ^ teacher.items(), key=lambda item: (item[1], item[0]))
    if different:
        token = different[0][0]
        raise ValueError(
            f"logit distillation needs one vocabulary, but the student's tokenizer ({_name(student_tokenizer)}) and the "
            f"teacher's ({_name(teacher_tokenizer)}) differ: token {token!r} {_id(student, token)} in the student's and "
            f"{_id(teacher, token)} in the teacher's. Alternatives: KV distillation (`kv`), which works across tokenizers, or SFT "
            "on text written by the teacher"
        )
    return min(max(student.values()) + 1, student_size, teacher_size)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _id(vocabulary: dict[str, int], token: str) -> str:
    return f"has id {vocabulary[token]}" if token in vocabulary else "is missing"


class LogitTeachers:
    """Frozen teachers whose next-token distributions, mixed row by row, the student learns; `vocabulary`: how many leading logits all
    share (`logit_kd`). With `apart` the loss is the KL's part alone, and α·CE is left to the caller, as a phase weighs them apart."""

    def __init__(
        self, config: "LogitConfig", models: Sequence[PreTrainedModel], vocabulary: int, apart: bool = False
    ) -> None:
        self.config, self.models, self.vocabulary, self.apart = config, list(models), vocabulary, apart
        self.router = build_router(config.fusion, len(self.models), layers=1)

    def loss(
        self, logits: Tensor, labels: Tensor, input_ids: Tensor, all_labels: Tensor, **context: Tensor
    ) -> Float[Tensor, ""]:
        """α·CE + (1 − α)·T²·KL on the batch's target tokens, or the second part; `context` is the router's (row_seed, task)."""
        with torch.no_grad():
            theirs = [target_logits(model, input_ids, all_labels)[0] for model in self.models]
            mixed = theirs[0] if len(theirs) == 1 else self._mixed(torch.stack(theirs, 1), labels, all_labels, context)
        alpha, temperature = self.config.alpha, self.config.temperature
        if self.apart:
            return (1 - alpha) * kd_loss(logits, mixed, labels, 0.0, temperature, self.vocabulary)
        return kd_loss(logits, mixed, labels, alpha, temperature, self.vocabulary)

    def _mixed(
        self,
        theirs: Float[Tensor, "targets teachers vocabulary"],
        labels: Int[Tensor, " targets"],
        all_labels: Int[Tensor, "batch time"],
        context: dict[str, Tensor],
    ) -> Float[Tensor, "targets vocabulary"]:
        """Logits whose softmax at the config's temperature is Σᵢ αᵢ·pᵢ, the mixture of the teachers' softened distributions."""
        row, batch = row_of_targets(all_labels), len(all_labels)
        count = torch.bincount(row, minlength=batch).clamp_min(1)
        own = {}
        for name in self.config.fusion.row_statistics:
            each = torch.stack([ROW_STATISTICS[name](logits.float(), labels) for logits in theirs.unbind(1)], 1)
            own[name] = each.new_zeros(batch, theirs.shape[1]).index_add_(0, row, each) / count[:, None]
        nothing = torch.zeros(batch, 0, device=theirs.device)  # a router by KV is refused
        weights = self.router.to(theirs.device)(nothing, nothing[:, None], **context | own)[row]
        soft = (theirs.float()[..., : self.vocabulary] / self.config.temperature).log_softmax(-1)
        return (soft + weights.log()[..., None]).logsumexp(1) * self.config.temperature


def open_logit_teachers(
    config: "LogitConfig",
    teachers: "Sequence[ModelConfig]",
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    apart: bool = False,
) -> LogitTeachers:
    """The frozen teachers, `apart` as in `LogitTeachers`; ValueError when the vocabulary of one is not the student's."""
    models = [load_model(teacher) for teacher in teachers]
    shared = [
        shared_vocabulary(
            tokenizer,
            load_tokenizer(teacher),
            *(each.get_output_embeddings().weight.shape[0] for each in (student, model)),
        )
        for teacher, model in zip(teachers, models, strict=True)
    ]
    return LogitTeachers(config, models, min(shared), apart)
