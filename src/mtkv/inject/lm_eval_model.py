"""A student that is injected into, behind lm-eval's interface: teachers read each prompt once, together with the student.

In a prompt's ids the last is replaced by −1 − (number of the prompt), a column that `_forward`, through which all of the student's reading
goes, knows again: it lets student and teachers read what stands before it, corrects the cache, and goes on from there. So batches, choices
read at once and what happens when memory runs out are those of `EvaluationModel`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from lm_eval.api.instance import Instance
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.config.models import ModelConfig
from mtkv.distill.teacher_kv import TeacherKV
from mtkv.evaluate.batch_size import in_batches, rows_to_read
from mtkv.evaluate.generation import Choose, GeneratedAnswer
from mtkv.evaluate.lm_eval_model import EvaluationModel
from mtkv.evaluate.lm_eval_tasks import UnanswerableError
from mtkv.evaluate.loglikelihood import Cut, Score
from mtkv.inject.fuser import KVFuser
from mtkv.inject.patched_cache import TeacherTokens, read_answers, read_prompts
from mtkv.inject.rows import InjectionRows
from mtkv.kv.online_teacher import OnlineTeacher
from mtkv.models.cross_entropy import IGNORED_LABEL
from mtkv.models.load import load_model, load_tokenizer

CONTROL_SEED = 0  # of the draw that gives every question another one's KV (control shuffle_items)


class InjectedEvaluationModel(EvaluationModel):
    """`EvaluationModel` of a student, its fuser and the fuser's teachers (model and tokenizer, in its order)."""

    shares_beginnings = False  # a cache is corrected as a whole

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        fuser: KVFuser,
        teachers: Sequence[tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    ) -> None:
        super().__init__(model, tokenizer, batch_size)
        self.passes_before_answer = 1
        self.fuser, self.teachers = fuser.to(model.device).eval(), list(teachers)
        self.cost = {"teacher_tokens": 0, "teacher_flops": 0, "kv_bytes": 0}
        self._texts: dict[str, int] = {}
        self._last: dict[int, int] = {}  # the last token of each prompt that is asked

    @classmethod
    def load(
        cls,
        folder: Path,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        given: Mapping[str, ModelConfig],
    ) -> Self:
        """Of a student's folder; `given`: teachers by id. Raises ValueError, before any is loaded, where one of the fuser's lacks."""
        fuser = KVFuser.load(folder, given)
        teachers = [(load_model(teacher), load_tokenizer(teacher)) for teacher in fuser.teachers]
        return cls(model, tokenizer, batch_size, fuser, teachers)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the base's, behind the corrected cache."""
        self._ask(requests)
        return super().loglikelihood(requests, disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """As the base's, behind the corrected cache."""
        self._ask(requests)
        return super().generate_until(requests, disable_tqdm)

    def _ask(self, requests: list[Instance]) -> None:
        """Match all prompts of these requests with the teachers. Raises UnanswerableError for prompts that a model cannot read."""
        asked = {request.args[0]: str(request.task_name) for request in requests}
        self._texts, self._last = {text: number for number, text in enumerate(asked)}, {}
        frame = pd.DataFrame({"id": asked.keys(), "dataset": asked.values(), "prompt": asked.keys(), "target": ""})
        try:
            self._sources = [self._source(number, frame) for number in range(len(self.teachers))]
            control = self.fuser.config.control
            self._rows = InjectionRows(self.tokenizer, frame, self._sources, control, CONTROL_SEED, None)
        except ValueError as error:
            raise UnanswerableError(f"the questions cannot be read by student and teachers: {error}") from error

    def _source(self, number: int, frame: pd.DataFrame) -> TeacherKV:
        weights = self.fuser.kv_maps[number].layer_weights
        needed = weights.any(0).nonzero().flatten().tolist()
        online = OnlineTeacher(*self.teachers[number], frame, needed, self.batch_size)
        return TeacherKV(online, weights[:, needed], self.fuser.config.align.time)

    def _prompt(self, ids: list[int], text: str) -> list[int]:
        number = self._texts[text]
        if ids[:-1] != self._rows.encoded[number].input_ids[: len(ids) - 1].tolist():
            raise UnanswerableError(f"the tokens of the prompt {text[-40:]!r} are not those of a row with this prompt")
        self._last[number] = ids[-1]
        return [*ids[:-1], -1 - number]

    def _choose(self) -> Choose:
        choose = super()._choose()

        def among_tokens(logits: Tensor, answers: Sequence[GeneratedAnswer]) -> list[int]:
            read = [GeneratedAnswer([*one.prompt[:-1], self._last[-1 - one.prompt[-1]]], one.said) for one in answers]
            return choose(logits, read)

        return among_tokens

    def _forward(self, **inputs: Any) -> Any:
        ids = inputs["input_ids"].clone()
        ends = (ids < 0).any(0).nonzero().flatten().tolist()
        if not ends:
            return super()._forward(**inputs)
        (end,) = ends  # prompts end in one column
        numbers = (-1 - ids[:, end]).tolist()
        ids[:, end] = torch.tensor([self._last[number] for number in numbers], device=ids.device)
        mask, places, keep = (inputs.pop(name) for name in ("attention_mask", "position_ids", "logits_to_keep"))
        if end:
            read_prompts(
                self.model,
                self.fuser,
                self._teacher_tokens(numbers, places[:, end], end - places[:, end]),
                input_ids=ids[:, :end],
                attention_mask=mask[:, :end] if mask.ndim == 2 else mask[:, :, :end, :end],
                position_ids=places[:, :end],
                past_key_values=inputs["past_key_values"],
            )
            self.forward_passes += 1
        return super()._forward(
            **inputs
            | {
                "input_ids": ids[:, end:],
                "attention_mask": mask if mask.ndim == 2 else mask[:, :, end:],
                "position_ids": places[:, end:],
                "logits_to_keep": keep if isinstance(keep, int) else keep - end,
            }
        )

    def _teacher_tokens(self, numbers: Sequence[int], read: Tensor, start: Tensor) -> TeacherTokens:
        """What the teachers say of prompts, by number, of whose tokens, which begin in the columns `start [rows]`, the first `read [rows]`
        are corrected. Counted as cost."""
        batch: dict[str, Any] = self._rows.teacher_batch(numbers)
        for source, (teacher, _) in zip(self._sources, self.teachers, strict=True):
            tokens = sum(len(source.store.byte_end(self._rows.matches[number].row)) for number in numbers)
            self.cost["teacher_tokens"] += tokens
            self.cost["teacher_flops"] += 2 * teacher.num_parameters() * tokens
        self.cost["kv_bytes"] += sum(kv.nbytes for kv in batch["teacher_kv"])
        torch.manual_seed(int(batch["row_seed"][0]))  # control gaussian: the same noise when a prediction is resumed
        sample, position = (batch.pop(name).to(read.device) for name in ("kv_sample", "kv_position"))
        kept = position < read[sample]
        sample, position = sample[kept], position[kept]
        kv = [each.to(read.device)[kept] for each in batch.pop("teacher_kv")]
        context = {name: value.to(read.device) for name, value in batch.items()}
        return TeacherTokens(sample, position + start[sample], kv, context)

    def _score_each(self, texts: Sequence[Cut]) -> list[Score]:
        """Each choice in a row of its own, as rows are read in training: for layers whose window is shorter than the text."""
        scores: dict[int, Score] = {}

        def work(places: Sequence[int]) -> None:
            batch = [texts[place] for place in places]
            rows = [torch.tensor([*text.context, *text.continuation]) for text in batch]
            ids = pad_sequence(rows, batch_first=True).to(self.model.device)
            read = torch.tensor([len(text.context) - 1 for text in batch], device=ids.device)
            ends = torch.tensor([len(row) for row in rows], device=ids.device)
            place = torch.arange(ids.shape[1], device=ids.device)
            answer = (place > read[:, None]) & (place < ends[:, None])
            teachers = self._teacher_tokens(
                [self._texts[text.given[0]] for text in batch], read, torch.zeros_like(read)
            )
            labels = ids.masked_fill(~answer, IGNORED_LABEL)
            with torch.inference_mode():
                logits, said, _ = read_answers(self.model, self.fuser, ids, labels, teachers)
            self.forward_passes += 2
            taken = logits.log_softmax(-1, dtype=torch.float32).gather(1, said[:, None])[:, 0]
            greedy, lengths = logits.argmax(-1) == said, [len(text.continuation) for text in batch]
            for number, logs, best in zip(places, taken.split(lengths), greedy.split(lengths), strict=True):
                scores[number] = (float(logs.sum()), bool(best.all()))

        order = sorted(range(len(texts)), key=lambda place: -len(texts[place].context))
        longest = max(len(text.context) + len(text.continuation) for text in texts)
        said = max(len(text.continuation) for text in texts)
        in_batches(order, rows_to_read(self.model, self.batch_size, longest, said), work)
        return [scores[place] for place in range(len(texts))]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """lm-eval's own loop does not come by `_forward`. Raises NotImplementedError."""
        raise NotImplementedError(
            f"{type(self.model).__name__}: injected KV need greedy answers (no sampling in the task or in generation_config.json) of a "
            "model whose positions, masks and cache can be given, with attention sdpa or eager"
        )
