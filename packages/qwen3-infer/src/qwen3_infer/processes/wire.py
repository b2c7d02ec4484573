"""Messages between the process of a command and those that share its model out: JSON, then raw arrays.

A message is a line of JSON, `{"message": ..., "arrays": [[dtype, shape], ...]}`, behind its length, and the
bytes of the arrays.
"""

import json
import math
import socket
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from qwen3_model.command.narrow import as_ints, as_list, as_section, as_text
from qwen3_model.errors import FormatError

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


def receive(source: socket.socket) -> tuple[Mapping[str, object], list[np.ndarray]]:
    """Return the next message, a JSON object, and its arrays.

    Raises:
        OSError: The other side is gone, or sends something else.
    """
    (length,) = LENGTH.unpack(_receive_exactly(source, LENGTH.size))
    try:
        head = as_section(json.loads(_receive_exactly(source, length)))
        arrays = [_array(source, *as_list(each)) for each in as_list(head["arrays"])]
        return as_section(head["message"]), arrays
    except (FormatError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConnectionError(f"the other side sends no message of this program: {error}") from None


def _array(source: socket.socket, dtype: object, shape: object) -> np.ndarray:
    kind, sizes = np.dtype(as_text(dtype)), as_ints(shape)
    body = _receive_exactly(source, math.prod(sizes) * kind.itemsize)
    return np.frombuffer(body, kind).reshape(sizes)


def _receive_exactly(source: socket.socket, count: int) -> bytearray:
    if not 0 <= count <= MOST_BYTES:
        raise ConnectionError(f"a message of {count} bytes")
    body = bytearray(count)
    view, at = memoryview(body), 0
    while at < count:
        got = source.recv_into(view[at:])
        if not got:
            raise ConnectionError("the other side is gone")
        at += got
    return body
