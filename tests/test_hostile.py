"""Whatever a stranger named or wrote: each command says one sentence, and no terminal obeys what is in it."""

import json
import struct
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import qwen3_ckpt.cli
import qwen3_data.cli
import qwen3_infer.cli
import qwen3_model.cli
import qwen3_train.cli

NAME = "a\x1b]0;title\x07\x1b[31m\u202e\x9bm\rb\nError: forged"
RAW = set("\x1b\x07\x9b\u202e\r")


def tensors(path: Path, names: list[str], **metadata: str) -> None:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for number, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * number, 4 * number + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0\0\0" * len(names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_tokenizer_dir):
    """A folder with a hostile name, and hostile names in all of its files."""
    folder = tmp_path_factory.mktemp("hostile") / NAME
    folder.mkdir()
    for kind in ("whole", "run", "run/checkpoint", "run/checkpoint/rank_0", "adapter", "model", "broken"):
        (folder / kind).mkdir()
    for file in demo_tokenizer_dir.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    tensors(folder / "whole" / "model.safetensors", [NAME, "other"])
    tensors(folder / "model" / "model.safetensors", [NAME], format="pt")
    (folder / "model" / "config.json").write_text(
        json.dumps({NAME: 1, "model_type": "qwen3"}), encoding="utf-8"
    )
    tensors(folder / "run/checkpoint/rank_0/qwen3_rank_0-1_1.safetensors", [NAME], qwen3_train=NAME)
    tensors(folder / "adapter" / "adapter_model.safetensors", [NAME])
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({NAME: 1, "lora_alpha": 1}), encoding="utf-8"
    )
    for name in ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"):
        (folder / "broken" / name).write_text(NAME, encoding="utf-8")
    (folder / "text.jsonl").write_text(json.dumps({NAME: "a"}) + "\n", encoding="utf-8")
    (folder / "text.txt").write_text(f"= {NAME} =\n{NAME}\n", encoding="utf-8")
    (folder / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": NAME, "content": NAME}]}) + "\n", encoding="utf-8"
    )
    (folder / "run.yaml").write_text(yaml.safe_dump({NAME: NAME, "run_mode": NAME}), encoding="utf-8")
    (folder / "tokens.idx").write_bytes(b"MMIDIDX\0\0" + NAME.encode())
    (folder / "tokens.bin").write_bytes(NAME.encode())
    (folder / "tokens.json").write_text(json.dumps({NAME: NAME}), encoding="utf-8")
    return folder


DATA, CKPT, MODEL = qwen3_data.cli.main, qwen3_ckpt.cli.main, qwen3_model.cli.main
TRAIN, INFER = qwen3_train.cli.main, qwen3_infer.cli.main
PRE = ("preprocess", "--output-prefix", "{}/out", "--tokenizer-dir")
COMMANDS = [
    (DATA, ("inspect", "{}/tokens")),
    (DATA, ("verify", "{}/tokens")),
    (DATA, ("split", "{}/tokens", "--parts", "2")),
    (DATA, ("merge", "{}/tokens.idx", "--output-prefix", "{}/merged")),
    (DATA, ("detokenize", "{}/tokens", "{}/out.jsonl", "--tokenizer-dir", "{}/model")),
    (DATA, ("wikitext", "{}/text.txt", "{}/wiki.jsonl")),
    (DATA, (*PRE, "{}/model", "--input", "{}/text.jsonl")),
    (DATA, (*PRE, "{}/model", "--input", "{}/chat.jsonl", "--json-keys", "messages")),
    (DATA, (*PRE, "{}/broken", "--input", "{}/text.txt")),
    (DATA, ("count", "{}/text.jsonl", "--tokenizer-dir", "{}/model")),
    (DATA, ("sft", "--input", "{}/chat.jsonl", "--output-prefix", "{}/sft", "--tokenizer-dir", "{}/model")),
    (CKPT, ("inspect", "{}/whole")),
    (CKPT, ("inspect", "{}/run/checkpoint")),
    (CKPT, ("inspect", "{}/broken")),
    (CKPT, ("verify", "{}/whole")),
    (CKPT, ("verify", "{}/model")),
    (CKPT, ("verify", "{}/broken")),
    (CKPT, ("diff", "{}/whole", "{}/model")),
    (CKPT, ("convert", "{}/whole", "{}/converted")),
    (CKPT, ("convert", "{}/model", "{}/converted")),
    (CKPT, ("merge", "--mindspore-ckpt-dir", "{}/run/checkpoint", "--output-dir", "{}/merged")),
    (CKPT, ("average", "{}/whole", "{}/model", "--output", "{}/average")),
    (CKPT, ("lora", "fuse", "{}/model", "{}/adapter", "{}/fused")),
    (CKPT, ("lora", "export", "{}/run", "{}/exported")),
    (MODEL, ("verify", "{}/model")),
    (MODEL, ("verify", "{}/broken")),
    (MODEL, ("describe", "{}/broken")),
    (MODEL, ("init", "{}/model/config.json", "{}/fresh")),
    (TRAIN, ("launch", "--config", "{}/run.yaml")),
    (TRAIN, ("plan", "--config", "{}/run.yaml")),
    (TRAIN, ("inspect-data", "--config", "{}/run.yaml")),
    (TRAIN, ("report", "{}/run")),
    (INFER, ("generate", "--pretrained-model-dir", "{}/model", "--predict-data", "x")),
    (INFER, ("generate", "--config", "{}/run.yaml", "--predict-data", "x")),
    (INFER, ("chat", "--pretrained-model-dir", "{}/broken")),
    (INFER, ("score", "--pretrained-model-dir", "{}/model", "--data", "{}/text.txt")),
    (INFER, ("serve", "--pretrained-model-dir", "{}/broken", "--port", "0")),
]


@pytest.mark.parametrize(("command", "words"), COMMANDS)
def test_names_and_texts_of_strangers_stay_text(folder, command, words):
    result = CliRunner().invoke(command, [word.format(folder) for word in words], catch_exceptions=True)
    told = result.stdout + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert not RAW & set(told), told
    assert "Traceback" not in told
    forged = [line for line in told.splitlines() if line.startswith("Error: forged")]
    assert not forged
