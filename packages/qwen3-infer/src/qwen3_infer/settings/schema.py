"""The YAML keys of a prediction: mindformers' own, and a `generation` section; each used or named once."""

from collections.abc import Mapping

from qwen3_infer.sampling.sampling import SAMPLING_TYPES
from qwen3_model.command.keys import Key, Schema
from qwen3_model.command.spellings import read_dtype
from qwen3_model.device.ascend import CONTEXT_SCHEMA

TEXT, FLAG, COUNT = Key((str,)), Key((bool,)), Key((int,))
NO_EFFECT = Key(effect="none")
FLOAT32_ONLY = Key((str,), ("float32",), spelled=read_dtype)
# config.json says what the model is; these keys may repeat it and change nothing.
MODEL_CONFIG: Schema = {
    "compute_dtype": Key((str,), ("bfloat16", "float16", "float32"), "ascend", read_dtype),
    "layernorm_compute_dtype": FLOAT32_ONLY, "softmax_compute_dtype": FLOAT32_ONLY,
    # Turns are computed in float32, weights are bfloat16 on Ascend and the
    # cache has blocks of its own size there, as many as --max-tokens-in-cache asks for.
    "rotary_dtype": NO_EFFECT, "params_dtype": NO_EFFECT,
    "fp32_residual_connection": Key((bool,), effect="ascend"),
    "residual_dtype": Key((str,), ("float32", "bfloat16"), "ascend", read_dtype),
    "position_embedding_type": Key((str,), ("rope", "yarn")), "normalization": Key((str,), ("RMSNorm",)),
    "add_bias_linear": Key((bool,), (False,)), "add_qkv_bias": Key((bool,), (False,)),
    "gated_linear_unit": Key((bool,), (True,)), "qk_layernorm": Key((bool,), (True,)),
    "hidden_act": Key((str,), ("silu", "swiglu")), "pad_token_id": NO_EFFECT,
    "use_flash_attention": NO_EFFECT, "block_size": NO_EFFECT, "num_blocks": NO_EFFECT,
    # The order of fused rows in a checkpoint of mindformers, which its shapes cannot tell.
    "use_contiguous_weight_layout_attention": FLAG, "use_interleaved_weight_layout_mlp": FLAG,
    "use_contiguous_weight_layout": FLAG,  # an older name of the first
    "use_past": NO_EFFECT, "qkv_concat": NO_EFFECT, "parallel_decoding_params": NO_EFFECT,
    "is_dynamic": NO_EFFECT, "batch_size": NO_EFFECT, "seq_length": NO_EFFECT, "type": NO_EFFECT,
    "offset": NO_EFFECT, "checkpoint_name_or_path": NO_EFFECT,
}  # fmt: skip

GENERATION: Mapping[str, Key] = {
    "do_sample": FLAG, **{name: Key((kind,)) for name, kind in SAMPLING_TYPES.items()},
    "max_new_tokens": COUNT,
    "stop": Key((str, list)), "stop_ids": Key((list,)), "chat": FLAG, "thinking": FLAG,
    "num_return_sequences": COUNT, "logprobs": FLAG,
}  # fmt: skip

PREDICT: Schema = {
    "seed": COUNT, "output_dir": TEXT, "run_mode": Key((str,), ("predict",)),
    "use_parallel": FLAG, "use_legacy": Key((bool,), (False,)),
    "load_checkpoint": TEXT, "load_ckpt_format": Key((str,), ("safetensors",)), "adapter": TEXT,
    "auto_trans_ckpt": NO_EFFECT, "pretrained_model_dir": TEXT, "only_save_strategy": Key((bool,), (False,)),
    "src_strategy_path_or_dir": TEXT, "trust_remote_code": NO_EFFECT,
    "trainer": {"type": Key((str,), ("CausalLanguageModelingTrainer",)), "model_name": NO_EFFECT},
    "predict_data": Key((str, list)), "predict_batch_size": COUNT, "save_file": TEXT,
    "max_tokens_in_cache": COUNT,
    "generation": GENERATION,
    "runner_config": NO_EFFECT,
    "context": {
        **CONTEXT_SCHEMA, "mode": Key((int,), (0, 1)),
    },
    "parallel_config": {
        "data_parallel": Key((int,), (1,)), "model_parallel": Key((int,), range(1, 2**31)),
        "pipeline_stage": Key((int,), (1,)), "vocab_emb_dp": NO_EFFECT, "micro_batch_num": NO_EFFECT,
    },
    "parallel": {
        "parallel_mode": NO_EFFECT, "enable_alltoall": NO_EFFECT, "full_batch": NO_EFFECT,
        "search_mode": NO_EFFECT, "enable_parallel_optimizer": NO_EFFECT, "gradients_mean": NO_EFFECT,
        "strategy_ckpt_config": NO_EFFECT,
    },
    "model": {"model_config": MODEL_CONFIG, "arch": NO_EFFECT},
    "profile": NO_EFFECT,
}  # fmt: skip

# Flags of the generator and their keys.
FLAG_KEYS = {
    "seed": "seed",
    "pretrained_model_dir": "pretrained_model_dir",
    "load_checkpoint": "load_checkpoint",
    "adapter": "adapter",
    "predict_data": "predict_data",
    "predict_batch_size": "predict_batch_size",
    "max_tokens_in_cache": "max_tokens_in_cache",
    "save_file": "save_file",
    "device_target": "context.device_target",
    **{name: f"generation.{name}" for name in GENERATION},
}
