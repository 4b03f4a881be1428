"""The whole job on videos made on the spot: pretrain, fine-tune, evaluate beside what a result must beat."""

from collections.abc import Callable
from dataclasses import replace

import torch

from tubelet.errors import CheckpointError
from tubelet.evaluate import protocol, report
from tubelet.evaluate.multiview import look
from tubelet.evaluate.run import Evaluation, Settings, evaluate
from tubelet.recipes.demo import Demo
from tubelet.train import data
from tubelet.train.loop import train
from tubelet.video.synthetic import write_motion_set
from tubelet.weights.load import load_model


def run(demo: Demo, say: Callable[[str], None]) -> Evaluation:
    """Carry out a demo, or continue one that was stopped; gives the results of its fine-tuned model and where the report is.

    The table holds the fine-tuned model, the same training from random initialisation, k-NN and a linear probe on the
    pretrained and on untrained features, a single-frame model, the majority class and chance.
    """
    if demo.pretrain.run.threads:
        torch.set_num_threads(demo.pretrain.run.threads)  # of drawing the videos too
    say(f"1/5  a motion set of {len(demo.motions)} classes in {demo.videos}")
    try:
        write_motion_set(
            demo.videos, demo.motions, train=demo.train, val=demo.val, unlabelled=demo.unlabelled, size=demo.size,
            frames=demo.frames, seed=demo.pretrain.run.seed,
        )  # fmt: skip
    except OSError as error:
        raise CheckpointError(f"cannot write {demo.videos}: {error.strerror}; make room or choose another --out") from error
    say(f"2/5  pretraining on {demo.unlabelled:,} unlabelled videos")
    train(demo.pretrain)
    say(f"3/5  fine-tuning on {demo.train * len(demo.motions):,} labelled videos")
    taught = train(demo.finetune)
    say("4/5  a model that sees single frames, on the same labels")
    single = load_model(train(demo.single_frame))
    say("5/5  evaluation, beside the same fine-tuning from random initialisation")
    settings = Settings(clips=1, crops=1, batch_size=32)  # the clip is the whole video
    found = evaluate(taught, (str(demo.videos),), settings=settings, say=say)
    _, held_out = data.load(demo.finetune.data, needs_labels=True)
    assert held_out is not None
    looks = look(single, held_out.examples, batch_size=32)
    row = protocol.classification_row(looks, single.class_names, "single frame", note="a CNN, frame by frame; knows no order")
    report.update(taught, results=[row])
    return replace(found, results=report.load(taught)["results"])
