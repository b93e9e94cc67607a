"""What a training that keeps its state does between the steps."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from mtkv.distill.resume import ResumableTrainer


class Pace(TrainerCallback):
    """Asks after each step whether to save, puts the counters back when training begins, and reports progress."""

    def __init__(self, trainer: "ResumableTrainer") -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.trainer.begin()
        self.trainer.keeping.report(state.global_step, state.max_steps, {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        last = state.global_step >= state.max_steps  # `run` keeps that one
        control.should_save = not last and self.trainer.must_save()

    def on_log(self, args: TrainingArguments, state: TrainerState, *_: Any, **more: Any) -> None:
        facts = {name: more["logs"][name] for name in ("loss", "ce") if name in more["logs"]}
        if facts:
            self.trainer.keeping.report(state.global_step, state.max_steps, facts)
