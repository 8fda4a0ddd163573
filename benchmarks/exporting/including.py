"""Tables of ``benchmarks/results`` inside the documents: put in by a script, never by hand.

<!-- table: export_agreement.md -->
... replaced by the content of benchmarks/results/export_agreement.md ...
<!-- end of table -->

include    text of a document, folder of results  ->  the text with its tables renewed
renew      documents, folder of results           ->  the documents that changed, rewritten
"""

import re
from collections.abc import Iterable
from pathlib import Path

_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def include(text: str, *, results: Path) -> str:
    """Put each named table between its marks.

    Raises:
        OSError: a named table is not there.
    """

    def table(found: re.Match[str]) -> str:
        content = (results / found[2]).read_text(encoding="utf-8").strip()
        return f"{found[1]}\n{content}\n\n{found[3]}"

    return _PLACE.sub(table, text)


def renew(documents: Iterable[Path], *, results: Path) -> list[Path]:
    """Renew the tables of documents; returns those that were rewritten."""
    changed = []
    for path in documents:
        before = path.read_text(encoding="utf-8")
        after = include(before, results=results)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed
