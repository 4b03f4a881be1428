"""Memory that was freed is used again: counted in the pages that the system had to give."""

import os
import platform
import subprocess
import sys

import pytest

from tubelet.allocator import CHOSEN

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")

STEPS = """
import resource, sys
import torch
{first}
def step():
    held = [torch.ones(size) for size in ({sizes}) * 2]
for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from tubelet.allocator import keep_freed; keep_freed()"
COMMAND = "from tubelet.cli import main; main(['--version'])"
TRAINING = "from tubelet.train.device import set_up; set_up(torch.device('cpu'), False)"


LARGE = "2**20, 2**23"  # float32: 4 and 32 MB
SMALL = "2**20, 2**22"  # 4 and 16 MB, which glibc keeps by itself


def pages(first: str, sizes: str = LARGE, **chosen: str) -> int:
    """Given by the system to a process of its own in three steps of 75 MB (SMALL: 42 MB), after eight more."""
    plain = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(first=first, sizes=sizes)],
        capture_output=True,
        text=True,
        check=True,
        env=plain | chosen,
    )
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def usual() -> int:
    """What glibc does by itself: nearly all of them, 49,000 pages of 4 KB."""
    found = pages("")
    if found < 20_000:
        pytest.skip(f"only {found} pages are given here: they are huge ones, or torch has an allocator of its own")
    return found


@pytest.mark.parametrize("first", [KEEP, COMMAND, TRAINING])
def test_freed_memory_is_used_again(first: str, usual: int) -> None:
    assert pages(first) < usual / 4


def test_what_is_kept_anyway_still_is(usual: int) -> None:
    assert pages(KEEP, SMALL) < usual / 4


@pytest.mark.parametrize(
    "chosen", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}]
)
def test_a_users_own_choice_stands(chosen: dict[str, str], usual: int) -> None:
    assert pages(KEEP, **chosen) > usual / 2
