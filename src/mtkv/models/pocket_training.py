"""Plain next-token training of a pocket model on questions drawn from the training bins, on one CPU core.

In: an untrained model, its tokenizer, a number of steps. Out: the trained model. Nothing of the test, validation or
calibration bins is ever seen (`mtkv.data.splits`).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtkv.data.pocket import TASKS
from mtkv.data.rows import Question, row
from mtkv.data.splits import question_hash, split_of
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
