"""Distillation of next-token distributions (Hinton et al. 2015, arXiv 1503.02531, §2), for models with one vocabulary."""

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mtkv.distill.ragged import full_precision


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
