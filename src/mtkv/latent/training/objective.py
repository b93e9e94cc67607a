"""The module that is trained in the latent view: question, latents, answer; and the same weights on the row with its chain.

L = δ·CE(A|Z,Q) + chain_weight·CE(A,C|Q) + a1·CODI + step_weight·SIM-CoT + the KV terms of `supervision` at the latents (method.md §10).
The KV are those of the final pass, behind the last iteration, so they are compared once; so are the states that SIM-CoT's decoder reads.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mtkv.distill.distiller import CE, ROUTE_CE
from mtkv.distill.kv_objective import KVObjective
from mtkv.kv.capture import KVCapture
from mtkv.kv.extract import packed_kv_at
from mtkv.kv.patch import KVInjection, scattered
from mtkv.latent.model.prefix_cache import ReadQuestions, can_reuse, read_questions, since
from mtkv.latent.model.student import LatentStudent
from mtkv.latent.training.codi_loss import codi_loss, spreads, states_at
from mtkv.latent.training.self_teacher import SelfTeacherReading, measure
from mtkv.latent.training.step_decoder import STEP_CE, StepDecoder, last_hidden_states
from mtkv.models.cross_entropy import IGNORED_LABEL, logits_only_at
from mtkv.training.data_parallel import LossTerm, summed
from mtkv.training.step_statistics import looking

if TYPE_CHECKING:
    from mtkv.config.latent import LatentConfig

CHAIN_CE, CODI = LossTerm("chain_ce", "chain_targets"), LossTerm("codi", "rows")
States = list[Float[Tensor, "batch hidden"]] | None


@dataclass(frozen=True)
class Pass:
    """What one forward gives: its cross-entropy and, where CODI's loss needs them, every layer's states at the position `value`."""

    ce: Float[Tensor, ""]
    states: States


class LatentDistiller(nn.Module):
    """Latent student plus, for KV arms, its supervision. Interface and returned values as `Distiller`; `chain_ce` and `codi` besides."""

    def __init__(
        self,
        student: LatentStudent,
        ce_weight: float,
        settings: "LatentConfig",
        supervision: KVObjective | None = None,
    ) -> None:
        super().__init__()
        self.student, self.ce_weight, self.settings, self.supervision = student, ce_weight, settings, supervision
        self.step_decoder = StepDecoder(student.model) if settings.step_weight else None

    @property
    def pools(self) -> bool:
        """Whether a loss term divides by a statistic of the step's rows (see `mtkv.training.step_statistics`)."""
        supervision = self.supervision
        return self.settings.codi_weight > 0 or bool(supervision and (supervision.config.own or supervision.pools))

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the student, its latents and its tokenizer into a folder."""
        self.student.save(folder, tokenizer)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        labels: Int[Tensor, "batch time"],
        latent_start: Int[Tensor, " batch"],
        value: Int[Tensor, " batch"],
        kv_sample: Int[Tensor, " tokens"] | None = None,
        kv_position: Int[Tensor, " tokens"] | None = None,
        **context: Any,
    ) -> dict[str, Tensor]:
        """All loss terms of one batch of `LatentRows`: padded on the right, placeholders where begin, latents and end go.

        `context`: what else `LatentRows.collate` gives, the teachers' KV (teacher_kv) among it.
        """
        teacher_kv = context.pop("teacher_kv", None)
        text, own, steps = (_taken(context, prefix) for prefix in ("text_", "own_", "step_"))
        reading = self._own_reading(own)
        reused = can_reuse(self.student) and not self._injects
        questions = read_questions(self.student, input_ids, latent_start) if reused else None
        chain, terms = self._chain_terms(
            text, reading if reading and _same(own["input_ids"], text["input_ids"]) else None, questions
        )
        if reading and not reading.done:  # another row's chain
            with torch.no_grad(), reading:
                self.student.model.base_model(input_ids=own["input_ids"], use_cache=False)
        if self.supervision and reading and kv_sample is not None:
            teacher_kv = [reading.at(kv_sample, own["ordinal"], own["count"], own["seed"])]
            measure(self.supervision.frozen[0], teacher_kv[0])
        if looking() and not (self.supervision and self.supervision.pools):  # all that is measured is in the chain
            if self.settings.codi_weight > 0 and chain and chain.states:
                spreads(chain.states)
            return terms
        embeds, first = None, torch.zeros_like(latent_start)
        if questions is None:
            embeds = self.student.embed(input_ids, latent_start)
            inputs: dict[str, Any] = {"inputs_embeds": embeds, "use_cache": False}
        else:
            first = latent_start  # what the final pass reads begins at each row's latents
            inputs = questions.answer_inputs(input_ids, latent_start)
        with self._capture(kv_sample) as capture, last_hidden_states(self.student.model) as hidden:
            answer = self._pass(since(labels, first, IGNORED_LABEL), value - first, **inputs)
            places = None if kv_position is None else kv_position - first[kv_sample]
            captured = None if capture is None else self._captured(capture, kv_sample, places)
        terms |= CE(answer.ce, self.ce_weight)
        if self.settings.codi_weight > 0 and answer.states and chain and chain.states:
            terms |= CODI(codi_loss(answer.states, chain.states), self.settings.codi_weight)
        if steps:
            terms |= self._step_terms(hidden[-1], latent_start - first, steps)
        if captured is not None:
            terms |= self._kv_terms(captured, kv_sample, kv_position, teacher_kv, embeds, labels, context)
        return summed(terms)

    @property
    def _injects(self) -> bool:
        """Whether the fused KV are put into the latents of whole rows, to train the router by."""
        return self.supervision is not None and self.supervision.config.fusion.objective == "injected_ce"

    def _own_reading(self, own: Mapping[str, Tensor]) -> SelfTeacherReading | None:
        if self.supervision is None or not own:
            return None
        return SelfTeacherReading(self.student.model, self.supervision.config.select, own["chain"], own["answer"])

    def _chain_terms(
        self, text: Mapping[str, Tensor], reading: SelfTeacherReading | None, questions: ReadQuestions | None
    ) -> tuple[Pass | None, dict[str, Tensor]]:
        """The row with its chain; where its cross-entropy does not count it is only looked at. A `reading` needs the whole row."""
        weight = self.settings.chain_weight
        if not text:
            return None, {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0), reading or nullcontext():
            if questions and "start" in text and not reading:
                first = text["start"] - 1
                inputs = questions.chain_inputs(text["input_ids"], text["start"])
                chain = self._pass(since(text["labels"], first, IGNORED_LABEL), text["value"] - first, **inputs)
            else:
                chain = self._pass(text["labels"], text["value"], input_ids=text["input_ids"], use_cache=False)
        return chain, CHAIN_CE(chain.ce, weight) if weight > 0 else {}

    def _pass(self, labels: Tensor, value: Tensor | None, **inputs: Any) -> Pass:
        following = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        keep = following != IGNORED_LABEL
        compared = self.settings.codi_weight > 0
        with logits_only_at(self.student.model, keep):
            output = self.student.model(**inputs, output_hidden_states=compared)
        ce = F.cross_entropy(output.logits.float(), following[keep])
        return Pass(ce, states_at(output.hidden_states, value) if compared and value is not None else None)

    def _step_terms(
        self, hidden: Float[Tensor, "batch time hidden"], latent_start: Tensor, steps: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """SIM-CoT's term: each latent as the model would read it next, and what the decoder makes of it."""
        assert self.step_decoder is not None
        assert self.settings.step_weight
        states = hidden[steps["row"], latent_start[steps["row"]] + steps["latent"]]
        latents = self.student.latent.next_inputs(states[:, None])[:, 0]
        return STEP_CE(self.step_decoder(latents, steps["labels"]), self.settings.step_weight)

    def _capture(self, kv_sample: Tensor | None) -> Any:
        if self.supervision is None or kv_sample is None:
            return nullcontext()
        return KVCapture(self.student.model, queries=self.supervision.config.loss.gamma > 0)

    def _captured(self, capture: KVCapture, sample: Any, position: Any) -> tuple[Tensor, Tensor | None, float | None]:
        """The student's KV at the slots, and for the attention term its queries there and their scaling."""
        assert self.supervision is not None
        kv = packed_kv_at(capture, range(self.supervision.student_layers), sample, position)
        if self.supervision.config.loss.gamma == 0:
            return kv, None, None
        return kv, torch.stack(capture.queries(), 1)[sample, :, :, position], capture.scaling(0)

    def _kv_terms(
        self,
        captured: tuple[Tensor, Tensor | None, float | None],
        sample: Any,
        position: Any,
        teacher_kv: Any,
        embeds: Tensor | None,
        labels: Tensor,
        context: Mapping[str, Any],
    ) -> dict[str, Tensor]:
        assert self.supervision is not None
        student_kv, queries, scaling = captured
        terms = self.supervision(student_kv, sample, teacher_kv, len(labels), queries, scaling, **context)
        fused = terms.pop("fused")
        if embeds is not None and self._injects:
            terms |= ROUTE_CE(self._injected_ce(embeds, labels, fused, sample, position), 1.0)
        return terms

    def _injected_ce(
        self,
        embeds: Float[Tensor, "batch time hidden"],
        labels: Int[Tensor, "batch time"],
        fused: Float[Tensor, "tokens student_layers 2 width"],
        sample: Int[Tensor, " tokens"],
        position: Int[Tensor, " tokens"],
    ) -> Float[Tensor, ""]:
        """CE of the student as it is when its latents hold the fused KV: a gradient for the router, none for the student."""
        frozen = {f"student.{name}": parameter.detach() for name, parameter in self.student.named_parameters()}
        with KVInjection(self.student.model, *scattered(fused, sample, position, labels)):
            return torch.func.functional_call(_AnswerLoss(self), frozen, (embeds.detach(), labels))


class _AnswerLoss(nn.Module):
    def __init__(self, distiller: LatentDistiller) -> None:
        super().__init__()
        self.student = distiller.student
        self._read = [distiller._pass]  # in a list, or the distiller would be a submodule

    def forward(self, embeds: Tensor, labels: Tensor) -> Tensor:
        return self._read[0](labels, None, inputs_embeds=embeds, use_cache=False).ce


def _taken(context: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    """Remove the entries of that prefix from `context`; returns them, named without it."""
    return {name.removeprefix(prefix): context.pop(name) for name in list(context) if name.startswith(prefix)}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())
