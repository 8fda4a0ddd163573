"""What was found, as JSON and as a Markdown page.

header   what it was measured on, in one sentence
write    NAME.json and NAME.md, and the page on stdout
table    rows of cells
verdicts what has to hold, and whether it does
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from metanas.artifact import write_json

MEGABYTE = 1_000_000


def header(command: str, machine: Mapping[str, Any], *, load_average_at_end: float) -> str:
    """What was run where, and how much else ran there."""
    return (
        f"Measured by `{command}` on {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, "
        f"{machine['system']}; Python {machine['python']}, torch {machine['torch']}, ONNX Runtime "
        f"{machine['onnxruntime']}; {machine['started']}. The machine was shared with other work: load average "
        f"{machine['load_average_at_start']:g} at the start, {load_average_at_end:g} at the end; times are what a "
        "caller waited then, not what an idle machine needs."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def verdicts(holds: Mapping[str, bool]) -> list[str]:
    """Lines of a table of what has to hold and whether it does."""
    return table(["what has to hold", "holds"], [[what, "yes" if one else "**no**"] for what, one in holds.items()])


def write(folder: Path, name: str, *, lines: Sequence[str], values: Mapping[str, Any]) -> None:
    """Print the page; write it and the values."""
    text = "\n".join(lines) + "\n"
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", values)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
