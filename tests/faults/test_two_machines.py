"""Two machines as examples/pytorchjob.yaml has them: each with a network, a host name and processes of its own, all on this one.

The environment is what Kubeflow's operator tells a pod, read from the example, and a machine that fails is started again, as it
does. What befalls them ends in the weights and losses of a run of one process. Needs Linux and root, for network namespaces.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from .test_training_faults import SETTINGS, logged

EXAMPLE = Path(__file__).parents[2] / "examples" / "pytorchjob.yaml"
STEPS = 400
CLOSE = 1e-5  # what the order of sums may change: some steps are made by two processes, some by one
PATIENCE = 300  # seconds; after a machine is lost, torchrun waits 30 for another before it goes on without
OURS = f"tubelet{os.getpid()}"  # names that belong to the whole machine: what a killed run left of them is in nobody's way

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"),
        reason="network namespaces need Linux, root, and the commands ip and unshare",
    ),
]


def run(line: str) -> None:
    subprocess.run(shlex.split(line), check=True, capture_output=True, text=True)


class Machine:
    """`tubelet-worker-0` or `-1`: what runs in it sees its own network card and its own processes only."""

    def __init__(self, number: int, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.host, self.space, self.card = f"tubelet-worker-{number}", f"{OURS}-{number}", f"{OURS}{'ab'[number]}"
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        run(f"ip netns add {self.space}")
        run(f"ip link add {self.card} type veth peer name eth0 netns {self.space}")
        run(f"ip link set {self.card} master {OURS} up")
        for words in (f"addr add 10.77.0.1{number}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run(f"ip -n {self.space} {words}")
        hosts = Path("/etc/netns") / self.space / "hosts"  # is /etc/hosts there, as the cluster's names are in a pod
        hosts.parent.mkdir(parents=True)
        hosts.write_text("127.0.0.1 localhost\n10.77.0.10 tubelet-worker-0\n10.77.0.11 tubelet-worker-1\n")

    def start(self) -> None:
        begin = f"ip netns exec {self.space} unshare --uts --pid --fork --kill-child --mount-proc sh -c"
        script = f"hostname {self.host}; exec {shlex.join(self.command)}"
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen([*begin.split(), script], env=self.environment, stdout=out, stderr=out)
        self.starts += 1

    def send(self, kind: signal.Signals) -> None:
        """To torchrun, the first process of the machine."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), kind)

    def trainers(self) -> list[int]:
        """The processes that train, as this machine numbers them."""
        inside = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout.split()
        return [int(pid) for pid in inside if b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes() and trains(int(pid))]

    def code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def remove(self) -> None:
        if self.process is not None:
            self.process.kill()  # and with it, all in its namespace
            self.process.wait()
        subprocess.run(["ip", "netns", "del", self.space], capture_output=True)
        subprocess.run(["ip", "link", "del", self.card], capture_output=True)
        shutil.rmtree(Path("/etc/netns") / self.space, ignore_errors=True)


def trains(pid: int) -> bool:
    """torchrun's own children, not their readers of videos."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return b"torchrun" in Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"torch.distributed.run", b"torchrun")


@pytest.fixture(scope="module")
def videos(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(motion_folder, tmp_path_factory.mktemp("machines") / "videos"))


def words(videos: Path, out: Path) -> list[str]:
    """What follows `tubelet`."""
    more = f"--loader.repeats 1 --optim.steps {STEPS} --run.checkpoint-every 20"
    return ["pretrain", str(videos), "--out", str(out), *SETTINGS.split(), *more.split()]


@pytest.fixture(scope="module")
def reference(videos: Path) -> Path:
    out = videos.parent / "reference"
    subprocess.run([sys.executable, "-m", "tubelet", *words(videos, out)], check=True, capture_output=True, timeout=PATIENCE)
    return out


@pytest.fixture
def machines(videos: Path, tmp_path: Path) -> Iterator[list[Machine]]:
    """Not started yet; they write into tmp_path/run."""
    job: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())["spec"]
    container = job["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    elastic = job["elasticPolicy"]
    environment = os.environ | {entry["name"]: entry["value"] for entry in container["env"]}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PET_RDZV_BACKEND": elastic["rdzvBackend"],
        "PET_RDZV_ENDPOINT": "tubelet-worker-0:23456",
        "PET_NNODES": f"{elastic['minReplicas']}:{elastic['maxReplicas']}",
        "PET_NPROC_PER_NODE": "1",  # of eight GPUs there
        "PET_MAX_RESTARTS": str(elastic["maxRestarts"]),
    }
    assert container["command"][:4] == ["torchrun", "-m", "tubelet", "pretrain"]
    command = [sys.executable, "-m", "torch.distributed.run", "-m", "tubelet", *words(videos, tmp_path / "run")]
    made: list[Machine] = []
    run(f"ip link add {OURS} type bridge")
    try:
        run(f"ip link set {OURS} up")
        for number in range(2):
            made.append(Machine(number, command, environment, tmp_path / f"worker-{number}.log"))
        yield made
    finally:
        for machine in made:
            machine.remove()
        run(f"ip link del {OURS}")


def wait_for(machines: list[Machine], condition: Callable[[], object]) -> None:
    """Meanwhile a machine that failed is started again, as the example's `restartPolicy: OnFailure` says."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "the machines do not get on:\n" + "\n".join(m.log.read_text()[-3000:] for m in machines)
        for machine in machines:
            if machine.code() not in (None, 0):
                assert machine.starts < 5, machine.log.read_text()[-3000:]
                machine.start()
        time.sleep(0.05)


def begin(machines: list[Machine], out: Path) -> None:
    """Both train, and the first checkpoint is there."""
    for machine in machines:
        machine.start()
    wait_for(machines, lambda: any((out / "checkpoints").glob("step_*")))
    assert [len(machine.trainers()) for machine in machines] == [1, 1]
    assert len(logged(out)) < STEPS - 50, "too fast to befall it anything"


def kill_a_process(machines: list[Machine]) -> None:
    os.kill(machines[1].trainers()[0], signal.SIGKILL)


def lose_the_second(machines: list[Machine]) -> None:
    assert machines[1].process is not None
    machines[1].process.kill()
    machines[1].process.wait()


def lose_the_first(machines: list[Machine]) -> None:
    """With it goes the place where they meet."""
    assert machines[0].process is not None
    machines[0].process.kill()
    machines[0].process.wait()


def evict_the_second(machines: list[Machine]) -> None:
    machines[1].send(signal.SIGTERM)


def cut_the_network(machines: list[Machine]) -> None:
    run(f"ip link set {machines[1].card} down")
    time.sleep(8)
    run(f"ip link set {machines[1].card} up")


@pytest.mark.parametrize("befall", [kill_a_process, lose_the_second, lose_the_first, evict_the_second, cut_the_network])
def test_two_machines_end_where_one_process_ends(befall, machines, reference, tmp_path):
    out = tmp_path / "run"
    begin(machines, out)
    befall(machines)
    wait_for(machines, lambda: [machine.code() for machine in machines] == [0, 0])

    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, reference))
    furthest = max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)
    curves = [torch.tensor([entry["loss"] for entry in logged(folder)]) for folder in (out, reference)]
    assert ours.keys() == theirs.keys() and len(curves[0]) == len(curves[1]) == STEPS
    assert furthest < CLOSE and float((curves[0] - curves[1]).abs().max()) < CLOSE
    assert [entry["step"] for entry in logged(out)] == list(range(1, STEPS + 1))
    said = {"weights": furthest, "starts": [machine.starts for machine in machines]}
    print(befall.__name__, json.dumps(said))
