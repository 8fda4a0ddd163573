"""Files of ours: ``meta.pt`` and ``task_model.pt``.

A file is what ``torch.save`` makes of plain values and tensors, read with
``weights_only=True``: opening one never runs code. It holds

    kind, version    what it is and how to read it
    checksum         SHA-256 over metadata and tensors
    metadata         JSON text: search space, genotype, names, preprocessing, provenance
    tensors          by name

Writing is atomic: a file is complete or it is not there. The one place of the core that
touches the file system.
"""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanas.errors import (
    ArtifactError,
    CorruptArtifactError,
    NewerVersionError,
    WrongKindError,
)
from metanas.model import AdaptationReport, MetaModel, TaskModel
from metanas.preprocessing import Preprocessing
from metanas.schedule import Schedule
from metanas.space import Genotype, space_from_dict, space_to_dict
from metanas.statistics import PriorStatistics
from metanas.task_network import TaskNetwork
from metanas.tasks import SupportSet
from metanas.trust import Trust
from metanas.variation import Variation

META_KIND = "metanas-edge/meta-model"
TASK_KIND = "metanas-edge/task-model"
VERSIONS = {META_KIND: 3}
"""Of the format, by kind; 1 where it is not named. Readers of 1 would ignore prior statistics, those of 2 variation."""

_COVARIANCE = "variation/covariance"

_TITLES = {META_KIND: "a meta-model (meta.pt)", TASK_KIND: "a task model (task_model.pt)"}


def save_meta(path: str | os.PathLike[str], meta: MetaModel) -> None:
    """Write ``meta.pt``, replacing what is there at once or not at all."""
    write_atomically(path, meta_to_bytes(meta))


def load_meta(path: str | os.PathLike[str]) -> MetaModel:
    """Read ``meta.pt``.

    Raises:
        FileNotFoundError: there is no such file.
        WrongKindError, CorruptArtifactError, NewerVersionError: the file cannot be used.
    """
    return meta_from_bytes(Path(path).read_bytes(), name=str(path))


def save_task(path: str | os.PathLike[str], task: TaskModel) -> None:
    """Write ``task_model.pt``, replacing what is there at once or not at all."""
    write_atomically(path, task_to_bytes(task))


def load_task(path: str | os.PathLike[str]) -> TaskModel:
    """Read ``task_model.pt``.

    Raises:
        FileNotFoundError: there is no such file.
        WrongKindError, CorruptArtifactError, NewerVersionError: the file cannot be used.
    """
    return task_from_bytes(Path(path).read_bytes(), name=str(path))


def meta_to_bytes(meta: MetaModel) -> bytes:
    """The content of ``meta.pt``."""
    metadata = {
        "space": space_to_dict(meta.space),
        "genotype": None if meta.genotype is None else meta.genotype.to_dict(),
        "head_scale": meta.head_scale,
        "known_similarity": meta.known_similarity,
        "prior_images": None if meta.prior is None else meta.prior.images,
        "variation": None if meta.variation is None else meta.variation.numbers(),
        "preprocessing": meta.preprocessing.to_dict(),
        "schedule": meta.schedule.to_dict(),
        "provenance": dict(meta.provenance),
    }
    tensors = {
        **{f"weights/{name}": value for name, value in meta.weights.items()},
        **{f"architecture/{name}": value for name, value in meta.architecture.items()},
        **{f"moments/{name}": value for name, value in meta.moments.items()},
        **{f"step_rates/{name}": value for name, value in meta.step_rates.items()},
        **({} if meta.prior is None else {f"prior/{name}": value for name, value in meta.prior.values.items()}),
        **({} if meta.variation is None else {_COVARIANCE: meta.variation.covariance}),
    }
    return pack(META_KIND, metadata, tensors)


def meta_from_bytes(data: bytes, *, name: str = "the file") -> MetaModel:
    """The inverse of ``meta_to_bytes``; ``name`` is what errors call the file."""
    metadata, tensors = unpack(data, META_KIND, name=name)
    try:
        prior_images: Any = metadata.get("prior_images")
        prior = _under(tensors, "prior/")
        return MetaModel(
            space=space_from_dict(metadata["space"]),
            genotype=Genotype.from_dict(metadata["genotype"]) if metadata.get("genotype") else None,
            weights=_under(tensors, "weights/"),
            architecture=_under(tensors, "architecture/"),
            head_scale=metadata["head_scale"],
            known_similarity=metadata.get("known_similarity"),
            prior=PriorStatistics(prior_images, prior) if prior or prior_images is not None else None,
            variation=_variation(metadata.get("variation"), tensors),
            preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
            schedule=Schedule.from_dict(metadata["schedule"]),
            moments=_under(tensors, "moments/"),
            step_rates=_under(tensors, "step_rates/"),
            provenance=metadata["provenance"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{name} is incomplete or contradicts itself: {error}") from error


def _variation(numbers: Any, tensors: Mapping[str, Tensor]) -> Variation | None:
    if numbers is None and _COVARIANCE not in tensors:
        return None
    return Variation(tensors[_COVARIANCE], **numbers)


def task_to_bytes(task: TaskModel) -> bytes:
    """The content of ``task_model.pt``."""
    metadata = {
        "space": space_to_dict(task.space),
        "genotype": task.genotype.to_dict(),
        "class_names": list(task.class_names),
        "preprocessing": task.preprocessing.to_dict(),
        "report": task.report.to_dict(),
        "trust": task.trust.to_dict(),
        "provenance": dict(task.provenance),
    }
    tensors = {
        **{f"network/{name}": value for name, value in task.network.state_dict().items()},
        "support/images": task.support.images,
        "support/labels": task.support.labels,
    }
    return pack(TASK_KIND, metadata, tensors)


def task_from_bytes(data: bytes, *, name: str = "the file") -> TaskModel:
    """The inverse of ``task_to_bytes``; ``name`` is what errors call the file."""
    metadata, tensors = unpack(data, TASK_KIND, name=name)
    try:
        class_names = tuple(metadata["class_names"])
        network = TaskNetwork(
            space_from_dict(metadata["space"]), Genotype.from_dict(metadata["genotype"]), len(class_names)
        )
        network.load_state_dict(_under(tensors, "network/"))
        network.eval().requires_grad_(False)
        return TaskModel(
            network=network,
            class_names=class_names,
            preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
            support=SupportSet(tensors["support/images"], tensors["support/labels"], class_names),
            report=AdaptationReport.from_dict(metadata["report"]),
            trust=Trust(**metadata.get("trust", {})),
            provenance=metadata["provenance"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CorruptArtifactError(f"{name} is incomplete or contradicts itself: {error}") from error


def pack(kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Make the content of a file of ours from plain values and tensors."""
    text = json.dumps(metadata, sort_keys=True)
    kept = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    buffer = io.BytesIO()
    torch.save(
        {
            "kind": kind,
            "version": VERSIONS.get(kind, 1),
            "checksum": _checksum(text, kept),
            "metadata": text,
            "tensors": kept,
        },
        buffer,
    )
    return buffer.getvalue()


def unpack(data: bytes, kind: str, *, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The inverse of ``pack``.

    Raises:
        WrongKindError: the content is of another kind.
        CorruptArtifactError: it cannot be read, or does not match its checksum.
        NewerVersionError: it was written by a later version.
    """
    content = _read(data, name)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        raise WrongKindError(f"{name} is not a file of MetaNAS Edge; expected {_TITLES.get(kind, kind)}")
    if content["kind"] != kind:
        seen = _TITLES.get(content["kind"], repr(content["kind"]))
        raise WrongKindError(f"{name} is {seen}; expected {_TITLES.get(kind, kind)}")
    version = content.get("version")
    if not isinstance(version, int):
        raise CorruptArtifactError(f"{name} has no version number; write it again")
    newest = VERSIONS.get(kind, 1)
    if version > newest:
        raise NewerVersionError(
            f"{name} has format version {version}, this package reads up to {newest}; upgrade metanas-edge"
        )
    text, tensors = content.get("metadata"), content.get("tensors")
    if (
        not isinstance(text, str)
        or not isinstance(tensors, dict)
        or not all(_plain(key, value) for key, value in tensors.items())
        or _checksum(text, tensors) != content.get("checksum")
    ):
        raise CorruptArtifactError(f"{name} does not match its checksum; copy or write it again")
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise CorruptArtifactError(f"{name} has unreadable metadata; write it again") from error
    if not isinstance(metadata, dict):
        raise CorruptArtifactError(f"{name} has metadata that are no table; write it again")
    return metadata, tensors


def _plain(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _read(data: bytes, name: str) -> Any:
    if not data:
        raise CorruptArtifactError(f"{name} is empty; copy or write it again")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its readers raise
        if data[:2] == b"PK":
            raise CorruptArtifactError(
                f"{name} ({len(data)} bytes) is truncated or damaged; copy or write it again"
            ) from error
        raise WrongKindError(f"{name} is not a file of MetaNAS Edge") from error


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # A clone: of a single value contiguous() keeps the strides, which a damaged file may have made odd.
        flat = tensor.clone(memory_format=torch.contiguous_format).flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    target = Path(path)
    try:
        # Not mkstemp: its files can be read by their owner only, whatever the umask says.
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(f"cannot write {target}: {error.strerror or error}") from error


def write_json(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Plain values as indented JSON, written as ``write_atomically`` does.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder onto the disk: a rename or removal is there only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
