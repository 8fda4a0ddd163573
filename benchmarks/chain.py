"""`make bench`: seconds of the chain on this machine, with the machine's own speed beside them.

    Adapt           20-way 1-shot at a real server process, with the bundled meta-model
    Classify        one image a call, end to end, idle and while an Adapt runs
    meta-training   tasks a second in the joint phase, from the bundled meta-model

Times depend on the machine and on what else it does: each run also measures a 2048 x 2048
float32 matrix product, and the results name it. Omniglot where METANAS_DATA holds it, else glyphs.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanas.artifact import load_meta
from metanas.backbone import Backbone
from metanas.model import MetaModel
from metanas.relaxation import Architecture
from metanas_client import FewShotClient, Task
from metanas_training.datasets import ImageClasses, data_root, load_classes
from metanas_training.episodes import Episode, generator_for, sample_episode
from metanas_training.meta_learner import MetaTask
from metanas_training.reptile import Reptile

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "serving" / "metanas_serving" / "models" / "omniglot.pt"
ADAPTATIONS = 3
CALLS = 300
META_BATCH = 4


def main() -> int:
    """Measure, print a table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    output: Path = parser.parse_args().output
    torch.set_num_threads(1)
    meta = load_meta(BUNDLED)
    data = "omniglot" if (data_root() / "omniglot").is_dir() else "glyphs"
    test = load_classes(data, "test", preprocessing=meta.preprocessing, root=data_root())
    train = load_classes(data, "train", preprocessing=meta.preprocessing, root=data_root())
    results: dict[str, Any] = {
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "data": test.name,
        "matmul_gflops_one_thread": matmul_gflops(),
        **served(test),
        **meta_training(meta, train),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "chain.json").write_text(json.dumps(results, indent=2) + "\n")
    text = markdown(results)
    (output / "chain.md").write_text(text)
    print(text)
    return 0


def matmul_gflops() -> float:
    """Rate of a 2048 x 2048 float32 matrix product on one thread: the best of five."""
    matrix = torch.rand(2048, 2048)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(seconds) / 1e9


def served(classes: ImageClasses) -> dict[str, float]:
    """Adapt and Classify at a real server process."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "serving" / "server.py", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        with FewShotClient(address, timeout_seconds=300) as client:
            client.wait_until_ready(timeout_seconds=60)
            episodes = [episode(classes, number) for number in range(ADAPTATIONS + 1)]
            tasks = [adapt(client, one, classes) for one in episodes[:ADAPTATIONS]]
            query = picture(episodes[0].query_images[0], classes)
            idle = latencies(tasks[0], query, calls=CALLS)
            busy: list[float] = []
            learning = threading.Thread(target=adapt, args=(client, episodes[-1], classes))
            learning.start()
            while learning.is_alive():
                busy += latencies(tasks[0], query, calls=20)
            learning.join()
    finally:
        server.terminate()
        server.wait(timeout=60)
    return {
        "adapt_seconds": float(np.median([task.adapt_seconds for task in tasks])),
        "classify_ms_p50": float(np.percentile(idle, 50)),
        "classify_ms_p99": float(np.percentile(idle, 99)),
        "classify_during_adapt_ms_p50": float(np.percentile(busy, 50)),
        "classify_during_adapt_ms_p99": float(np.percentile(busy, 99)),
        "classify_during_adapt_ms_max": float(max(busy)),
    }


def episode(classes: ImageClasses, number: int) -> Episode:
    """One 20-way 1-shot task of unseen classes."""
    return sample_episode(classes, n_way=20, n_shot=1, n_query=1, generator=generator_for(0, 7, number))


def picture(image: torch.Tensor, classes: ImageClasses) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A prepared image as a user would send it: dark ink on white."""
    pixels = image[0].numpy()
    return 255 - pixels if classes.preprocessing.invert else pixels


def adapt(client: FewShotClient, one: Episode, classes: ImageClasses) -> Task:
    """Teach the server one episode."""
    names = one.support.class_names
    support: dict[str, list[Any]] = {name: [] for name in names}
    for image, label in zip(one.support.images, one.support.labels.tolist(), strict=True):
        support[names[label]].append(picture(image, classes))
    return client.adapt(support)


def latencies(task: Task, image: Any, *, calls: int) -> list[float]:
    """Milliseconds of each of ``calls`` Classify calls with one image, end to end."""
    milliseconds = []
    for _ in range(calls):
        started = time.perf_counter()
        task.classify([image])
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds


@dataclass
class MetaParameters:
    """A ``Subject`` from a meta-model."""

    network: Backbone
    architecture: Architecture
    log_scale: Tensor
    moments: dict[str, Tensor]
    step_rates: dict[str, Tensor] = field(default_factory=dict)


def meta_training(meta: MetaModel, classes: ImageClasses) -> dict[str, float]:
    """Tasks a second of the joint phase: 20-way, 10 shots, 5 steps of 20 images, one thread."""
    subject = MetaParameters(
        network=meta.build_network(),
        architecture={name: value.clone().requires_grad_() for name, value in meta.architecture.items()},
        log_scale=torch.tensor(meta.head_scale).log(),
        moments=dict(meta.moments),
    )
    tasks = [
        MetaTask(
            sample_episode(classes, n_way=20, n_shot=10, n_query=0, generator=generator_for(0, 6, number)),
            generator_for(0, 5, number),
        )
        for number in range(META_BATCH)
    ]
    learner = Reptile(
        schedule=replace(meta.schedule, architecture_steps=5, weight_steps=0), preprocessing=meta.preprocessing
    )
    started = time.perf_counter()
    contribution = learner.learn(subject, tasks, learn_architecture=True)
    learner.move(subject, contribution.mean(), decay=1.0, learn_architecture=True)
    return {"meta_training_tasks_per_second": META_BATCH / (time.perf_counter() - started)}


def markdown(results: dict[str, Any]) -> str:
    """The results as a table."""
    machine = results["machine"]
    rows = [
        ("2048 x 2048 float32 matrix product, one thread", f"{results['matmul_gflops_one_thread']:.0f} GFLOP/s"),
        ("Adapt, 20-way 1-shot, 50 + 50 steps, one thread", f"{results['adapt_seconds']:.1f} s"),
        (
            "Classify, one image a call, end to end, p50 / p99",
            f"{results['classify_ms_p50']:.1f} / {results['classify_ms_p99']:.1f} ms",
        ),
        (
            "the same while an Adapt runs, p50 / p99 / max",
            f"{results['classify_during_adapt_ms_p50']:.1f} / {results['classify_during_adapt_ms_p99']:.1f} / "
            f"{results['classify_during_adapt_ms_max']:.1f} ms",
        ),
        ("meta-training, joint phase, one thread", f"{results['meta_training_tasks_per_second']:.2f} tasks/s"),
    ]
    lines = [f"Measured by `make bench` on {machine['processor']}, torch {machine['torch']}; {results['data']}.", ""]
    lines += ["| what | measured |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
