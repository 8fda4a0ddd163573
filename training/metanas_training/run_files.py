"""Meta-models that are runs of one experiment, as files.

RunFile     a meta-model with the file that it came from
read_runs   paths  ->  RunFiles that differ by nothing but their seed
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metanas.artifact import meta_from_bytes
from metanas.model import MetaModel
from metanas.space import space_to_dict
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
        EvaluationError: they are not runs of one experiment, or two of them are of one seed.
    """
    contents = [path.read_bytes() for path in paths]
    metas = [meta_from_bytes(content, name=str(path)) for path, content in zip(paths, contents, strict=True)]
    for path, meta in zip(paths[1:], metas[1:], strict=True):
        difference = _first_difference(_settings(metas[0]), _settings(meta))
        if difference is not None:
            raise EvaluationError(
                f"{paths[0]} and {path} differ in their {difference}; evaluate together only runs of one experiment "
                "that differ by their seed: evaluate these one by one, and compare them with compare_runs.py"
            )
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for index, digest in enumerate(digests):
        if digest in digests[:index]:
            raise EvaluationError(f"{paths[digests.index(digest)]} and {paths[index]} are the same meta-model")
    seeds: dict[Any, Path] = {}
    for path, meta in zip(paths, metas, strict=True):
        if "seed" in meta.provenance and (other := seeds.setdefault(meta.provenance["seed"], path)) is not path:
            raise EvaluationError(
                f"{other} and {path} are both of seed {meta.provenance['seed']}; runs of one experiment differ by "
                "their seed: leave one out, or evaluate them one by one"
            )
    return [
        RunFile(name, str(path), digest, meta)
        for name, path, digest, meta in zip(_names(paths, metas), paths, digests, metas, strict=True)
    ]


def _settings(meta: MetaModel) -> dict[str, Any]:
    """What runs of one experiment have in common."""
    settings: dict[str, Any] = {}
    if "configuration" in meta.provenance:
        configuration = meta.provenance["configuration"]
        settings["configuration"] = {name: value for name, value in configuration.items() if name != "seed"}
    return {
        **settings,
        "space": space_to_dict(meta.space),
        "genotype": None if meta.genotype is None else meta.genotype.to_dict(),
        "schedule": meta.schedule.to_dict(),
        "preprocessing": meta.preprocessing.to_dict(),
    }


def _first_difference(one: Any, other: Any, name: str = "") -> str | None:
    """The first setting that differs, as "configuration.task.strategy (none and operations)"; None: none does."""
    if one == other:
        return None
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return f"{name} ({one} and {other})"
    for key in {**one, **other}:
        full = f"{name}.{key}" if name else key
        if key not in one or key not in other:
            return f"{full}: only the {'first' if key in one else 'second'} has it"
        if (difference := _first_difference(one[key], other[key], full)) is not None:
            return difference
    return None


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
