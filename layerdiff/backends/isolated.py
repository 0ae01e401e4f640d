"""A runtime in a process of its own: when it dies, hangs or runs out of memory, the caller is told and lives on."""

from __future__ import annotations

import json
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from layerdiff.backends.wire import BrokenWireError, receive, send
from layerdiff.errors import BackendError, Death, InputError, RuntimeDiedError
from layerdiff.external import folder_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from layerdiff.backends.base import Backend, Optimisation

    Array = np.ndarray[Any, Any]
    Answer = tuple[dict[str, Any], dict[str, Array | None]]

TIME_LIMIT_SECONDS = 300.0
_START_SECONDS = 120.0
_LONGEST = 30 * 24 * 3600.0  # more than a clock of the system takes is as good as no limit
_END_SECONDS = 10.0
_LAST_WORDS_BYTES = 4000
_CODE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from layerdiff.backends.worker import main
main(int(sys.argv[1]))
"""


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a runtime is kept apart.

    `time_limit_seconds` is what each opening of a model and each run of it may take before the runtime counts as hung.
    `memory_limit_bytes` bounds the private memory of its process (Linux; None: what was free when the trace began, so
    that an allocation fails in the worker before the system looks for a process to end).
    """

    time_limit_seconds: float = TIME_LIMIT_SECONDS
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.time_limit_seconds > 0:
            raise InputError(f"time_limit_seconds: wanted more than 0, got {self.time_limit_seconds!r}")
        if self.memory_limit_bytes is not None and not self.memory_limit_bytes > 0:
            raise InputError(f"memory_limit_bytes: wanted more than 0, got {self.memory_limit_bytes!r}")


class Isolated:
    """A backend that runs another one in a worker process. A worker that died is replaced at the next request."""

    def __init__(self, inner: Backend, isolation: Isolation | None = None) -> None:
        if not hasattr(socket, "send_fds"):
            raise InputError(f"isolate: processes cannot share memory this way on {sys.platform}; leave it out")
        self.inner = inner
        self.isolation = isolation or Isolation()
        self._lock = threading.RLock()
        self._worker: _Worker | None = None
        self._counter = 0
        try:
            self._pickled = pickle.dumps(inner).hex()
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InputError(
                f"isolate: the backend {inner.name} cannot be sent to a process ({error}); define its class in a "
                'module and keep open handles out of it, or trace with isolate="none"'
            ) from error
        self.worker()  # it gets ready while the reference runs

    @property
    def name(self) -> str:
        """The runtime's own name."""
        return self.inner.name

    @property
    def passes(self) -> Sequence[str]:
        """The optimisation passes that can be turned off one by one."""
        return self.inner.passes

    def without(self, passes: Sequence[str]) -> str:
        """What to write to have some passes left out."""
        return self.inner.without(passes)

    def describe(self) -> dict[str, str]:
        """What the runtime says of itself, and that it ran apart."""
        return {
            **self.inner.describe(),
            "isolate": f"process, {self.isolation.time_limit_seconds:g} s for a run",
        }

    def open(
        self, model: str | Path | onnx.ModelProto, optimisation: Optimisation, disabled: Sequence[str] = ()
    ) -> _IsolatedSession:
        """A session in the worker; the worker reads a file itself.

        Raises
        ------
        BackendError
            The runtime refuses the model.
        RuntimeDiedError
            It did not survive that.

        """
        with self._lock:
            self._counter += 1
            session = _IsolatedSession(self, self._counter, (model, optimisation, tuple(disabled)))
            session.reopen()
            return session

    def optimised(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> onnx.ModelProto:
        """The graph that the runtime really runs at an optimisation level."""
        import onnx

        request, arrays = _of_model(model)
        _, found = self.ask({"do": "optimised", "optimisation": optimisation.value, **request}, arrays)
        content = found.get("model")
        assert content is not None
        return onnx.load_model_from_string(content.tobytes())

    def ask(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> Answer:
        """The worker's answer to a request."""
        with self._lock:
            worker = self.worker()
            answer, found = worker.ask(request, arrays, min(self.isolation.time_limit_seconds, _LONGEST))
        if "error" not in answer:
            return answer, found
        text = str(answer["error"])
        raise RuntimeDiedError(text, Death.MEMORY) if answer.get("memory") else BackendError(text)

    def worker(self) -> _Worker:
        """The process that answers; a new one where there is none or it has died."""
        with self._lock:
            if self._worker is None or not self._worker.alive:
                limit = self.isolation.memory_limit_bytes or _free_bytes()
                self._worker = _Worker(self.name, {"backend": self._pickled, "memory_bytes": limit})
            return self._worker

    def rest(self) -> None:
        """End the worker; the next request starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.end()
                self._worker = None


class _IsolatedSession:
    """A session that lives in a worker, and is opened again where its worker has died since."""

    def __init__(self, owner: Isolated, number: int, opened: tuple[Any, Optimisation, tuple[str, ...]]) -> None:
        self._owner = owner
        self._number = number
        self._opened = opened
        self._worker: _Worker | None = None

    def reopen(self) -> None:
        """Open the model in the worker of now."""
        model, optimisation, disabled = self._opened
        request, arrays = _of_model(model)
        known = {"do": "open", "session": self._number, "optimisation": optimisation.value, "disabled": list(disabled)}
        self._owner.ask({**known, **request}, arrays)
        self._worker = self._owner.worker()
        weakref.finalize(self, self._worker.closed.append, self._number)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array | None]:
        """Named outputs for named inputs; None for an output that is not a tensor."""
        if self._worker is not self._owner.worker():
            self.reopen()
        names = None if outputs is None else list(outputs)
        _, found = self._owner.ask({"do": "run", "session": self._number, "outputs": names}, dict(feeds))
        return found


class _Worker:
    """One process, and the socket to it."""

    def __init__(self, name: str, start: Mapping[str, Any]) -> None:
        self.alive = True
        self.closed: list[int] = []  # sessions that nobody holds any more; told with the next request
        self._name = name
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  what it writes to stderr, read when it has died
        self._wire, theirs = socket.socketpair()
        number = theirs.fileno()
        try:
            self._process = subprocess.Popen(  # noqa: S603  this Python, with the code above
                [sys.executable, "-c", _CODE, str(number), json.dumps([str(entry) for entry in sys.path])],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
            )
        except OSError as error:
            raise BackendError(f"isolate: no process can be started with {sys.executable} ({error})") from error
        finally:
            theirs.close()
        weakref.finalize(self, _end, self._process, self._wire, self._words)
        self._ready = False
        send(self._wire, start)

    def ask(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None], limit: float) -> Answer:
        """The answer to a request; whatever goes wrong on the way ends the process.

        Raises
        ------
        RuntimeDiedError
            The process died, or did not answer in time.

        """
        self._greet()
        closed, self.closed[:] = list(self.closed), []
        try:
            self._wire.settimeout(limit)
            send(self._wire, {**request, "closed": closed}, arrays)
            return receive(self._wire)
        except TimeoutError as error:
            self.end()
            raise RuntimeDiedError(
                f"{self._name} gave no answer within {limit:g} s and was ended", Death.HUNG
            ) from error
        except (OSError, BrokenWireError) as error:
            raise self._obituary() from error
        except BaseException:  # an interrupt in the middle of a message: what comes next would be misread
            self.end()
            raise

    def _greet(self) -> None:
        """Wait until the process is ready."""
        if self._ready:
            return
        try:
            self._wire.settimeout(_START_SECONDS)
            receive(self._wire)
        except (OSError, BrokenWireError) as error:
            raise BackendError(
                f"isolate: {self._obituary()} before it was ready; is {self._name} importable in a new Python?"
            ) from error
        self._ready = True

    def end(self) -> None:
        """End the process."""
        self.alive = False
        _end(self._process, self._wire, self._words)

    def _obituary(self) -> RuntimeDiedError:
        """How the process ended."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        words = self._last_words()
        self.end()
        if code == -signal.SIGKILL:
            text = "was killed (SIGKILL), as Linux does when memory runs out"
            return RuntimeDiedError(f"{self._name} {text}", Death.MEMORY)
        said = f"; its last words: {words}" if words else ""
        if "bad_alloc" in words or "MemoryError" in words:
            return RuntimeDiedError(f"{self._name} ran out of memory{said}", Death.MEMORY)
        how = f"died of {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"ended with code {code}"
        return RuntimeDiedError(f"{self._name} {how}{said}", Death.CRASHED)

    def _last_words(self) -> str:
        self._words.seek(0, 2)
        self._words.seek(max(0, self._words.tell() - _LAST_WORDS_BYTES))
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""


def _end(process: subprocess.Popen[bytes], wire: socket.socket, words: IO[bytes]) -> None:
    wire.close()
    process.kill()
    process.wait()
    words.close()


def _of_model(model: str | Path | onnx.ModelProto) -> tuple[dict[str, Any], dict[str, Array | None]]:
    """A model as a request: the absolute path of a file, or the bytes of a graph in memory."""
    if isinstance(model, (str, Path)):
        return {"path": str(Path(model).absolute())}, {}
    return {"outside": folder_of(model) is not None}, {"model": np.frombuffer(model.SerializeToString(), np.uint8)}


def _free_bytes() -> int | None:
    """The memory that is free now, in bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
