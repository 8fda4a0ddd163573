"""Many clients at once against one server: whether every answer is right, and what calls cost.

    python benchmarks/load.py --minutes 5 --clients 64

One real server with a store and its default limits (but messages of 1 MiB), a small meta-model made here
(``enduring.subjects``), and clients in processes of their own (``enduring.load_client``): a mix of Adapt,
StartAdapt with WatchAdapt, CancelAdapt, Classify and ModelInfer, with deadlines that come too soon and
requests that are malformed or too large. Prints and writes counts by call and status, p50 and p99.
Passes, with exit code 0, if

    no answer was wrong, of another's task, or different from the same one before
    every task that a client was told of was there until it was deleted, every job came to its end
    no call ended with a status that it must not have
    the server then still serves, has no task left that someone was told of, no job that is not over,
    no file that was not there before, and stops in order
"""

import argparse
import os
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from enduring import report
from enduring.process import ServerProcess, files_in
from enduring.subjects import small_meta
from measuring import machine
from measuring.child import Child
from measuring.subjects import ROOT

from metanas.artifact import save_meta
from metanas_client import FewShotClient

RESULTS = ROOT / "benchmarks" / "results"
PROCESSES = 4


def main() -> int:
    """Let them call, look at what is left, write the report."""
    options = _parse()
    # Also when it is told to end, it ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    described = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store, log_path = folder / "store", folder / "server.log"
        save_meta(folder / "small.pt", small_meta())
        server = ServerProcess(
            *("--meta", str(folder / "small.pt"), "--store", str(store), "--max-message-mb", "1"), log_path=log_path
        )
        try:
            before = files_in(store)
            found = _call(server.address, options)
            left = _left(server.address)
            after = files_in(store)
        finally:
            exit_code = server.stop() if server.is_running else None
        faults = [line for line in log_path.read_text(errors="replace").splitlines() if "ERROR" in line]
    left |= {"new_files": sorted(set(after) - set(before)), "exit_code": exit_code, "errors_in_the_log": faults}
    return _report(options, described, found, left)


def _call(address: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    orders = [
        {
            "address": address,
            "numbers": list(range(first, options.clients, PROCESSES)),
            "seconds": 60 * options.minutes,
            "seed": options.seed,
        }
        for first in range(min(PROCESSES, options.clients))
    ]
    with ExitStack() as stack:
        children = [stack.enter_context(Child("enduring.load_client", order)) for order in orders]
        for child in children:
            child.start()
        for child in children:
            child.wait()
        return [caller for child in children for caller in child.answer()]


def _left(address: str) -> dict[str, Any]:
    """What the clients leave behind: tasks of calls whose deadline came first are theirs to find, and go."""
    with FewShotClient(address, timeout_seconds=120) as client:
        serves = client.is_ready(timeout_seconds=60)
        states = Counter(job.state for job in client.jobs())
        unacknowledged = client.tasks()
        for task in unacknowledged:
            task.delete()
        return {
            "serves": serves,
            "jobs_by_state": dict(states),
            "unacknowledged_tasks": len(unacknowledged),
            "tasks_left": len(client.tasks()),
        }


def _report(
    options: argparse.Namespace, described: dict[str, Any], found: list[dict[str, Any]], left: dict[str, Any]
) -> int:
    milliseconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for caller in found:
        for what, code, spent in caller["calls"]:
            milliseconds[what, code].append(spent)
    complaints = {
        kind: [text for caller in found for text in caller[kind]] for kind in ("wrong", "lost", "undocumented")
    }
    late = len(milliseconds["Adapt, short deadline", "DEADLINE_EXCEEDED"])
    verdicts = {
        "no wrong answer": not complaints["wrong"],
        "no lost task or job": not complaints["lost"] and left["unacknowledged_tasks"] <= late,
        "no status outside the documented ones": not complaints["undocumented"],
        "the server still serves and stops in order": left["serves"] and left["exit_code"] == 0,
        "no job left that is not over": not {"queued", "running"} & left["jobs_by_state"].keys(),
        "no task and no file left behind": not left["tasks_left"] and not left["new_files"],
        "no error in the server's log": not left["errors_in_the_log"],
    }
    rows = [
        [what, code, f"{len(spent):,}", f"{np.percentile(spent, 50):,.0f} ms", f"{np.percentile(spent, 99):,.0f} ms"]
        for (what, code), spent in sorted(milliseconds.items())
        if spent
    ]
    checked = sum(caller["checked"] for caller in found)
    lines = [
        f"# {options.clients} clients for {options.minutes:g} minutes",
        "",
        report.header(
            f"python benchmarks/load.py --minutes {options.minutes:g} --clients {options.clients}",
            described,
            load_average_at_end=round(os.getloadavg()[0], 2),
        ),
        "",
        f"{sum(map(len, milliseconds.values())):,} calls, {sum(caller['jobs'] for caller in found):,} jobs, "
        f"{checked:,} answers compared with what the same task had answered before. The meta-model is a small one with "
        "random weights, made for this; tasks have two or three classes of one image and take one gradient step of "
        "each kind. RESOURCE_EXHAUSTED is the full queue (clients wait as long as they are told), or the size of a "
        "request. "
        f"{left['unacknowledged_tasks']} tasks were kept just when their caller's deadline came.",
        "",
        *report.table(["call", "status", "calls", "p50", "p99"], rows),
        "",
        *report.verdicts(verdicts),
    ]
    for kind, texts in {**complaints, "log": left["errors_in_the_log"]}.items():
        lines += [f"\n{len(texts)} {kind}:", *(f"- {text}" for text in texts[:5])] if texts else []
    values = {
        "machine": described,
        "clients": options.clients,
        "minutes": options.minutes,
        "seed": options.seed,
        "calls": [
            {
                "call": what,
                "code": code,
                "count": len(spent),
                "p50_ms": float(np.percentile(spent, 50)),
                "p99_ms": float(np.percentile(spent, 99)),
            }
            for (what, code), spent in sorted(milliseconds.items())
            if spent
        ],
        "answers_compared": checked,
        "verdicts": verdicts,
        **complaints,
        **left,
    }
    report.write(options.output, "load", lines=lines, values=values)
    return 0 if all(verdicts.values()) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of what the clients do")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of load.json and load.md")
    options = parser.parse_args()
    if not options.minutes > 0 or options.clients < 1:
        parser.error("some minutes and at least one client")
    return options


if __name__ == "__main__":
    sys.exit(main())
