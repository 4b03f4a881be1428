"""`make bench`: every benchmark one after another, each with its ways in turn, then the page of docs/benchmarks.

    python benchmarks/run.py [--quick] [--only decode load ...] [--out docs/benchmarks]

--quick runs few rounds of small cases, to see that everything works: its figures mean little and go into build/benchmarks.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent

TINY = "--sizes tiny --frames 8 --pixels 112 --rounds 2"
BOTH = "--sizes small base --precision fp32 bf16"

# name -> (script, arguments, arguments of a quick run)
BENCHMARKS = {
    "decode": ("decode.py", "", "--quick"),
    "prepare": ("prepare.py", "", "--rounds 1 --sizes 240p --frames 90"),
    "load": ("load.py", "", "--quick"),
    "pretrain": (
        "step.py",
        f"--steps pretraining 'dual masking' {BOTH} --batch 1 4 --rounds 5 --processes",
        f"--steps pretraining 'dual masking' {TINY} --processes",
    ),
    "finetune": ("step.py", f"--steps finetuning {BOTH} --rounds 5 --processes --compile", f"--steps finetuning {TINY}"),
    "infer": ("step.py", f"--steps inference exported {BOTH} --processes --compile", f"--steps inference exported {TINY}"),
    "families": ("families.py", "", "--quick --rounds 1 --batch 1"),
    "serve": ("serve.py", "", "--quick"),
    "e2e": ("e2e.py", "", "--quick"),
    "gpu": ("gpu.py", "", "--quick"),
    "growth": ("growth.py", "", "--quick"),
    "search": ("search.py", "--probes 40 160", "--quick --queries 10"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds of small cases, within three minutes")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=list(BENCHMARKS), metavar="NAME")
    parser.add_argument("--out", type=Path, help="where the JSON files and the page go")
    options = parser.parse_args()
    out = options.out or HERE.parent / ("build/benchmarks" if options.quick else "docs/benchmarks")
    out.mkdir(parents=True, exist_ok=True)
    begun, failed = time.monotonic(), []
    for name in options.only:
        script, full, quick = BENCHMARKS[name]
        arguments = shlex.split(quick if options.quick else full)
        command = [sys.executable, str(HERE / script), *arguments, "--json", str(out / f"{name}.json")]
        if subprocess.run(command).returncode:
            failed.append(name)
    if subprocess.run([sys.executable, str(HERE / "page.py"), "--folder", str(out)]).returncode:
        failed.append("page")
    print(f"{time.monotonic() - begun:.0f} s")
    if failed:
        print(f"error: these did not run, see above: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
