"""Messages between the process of a command and those that share its model out: JSON, then raw arrays.

A message is a line of JSON, `{"message": ..., "arrays": [[dtype, shape], ...]}`, behind its length, and the
bytes of the arrays.
"""

import json
import socket
import struct
from collections.abc import Sequence

import numpy as np

from qwen3_model.command.checked import Checked

LENGTH = struct.Struct("<Q")
MOST_BYTES = 1 << 32


def send(to: socket.socket, message: object, arrays: Sequence[np.ndarray] = ()) -> None:
    """Send a message, which JSON can hold, and arrays.

    Raises:
        OSError: The other side is gone.
    """
    arrays = [np.ascontiguousarray(array) for array in arrays]
    head = {"message": message, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
    text = json.dumps(head).encode()
    to.sendall(LENGTH.pack(len(text)) + text)
    for array in arrays:
        to.sendall(array.data.cast("B"))


def receive(source: socket.socket) -> tuple[Checked, list[np.ndarray]]:
    """Return the next message and its arrays.

    Raises:
        OSError: The other side is gone.
    """
    (length,) = LENGTH.unpack(_exactly(source, LENGTH.size))
    head = json.loads(_exactly(source, length))
    arrays = []
    for dtype, shape in head["arrays"]:
        kind = np.dtype(dtype)
        body = _exactly(source, int(np.prod(shape)) * kind.itemsize)
        arrays.append(np.frombuffer(body, kind).reshape(shape))
    return head["message"], arrays


def _exactly(source: socket.socket, count: int) -> bytearray:
    if count > MOST_BYTES:
        raise ConnectionError(f"a message of {count} bytes")
    body = bytearray(count)
    view, at = memoryview(body), 0
    while at < count:
        got = source.recv_into(view[at:])
        if not got:
            raise ConnectionError("the other side is gone")
        at += got
    return body
