"""Where the settings of a server come from: a file, the environment, its command line; the later ones win.

    read_settings   arguments, environment  ->  Settings: a ServerConfig, and what each value is from
    Settings.lines  what to tell at the start: every setting, its origin, no secret

A setting has one name: ``max_queue`` in a TOML file, ``METANAS_SERVER_MAX_QUEUE``, ``--max-queue``. It is a field of
``ServerConfig`` (without ``_path``) and has a line in ``HELP``; a new one needs no more than that. What is no
setting is refused with the nearest name that is.
"""

import argparse
import difflib
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from metanas.errors import InvalidConfigError
from metanas_serving.config import ServerConfig

PREFIX = "METANAS_SERVER_"

HELP = {
    "meta_path": "the meta-model; without it, the bundled one",
    "store_path": "folder that keeps tasks, or a URL such as s3://bucket/tasks; without it, memory",
    "host": "address to listen on; beyond this machine with TLS and tokens",
    "port": "port to listen on; 0 picks a free one",
    "tls_cert": "the server's certificate and those up to its authority, PEM",
    "tls_key": "its key, PEM",
    "tls_client_ca": "authorities of the certificates that callers have to show, PEM",
    "tokens_path": "callers have to show a token of this file",
    "insecure": "listen beyond this machine even without TLS or tokens",
    "device": "where Classify computes",
    "adapt_workers": "adaptations at a time, each in a process of its own",
    "max_queue": "adaptations that may wait",
    "torch_threads": "threads of each adaptation; another number may give other bits",
    "request_threads": "calls at a time; waiting adaptations count",
    "request_processors": "processors on which requests are read and answered; networks of small images run on others",
    "max_support_images": "images of one Adapt",
    "max_classes": "classes of one task",
    "max_classify_images": "images of one Classify",
    "max_batch": "images of concurrent calls for one task that are run together; 1: each by itself",
    "max_message_mb": "largest request, in MiB",
    "max_upload_mb": "largest UploadAdapt, in MiB",
    "max_adapt_steps": "gradient steps that a request may ask for",
    "max_learning_rate": "learning rate that a request may ask for",
    "max_finished_jobs": "jobs that are over and remembered",
    "finished_job_seconds": "how long a job that is over is remembered",
    "max_tenant_jobs": "adaptations of one tenant at a time",
    "max_tenant_requests_per_second": "calls of one tenant",
    "max_tenant_adapts_per_minute": "tasks learnt for one tenant",
    "max_tenant_tasks": "tasks that one tenant may keep",
    "max_tenant_mb": "MiB of tasks that one tenant may keep",
    "worker_memory_mb": "memory of each adaptation process, in MiB; without it, no bound",
    "task_ttl_seconds": "after what time a task is deleted whose request does not say; 0: never",
    "max_loaded_mb": "memory of the tasks that are kept loaded, in MiB",
    "max_loaded_tasks": "tasks kept loaded; others are loaded when they are asked",
    "metrics_host": "address of Prometheus metrics, which have neither TLS nor tokens",
    "metrics_port": "port of Prometheus metrics; 0 picks a free one",
    "otlp_endpoint": "where OpenTelemetry traces go, http://HOST:PORT; without it, nowhere",
    "otlp_headers": "sent with traces, name=value,name=value; better in the environment than here",
    "log_format": "of the log on stderr",
    "drain_seconds": "patience after SIGTERM",
}
SECRETS = frozenset({"otlp_headers"})
"""Fields whose values are never shown."""

_MASK = "***"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_IN_TOML: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,), str: (str,), Path: (str,)}
# What Kubernetes puts into the pods beside a Service called metanas-server.
_SERVICE_LINK = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT.*)|PORT_\d+_.*)")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, by all its names."""

    field: str
    kind: type
    """str, int, float, bool or Path."""
    choices: tuple[str, ...] = ()
    may_be_url: bool = False
    """Whether a path may be a URL instead, which stays a text."""

    @property
    def name(self) -> str:
        """In a file."""
        return self.field.removesuffix("_path")

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """In the environment."""
        return PREFIX + self.name.upper()

    def parsed(self, text: str) -> Any:
        """The value that a text stands for; ValueError if none."""
        if self.kind is bool:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError("neither 1 nor 0")
            return text.lower() in _TRUE
        value = text if self.is_url(text) else self.kind(text)
        if self.choices and text not in self.choices:
            raise ValueError("no such choice")
        return value

    def is_url(self, text: str) -> bool:
        """Whether a text is a URL where one may be."""
        return self.may_be_url and "://" in text

    @property
    def wanted(self) -> str:
        """What a value has to be, in words."""
        names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a text"}
        return " or ".join(self.choices) if self.choices else names[self.kind]


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, and where it comes from."""

    config: ServerConfig
    origins: Mapping[str, str]
    """By field, of those that were set."""

    def lines(self) -> list[str]:
        """Every setting with its value and, if it was set, its origin; secrets are masked."""
        lines = []
        for setting in SETTINGS:
            origin = self.origins.get(setting.field)
            value = _shown(setting, getattr(self.config, setting.field))
            lines.append(f"  {setting.name} = {value}" + (f"  ({origin})" if origin else ""))
        return lines


def read_settings(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings of a server; exits with 2, and the reason on stderr, if they make no sense."""
    parser = _parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        nearest = _nearest(unknown[0].partition("=")[0], [setting.flag for setting in SETTINGS])
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{nearest}")
    flags = vars(given)
    file: Path | None = flags.pop("config", None)
    if file is None and (named := environment.get(f"{PREFIX}CONFIG")):
        file = Path(named)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    try:
        sources: list[tuple[Mapping[str, Any], Callable[[Setting], str]]] = [
            ({} if file is None else _from_file(file), lambda setting: str(file)),
            (_from_environment(environment), lambda setting: setting.variable),
            (flags, lambda setting: setting.flag),
        ]
        for found, origin in sources:
            values.update(found)
            origins.update({setting.field: origin(setting) for setting in SETTINGS if setting.field in found})
        return Settings(ServerConfig(**values), origins)
    except InvalidConfigError as error:
        parser.error(f"{error}{_blamed(str(error), origins)}")


def _from_file(path: Path) -> dict[str, Any]:
    """The settings of a TOML file; paths in it are relative to its folder."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfigError(f"cannot read {path}: {error.strerror or error}; pass another --config") from error
    except ValueError as error:
        raise InvalidConfigError(f"{path} is not TOML: {error}; write lines like `port = 50051`") from error
    by_name = {setting.name: setting for setting in SETTINGS}
    values: dict[str, Any] = {}
    for key, value in found.items():
        setting = by_name.get(key.replace("-", "_"))
        if setting is None:
            raise InvalidConfigError(f"{path}: {key!r} is no setting{_nearest(key, by_name)}")
        if type(value) not in _IN_TOML[setting.kind] or (setting.choices and value not in setting.choices):
            raise InvalidConfigError(f"{path}: {key} must be {setting.wanted}, got {_masked(setting, value)}")
        if setting.kind is Path and not setting.is_url(value):
            values[setting.field] = path.parent / value
        else:
            values[setting.field] = value if setting.kind is Path else setting.kind(value)
    return values


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    by_variable = {setting.variable: setting for setting in SETTINGS}
    values = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or variable == f"{PREFIX}CONFIG":
            continue
        setting = by_variable.get(variable)
        hint = (
            "; Kubernetes sets it for a Service called metanas-server: set enableServiceLinks to false in the pod, or "
            "call the Service something else"
            if _SERVICE_LINK.fullmatch(variable) or text.startswith("tcp://")
            else ""
        )
        if setting is None:
            raise InvalidConfigError(f"{variable} is no setting{hint or _nearest(variable, by_variable)}")
        try:
            values[setting.field] = setting.parsed(text)
        except ValueError as error:
            raise InvalidConfigError(
                f"{variable} must be {setting.wanted}, got {_masked(setting, text)}{hint}"
            ) from error
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Serve few-shot learning over gRPC: adapt to a handful of pictures, classify, export.",
        epilog=f"Each setting may also be in the file of --config (TOML: max_queue = 4) or in the environment "
        f"({PREFIX}MAX_QUEUE=4). Flags win over the environment, that wins over the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings, as TOML")
    defaults = ServerConfig()
    for setting in SETTINGS:
        default = getattr(defaults, setting.field)
        text = HELP[setting.field] + ("" if default is None or setting.kind is bool else f" (default: {default})")
        text = text.replace("%", "%%")
        if setting.kind is bool:
            parser.add_argument(setting.flag, dest=setting.field, action=argparse.BooleanOptionalAction, help=text)
        elif setting.choices:
            parser.add_argument(setting.flag, dest=setting.field, choices=setting.choices, help=text)
        else:
            metavar = {int: "N", float: "X", Path: "PATH", str: "TEXT"}[setting.kind]
            kind: Callable[[str], Any] = setting.parsed if setting.may_be_url else setting.kind
            parser.add_argument(setting.flag, dest=setting.field, type=kind, metavar=metavar, help=text)
    return parser


def _all_settings() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(ServerConfig)
    settings = {field.name: _setting(field.name, hints[field.name]) for field in fields(ServerConfig)}
    # In the order of the help, which is for people; what has no help has no flag, and a test says so.
    return tuple(settings[name] for name in HELP)


def _setting(field: str, hint: Any) -> Setting:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint, *others = (part for part in typing.get_args(hint) if part is not types.NoneType)
        if others:
            return Setting(field, hint, may_be_url=others == [str])
    if typing.get_origin(hint) is typing.Literal:
        return Setting(field, str, choices=typing.get_args(hint))
    return Setting(field, hint)


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; `{Path(sys.argv[0]).name} --help` lists what there is"


def _blamed(message: str, origins: Mapping[str, str]) -> str:
    field = message.partition(" ")[0]
    return f" ({field} is from {origins[field]})" if field in origins else ""


def _masked(setting: Setting, value: object) -> str:
    return _MASK if setting.field in SECRETS else repr(value)


def _shown(setting: Setting, value: object) -> str:
    if value is None:
        return "none"
    if setting.field in SECRETS:
        return _MASK
    # An address may have a name and password, or keys behind a question mark.
    text = re.sub(r"(?<=://)[^/@\s]*@", f"{_MASK}@", str(value))
    return re.sub(r"(?<=\?).*", _MASK, text) if "://" in text else text


SETTINGS = _all_settings()
