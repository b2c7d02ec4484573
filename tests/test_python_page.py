"""The code of docs/python.md runs as it stands, on a small model, and gives what the commands give."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ckpt_samples import Spec, make_checkpoint
from click.testing import CliRunner

from qwen3_data.cli import main as data
from qwen3_model.checkpoints.hf_folder import open_hf_folder
from qwen3_model.checkpoints.write_fresh import write_fresh
from qwen3_model.config import Qwen3Config

PAGE = Path(__file__).resolve().parents[1] / "docs/python.md"
CONFIG = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 4096,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
    "eos_token_id": 4070, "bos_token_id": 4070,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo_tokenizer_dir):
    """Return a folder with the model, token files and run that the page takes for granted."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    config = Qwen3Config.from_dir(folder)
    write_fresh(config, folder / "Qwen3-0.6B", seed=0, dtype="bfloat16", tokenizer_dir=demo_tokenizer_dir)
    (folder / "wiki.jsonl").write_text('{"text": "My lord, I will."}\n{"text": "So."}\n', encoding="utf-8")
    flags = ["--output-prefix", str(folder / "data/wiki"), "--tokenizer-dir", str(demo_tokenizer_dir)]
    made = CliRunner().invoke(data, ["preprocess", "--input", str(folder / "wiki.jsonl"), *flags])
    assert made.exit_code == 0, made.output
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Return a function that runs the code below a heading in the folder, and gives the names it defines."""
    monkeypatch.chdir(folder)

    def run(heading):
        section = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        names = {}
        exec(compile(code, f"{PAGE.name}: {heading}", "exec"), names)
        return names

    return run


def test_logits_are_those_from_which_generation_takes_its_first_token(run, monkeypatch):
    names = run("Logits of a model")
    assert names["logits_BLV"].shape == (*names["ids_BL"].shape, CONFIG["vocab_size"])
    # MindSpore's operators: a compiler is not what is tested here.
    monkeypatch.setattr("qwen3_infer.processes.local.find_library", lambda *_: None)
    answers = run("Generate")["answers"]
    first = answers["My lord, I will"].ids[0]
    assert first == names["logits_BLV"][0, -1].argmax()
    assert len(answers) == 2


def test_the_loss_falls_with_the_steps(run):
    losses = run("Steps of training")["losses"]
    assert losses[0] == pytest.approx(np.log(CONFIG["vocab_size"]), abs=0.5)
    assert losses[0] > losses[1] > losses[2]


def test_token_files_are_read_as_they_were_written(run):
    names = run("Token files")
    assert names["tokens"].num_documents == names["manifest"].num_documents == 2
    ids = names["tokens"].sequence(0)
    assert names["tokenizer"].decode(ids.tolist()) == "My lord, I will."
    assert ids[-1] == names["manifest"].eod_id


def test_a_merged_folder_has_the_weights_that_were_cut(run, folder):
    made = make_checkpoint(folder / "output", Spec(tp=2, pp=2, with_moments=True, dtype="BF16"))
    run("Merge a checkpoint")
    found = open_hf_folder(folder / "merged").tensors
    wanted = {name: values for name, values in made.whole.items() if not name.startswith("adam_")}
    assert set(found.names()) == set(wanted)
    for name, values in wanted.items():
        dtype, part = found.part(name)
        assert dtype == "BF16"
        np.testing.assert_array_equal(np.asarray(part), values)
