"""transformers' Trainer with the log this project needs: every loss term, routing weights and gradient shares."""

from collections import defaultdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from mtkv.distill.gradients import gradient_shares
from mtkv.distill.rows import DistillationRows

LOGGED_TERMS = ("ce", "kd", "key", "value", "cosine", "attention", "entropy", "route_ce")
TRAINER_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


class DistillationTrainer(Trainer):
    """Trains a `Distiller`. `teachers` names the columns of the routing weights; `tokens_seen` counts unpadded tokens."""

    def __init__(self, *args: Any, teachers: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teachers = teachers
        self.rows: DistillationRows = kwargs["train_dataset"]
        self.distiller: Any = self.model
        self.shares_every = int(self.args.eval_steps or 1)
        self.tokens_seen = 0
        self.rows_seen = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._batches = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        """Rows of similar length together, in an order that depends on the seed alone: the same for every arm."""
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=[len(row.input_ids) for row in self.rows.encoded],
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's `loss`; on the way, keep its terms for the next log line."""
        if self.distiller.supervision is not None:
            self.distiller.supervision.progress = self.state.global_step / max(1, self.state.max_steps)
        terms = model(**inputs)
        if model.training:
            self.tokens_seen += int(inputs["attention_mask"].sum())
            self.rows_seen += len(inputs["input_ids"])
            self._batches += 1
            for name, value in self._readable(terms).items():
                self._sums[name] += value
            if self.state.global_step % self.shares_every == 0:
                parts = {name: value for name, value in terms.items() if name.startswith("part.")}
                shares = gradient_shares(parts, self.distiller.student.parameters())
                self.log({name.replace("part.", "share."): share for name, share in shares.items()})
        return (terms["loss"], terms) if return_outputs else terms["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last training line."""
        if "learning_rate" in logs and self._batches:
            logs = logs | {name: total / self._batches for name, total in self._sums.items()}
            self._sums.clear()
            self._batches = 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean of every term over the validation rows, logged as `eval_<term>`."""
        self.distiller.eval()
        if self.distiller.supervision is not None:
            self.distiller.supervision.progress = 1.0  # validation is over all layers, whatever is trained now
        sums: dict[str, float] = defaultdict(float)
        loader = self.get_eval_dataloader()
        with torch.no_grad():
            for inputs in loader:
                terms = self.distiller(**self._prepare_inputs(inputs))
                for name, value in ({"loss": float(terms["loss"])} | self._readable(terms)).items():
                    sums[name] += value / len(loader)
        metrics = {f"eval_{name}": value for name, value in sums.items()}
        self.log(metrics)
        # As the Trainer's own does: else it evaluates the last step again when the epoch ends.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.distiller.train()
        return metrics

    def _readable(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(terms[name].detach()) for name in LOGGED_TERMS if name in terms}
        if "weights" in terms:  # [batch, teachers, *layers]
            means = terms["weights"].transpose(0, 1).flatten(1).mean(1)
            values |= {f"route.{name}": float(weight) for name, weight in zip(self.teachers, means, strict=True)}
        return values


def training_log(history: list[dict[str, float]]) -> pd.DataFrame:
    """The Trainer's log as rows (step, split, term, value): the file `training.parquet`."""
    rows = []
    for line in history:
        step = int(line["step"])
        for name, value in line.items():
            split, term = ("val", name.removeprefix("eval_")) if name.startswith("eval_") else ("train", name)
            if term in TRAINER_NAMES or term in LOGGED_TERMS or term.startswith(("route.", "share.")):
                rows.append({"step": step, "split": split, "term": term, "value": float(value)})
    return pd.DataFrame(rows, columns=["step", "split", "term", "value"])
