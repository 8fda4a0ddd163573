"""The command line of the server: arguments, signals, log, exit codes.

    0   stopped by SIGTERM or SIGINT, after draining; a second signal ends the patience
    1   could not start: the message on stderr says why
    2   arguments that make no sense

One line goes to stdout, ``serving on HOST:PORT``, once the server is ready; the log goes to stderr.
"""

import argparse
import gc
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from metanas.errors import AdaptationCancelledError, InvalidConfigError, MetaNASError
from metanas_serving import log
from metanas_serving.config import ServerConfig
from metanas_serving.jobs import prepare_adaptations

_log = logging.getLogger(__name__)

# The system may hand a signal to any thread, but Python acts on it in the main one, which a wait without
# an end would never wake: SIGTERM was lost so now and then.
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until a signal; return the exit code."""
    config = read_arguments(arguments)
    log.set_up(config.log_format)
    signals = _StopSignals()
    try:
        _run(config, signals)
    except MetaNASError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(config: ServerConfig, signals: "_StopSignals") -> None:
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


def read_arguments(arguments: Sequence[str] | None) -> ServerConfig:
    """The configuration that a command line asks for; exits with 2 if it makes no sense."""
    defaults = ServerConfig()
    parser = argparse.ArgumentParser(
        description="Serve few-shot learning over gRPC: adapt to a handful of pictures, classify, export.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    # argparse appends the default to a help text only if there is one.
    add("--meta", dest="meta_path", type=Path, metavar="FILE", help="the meta-model; without it, the bundled one")
    add("--store", dest="store_path", type=Path, metavar="DIR", help="folder that keeps tasks; without it, memory")
    add("--host", default=defaults.host, help="address to listen on; beyond this machine with TLS and tokens")
    add("--port", type=int, default=defaults.port, help="port to listen on; 0 picks a free one")
    add("--tls-cert", type=Path, metavar="FILE", help="the server's certificate and those up to its authority, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    add("--tls-client-ca", type=Path, metavar="FILE", help="authorities of the certificates that callers have to show")
    add("--tokens", dest="tokens_path", type=Path, metavar="FILE", help="callers have to show a token of this file")
    add("--insecure", action="store_true", help="listen beyond this machine even without TLS or tokens")
    add("--device", choices=("auto", "cpu", "cuda"), default=defaults.device, help="where Classify computes")
    for name, text in (
        ("adapt_workers", "adaptations at a time, each in a process of its own"),
        ("max_queue", "adaptations that may wait"),
        ("torch_threads", "threads of each adaptation; another number may give other bits"),
        ("request_threads", "calls at a time; waiting adaptations count"),
        ("max_support_images", "images of one Adapt"),
        ("max_classify_images", "images of one Classify"),
        ("max_message_mb", "largest request, in MiB"),
        ("max_upload_mb", "largest UploadAdapt, in MiB"),
        ("max_adapt_steps", "gradient steps that a request may ask for"),
        ("max_finished_jobs", "jobs that are over and remembered"),
        ("max_tenant_jobs", "adaptations of one tenant at a time"),
        ("max_tenant_tasks", "tasks that one tenant may keep"),
        ("max_tenant_mb", "MiB of tasks that one tenant may keep"),
        ("max_loaded_tasks", "tasks kept loaded; others are loaded when they are asked"),
    ):
        add(f"--{name.replace('_', '-')}", type=int, metavar="N", default=getattr(defaults, name), help=text)
    add("--log-format", choices=("text", "json"), default=defaults.log_format, help="of the log on stderr")
    add("--metrics-port", type=int, metavar="N", help="port of Prometheus metrics; 0 picks a free one")
    for name, text in (
        ("max_tenant_requests_per_second", "calls of one tenant"),
        ("max_tenant_adapts_per_minute", "tasks learnt for one tenant"),
        ("max_learning_rate", "learning rate that a request may ask for"),
        ("finished_job_seconds", "how long a job that is over is remembered"),
        ("drain_seconds", "patience after SIGTERM"),
    ):
        add(f"--{name.replace('_', '-')}", type=float, metavar="X", default=getattr(defaults, name), help=text)
    try:
        return ServerConfig(**vars(parser.parse_args(arguments)))
    except InvalidConfigError as error:
        parser.error(str(error))
