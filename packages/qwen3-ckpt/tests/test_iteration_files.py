"""mindformers' newer checkpoints, with parts laid out by hand as its own code numbers them."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import TINY
from click.testing import CliRunner

from qwen3_ckpt.cli import main
from qwen3_model.checkpoints.fused import fused_shapes
from qwen3_model.checkpoints.safetensors_file import TensorPlan, open_safetensors, write_safetensors
from qwen3_model.checkpoints.weight_files import open_checkpoint
from qwen3_model.config import Qwen3Config


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def cuts_of(name: str, tp: int) -> tuple[int, ...]:
    if "norm" in name:
        return (1,)
    return (1, tp) if name.split(".")[-2] in ("linear_proj", "linear_fc2") else (tp, 1)


def make(folder: Path, tp: int, dp: int = 1, config: Qwen3Config = TINY, prefix="") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    whole = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in fused_shapes(config).items()
    }
    whole |= {f"adam_m.{name}": -values for name, values in whole.items()}
    step, num = folder / "iteration_00000005", tp * dp
    step.mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("5", encoding="utf-8")
    common = {"epoch_num": 2, "step_num": 3, "global_step": 5}
    (step / "common.json").write_text(json.dumps(common), encoding="utf-8")
    parts: dict[str, dict[str, np.ndarray]] = {}
    metadata, storage = {}, {}
    for name, values in whole.items():
        cuts = cuts_of(name, tp)
        local = [size // cut for size, cut in zip(values.shape, cuts, strict=True)]
        kind = "opt" if name.startswith("adam_") else "model"
        for number, place in enumerate(product(*map(range, cuts))):
            part = values[
                tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, local, strict=True))
            ]
            for rank in range(num):
                if tp == len(list(product(*map(range, cuts)))) and rank % tp != number:
                    continue
                file_name = f"{prefix}{kind}-{rank:07d}-{num:07d}.safetensors"
                parts.setdefault(file_name, {})[name] = np.ascontiguousarray(part)
                entry = {"file_name": file_name, "storage_rank": rank}
                storage.setdefault(str((name, (number,))), []).append(entry)
        metadata[name] = {
            "properties": {"dtype": "Float32"},
            "global_shape": values.shape,
            "axis_fragmentations": cuts,
        }
    for file_name, tensors in parts.items():
        entries = [(TensorPlan(n, "F32", v.shape), [v]) for n, v in tensors.items()]
        write_safetensors(step / file_name, entries, {"format": "ms"})
    if num > 1:
        told = {"state_dict_metadata": metadata, "storage_data": storage}
        (step / "metadata.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    return whole


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 2)])
def test_every_part_comes_to_its_place(tmp_path, tp, dp):
    whole = make(tmp_path / "checkpoint", tp, dp)
    for source in (tmp_path / "checkpoint", tmp_path, tmp_path / "checkpoint" / "iteration_00000005"):
        found = open_checkpoint(source)
        assert found.suffix == "2_3"
        assert found.tensors.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_array_equal(found.tensors[name].read(), values, err_msg=name)
    assert run("convert", tmp_path / "checkpoint", tmp_path / "hf").exit_code == 0
    assert run("verify", tmp_path / "checkpoint").exit_code == 0
    result = run("reshard", tmp_path / "checkpoint", tmp_path / "tp2", "--model-parallel", 2)
    assert result.exit_code == 0, result.output
    assert run("convert", tmp_path / "tp2", tmp_path / "hf2").exit_code == 0
    assert run("diff", tmp_path / "hf", tmp_path / "hf2").exit_code == 0


def test_the_counters_of_the_run_go_along(tmp_path):
    make(tmp_path / "checkpoint", 2)
    assert run("reshard", tmp_path / "checkpoint", tmp_path / "new", "--data-parallel", 2).exit_code == 0
    for rank in range(2):
        file = open_safetensors(tmp_path / f"new/checkpoint/rank_{rank}/qwen3_rank_{rank}-2_3.safetensors")
        counters = {name: file.raw(name).tolist() for name in ("epoch_num", "step_num", "global_step")}
        assert counters == {"epoch_num": [2], "step_num": [3], "global_step": [5]}
        assert all(file.tensors[name].dtype == "I32" for name in counters)
    assert run("reshard", tmp_path / "checkpoint", tmp_path / "bare", "--drop-optimizer").exit_code == 0
    (path,) = (tmp_path / "bare/checkpoint/rank_0").glob("*.safetensors")
    assert "global_step" not in open_safetensors(path).tensors


@pytest.mark.parametrize("count", [-1, 2**31, 1.5, "5", True, [5]])
def test_a_counter_that_is_none_is_one_sentence(tmp_path, count):
    make(tmp_path, 2)
    common = {"epoch_num": 2, "step_num": 3, "global_step": count}
    (tmp_path / "iteration_00000005/common.json").write_text(json.dumps(common), encoding="utf-8")
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert "common.json states global_step=" in result.output


def test_a_missing_file_is_replaced_by_a_replica_or_named(tmp_path):
    whole = make(tmp_path / "two", 2, 2)
    (tmp_path / "two" / "iteration_00000005" / "model-0000001-0000004.safetensors").unlink()
    found = open_checkpoint(tmp_path / "two")
    for name, values in whole.items():
        np.testing.assert_array_equal(found.tensors[name].read(), values)
    make(tmp_path / "one", 2)
    (tmp_path / "one" / "iteration_00000005" / "model-0000001-0000002.safetensors").unlink()
    result = run("convert", tmp_path / "one", tmp_path / "hf")
    assert result.exit_code == 1
    assert "part 1 of 2 is missing from model-0000001-0000002.safetensors" in result.output


def first(told, section):
    return next(iter(told[section].values()))


TENSORS, FILES = "state_dict_metadata", "storage_data"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda told: told.pop(FILES), "is no metadata of a checkpoint: storage_data is missing"),
        (lambda told: told.update({FILES: []}), "storage_data: [] is not a section with keys"),
        (lambda told: told.update({TENSORS: None}), "state_dict_metadata: None is not a section with keys"),
        (lambda told: told[FILES].update({next(iter(told[FILES])): {}}), "{} is not a list"),
        (lambda told: first(told, FILES)[0].update(file_name=None), "file_name: None is not a text"),
        (lambda told: first(told, TENSORS).update(global_shape="64"), "global_shape: '64' is not a list"),
        (lambda told: first(told, TENSORS).update(axis_fragmentations=[True]), "True is not a whole number"),
        (lambda told: told[FILES].update({"__import__('os')": []}), "is no metadata of a checkpoint"),
        (lambda told: told[TENSORS].clear(), "lists no tensor"),
        (lambda told: first(told, FILES)[0].update(file_name="../x"), "outside of its folder"),
        (lambda told: first(told, TENSORS).update(axis_fragmentations=[3, 1]), "is said to be cut by"),
        (lambda told: first(told, TENSORS).update(global_shape=[64, 16]), "metadata.json says"),
    ],
)
def test_damaged_metadata_is_one_sentence(tmp_path, spoil, sentence):
    make(tmp_path, 2)
    path = tmp_path / "iteration_00000005" / "metadata.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    spoil(told)
    path.write_text(json.dumps(told), encoding="utf-8")
    result = run("inspect", tmp_path)
    assert result.exit_code == 1
    assert sentence in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("naming", ["{}.lora_A.weight", "{}.mindpet_delta_lora_a", "{}.lora_a"])
def test_adapters_are_known_by_all_of_mindformers_names(tmp_path, naming):
    rng = np.random.default_rng(1)
    shapes, tensors = fused_shapes(TINY), {}
    for leaf in ("self_attention.linear_qkv", "mlp.linear_fc1", "self_attention.linear_proj"):
        module = f"decoder.layers.0.{leaf}"
        out, inner = shapes[f"{module}.weight"]
        for half, shape in (("A", (2, inner)), ("B", (out, 2))):
            name = naming.replace("lora_A", f"lora_{half}").replace("lora_a", f"lora_{half.lower()}")
            tensors[name.format(module)] = rng.standard_normal(shape).astype(np.float32)
    folder = tmp_path / "run" / "checkpoint" / "rank_0"
    folder.mkdir(parents=True)
    entries = [(TensorPlan(n, "F32", v.shape), [v]) for n, v in tensors.items()]
    write_safetensors(folder / "qwen3_rank_0-1_1.safetensors", entries, {})
    (tmp_path / "run" / "config.json").write_text(json.dumps(TINY.to_hf()), encoding="utf-8")
    result = run("lora", "export", tmp_path / "run", tmp_path / "peft", "--lora-alpha", 4)
    assert result.exit_code == 0, result.output
    file = open_safetensors(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(file.tensors) == 2 * 6
    gate = "base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"
    b = next(values for name, values in tensors.items() if "fc1" in name and values.shape[1] == 2)
    np.testing.assert_array_equal(file.raw(gate), b[::2])
