"""One process from nothing to its first answer: run by ``benchmarks/edge.py``.

    first_answer.py HOW MODEL IMAGE

    runner    ``metanas_client.local.TaskRunner`` on the ONNX file
    floor     numpy, Pillow and ONNX Runtime imported, the file opened and run: the least it can be
    torch     the task model on torch, its batch norm frozen

On its standard output: the class, then the largest resident memory of the process in bytes.
"""

import sys
from pathlib import Path


def main() -> None:
    """Answer once, in the way that the command line names."""
    how, model, image = sys.argv[1:]
    answer = {"runner": _runner, "floor": _floor, "torch": _torch}[how](model, image)
    # Not getrusage: what it counts begins with the memory of the process that started this one.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(answer, 1024 * int(line.split()[1]), sep="\t", flush=True)


def _runner(model: str, image: str) -> str:
    from metanas_client.local import TaskRunner

    return TaskRunner(model).classify([image])[0].class_name


def _floor(model: str, image: str) -> str:
    import numpy as np
    import onnxruntime
    from PIL import Image

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with Image.open(image) as picture:
        picture.load()
    shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
    session.run(None, {session.get_inputs()[0].name: np.zeros(shape, dtype=np.float32)})
    return "-"


def _torch(model: str, image: str) -> str:
    import torch
    from PIL import Image

    from metanas.artifact import load_task
    from metanas.preprocessing import prepare

    torch.set_num_threads(1)
    task = load_task(model)
    with Image.open(image) as picture:
        pixels = torch.from_numpy(prepare(picture, task.preprocessing))
    return task.class_names[int(task.logits(pixels[None]).argmax())]


if __name__ == "__main__":
    main()
