"""ONE FILE = ONE OBJECTIVE: what a model is trained to do. Each maps (model, batch) to (loss, {name: number}).

An objective file has:
- `Config`, a frozen dataclass of its settings (the section of the same name in a run's configuration);
- `NEEDS_LABELS`, whether it can only learn from labelled clips;
- `NEEDS_TEXT`, where it can only learn from captions (False where it is not there);
- `loss(model, batch, config, generator)` -> (loss, numbers): a mean over the batch, and what is worth logging, as tensors;
- `measure(model, batch, config, generator)` -> {name: (B,)}: one number per clip, averaged over the validation clips.

`batch` is on the model's device, `generator` is a CPU generator that the caller has seeded for this step.
"""
