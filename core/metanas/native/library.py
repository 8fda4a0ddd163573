"""The compiled engine: built from its C source on first use, then kept.

    library       the engine as a ctypes library, or None
    state         whether it is used, and if not why
    set_threads   how many threads run one pass of a network

The library lies in the user's cache folder under a name that says what it was built from, so another source,
compiler or processor builds another one; one that is there serves without a compiler, too, and one that is damaged is
built again. Where there is neither, networks run on PyTorch's own operations, and task networks on ONNX Runtime: the
same sums, slower. That is said once, in the log, and ``state`` says it to whoever asks.

``METANAS_NATIVE=0`` switches the engine off, ``METANAS_CACHE`` moves the folder, ``CC`` names the compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

UNITS = ("engine.c", "inference.c")
SOURCES = (*UNITS, "description.h", "forward.h", "backward.h", "kernels.h", "passes.h", "pooling.h", "team.h")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC")
LIBRARIES = ("-lm", "-lpthread")
COMPILE_SECONDS = 300
OFF = ("0", "off", "false", "no")
"""Of METANAS_NATIVE."""
MAX_THREADS = 4
"""As many as a batch is cut into: SLOTS of team.h."""

_folder = Path(__file__).parent
_lock = threading.Lock()
_threads = 1


@dataclass(frozen=True, slots=True)
class State:
    """Whether the engine runs."""

    used: bool
    reason: str
    """Where it lies, or why it is not used."""


def set_threads(count: int) -> None:
    """Let one pass of a network use ``count`` threads, at most 4. The results are the same for any count."""
    global _threads  # one setting for the process, as torch.set_num_threads
    _threads = max(1, min(count, MAX_THREADS))


def get_threads() -> int:
    """What ``set_threads`` set."""
    return _threads


def state() -> State:
    """Build or find the engine, and say whether it is used."""
    return _load()[1]


def library() -> ctypes.CDLL | None:
    """The engine; None where it is switched off or cannot be built."""
    return _load()[0]


def _load() -> tuple[ctypes.CDLL | None, State]:
    with _lock:
        return _loaded()


@cache
def _loaded() -> tuple[ctypes.CDLL | None, State]:
    if (switch := os.environ.get("METANAS_NATIVE", "1")).lower() in OFF:
        return None, State(False, f"switched off by METANAS_NATIVE={switch}")
    try:
        path = _built()
        loaded = _opened(path)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning(
            "the native engine cannot be used, PyTorch's slower operations are, and ONNX Runtime for Classify: %s",
            reason.strip(),
        )
        return None, State(False, reason.strip())
    return loaded, State(True, str(path))


def _opened(path: Path) -> ctypes.CDLL:
    """The library; built again if what is there cannot be read."""
    try:
        _check_whole(path)
        return _declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        logger.warning("the native engine at %s is damaged (%s); building it again", path, error)
        path.unlink(missing_ok=True)
        return _declare(ctypes.CDLL(str(_built())))


def _check_whole(path: Path) -> None:
    """Raise OSError if an ELF file is cut short: the loader would map what is not there, and the process die of it."""
    with path.open("rb") as file:
        header = file.read(64)
    if header.startswith(b"\x7fELF\x02\x01") and len(header) == 64:
        offset, size, count = *struct.unpack_from("<Q", header, 0x28), *struct.unpack_from("<HH", header, 0x3A)
        if path.stat().st_size < offset + size * count:  # the table of sections lies at the end
            raise OSError("cut short")


def _built() -> Path:
    """The path of the library; compiled if it is not there."""
    compiler, folder = shlex.split(os.environ.get("CC", "cc")), cache_folder()
    name = f"engine-{_hash(*FLAGS, _processor(), *((_folder / one).read_text() for one in SOURCES))}"
    if shutil.which(compiler[0]) is None:
        if there := sorted(folder.glob(f"{name}-*.so")):
            return there[0]
        raise OSError(f"no C compiler: {compiler[0]!r} is not found; install gcc or clang, or name one in CC")
    command = [*compiler, *FLAGS]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    target = folder / f"{name}-{_hash(*compiler, version)}.so"
    if target.exists():
        return target
    logger.info("compiling the native engine (some seconds, once)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: several processes may build at the same time.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=name, suffix=".tmp", delete=False) as file:
            made = Path(file.name)
    except OSError as error:
        raise OSError(f"it cannot be kept in {folder} ({error}); name a folder in METANAS_CACHE that can be") from error
    try:
        subprocess.run(
            [*command, "-o", str(made), *(str(_folder / one) for one in UNITS), *LIBRARIES],
            capture_output=True,
            text=True,
            check=True,
            timeout=COMPILE_SECONDS,
        )
        made.replace(target)
    finally:
        made.unlink(missing_ok=True)
    return target


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where the compiled engine is kept."""
    if folder := os.environ.get("METANAS_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metanas-edge"


def _processor() -> str:
    """What the code is compiled for: machine, and the instructions that its processor knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


def _declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    pointer, number = ctypes.c_void_p, ctypes.c_int
    loaded.metanas_create.argtypes = [pointer]
    loaded.metanas_create.restype = pointer
    loaded.metanas_destroy.argtypes = [pointer]
    loaded.metanas_destroy.restype = None
    loaded.metanas_workspace.argtypes = [pointer, number, pointer]
    loaded.metanas_workspace.restype = ctypes.c_long
    loaded.metanas_forward.argtypes = [pointer, number, number, *[pointer] * 7]
    loaded.metanas_forward.restype = None
    loaded.metanas_backward.argtypes = [pointer, number, number, *[pointer] * 6]
    loaded.metanas_backward.restype = None
    loaded.metanas_columns.argtypes = []
    loaded.metanas_columns.restype = number
    loaded.metanas_program.argtypes = [*[pointer] * 6, number, number]
    loaded.metanas_program.restype = pointer
    loaded.metanas_program_free.argtypes = [pointer]
    loaded.metanas_program_free.restype = None
    loaded.metanas_classify.argtypes = [*[pointer] * 5, number, number]
    loaded.metanas_classify.restype = None
    return loaded
