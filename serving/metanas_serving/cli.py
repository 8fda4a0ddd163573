"""The command line of the server: signals, log, exit codes; its settings are read by ``settings``.

    0   stopped by SIGTERM or SIGINT, after draining; a second signal ends the patience
    1   could not start: the message on stderr says why
    2   settings that make no sense

One line goes to stdout, ``serving on HOST:PORT``, once the server is ready; the log goes to stderr.
"""

import gc
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from metanas.errors import AdaptationCancelledError, MetaNASError
from metanas_serving.config import ServerConfig
from metanas_serving.polling import poll_directly

_log = logging.getLogger(__name__)

# The system may hand a signal to any thread, but Python acts on it in the main one, which a wait without
# an end would never wake: SIGTERM was lost so now and then.
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until a signal; return the exit code."""
    told = poll_directly()
    # Only now, as these import gRPC.
    from metanas_serving import log
    from metanas_serving.settings import read_settings

    settings = read_settings(arguments)
    config = settings.config
    log.set_up(config.log_format)
    _log.info("configuration:\n%s", "\n".join(settings.lines()))
    _log.info(told)
    signals = _StopSignals()
    try:
        _run(config, signals)
    except MetaNASError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(config: ServerConfig, signals: "_StopSignals") -> None:
    from metanas_serving.jobs import prepare_adaptations  # imports gRPC

    adaptations = prepare_adaptations(config)
    adaptations.start()
    try:
        # Only now, as importing torch takes seconds: the first adaptation process does it at the same time.
        import torch

        from metanas_serving.application import Application

        # Here torch only reads files and folds weights; the cores are for answers and adaptations.
        torch.set_num_threads(1)
        application = Application(config, adaptations)
    except BaseException:
        adaptations.close()
        raise
    drain_seconds = 0.0
    try:
        address = application.start(should_stop=signals.first.is_set)
        # What is there now stays: the collector need not go through it while calls wait.
        gc.collect()
        gc.freeze()
        print(f"serving on {address}", flush=True)
        while not signals.first.wait(_POLL_SECONDS):
            pass
        drain_seconds = config.drain_seconds
        _log.info("stopping: running calls have %g s to finish; a second signal cancels them", drain_seconds)
    except AdaptationCancelledError:
        _log.info("stopping before the server was ready")
    finally:
        application.stop(drain_seconds, hurry=signals.second.is_set)
    _log.info("stopped")


class _StopSignals:
    """SIGTERM and SIGINT: the first asks the server to drain, the second to hurry."""

    def __init__(self) -> None:
        self.first = threading.Event()
        self.second = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._arrive)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        (self.second if self.first.is_set() else self.first).set()
