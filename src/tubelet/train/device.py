"""Where a run computes and how exactly."""

import contextlib
import os
import shutil
import sys

import torch

from tubelet.allocator import keep_freed
from tubelet.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device meant by "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1" or "mps".

    ConfigError for one that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it was not built for
        raise ConfigError(f"device {name!r} cannot be used here: try auto, cpu or cuda") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" takes bf16 on a GPU that computes in it. On a CPU it must be asked for."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"run.precision is bf16, which {torch.cuda.get_device_name(device)} does not have: use fp32")
    return name


def check_compiler(device: torch.device) -> None:
    """ConfigError where torch.compile has no compiler: it writes C++ for a CPU, and for a GPU kernels that C starts."""
    cpp = "clang++" if sys.platform == "darwin" else "g++"
    names, chosen = ([cpp], "CXX") if device.type == "cpu" else (["gcc", "clang"], "CC")
    named = os.environ.get(chosen)
    if not any(shutil.which(name) for name in ([named] if named else names)):
        raise ConfigError(
            f"run.compile needs a compiler, and there is no {named or ' or '.join(names)}: install one ({names[0]}; {chosen} names "
            "another), or leave run.compile off"
        )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Matrix products in bf16 where that was chosen; weights, residual stream and norms stay float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def set_up(device: torch.device, deterministic: bool, threads: int | None = None) -> None:
    """Choose torch's threads where a number is given, keep what is freed (see `allocator`), and make a GPU repeat itself bit for
    bit. A CPU does so by itself."""
    keep_freed()
    if threads is not None:
        torch.set_num_threads(threads)
    if device.type == "cuda":
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
