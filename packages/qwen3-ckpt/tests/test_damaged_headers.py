"""A thousand damaged headers: each is refused in a sentence, or changed nothing that is merged."""

import dataclasses
import json
import math
import random
import struct

import numpy as np
import pytest
from ckpt_samples import TINY, Spec, make_checkpoint

from qwen3_ckpt.operations.merge import MergeRequest, prepare
from qwen3_model.checkpoints.safetensors_file import NUMPY_DTYPES
from qwen3_model.errors import Qwen3Error

CASES = 1000
ONE_LAYER = dataclasses.replace(TINY, num_layers=1)


def flip_a_bit(header, rng):
    place = rng.randrange(len(header))
    return header[:place] + bytes([header[place] ^ 1 << rng.randrange(8)]) + header[place + 1 :]


def change_a_byte(header, rng):
    place = rng.randrange(len(header))
    return header[:place] + bytes([rng.randrange(256)]) + header[place + 1 :]


def drop_bytes(header, rng):
    place = rng.randrange(len(header))
    return header[:place] + header[place + rng.randint(1, 40) :]


def repeat_bytes(header, rng):
    place = rng.randrange(len(header))
    return header[:place] + header[place : place + rng.randint(1, 40)] * 2 + header[place:]


def change_a_digit(header, rng):
    places = [i for i, byte in enumerate(header) if chr(byte).isdigit()]
    place = rng.choice(places)
    return header[:place] + str(rng.randrange(10)).encode() + header[place + 1 :]


def change_a_value(header, rng):
    tensors = json.loads(header)
    name = rng.choice([key for key in tensors if key != "__metadata__"])
    key = rng.choice(["dtype", "shape", "data_offsets"])
    odd = [
        None,
        -1,
        2**63,
        2**64,
        1e300,
        "F32",
        "BF16",
        [],
        {},
        [0],
        [-1, 1],
        [2**62, 4],
        [[1]],
        True,
        "x" * 99,
    ]
    tensors[name][key] = rng.choice(odd)
    return json.dumps(tensors).encode()


def swap_two_entries(header, rng):
    tensors = json.loads(header)
    a, b = rng.sample([key for key in tensors if key != "__metadata__"], 2)
    key = rng.choice(["dtype", "shape", "data_offsets"])
    # Equal sizes with swapped offsets are a valid file; no header can tell.
    if math.prod(tensors[a]["shape"]) != math.prod(tensors[b]["shape"]):
        tensors[a][key], tensors[b][key] = tensors[b][key], tensors[a][key]
    return json.dumps(tensors).encode()


def lose_an_entry(header, rng):
    tensors = json.loads(header)
    del tensors[rng.choice(list(tensors))]
    return json.dumps(tensors).encode()


DAMAGES = [
    flip_a_bit, change_a_byte, drop_bytes, repeat_bytes, change_a_digit, change_a_value, swap_two_entries,
    lose_an_entry,
]  # fmt: skip


def damaged(body, rng):
    """Return the file with its header, its length field or its end damaged."""
    (length,) = struct.unpack("<Q", body[:8])
    header, data = body[8 : 8 + length], body[8 + length :]
    kind = rng.randrange(10)
    if kind == 8:
        return (
            struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])) + body[8:]
        )
    if kind == 9:
        return body[: rng.randrange(len(body))]
    header = DAMAGES[kind](header, rng)
    return struct.pack("<Q", len(header)) + header + data


def values(prepared):
    found = {}
    for name, tensor in prepared.checkpoint.tensors.items():
        rows = tensor.rows.read(0, tensor.rows.num_rows)
        found[name] = (
            tensor.plan.dtype,
            rows.view(NUMPY_DTYPES[tensor.plan.dtype]).reshape(tensor.plan.shape),
        )
    return found


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_header_is_refused_or_changes_nothing(tmp_path, seed):
    made = make_checkpoint(tmp_path / "run", Spec(tp=2, config=ONE_LAYER))
    (path,) = (made.checkpoint_dir / "rank_1").glob("*.safetensors")
    body = path.read_bytes()
    request = MergeRequest(
        checkpoint_dir=made.checkpoint_dir, strategy=made.strategy_dir, suffix="1_5", filter_out_prefixes=(),
        check_replicas=False, hf_dir=None,
    )  # fmt: skip
    rng, refusals = random.Random(seed), []
    for _ in range(CASES // 4):
        path.write_bytes(damaged(body, rng))
        try:
            found = values(prepare(request))
        except Qwen3Error as error:
            refusals.append(str(error))
            continue
        assert found.keys() == made.whole.keys()
        for name, (dtype, value) in found.items():
            assert dtype == "F32"
            np.testing.assert_array_equal(value, made.whole[name])
    assert all(str(path) in refusal or "rank_1" in refusal for refusal in refusals)
    assert len(refusals) > CASES // 4 * 0.8  # the others hit spaces, the metadata or global_step
