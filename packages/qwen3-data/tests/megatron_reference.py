"""A second writer of the token format, made from its table alone, for tests to compare with."""

import struct

import numpy as np


def reference_files(documents, *, eod=None, code=4, dtype="<i4"):
    """Return the bytes of .bin and .idx for `documents`, lists of ids; empty ones have no sequence."""
    sequences = [[*ids, *([] if eod is None else [eod])] for ids in documents if len(ids)]
    lengths = [len(ids) for ids in sequences]
    size = np.dtype(dtype).itemsize
    pointers, at = [], 0
    for length in lengths:
        pointers.append(at)
        at += length * size
    indices, count = [0], 0
    for ids in documents:
        count += 1 if len(ids) else 0
        indices.append(count)
    data = b"".join(np.asarray(ids, dtype=dtype).tobytes() for ids in sequences)
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(indices))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(indices)}q", *indices)
    return data, index
