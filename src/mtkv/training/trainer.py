"""transformers' Trainer with the log this project needs: every loss term, routing weights, gradient shares and cosines.

It stops at the first loss or gradient that is not finite: what follows would be a model of NaN with a log that looks well.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Sampler
from transformers import get_scheduler

from mtkv.training.data_parallel import (
    LOSS_TERMS,
    PART,
    DeterministicSampler,
    amounts,
    kind_of,
    means,
    of_whole_step,
    per_part,
    share_loader,
)
from mtkv.training.gradient_shares import KV_FACTOR, balanced_loss, gradient_log
from mtkv.training.metrics import MetricAccumulator, sum_metrics
from mtkv.training.phases import (
    PhaseSampler,
    factors_of,
    in_phase,
    learning_rates,
    phase_at,
    phase_weights,
    prompts_only,
)
from mtkv.training.resume import ResumableTrainer
from mtkv.training.step_statistics import Pooled, looked_at, pooling

if TYPE_CHECKING:
    from mtkv.config.phases import Phase

GROUPED = "group_by_length"  # transformers' name
DIVERGED = (
    "training stops, and no model is saved; lower training.learning_rate, or the weight of the term that is large"
)
TRAINER_NAMES = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}


class DistillationTrainer(ResumableTrainer):
    """Trains a `Distiller`. `teachers` names the columns of the routing weights; `phases` change what its losses weigh, its rows
    and its learning rate."""

    def __init__(self, *, teachers: list[str], phases: Sequence["Phase"] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Else the Trainer takes the forward's `**context` for its own and adds up accumulated batches where it should average them.
        self.model_accepts_loss_kwargs = False
        self.teachers, self.phases = teachers, phases
        self.rows: Any = kwargs["train_dataset"]
        self.distiller: Any = self.model
        self.shares_every = int(self.args.eval_steps or 1)
        self.mean_amounts: dict[str, float] = {}  # of the parts of the step under way
        self.pooled: Pooled | None = None
        self.terms: dict[str, float] = {}  # of the last part
        for phase in self.phases:  # layers that the student has not are said before the first phase is trained
            if phase.layers is not None:
                self.distiller.supervision.restrict(phase.layers)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """The same order for every arm, and on whatever number of processes."""
        step = self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        group = step if self.args.train_sampling_strategy == GROUPED else None
        lengths, seed = self.rows.lengths, self.args.seed
        if not any(phase.selects_rows for phase in self.phases):
            return DeterministicSampler(lengths, group, seed, lambda: int(self.state.epoch or 0))
        return PhaseSampler(
            self.phases,
            self.args.max_steps,
            step,
            self.rows.datasets,
            lambda rows, number: DeterministicSampler([lengths[row] for row in rows], group, seed, lambda: number),
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, or where a phase has a learning rate of its own one that is the Trainer's in pieces."""
        if not any(phase.learning_rate for phase in self.phases):
            return super().create_scheduler(num_training_steps, optimizer)
        unused = torch.optim.SGD([torch.zeros(1)])  # a schedule, a function of the step, is made with an optimiser

        def shape(steps: int) -> Any:
            warmup = self.args.get_warmup_steps(steps)
            return get_scheduler(self.args.lr_scheduler_type, unused, warmup, steps).lr_lambdas[0]

        rates = learning_rates(self.phases, num_training_steps, self.args.learning_rate, shape)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: rates[step])
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Of each batch this process's share."""
        if self.args.world_size == 1:
            return super().get_train_dataloader()
        return share_loader(self.rows, self._get_train_sampler(), self.args.train_batch_size * self.args.world_size)

    def get_batch_samples(self, *arguments: Any) -> Any:
        """The batches of one step. Each counts with what it holds of the whole, in this and the other processes."""
        batches, items = super().get_batch_samples(*arguments)
        if self._phase and self._phase.text == "prompts":
            batches = [prompts_only(batch) for batch in batches]
        if batches:
            self.mean_amounts = per_part(batches, self.args.device)
            self.pooled = self._looked_at(batches) if len(batches) > 1 else None
        return batches, items

    def _looked_at(self, batches: Iterable[dict[str, Any]]) -> Pooled | None:
        """The statistics of all of `batches` that this arm's loss terms divide by; None for an arm whose terms need none."""
        if not self.distiller.pools:
            return None
        return looked_at(self.distiller, (self._prepare_inputs(batch) for batch in batches))

    def get_eval_dataloader(self, *_: Any) -> DataLoader[Any]:
        """Validation rows have their own matches, so their batches are built by their own collate."""
        rows: Any = self.eval_dataset
        size = self.args.eval_batch_size * self.args.world_size
        if self.args.world_size > 1:
            return share_loader(rows, range(len(rows)), size)
        return self.accelerator.prepare(DataLoader(rows, batch_size=size, collate_fn=rows.collate))

    def counted(self) -> MetricAccumulator:
        """What all processes counted. Collective."""
        return sum_metrics(gather_object([self.counters]))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's `loss`; on the way, keep its terms for the next log line."""
        supervision, progress, phase = self.distiller.supervision, self._progress, self._phase
        if supervision is not None:
            supervision.progress = progress
            supervision.restrict(phase and phase.layers)
        with pooling(self.pooled):
            terms = model(**inputs)
        weights = phase_weights(self.phases, progress) if model.training else {}
        if weights:
            terms = in_phase(terms, weights)
            weights = {name: weights[name] for name in weights if name in factors_of(terms).values()}
        here = amounts(inputs)
        terms = of_whole_step(terms, here, self.mean_amounts)
        check_finite(f"step {self.state.global_step + 1}", terms)
        if model.training:
            terms |= self._balanced(terms)
            self.terms = self._readable(terms) | {f"weight.{name}": weight for name, weight in weights.items()}
            if phase and phase.text == "prompts":  # the mean over no target is not 0
                self.terms = {name: value for name, value in self.terms.items() if kind_of(name) != "targets"}
            self.counters.add_batch(int(inputs["attention_mask"].sum()), here["rows"], self.terms)
            if self.state.global_step % self.shares_every == 0 and not (
                self.is_fsdp_enabled or self.is_deepspeed_enabled
            ):
                parts = {name.removeprefix(PART): value for name, value in terms.items() if name.startswith(PART)}
                matching = self.distiller.supervision.matching_terms if self.distiller.supervision else ()
                self.log(gradient_log(parts, self.distiller.student.parameters(), matching))
        return (terms["loss"], terms) if return_outputs else terms["loss"]

    @property
    def _progress(self) -> float:
        return self.state.global_step / max(1, self.state.max_steps)

    @property
    def _phase(self) -> "Phase | None":
        found = phase_at(self.phases, self._progress)
        return self.phases[found[0]] if found else None

    def _balanced(self, terms: dict[str, Any]) -> dict[str, Any]:
        """`loss` with the KV terms at their share of the gradient, and `kv_factor`; nothing where neither share nor control asks for it.

        Raises NotImplementedError where a process has a part of the weights only, or a pass a part of the step."""
        supervision = self.distiller.supervision
        if supervision is None or (supervision.config.loss.share is None and not supervision.control.random_direction):
            return {}
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or self.args.gradient_accumulation_steps > 1:
            raise NotImplementedError(
                "kv.loss.share and a control with random_direction need whole weights (strategy single or ddp) and steps of one pass "
                "(gradient_accumulation 1)"
            )
        kv = sum(terms[PART + name] for name in supervision.matching_terms if PART + name in terms)
        loss, factor = balanced_loss(
            terms["loss"],
            kv,
            self.distiller.student.parameters(),
            supervision.config.loss.share,
            supervision.control.random_direction,
        )
        return {"loss": loss, KV_FACTOR.name: factor * terms["row_share"]}

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The Trainer's, before the weights are changed by it. Raises FloatingPointError."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            said = ", ".join(f"{name} {value:.4g}" for name, value in self.terms.items())
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: gradient norm is {float(norm)}, of {said}; {DIVERGED}"
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last training line."""
        if "learning_rate" in logs:
            logs = logs | self.counted().means()
            self.counters.means()
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean of every term over the validation rows, however they are batched, logged as `eval_<term>`."""
        self.distiller.eval()
        if self.distiller.supervision is not None:
            self.distiller.supervision.progress = 1.0  # validation is over all layers, whatever is trained now
            self.distiller.supervision.restrict(None)
        sums: dict[str, float] = defaultdict(float)
        held: dict[str, float] = defaultdict(float)
        loader = self.get_eval_dataloader()
        with torch.no_grad(), pooling(self._looked_at(loader)):
            for inputs in map(self._prepare_inputs, loader):
                terms, here = self.distiller(**inputs), amounts(inputs)
                check_finite(f"validation after step {self.state.global_step}", terms)
                parts = {name: float(value) for name, value in terms.items() if name.startswith(PART)}
                for name, value in (self._readable(terms) | parts).items():
                    sums[name] += value * here[kind_of(name) or "rows"]
                for kind, amount in here.items():
                    held[kind] += amount
        sums, held = (means(counted, self.args.device) for counted in (sums, held))
        found = {name: value / (held[kind_of(name) or "rows"] or 1) for name, value in sums.items()}
        found["loss"] = sum(value for name, value in found.items() if name.startswith(PART))
        metrics = {f"eval_{name}": value for name, value in found.items() if not name.startswith(PART)}
        self.log(metrics)
        # As the Trainer's own does: else it evaluates the last step again when the epoch ends.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.distiller.train()
        return metrics

    def _readable(self, terms: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(terms[name].detach()) for name in LOSS_TERMS if name in terms}
        if "weights" in terms:  # [batch, teachers, *layers]
            routed = terms["weights"].transpose(0, 1).flatten(1).mean(1) * terms.get("row_share", 1)
            values |= {f"route.{name}": float(weight) for name, weight in zip(self.teachers, routed, strict=True)}
        return values


def check_finite(where: str, terms: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError for a loss that is not finite, naming the terms that make it so."""
    if not bool(terms["loss"].isfinite()):
        parts = {name.removeprefix(PART): value for name, value in terms.items() if name.startswith(PART)}
        wrong = [f"{name} is {float(value.detach())}" for name, value in parts.items() if not bool(value.isfinite())]
        raise FloatingPointError(f"{where}: loss term {', '.join(wrong) or 'sum is too large'}; {DIVERGED}")


def training_log(history: list[dict[str, float]]) -> pd.DataFrame:
    """The Trainer's log as rows (step, split, term, value): the file `training.parquet`."""
    rows = []
    for line in history:
        step = int(line["step"])
        for name, value in sorted(line.items()):  # a resumed run's log was read from a file that is sorted
            split, term = ("val", name.removeprefix("eval_")) if name.startswith("eval_") else ("train", name)
            if term in TRAINER_NAMES or term in LOSS_TERMS or term.startswith(("cos.", "route.", "share.", "weight.")):
                rows.append({"step": step, "split": split, "term": term, "value": float(value)})
    return pd.DataFrame(rows, columns=["step", "split", "term", "value"])
