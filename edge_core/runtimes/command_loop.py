"""The child's side of the protocol: read a command, carry it out, answer. See child.py.

    request   {"command": "open", "path": "model.onnx", ...}      one line on stdin
    reply     {...}, or {"error": ..., "hint": ..., "kind": ...}   one line on the original stdout

``kind`` is the error's class. One command is answered before the next is read. End of input ends
the process and its own children, also in the middle of a command: no child outlives its parent,
however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

from edge_core.errors import EdgeError

Reply = dict[str, Any]
Command = Callable[..., Reply]


def serve(commands: Mapping[str, Command]) -> NoReturn:
    """Answer requests until the input ends.

    An EdgeError and running out of memory are replies; any other exception is a bug, and its
    traceback on stderr is the last thing that this process writes.
    """
    requests, replies = _take_pipes()
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    while True:
        request = json.loads(waiting.get())
        reply = _answer(commands[request.pop("command")], request)
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """The pipes under descriptors that nobody else knows and no program started here inherits.

    What a library prints goes to stderr, and a library that reads stdin finds it empty: neither
    can break the protocol.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _listen(requests: IO[bytes], waiting: queue.SimpleQueue[bytes]) -> None:
    for line in requests:
        waiting.put(line)
    if os.getsid(0) == os.getpid():  # started by Child, not by hand
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _answer(command: Command, arguments: dict[str, Any]) -> Reply:
    try:
        return command(**arguments)
    except EdgeError as e:
        return {"error": e.what, "hint": e.hint, "kind": type(e).__name__}
    except MemoryError:
        return {"error": "out of memory", "hint": "", "kind": "MemoryError"}
