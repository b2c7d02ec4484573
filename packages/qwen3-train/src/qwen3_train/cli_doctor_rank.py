"""What `qwen3-train doctor` runs on a device: `python -m qwen3_train.cli_doctor_rank DEVICE RANKS FILE`."""

import json
import os
import sys
from pathlib import Path

from qwen3_model.command.files import write_text_atomically


def main() -> None:
    """Try the device as the rank that msrun says; rank 0 writes what was found."""
    device, num_ranks, path = sys.argv[1:]
    rank = int(os.environ.get("RANK_ID", "0"))
    from qwen3_train.doctor.probe import probe

    found = probe(device, rank, int(num_ranks), Path(path).parent)
    if rank == 0:
        write_text_atomically(Path(path), json.dumps(found))


if __name__ == "__main__":
    main()
