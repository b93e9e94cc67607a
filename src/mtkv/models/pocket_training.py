"""Plain next-token training of a pocket model on questions drawn from the training bins, on one CPU core.

In: an untrained model, its tokenizer, a number of steps. Out: the trained model. Nothing of the test, validation or
calibration bins is ever seen (`mtkv.data.splits`).

How well it answers the pocket test is measured by a small evaluation loop of the recipe's own, independent of lm-eval. Generation
datasets: greedy text after the chain-of-thought prompt, the word after the last "Answer:" is the answer. Multiple choice: the option with
the highest log-likelihood after the direct prompt.
"""

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.data.items import Task
from mtkv.data.pocket import TASKS
from mtkv.data.rows import STYLES, Question, row
from mtkv.data.splits import draw_questions, question_hash, split_of
from mtkv.models.cross_entropy import padded_labels, target_loss
from mtkv.models.tokenization import EncodedRow, encode_rows, pad_batch

BATCHES_AT_ONCE = 40  # drawn, sorted by length and cut into batches together, so that little is padded
DIRECT_SHARE = {"generation": 0.2, "choice": 0.7}  # each task mostly in the style it is tested in


@dataclass(frozen=True)
class Schedule:
    """Steps of `batch_size` rows; the learning rate rises for `warmup` steps and falls along a cosine to a tenth."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, 0-based."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def training_texts(random: Random, names: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Endless (prompt, target) pairs of questions from the train bins of the tasks `names` (none: all), each task alike often."""
    tasks = [TASKS[name] for name in sorted(names or TASKS)]
    while True:
        task = random.choice(tasks)
        item = task.draw(random)
        digest = question_hash(item.question)
        if split_of(digest) == "train":
            style = "direct" if random.random() < DIRECT_SHARE[task.answering] else "cot"
            written = row(Question(task.name, task.language, 0, digest, item), style)
            yield str(written["prompt"]), str(written["target"])


def training_batches(
    tokenizer: PreTrainedTokenizerBase, batch_size: int, random: Random, names: Sequence[str] = ()
) -> Iterator[list[EncodedRow]]:
    """Endless batches of rows of similar length, of the tasks `names` (none: all)."""
    texts = training_texts(random, names)
    while True:
        prompts, targets = zip(*(next(texts) for _ in range(batch_size * BATCHES_AT_ONCE)), strict=True)
        rows = sorted(encode_rows(tokenizer, prompts, targets), key=lambda encoded: len(encoded.input_ids))
        starts = list(range(0, len(rows), batch_size))
        random.shuffle(starts)
        for start in starts:
            yield rows[start : start + batch_size]


def train_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    schedule: Schedule,
    seed: int,
    log_every: int = 100,
    names: Sequence[str] = (),
) -> list[float]:
    """Train in place, on the tasks `names` (none: all); returns the mean loss of every `log_every` steps."""
    torch.manual_seed(seed)
    batches = training_batches(tokenizer, schedule.batch_size, Random(f"pocket model {seed}"), names)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    losses, recent, started = [], 0.0, time.monotonic()
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = rows_loss(model, next(batches), tokenizer.eos_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent += loss.item() / log_every
        if (step + 1) % log_every == 0:
            print(f"step {step + 1}/{schedule.steps} loss {recent:.4f} {time.monotonic() - started:.0f} s", flush=True)
            losses.append(recent)
            recent = 0.0
    model.eval()
    return losses


def rows_loss(model: PreTrainedModel, rows: list[EncodedRow], fill: int) -> Tensor:
    """Mean next-token loss over the target tokens of `rows`, which are padded right with the token `fill`."""
    ids = torch.from_numpy(pad_batch([encoded.input_ids for encoded in rows], fill))
    return target_loss(model, ids, padded_labels(rows))


ANSWER = re.compile(r"Answer:\s*(\S+)")
NEW_TOKENS = 48
BATCH = 100


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, test_items: int = 200, seed: int = 0
) -> dict[str, float]:
    """Accuracy per dataset on the test questions that the default study draws with `seed`, and their mean as `macro`."""
    accuracy = {}
    for name, task in TASKS.items():
        questions = draw_questions(task, seed, {"test": test_items})["test"]
        correct = [MEASURES[task.answering](model, tokenizer, task, part) for part in _parts(questions)]
        accuracy[name] = float(np.concatenate(correct).mean())
    return accuracy | {"macro": float(np.mean(list(accuracy.values())))}


@torch.no_grad()
def generated_correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, questions: Sequence[Question]
) -> np.ndarray:
    """1.0 where the generated answer is the right one, [questions]."""
    prompts = [STYLES[task.language, "cot"].prompt.format(question=question.item.question) for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    generate: Any = model.generate
    out = generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    answers = [(ANSWER.findall(text) or [""])[-1] for text in texts]
    return np.array([answer == q.item.answer for answer, q in zip(answers, questions, strict=True)], dtype=float)


@torch.no_grad()
def chosen_correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, questions: Sequence[Question]
) -> np.ndarray:
    """1.0 where the right option is the likeliest continuation, [questions]. The end of text is not scored.

    Rows are padded right, where causal attention does not look, so no mask is needed.
    """
    style = STYLES[task.language, "direct"]
    pairs = [
        (style.prompt.format(question=question.item.question), style.answer.format(answer=choice))
        for question in questions
        for choice in question.item.choices
    ]
    rows = encode_rows(tokenizer, [prompt for prompt, _ in pairs], [target for _, target in pairs])
    ids = torch.from_numpy(pad_batch([row.input_ids for row in rows], tokenizer.eos_token_id))
    scored = torch.from_numpy(pad_batch([_without_end(row.is_target) for row in rows], False))
    likely = torch.log_softmax(model(input_ids=ids).logits[:, :-1], dim=-1)
    each = likely.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~scored[:, 1:], 0.0).sum(-1)
    best = each.view(len(questions), -1).argmax(-1).tolist()
    return np.array([choice == q.item.gold for choice, q in zip(best, questions, strict=True)], dtype=float)


MEASURES = {"generation": generated_correct, "choice": chosen_correct}


def _without_end(is_target: np.ndarray) -> np.ndarray:
    scored = is_target.copy()
    scored[-1] = False
    return scored


def _parts(questions: Sequence[Question]) -> list[Sequence[Question]]:
    return [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
