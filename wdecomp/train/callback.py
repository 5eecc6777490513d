"""Live ΔM and ΔD for transformers' `Trainer` and what is built on it.

    callback = WdecompCallback(Recorder("results", base="models/base"), every=10)
    trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
    callback.trainer = trainer
    trainer.train()
    results = wdecomp.read_results("results")

The training is the same with and without it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from wdecomp.errors import TrainingError
from wdecomp.train.live import Recorder

FIGURES = ("delta_magnitude", "delta_direction")


class WdecompCallback(TrainerCallback):
    """Records ΔM and ΔD every so many optimizer steps, and after the last one.

    The tables are `recorder`'s. The means over layers are logged as

        wdecomp/<module kind>/delta_magnitude, wdecomp/<module kind>/delta_direction

    into `state.log_history`, and to the Trainer's reporters (TensorBoard, W&B, …): a callback is
    given no way to those, so `trainer` must be set.

    Attributes:
        recorder: where the tables are made. For full fine-tuning, with the base's folder or `copy`.
        every: optimizer steps from one record to the next.
        trainer: whose reporters are told; None for `state.log_history` alone.

    Raises:
        TrainingError: `every` is below 1; reporters were asked for, and there is no `trainer`.
    """

    def __init__(self, recorder: Recorder, every: int = 10, trainer: Trainer | None = None) -> None:
        if every < 1:
            raise TrainingError(f"every: is {every}, at least 1 was expected.")
        self.recorder, self.every, self.trainer = recorder, every, trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Keeps the base's numbers, if that was asked for."""
        if self.trainer is None and args.report_to:
            raise TrainingError(
                f"report_to: is {', '.join(args.report_to)}, but the callback knows no trainer to "
                "report through. Set callback.trainer = trainer."
            )
        if self.recorder.copy is not None:
            if state.global_step > 0:
                raise TrainingError(
                    f"copy: of the base was wanted, but step {state.global_step} is done already. "
                    "Name the base's folder instead."
                )
            self.recorder.keep(kwargs["model"])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Records, if it is time."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if state.global_step % self.every and not last:
            return
        means = means_by_module(self.recorder.record(kwargs["model"], state.global_step))
        if self.trainer is None:
            epoch = {} if state.epoch is None else {"epoch": state.epoch}
            state.log_history.append({**means, **epoch, "step": state.global_step})
            return
        # The base class's: TRL's trainers put what they gathered since their last log into `log`.
        wanted = control.should_log
        Trainer.log(self.trainer, means)
        control.should_log = wanted  # which logging has cleared, though the loss is still to come

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Makes the final tables."""
        self.recorder.finish()


def means_by_module(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """ΔM and ΔD by module kind, means over its matrices on the first axis that was recorded."""
    found: dict[str, list[float]] = defaultdict(list)
    axis = None
    for row in rows:
        axis = axis or row["axis"]
        if row["axis"] == axis:
            for figure in FIGURES:
                found[f"wdecomp/{row['module']}/{figure}"].append(row[figure])
    return {name: sum(values) / len(values) for name, values in found.items()}
