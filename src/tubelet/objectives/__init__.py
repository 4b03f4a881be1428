"""ONE FILE = ONE OBJECTIVE: what a model is trained to do. Each maps (model, batch) to (loss, {name: number}).

An objective file has:
- `Config`, a frozen dataclass of its settings (the section of the same name in a run's configuration);
- `NEEDS_LABELS`, whether it can only learn from labelled clips;
- `NEEDS_TEXT`, where it can only learn from captions (False where it is not there), or a function of the
  settings that says so;
- `loss(model, batch, config, generator)` -> (loss, numbers): a mean over the batch, and what is worth logging, as tensors;
- `measure(model, batch, config, generator)` -> {name: (B,)}: one number per clip, averaged over the validation clips.

and may have, where it needs them:
- `options(config)` -> {name: value}: options of the model that it cannot do without, such as a vocabulary;
- `prepare(model, clips, config, generator)`: what it learns from batches of training clips before the first step, into buffers
  of the model; the first process does it for all;
- `facts(config)` -> {name: value}, JSON-able: what it reads beside the data, such as a teacher; kept with the run and its model,
  and a run goes on only while they are the same;
- `terms(model, batch, config, generator)` -> {name: function that gives a loss}, where the loss is a sum of several. The log then
  has the norm of each term's gradient.

`batch` is on the model's device, `generator` is a CPU generator that the caller has seeded for this step.
"""
