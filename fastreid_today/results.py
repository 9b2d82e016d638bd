"""What an evaluation found goes into the run's files."""

from __future__ import annotations

from fastreid_today.changes import replaces


@replaces(
    "engine.hooks:EvalHook._do_eval",
    "metrics.json and TensorBoard lack the last evaluation: the writers have written that iteration",
)
def evaluations_in_metrics(evaluate, self):
    """Each evaluation is written when it is done, with its iteration."""
    from fastreid.utils.events import JSONWriter, TensorboardXWriter

    storage = self.trainer.storage
    before = dict(storage._latest_scalars)
    evaluate(self)
    latest = storage._latest_scalars
    found = {name: value for name, value in latest.items() if before.get(name) is not value}
    for writer in (writer for hook in self.trainer._hooks for writer in getattr(hook, "_writers", ())):
        if isinstance(writer, JSONWriter | TensorboardXWriter):
            if writer._last_write >= storage.iter:  # what else is of this iteration is written
                writer._last_write, storage._latest_scalars = storage.iter - 1, found
            writer.write()
            storage._latest_scalars = latest
