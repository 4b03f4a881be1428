"""What labels are worth: accuracy against the number of labels, chosen by a head's doubt and at random.

    python benchmarks/labels.py FEATURES --labels CSV --start 10 --step 10 --rounds 6

Labels of the split `train` are the pool, of which some are revealed each round; those of `val` judge, and are never chosen from.
Prints a Markdown table: the mean over the seeds and, in brackets, the lowest and the highest.
"""

import argparse
import dataclasses

import torch

from tubelet import classify, feature_store
from tubelet.feature_store import Stored


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("features")
    words.add_argument("--labels", required=True)
    words.add_argument("--kind", default="linear", choices=list(classify.KINDS))
    words.add_argument("--l2", type=float, default=0.1, help="of the linear head, the same for every fit")
    for name, default in (("start", 10), ("step", 10), ("rounds", 6), ("seeds", 10)):
        words.add_argument(f"--{name}", type=int, default=default)
    asked = words.parse_args()
    stored = feature_store.read(asked.features)
    pool, _ = classify.read_labels([asked.labels], stored, "train")
    judges, _ = classify.read_labels([asked.labels], stored, "val")
    print(
        f"{len(pool)} videos to choose from, {len(judges)} that judge, {len(set(pool.values()))} classes, head {asked.kind}\n"
    )
    print("| labels | most doubtful next | random next |\n|---|---|---|")
    curves = {
        how: [curve(stored, pool, judges, how, asked, seed) for seed in range(asked.seeds)] for how in ("doubt", "random")
    }
    for round in range(asked.rounds):
        cells = []
        for how in ("doubt", "random"):
            values = [one[round] for one in curves[how]]
            cells.append(f"{sum(values) / len(values):.1%} ({min(values):.0%} to {max(values):.0%})")
        print(f"| {asked.start + round * asked.step} | {' | '.join(cells)} |")


def curve(
    stored: Stored, pool: dict[str, str], judges: dict[str, str], how: str, asked: argparse.Namespace, seed: int
) -> list[float]:
    """The accuracy on the judges after each round; both ways begin with the same labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = [list(pool)[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
    known, left = ids[: asked.start], ids[asked.start :]
    inside, test = only(stored, set(pool)), only(stored, set(judges))
    accuracies = []
    for _ in range(asked.rounds):
        head = classify.fit(stored, {id: pool[id] for id in known}, asked.kind, l2=asked.l2)
        right = [answer.top[0][0] == judges[answer.id] for answer in classify.predict(head, test)]
        accuracies.append(sum(right) / len(right))
        chosen = (
            [answer.id for answer in classify.uncertain(head, inside, asked.step)] if how == "doubt" else left[: asked.step]
        )
        known, left = known + chosen, [id for id in left if id not in set(chosen)]
    return accuracies


def only(stored: Stored, ids: set[str]) -> Stored:
    """The rows of these videos."""
    rows = [row for row, id in enumerate(stored.ids) if id in ids]
    names, paths = (tuple(column[row] for row in rows) for column in (stored.ids, stored.paths))
    return dataclasses.replace(stored, ids=names, paths=paths, vectors=stored.vectors[rows])


if __name__ == "__main__":
    main()
