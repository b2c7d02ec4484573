import json

import numpy as np
import pytest
from weight_samples import write_run

from qwen3_infer.folder.model_folder import open_model_folder
from qwen3_model.errors import ConfigError, FormatError, Qwen3Error
from qwen3_model.ranks.layout import Layout


def test_a_whole_folder_opens(make_demo_folder):
    folder = open_model_folder(make_demo_folder())
    assert folder.config.vocab_size == folder.tokenizer.vocab_size == 4096
    assert folder.defaults.do_sample is False


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda d: d / "absent",
            "absent does not exist; --pretrained-model-dir takes a Hugging Face model folder",
        ),
        (lambda d: d / "config.json", "config.json is a file; --pretrained-model-dir takes"),
        (lambda d: (d / "config.json").unlink(), "has no config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda d: (d / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 40) and None, "model.safetensors"),
        (lambda d: change(d, hidden_size=24), "config.json says (4096, 24)"),
        (
            lambda d: change(d, num_hidden_layers=1),
            "model.layers.1.input_layernorm.weight in model.safetensors is no weight of this model",
        ),
        (lambda d: change(d, tie_word_embeddings=False), "lm_head.weight is missing"),
        (
            lambda d: change(d, eos_token_id=4096),
            "eos_token_id=4096 is no token of a vocabulary of 4096 rows",
        ),
    ],
)
def test_parts_that_disagree_are_named(make_demo_folder, spoil, sentence):
    directory = make_demo_folder()
    path = spoil(directory) or directory
    with pytest.raises(Qwen3Error) as caught:
        open_model_folder(path)
    assert sentence in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(make_demo_folder):
    with pytest.raises(
        Qwen3Error, match=r"tokenizer\.json has 4096 tokens but config.json gives the embedding 512 rows"
    ):
        open_model_folder(make_demo_folder(vocab_size=512))
    with pytest.raises(
        Qwen3Error, match=r"end-of-text ids \[5000\] are no tokens of tokenizer.json, which has 4096"
    ):
        open_model_folder(make_demo_folder("other", vocab_size=6000, eos_token_id=5000))


def change(directory, **keys):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | keys), "utf-8")


def test_what_another_option_takes_is_sent_there(make_demo_folder, tmp_path, golden_dir):
    base = make_demo_folder()
    with pytest.raises(ConfigError, match=r"is a LoRA adapter; give its base .* and this as --adapter"):
        open_model_folder(golden_dir / "adapter")
    (tmp_path / "ranks/rank_0").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"a distributed checkpoint without .* --load-checkpoint"):
        open_model_folder(tmp_path / "ranks")
    weights = {
        f"model.layers.0.self_attn.q_proj.lora_{half}.weight": np.ones((2, 16), np.float32) for half in "AB"
    }
    run = write_run(tmp_path / "run", weights, Layout(tp=1))
    with pytest.raises(ConfigError, match=r"holds a LoRA adapter and not a model; .* --adapter .*run"):
        open_model_folder(base, checkpoint=run)
    (base / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(FormatError, match="is a Git LFS pointer, not the weights; run `git lfs pull`"):
        open_model_folder(base)
