"""The other process of `Isolated`: opens models in a runtime and runs them, until nobody asks any more."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerdiff.backends.base import Optimisation
from layerdiff.backends.wire import BrokenWireError, receive, send
from layerdiff.errors import LayerdiffError, RuntimeDiedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx

    from layerdiff.backends.base import Backend, Session

    Array = np.ndarray[Any, Any]
    Answer = tuple[Mapping[str, Any], Mapping[str, Array | None]]

_PARENT_CHECK_SECONDS = 1.0


def main(descriptor: int) -> None:
    """Answer one request after the other on a socket; return when the other side is gone."""
    wire = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's: it ends this process when it wants to
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _offer_to_the_oom_killer()
    try:
        start, _ = receive(wire)
        _limit_memory(start["memory_bytes"])
        server = _Server(pickle.loads(bytes.fromhex(start["backend"])))  # noqa: S301  it comes from the process that started this one
        send(wire, {})
        while True:
            request, arrays = receive(wire)
            answer, found = server.answer(request, arrays)
            send(wire, answer, found)
    except BrokenWireError:
        return


class _Server:
    """The open sessions of one runtime."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._sessions: dict[int, Session] = {}

    def answer(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> Answer:
        """What a request asks for, or how it failed."""
        for number in request.get("closed", ()):
            self._sessions.pop(number, None)
        handle = {"open": self._open, "run": self._run, "optimised": self._optimised}[request["do"]]
        try:
            return handle(request, arrays)
        except LayerdiffError as error:
            return {"error": str(error), "memory": isinstance(error, RuntimeDiedError)}, {}
        except MemoryError as error:
            return {"error": f"{self._backend.name} ran out of memory ({error})", "memory": True}, {}
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is told to the caller
            last = traceback.format_exc(limit=-1)
            return {"error": f"{self._backend.name} raised {type(error).__name__}: {error}", "trace": last}, {}

    def _open(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> Answer:
        model = _model(request, arrays)
        session = self._backend.open(model, Optimisation(request["optimisation"]), tuple(request["disabled"]))
        self._sessions[request["session"]] = session
        return {}, {}

    def _run(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> Answer:
        feeds = {name: array for name, array in arrays.items() if array is not None}
        return {}, self._sessions[request["session"]].run(feeds, request["outputs"])

    def _optimised(self, request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> Answer:
        import numpy as np

        found = self._backend.optimised(_model(request, arrays), Optimisation(request["optimisation"]))
        return {}, {"model": np.frombuffer(found.SerializeToString(), np.uint8)}


def _model(request: Mapping[str, Any], arrays: Mapping[str, Array | None]) -> str | onnx.ModelProto:
    """The path of a model, or the one that was sent; its large weights lie where its metadata says."""
    import onnx

    path: str | None = request.get("path")
    if path is not None:
        return path
    sent = arrays["model"]
    assert sent is not None
    return onnx.load_model_from_string(sent.tobytes())


def _end_with(parent: int) -> None:
    """End this process when the one that started it has ended, also in the middle of a run."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(0)


def _limit_memory(size: int | None) -> None:
    """Let allocations beyond a limit fail, where the system can do that."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        # Private memory only: neither the model file, which is mapped, nor what is shared with the caller.
        if size is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told, not dumped


def _offer_to_the_oom_killer() -> None:
    """If memory runs out, Linux should end this process and not the one that waits for it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main(int(sys.argv[1]))
