"""Meta-models that are runs of one experiment, as files.

RunFile     a meta-model with the file that it came from
read_runs   paths  ->  RunFiles that differ by nothing but their seed
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metanas.artifact import meta_from_bytes
from metanas.model import MetaModel
from metanas_training.errors import EvaluationError


@dataclass(frozen=True, slots=True)
class RunFile:
    """A meta-model with the file that it came from."""

    name: str
    """In figures and tables: "seed 0" where that tells the runs apart, else the folder's or the file's name."""
    path: str
    sha256: str
    """Of the file's content."""
    meta: MetaModel


def read_runs(paths: Sequence[Path]) -> list[RunFile]:
    """Read meta-models.

    Raises:
        FileNotFoundError, ArtifactError: a file cannot be used.
        EvaluationError: they are not runs of one experiment.
    """
    contents = [path.read_bytes() for path in paths]
    metas = [meta_from_bytes(content, name=str(path)) for path, content in zip(paths, contents, strict=True)]
    for path, meta in zip(paths[1:], metas[1:], strict=True):
        for field in ("space", "genotype", "schedule", "preprocessing"):
            if getattr(meta, field) != getattr(metas[0], field):
                raise EvaluationError(
                    f"{paths[0]} and {path} differ in their {field}; evaluate together only runs of one experiment "
                    f"that differ by their seed, and compare others with compare_runs.py"
                )
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for index, digest in enumerate(digests):
        if digest in digests[:index]:
            raise EvaluationError(f"{paths[digests.index(digest)]} and {paths[index]} are the same meta-model")
    return [
        RunFile(name, str(path), digest, meta)
        for name, path, digest, meta in zip(_names(paths, metas), paths, digests, metas, strict=True)
    ]


def _names(paths: Sequence[Path], metas: Sequence[MetaModel]) -> list[str]:
    """The first way to name the runs that gives each a name of its own."""
    for names in (
        [f"seed {meta.provenance['seed']}" if "seed" in meta.provenance else "" for meta in metas],
        [path.resolve().parent.name for path in paths],
        [path.stem for path in paths],
    ):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"run {index}" for index in range(len(paths))]
