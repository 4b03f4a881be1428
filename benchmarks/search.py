"""A library that grows: seconds to write it and to make its approximate index, milliseconds of a query, and recall.

    python benchmarks/search.py [--rows 10000 100000 1000000] [--vectors clustered random] [--features FILE.parquet ...]
                                [--queries 100] [--probes 16] [--kinds] [--quick] [--json FILE]

The queries are those of `tubelet search`: the ten nearest windows with their metadata, the index as `tubelet index` makes it.
Recall@10 is the share of the ten nearest of all vectors (numpy) that are found. Vectors of 512 values: "clustered" has 100 about
each centre, a cosine of 0.5 apart, as features of videos are; "random" has no structure at all, which is the worst that can be.
--kinds compares kinds of approximate indexes instead: of each the seconds to make it, its size on disk, and what a query takes and
finds at several efforts, in processor time too, for other work slows the clock. --features takes vectors that `tubelet embed`
wrote; of them 100 are asked for and the rest is the library.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tubelet.records import ClipSpec
from tubelet.search import About, Index, answers, lance
from tubelet.video.stream import SLIDING

WIDTH = 512
PIECE = 20_000  # rows that are written together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--vectors", nargs="+", default=["clustered", "random"], choices=["clustered", "random"])
    parser.add_argument("--features", type=Path, nargs="*", default=[])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--probes", type=int, nargs="+", default=[answers.PROBES], help="cells of the index to look at")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [2000] if options.quick else options.rows
    rows: list[measure.Row] = []
    for count in counts:
        for kind in options.vectors:
            queries = next(pieces(kind, count, options.queries, seed=1))
            vectors = pieces(kind, count, count, seed=0)
            rows += kinds(kind, vectors, queries) if options.kinds else one(kind, vectors, queries, options.probes)
    for path in options.features:
        vectors = normalised(np.stack(pq.read_table(path)["vector"].to_numpy()))
        order = np.random.default_rng(0).permutation(len(vectors))
        rows += one(path.stem, iter([vectors[order[options.queries :]]]), vectors[order[: options.queries]], options.probes)
    measure.write(options.json, "search", rows)


def one(kind: str, vectors: Iterator[np.ndarray], queries: np.ndarray, probes: list[int]) -> list[measure.Row]:
    """Write a library, index it, ask it."""
    with tempfile.TemporaryDirectory() as folder:
        index, where, written, count = filled(folder, vectors, queries)
        begun = time.perf_counter()
        index._tidy()
        made = time.perf_counter() - begun
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        row: measure.Row = {"vectors": kind, "rows": count, "write, s": written, "index, s": made, "MB": size / 1e6}
        few = queries if count <= 100_000 else queries[:5]  # each takes seconds
        row["exact query, ms"] = statistics.median(asked(index, few, where, exact=True)[0])
        found: list[measure.Row] = []
        for cells in probes if count > lance.EXACT_ROWS else [answers.PROBES]:
            answers.PROBES = cells
            times, recall = asked(index, queries, where, exact=False)
            looks = {"cells looked at": cells} if count > lance.EXACT_ROWS else {}
            found.append(
                {**row, **looks, "query, ms": statistics.median(times), "range": measure.spread(times), "recall@10": recall}
            )
            print(found[-1], flush=True)
        return found


def filled(folder: str, vectors: Iterator[np.ndarray], queries: np.ndarray) -> tuple[Index, np.ndarray, float, int]:
    """A library without an index, the numbers (Q,10) of the nearest of all vectors, the seconds it took to write, and its rows."""
    about = About("none", "", "", queries.shape[1], ClipSpec(), SLIDING)
    database = lance.connect(folder)
    for name in ("pending", "windows"):
        database.create_table(name, schema=lance.schema(about))
    index = Index(folder, database, about)
    begun, truth, count = time.perf_counter(), np.empty((len(queries), 0)), 0
    where = np.empty((len(queries), 0), np.int64)
    thinking = 0.0
    for piece in vectors:
        index._rows().add(rows_of(piece, count, about))
        start = time.perf_counter()
        scores = queries @ piece.T
        truth = np.concatenate([truth, scores], axis=1)
        where = np.concatenate([where, np.broadcast_to(np.arange(count, count + len(piece)), scores.shape)], axis=1)
        best = np.argsort(-truth, axis=1)[:, :10]
        truth, where = np.take_along_axis(truth, best, 1), np.take_along_axis(where, best, 1)
        count += len(piece)
        thinking += time.perf_counter() - start
    written = time.perf_counter() - begun - thinking
    return index, where, written, count


def kinds(name: str, vectors: Iterator[np.ndarray], queries: np.ndarray) -> list[measure.Row]:
    """Every kind of index over the same library, at several efforts."""
    from lancedb.index import HnswSq, IvfPq, IvfSq

    found: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        index, where, _, count = filled(folder, vectors, queries)
        table, cells = index._rows(), max(1, count // lance.CELL_ROWS)
        table.optimize()
        kept = Path(folder) / "windows.lance" / "_indices"
        efforts = [{"nprobes": probes} for probes in (cells // 10, cells // 5, 2 * cells // 5) if probes]
        asked: list[tuple[str, object, list[dict[str, int]]]] = [
            ("all vectors", None, [{}]),
            (f"IVF_SQ, {cells} cells", IvfSq(distance_type="cosine", num_partitions=cells), efforts),
            (
                f"IVF_PQ, {cells} cells",
                IvfPq(distance_type="cosine", num_partitions=cells, num_sub_vectors=WIDTH // 8),
                efforts,
            ),
            ("IVF_HNSW_SQ, 1 cell", HnswSq(distance_type="cosine", num_partitions=1), [{"ef": ef} for ef in (60, 150, 300)]),
        ]
        for kind, config, tries in asked:
            before, begun, used = set(kept.glob("*")), time.perf_counter(), time.process_time()
            if config is not None:
                table.create_index("vector", config=config, name="vector_idx", replace=True)
            made, worked = time.perf_counter() - begun, time.process_time() - used
            files = [path for place in set(kept.glob("*")) - before for path in place.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files) / 1e6
            for effort in tries:
                times, work, right = [], [], 0
                for number in [0, *range(len(queries))]:  # the first one twice: it reads the index
                    begun, used = time.perf_counter(), time.process_time()
                    near = table.search(queries[number], vector_column_name="vector").distance_type("cosine")
                    near = near.refine_factor(answers.REFINE) if config else near.bypass_vector_index()
                    for setting, value in effort.items():
                        near = getattr(near, setting)(value)
                    rows = near.limit(10).select(["path", "_distance"]).to_list()
                    times.append(1000 * (time.perf_counter() - begun))
                    work.append(1000 * (time.process_time() - used))
                    right += len({int(row["path"][1:]) for row in rows} & set(where[number].tolist())) if times[1:] else 0
                row = {
                    "vectors": name,
                    "rows": count,
                    "index": kind,
                    "effort": ", ".join(f"{k} {v}" for k, v in effort.items()),
                }
                row |= {"index, s": made, "processor s": worked, "MB": size, "recall@10": right / (10 * len(queries))}
                row |= {"query, ms": statistics.median(times[1:]), "range": measure.spread(times[1:])}
                found.append({**row, "query, processor ms": statistics.median(work[1:])})
                print(found[-1], flush=True)
    return found


def asked(index: Index, queries: np.ndarray, nearest: np.ndarray, exact: bool) -> tuple[list[float], float]:
    """(milliseconds of every query, share of the ten `nearest` that they found)."""
    index.search(torch.from_numpy(queries[0]), 10, exact=exact)
    times, found = [], 0
    for query, wanted in zip(queries, nearest, strict=False):
        begun = time.perf_counter()
        hits = index.search(torch.from_numpy(query), 10, exact=exact)
        times.append(1000 * (time.perf_counter() - begun))
        found += len({int(hit.path[1:]) for hit in hits} & set(wanted.tolist()))
    return times, found / (10 * len(queries))


def rows_of(vectors: np.ndarray, first: int, about: About) -> pa.Table:
    """Windows of as many files, each called by its number."""
    count = len(vectors)
    names = pa.array([f"/{number}" for number in range(first, first + count)])
    text = {name: pa.array(["2026-11-21T12:00:00"] * count) for name in ("state", "label", "text", "date")}
    zeros = pa.array(np.zeros(count))
    columns = {
        "id": names,
        "item": names,
        "path": names,
        "per": pa.array(["window"] * count),
        **text,
        "start_seconds": zeros,
        "end_seconds": zeros,
        "shot": pa.array(np.zeros(count, np.int32)),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), about.width),
    }
    schema = lance.schema(about)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def pieces(kind: str, count: int, wanted: int, seed: int) -> Iterator[np.ndarray]:
    """`wanted` vectors of a set that has `count`."""
    generator = np.random.default_rng([seed, count])
    centres = normalised(np.random.default_rng(count).standard_normal((max(1, count // 100), WIDTH), dtype=np.float32))
    for first in range(0, wanted, PIECE):
        size = min(PIECE, wanted - first)
        noise = normalised(generator.standard_normal((size, WIDTH), dtype=np.float32))
        if kind == "random":
            yield noise
        else:
            yield normalised(centres[generator.integers(len(centres), size=size)] + noise)


def normalised(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
