"""Training of an injection arm: the module that the answers' cross-entropy trains."""

from pathlib import Path

from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.distill.distiller import CE
from mtkv.distill.kv_objective import ENTROPY
from mtkv.fuse.routers import entropy, entropy_loss
from mtkv.inject.fuser import KVFuser
from mtkv.inject.patched_cache import TeacherTokens, read_answers
from mtkv.models.load import is_encoder
from mtkv.models.tokenization import end_answers, frame_of
from mtkv.training.data_parallel import PART, summed


class InjectionDistiller(nn.Module):
    """Student and fuser; interface and returned values as `Distiller`. A student without trained parameters stays in eval mode."""

    supervision = None  # no KV loss
    pools = False

    def __init__(self, student: PreTrainedModel, fuser: KVFuser, ce_weight: float) -> None:
        """Raises ValueError for a teacher that reads in both directions."""
        super().__init__()
        both = [
            name for name, teacher in zip(fuser.config.teachers, fuser.teachers, strict=True) if is_encoder(teacher)
        ]
        if both:
            raise ValueError(
                f"teacher {both[0]!r} is an encoder: its KV of a prompt have read the answer behind it, which no question has; "
                "with kv.transfer inject teachers are causal language models"
            )
        self.student, self.fuser, self.ce_weight = student, fuser.to(student.device), ce_weight

    def train(self, mode: bool = True) -> "InjectionDistiller":
        """As `nn.Module.train`, without dropout in a frozen student."""
        super().train(mode)
        self.student.train(mode and any(parameter.requires_grad for parameter in self.student.parameters()))
        return self

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the student as an ordinary model, its tokenizer and the fuser's files into a folder."""
        end_answers(self.student, frame_of(tokenizer).end_id)
        self.student.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.fuser.save(folder)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Int[Tensor, "batch time"],
        labels: Int[Tensor, "batch time"],
        kv_sample: Int[Tensor, " tokens"],
        kv_position: Int[Tensor, " tokens"],
        teacher_kv: list[Tensor],
        **context: Tensor,
    ) -> dict[str, Tensor]:
        """`ce` of the answers behind the corrected cache, the router's `entropy`, the routing `weights`. Rows: `mtkv.inject.rows`."""
        teachers = TeacherTokens(kv_sample, kv_position, teacher_kv, context)
        logits, following, weights = read_answers(self.student, self.fuser, input_ids, labels, teachers)
        terms = CE(F.cross_entropy(logits.float(), following), self.ce_weight)
        terms[ENTROPY.name] = entropy(weights)
        if any(parameter.requires_grad for parameter in self.fuser.router.parameters()):
            regulariser = self.fuser.config.fusion.entropy
            terms[PART + ENTROPY.name] = entropy_loss(weights, regulariser.target, regulariser.strength)
        return summed(terms) | {"weights": weights.detach()}
