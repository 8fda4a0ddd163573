"""All tables of the export anew, for the meta-models that are bundled now, and into the documents.

    python benchmarks/export_all.py                  # all
    python benchmarks/export_all.py --tables-only    # the documents alone, from the results that lie there

Runs ``export_agreement.py``, ``plan_builds.py``, ``edge.py`` and ``export_benchmark.py`` one after the other; the
tasks are adapted once. One that fails, or a precision below its limit, does not keep the others from
running. The documents' tables are then those of ``benchmarks/results`` (``exporting.including``).

Exit code 1: one of them failed; its results are those of before, or say what was missed.
"""

import argparse
import subprocess
import sys
import time

from exporting.including import renew
from measuring.subjects import ROOT

SCRIPTS = ("export_agreement.py", "plan_builds.py", "edge.py", "export_benchmark.py")
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    """Run all, renew the documents, say how long each took."""
    options = _parse()
    failed = []
    for name in () if options.tables_only else SCRIPTS:
        started = time.perf_counter()
        print(f"==> python benchmarks/{name}", flush=True)
        if subprocess.run([sys.executable, str(ROOT / "benchmarks" / name)], check=False).returncode != 0:
            failed.append(name)
        print(f"==> {name}: {time.perf_counter() - started:.0f} s", flush=True)
    for path in renew(sorted((ROOT / "docs").glob("*.md")), results=RESULTS):
        print(f"renewed the tables of {path.relative_to(ROOT)}")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables-only", action="store_true", help="only put the results into the documents")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
