import json
from pathlib import Path

import pytest

from qwen3_infer.folder.generation_config import read_generation_config
from qwen3_infer.settings.settings import make_decoding, read_settings
from qwen3_model.config import SIZES
from qwen3_model.errors import ConfigError, UsageError

CONFIG = SIZES["0.6B"]
RELEASED = {
    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
    "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0",
}  # fmt: skip
FLAGS = {"pretrained_model_dir": "model", "predict_data": ("hello",)}


def defaults(tmp_path, raw=None):
    if raw is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(raw), "utf-8")
    return read_generation_config(tmp_path, CONFIG)


def decoding(tmp_path, *, raw=None, overrides=(), **flags):
    settings = read_settings(None, FLAGS | flags, overrides)
    return make_decoding(settings, defaults(tmp_path, raw), CONFIG.vocab_size)


def test_released_generation_config_gives_sampling_and_both_stop_ids(tmp_path):
    found = decoding(tmp_path, raw=RELEASED)
    sampling = found.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.6, 20, 0.95, 0.0)
    assert found.stop_ids == {151645, 151643}
    assert (found.max_new_tokens, found.is_length_explicit) == (512, False)


def test_without_generation_config_it_is_greedy_with_the_configs_end(tmp_path):
    found = decoding(tmp_path)
    assert found.sampling.is_greedy
    assert found.stop_ids == {151645}


def test_the_yaml_is_over_the_folder_and_flags_are_over_the_yaml(tmp_path):
    path = tmp_path / "predict.yaml"
    path.write_text(
        "seed: 3\ngeneration: {temperature: 0.9, top_k: 5, max_new_tokens: 7, stop: END}\n", "utf-8"
    )
    settings = read_settings(path, FLAGS | {"top_k": 6}, ("--generation.max_new_tokens", "8"))
    found = make_decoding(settings, defaults(tmp_path, RELEASED), CONFIG.vocab_size)
    assert settings.seed == 3
    assert (found.sampling.temperature, found.sampling.top_k, found.sampling.top_p) == (0.9, 6, 0.95)
    assert (found.max_new_tokens, found.is_length_explicit, found.stop_strings) == (8, True, ("END",))


def test_naming_a_temperature_asks_for_sampling(tmp_path):
    assert decoding(tmp_path, temperature=0.5).sampling.temperature == 0.5
    assert decoding(tmp_path, top_p=0.5).sampling.temperature == 1.0
    assert decoding(tmp_path, raw=RELEASED, temperature=0.0).sampling.is_greedy
    assert decoding(tmp_path, raw=RELEASED, do_sample=False).sampling.is_greedy
    assert decoding(tmp_path, raw=RELEASED, do_sample=False, temperature=0.0).sampling.is_greedy


def test_greedy_and_sampling_together_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="do_sample is off but top_k is given; leave one of them out"):
        decoding(tmp_path, do_sample=False, top_k=4)


def test_stop_ids_add_to_the_models(tmp_path):
    assert decoding(tmp_path, raw=RELEASED, stop_ids=(5, 6)).stop_ids == {5, 6, 151643, 151645}
    with pytest.raises(ConfigError, match="stop id 151936 is no token of a vocabulary of 151936 rows"):
        decoding(tmp_path, stop_ids=(151936,))


@pytest.mark.parametrize(
    ("flags", "overrides", "error", "sentence"),
    [
        (
            {"pretrained_model_dir": None},
            (),
            UsageError,
            "give the model's folder as --pretrained-model-dir DIR",
        ),
        ({"predict_batch_size": 0}, (), UsageError, "--predict-batch-size 0 must be at least 1"),
        ({"seed": -1}, (), UsageError, "--seed -1 must be at least 0"),
        ({}, ("--generation.temprature", "1"), UsageError, "did you mean temperature?"),
        ({}, ("--max-tokens", "1"), UsageError, "unknown key max_tokens"),
        ({}, ("--generation.top_k", "many"), UsageError, "generation.top_k='many' must be int"),
        (
            {},
            ("--parallel_config.model_parallel", "2"),
            UsageError,
            "parallel_config.model_parallel=2 needs 2 processes, not 1",
        ),
        ({}, ("stray",), UsageError, "unexpected argument 'stray'"),
        ({"max_new_tokens": 0}, (), ConfigError, "max_new_tokens=0 must be at least 1"),
        (
            {"num_return_sequences": 2},
            (),
            ConfigError,
            "num_return_sequences=2 must be at least 1, and 1 when the",
        ),
        ({"num_return_sequences": 0}, (), ConfigError, "num_return_sequences=0 must be at least 1"),
        ({"temperature": -1.0}, (), ConfigError, "temperature=-1.0 is no sampling value"),
        ({"stop": ("",)}, (), ConfigError, "stop=[''] must be texts that are not empty"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, flags, overrides, error, sentence):
    with pytest.raises(error) as caught:
        decoding(tmp_path, overrides=overrides, **flags)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"num_beams": 4}, "asks for what is not implemented: num_beams=4; remove it there"),
        ({"no_such_key": 1}, "no_such_key=1"),
        ({"do_sample": "yes"}, "do_sample='yes' must be true or false"),
        ({"temperature": "hot"}, "temperature='hot' must be a number"),
        ({"top_p": 2}, "top_p=2 is no sampling value"),
        ({"eos_token_id": 151936}, "eos_token_id=151936 is no token of a vocabulary of 151936 rows"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be a whole number of at least 1"),
        ([], "holds no JSON object"),
    ],
)
def test_a_generation_config_that_cannot_be_followed_is_refused(tmp_path, raw, sentence):
    with pytest.raises(ConfigError) as caught:
        defaults(tmp_path, raw)
    assert sentence in str(caught.value)
    assert "generation_config.json" in str(caught.value)


def test_neutral_keys_of_transformers_are_accepted(tmp_path):
    assert defaults(tmp_path, {"num_beams": 1, "num_return_sequences": 1, "min_p": None}).do_sample is False


def test_the_device_is_ascend_where_there_is_one_and_cann_is_asked_for_there(tmp_path, monkeypatch):
    file = tmp_path / "davinci_manager"
    monkeypatch.setattr("qwen3_model.device.simulation.DEVICE_FILE", file)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    yaml = Path(__file__).parents[3] / "configs/qwen3/predict_qwen3.yaml"

    def device(environment, **flags):
        return read_settings(yaml, FLAGS | flags, (), environment=environment).device_target

    assert device({}) == "CPU"
    assert device({"MS_SIMULATION_LEVEL": "1"}) == "Ascend"
    with pytest.raises(ConfigError, match="device_target=Ascend but this machine has none"):
        device({}, device_target="Ascend")
    file.touch()
    assert device({}, device_target="CPU") == "CPU"
    with pytest.raises(ConfigError, match="CANN is not set up"):
        device({})
    (tmp_path / "libascendcl.so").touch()
    assert device({"LD_LIBRARY_PATH": str(tmp_path)}) == "Ascend"


MINDFORMERS = """
context: {mode: 0, enable_graph_kernel: False, max_device_memory: 59GB, save_graphs: False,
          jit_config: {jit_level: O0, infer_boost: 'on'}, ascend_config: {precision_mode:
          must_keep_origin_dtype}}
parallel: {parallel_mode: MANUAL_PARALLEL, enable_alltoall: False}
model:
  model_config: {type: Qwen3Config, position_embedding_type: rope, pad_token_id: 151643, compute_dtype:
  bfloat16,
                 layernorm_compute_dtype: float32, softmax_compute_dtype: float32, rotary_dtype: bfloat16,
                 params_dtype: bfloat16, residual_dtype: bfloat16, block_size: 32, num_blocks: 1024,
                 normalization: RMSNorm, add_bias_linear: False, gated_linear_unit: True,
                 use_contiguous_weight_layout: True}
"""


def test_the_keys_of_mindformers_yamls_since_1_6_are_taken_and_those_without_effect_named(tmp_path):
    (tmp_path / "predict.yaml").write_text(MINDFORMERS, "utf-8")
    settings = read_settings(tmp_path / "predict.yaml", FLAGS, ())
    (note,) = (note for note in settings.notes if "infer_boost" in note)
    for name in ("rotary_dtype", "num_blocks", "pad_token_id"):
        assert f"model.model_config.{name}" in note
    # Of what a CPU does not do a note of its own says that Ascend does.
    assert any("model.model_config.residual_dtype" in other for other in settings.notes if other != note)
    assert settings.fused_layout.contiguous_qkv
    other = ("--model.model_config.use_contiguous_weight_layout_attention", "False")
    assert not read_settings(tmp_path / "predict.yaml", FLAGS, other).fused_layout.contiguous_qkv
    eager = read_settings(tmp_path / "predict.yaml", FLAGS, ("--context.mode", "1"))
    assert "context.mode=1 has no effect: the model runs as compiled graphs" in eager.notes
    for wrong in ("normalization=LayerNorm", "gated_linear_unit=False", "add_bias_linear=True"):
        name, _, value = wrong.partition("=")
        with pytest.raises(UsageError, match=name):
            read_settings(tmp_path / "predict.yaml", FLAGS, (f"--model.model_config.{name}", value))


def test_a_layout_has_no_effect_without_use_parallel():
    overrides = ("--use_parallel", "False", "--parallel_config.model_parallel", "2")
    settings = read_settings(None, FLAGS, overrides)
    assert settings.model_parallel == 1
    assert settings.notes == ("parallel_config.model_parallel=2 has no effect while use_parallel is False",)


def test_a_checkpoint_brings_its_runs_config_and_tokenizer(tmp_path):
    (tmp_path / "run/checkpoint/rank_0").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}", "utf-8")
    flags = {"load_checkpoint": str(tmp_path / "run/checkpoint"), "adapter": "lora"}
    settings = read_settings(None, flags, ("--src_strategy_path_or_dir", "strategies"))
    assert (settings.model_dir, settings.load_checkpoint) == (tmp_path / "run", tmp_path / "run/checkpoint")
    assert (settings.adapter, settings.strategy) == (Path("lora"), Path("strategies"))
    # A run is a model's folder and a checkpoint at once.
    settings = read_settings(None, {"pretrained_model_dir": str(tmp_path / "run")}, ())
    assert settings.load_checkpoint == tmp_path / "run"
    with pytest.raises(
        UsageError, match=r"no config.json beside .*; give the model's folder as --pretrained"
    ):
        read_settings(None, {"load_checkpoint": str(tmp_path / "nowhere")}, ())
