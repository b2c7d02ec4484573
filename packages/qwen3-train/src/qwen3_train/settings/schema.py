"""The YAML keys of a run: mindformers' own, each used here, used on Ascend only, or without effect."""

from qwen3_model.command.keys import Key, Schema
from qwen3_model.command.spellings import read_dtype
from qwen3_model.device.ascend import CONTEXT_SCHEMA

TEXT, FLAG, COUNT, NUMBER, ANY = Key((str,)), Key((bool,)), Key((int,)), Key((float,)), Key()
NO_EFFECT = Key(effect="none")
SEED = Key((int,), range(2**32))  # what NumPy's generators take
FLOAT32_ONLY = Key((str,), ("float32",), spelled=read_dtype)  # what is computed on every device

PET_CONFIG: Schema = {
    "pet_type": Key((str,), ("lora",)), "lora_rank": COUNT, "lora_alpha": NUMBER, "lora_dropout": NUMBER,
    "lora_a_init": TEXT, "lora_b_init": TEXT, "target_modules": TEXT,
    "freeze_include": Key((list, str)), "freeze_exclude": Key((list, str)),
    "param_init_type": FLOAT32_ONLY,
    "compute_dtype": NO_EFFECT,
}  # fmt: skip

MODEL_CONFIG: Schema = {
    # Hugging Face's names, then mindformers' other spellings of the same.
    "vocab_size": COUNT, "hidden_size": COUNT, "intermediate_size": COUNT, "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT, "num_key_value_heads": COUNT, "head_dim": COUNT,
    "max_position_embeddings": COUNT,
    "initializer_range": NUMBER, "rms_norm_eps": NUMBER, "tie_word_embeddings": FLAG, "rope_theta": NUMBER,
    "rope_scaling": Key((dict,)), "eos_token_id": Key((int, list)), "pad_token_id": COUNT,
    "bos_token_id": COUNT,
    "ffn_hidden_size": COUNT, "num_layers": COUNT, "num_query_groups": COUNT, "kv_channels": COUNT,
    "init_method_std": NUMBER, "layernorm_epsilon": NUMBER, "rotary_base": NUMBER, "seq_length": COUNT,
    # Only the value that Qwen3 has is implemented.
    "hidden_act": Key((str,), ("silu", "swiglu")), "model_type": Key((str,), ("qwen3",)),
    "architectures": Key((list, str), (["Qwen3ForCausalLM"], "Qwen3ForCausalLM")),
    "attention_bias": Key((bool,), (False,)), "add_qkv_bias": Key((bool,), (False,)),
    "add_bias_linear": Key((bool,), (False,)), "attention_dropout": Key((float,), (0.0,)),
    "hidden_dropout": Key((float,), (0.0,)), "qk_layernorm": Key((bool,), (True,)),
    "position_embedding_type": Key((str,), ("rope",)), "params_dtype": FLOAT32_ONLY,
    # A CPU computes in float32, Ascend in bfloat16.
    "compute_dtype": Key((str,), ("bfloat16", "float16", "float32"), "ascend", read_dtype),
    "layernorm_compute_dtype": FLOAT32_ONLY, "softmax_compute_dtype": FLOAT32_ONLY,
    "rotary_dtype": FLOAT32_ONLY,
    # A CPU adds in float32 in any case.
    "fp32_residual_connection": Key((bool,), effect="ascend"), "type": NO_EFFECT,
    "residual_dtype": Key((str,), ("float32", "bfloat16"), "ascend", read_dtype),
    "use_flash_attention": NO_EFFECT,
    "pet_config": PET_CONFIG, "offset": ANY, "pp_interleave_num": COUNT,
    "use_cache": NO_EFFECT, "input_sliced_sig": NO_EFFECT, "qkv_concat": NO_EFFECT,
    "untie_embeddings_and_output_weights": NO_EFFECT, "use_past": NO_EFFECT, "return_extra_loss": NO_EFFECT,
    # The order of fused rows in a checkpoint of mindformers to start from, which its shapes cannot tell.
    "use_contiguous_weight_layout": FLAG,  # its name in mindformers 1.6
    "use_contiguous_weight_layout_attention": FLAG, "use_interleaved_weight_layout_mlp": FLAG,
}  # fmt: skip

GPT_DATASET: Schema = {
    "data_path": ANY, "train_data_path": ANY, "valid_data_path": ANY, "test_data_path": ANY, "split": ANY,
    "seed": SEED, "seq_length": COUNT, "eod": COUNT, "pad": COUNT,
    "eod_mask_loss": FLAG, "reset_position_ids": FLAG, "reset_attention_mask": FLAG,
    "create_attention_mask": NO_EFFECT, "create_compressed_eod_mask": FLAG,
    "eod_pad_length": NO_EFFECT, "compressed_eod_mask_length": NO_EFFECT,
    "path_to_cache": TEXT, "num_dataset_builder_threads": NO_EFFECT,
    "mmap_bin_files": NO_EFFECT, "s3_cache_path": NO_EFFECT,
    # Without them, samples would be others.
    "drop_last_partial_validation_sequence": Key((bool,), (True,)),
    "add_extra_token_to_sequence": Key((bool,), (True,)),
}  # fmt: skip

HANDLER: Schema = {
    "type": TEXT,
    "seq_length": COUNT, "padding": FLAG, "pack_strategy": TEXT, "prompt_style": TEXT, "loss_on": TEXT,
    "empty_think": TEXT, "thoughts": TEXT, "too_long": TEXT, "on_bad_record": TEXT,
    "tokenizer": {
        "pretrained_model_dir": TEXT, "trust_remote_code": NO_EFFECT, "padding_side": NO_EFFECT,
        "type": NO_EFFECT,
    },
    # Arguments of the dataset's own methods.
    "n": COUNT, "seed": SEED, "num_shards": COUNT, "index": COUNT, "column_names": Key((list, str)),
    "original_column_name": TEXT, "new_column_name": TEXT, "column_mapping": Key((dict,)),
}  # fmt: skip

ENTRY: Schema = {
    "type": TEXT, "load_func": TEXT, "path": TEXT, "name": TEXT, "data_dir": TEXT, "split": TEXT,
    "data_files": ANY, "handler": [HANDLER], "weight": NUMBER,
}  # fmt: skip

DATA_LOADER: Schema = {
    "datasets": [ENTRY],
    "type": TEXT, "datasets_type": Key((str,), ("GPTDataset",)), "sizes": Key((list,)), "config": GPT_DATASET,
    # HFDataLoader.
    "load_func": TEXT, "path": TEXT, "name": TEXT, "data_dir": TEXT, "split": TEXT, "data_files": ANY,
    "shuffle": FLAG, "handler": [HANDLER], "cache_dir": TEXT,
    # The mask follows from the packs; every rank reads for itself.
    "create_attention_mask": NO_EFFECT, "create_compressed_eod_mask": NO_EFFECT,
    "compressed_eod_mask_length": NO_EFFECT, "use_broadcast_data": NO_EFFECT,
}  # fmt: skip

DATASET: Schema = {
    "data_loader": DATA_LOADER, "drop_remainder": Key((bool,), (True,)),
    "input_columns": NO_EFFECT, "construct_args_key": NO_EFFECT, "num_parallel_workers": NO_EFFECT,
    "prefetch_size": NO_EFFECT, "python_multiprocessing": NO_EFFECT, "numa_enable": NO_EFFECT,
    "seed": SEED,
}  # fmt: skip

LR_SCHEDULE: Schema = {
    "type": TEXT, "learning_rate": NUMBER, "base_lr": NUMBER, "total_steps": COUNT, "warmup_steps": COUNT,
    "warmup_ratio": NUMBER, "warmup_lr_init": NUMBER, "num_cycles": NUMBER, "lr_end": NUMBER, "power": NUMBER,
    "decay_steps": COUNT, "decay_ratio": NUMBER, "keep_steps": COUNT, "lr_end1": NUMBER, "final_steps": COUNT,
    "lr_end2": NUMBER, "decay_start_steps": COUNT, "decay_start_ratio": NUMBER, "t_max": COUNT, "t_0": COUNT,
    "t_mult": COUNT, "eta_min": NUMBER,
}  # fmt: skip

CALLBACK: Schema = {
    "type": Key(
        (str,), ("MFLossMonitor", "CheckpointMonitor", "TrainCallBack", "EarlyStopping", "OnRequestExit")
    ),
    "per_print_times": COUNT, "stop_step": COUNT, "patience": COUNT, "min_delta": NUMBER, "keep_best": FLAG,
    "prefix": TEXT, "save_checkpoint_steps": COUNT, "keep_checkpoint_max": COUNT,
    "checkpoint_format": Key((str,), ("safetensors",)), "integrated_save": NO_EFFECT,
    # mindformers' threads and processes differ in nothing that a run would show.
    "async_save": Key((bool, str), (True, False, "thread", "process")),
    "remove_redundancy": FLAG, "save_trainable_params": Key((bool,), (False,)),
    "save_network_params": Key((bool,), (False,)), "exception_save": NO_EFFECT, "directory": NO_EFFECT,
    # OnRequestExit: SIGTERM and the file both save a checkpoint of the run.
    "config_file": TEXT, "save_ckpt": Key((bool,), (True,)), "sig": Key((int,), (15,)),
    "save_mindir": NO_EFFECT, "file_name": NO_EFFECT,
}  # fmt: skip

MONITOR: Schema = {
    "global_norm_spike_threshold": NUMBER, "global_norm_spike_count_threshold": COUNT,
    # That stops the run for another program to start it again.
    "check_for_global_norm": Key((bool,), (False,)), "print_struct": Key((bool,), (False,)),
    "monitor_on": NO_EFFECT, "dump_path": NO_EFFECT, "target": NO_EFFECT, "invert": NO_EFFECT,
    "step_interval": NO_EFFECT, "local_loss_format": NO_EFFECT, "device_local_loss_format": NO_EFFECT,
    "local_norm_format": NO_EFFECT, "device_local_norm_format": NO_EFFECT,
    "optimizer_state_format": NO_EFFECT, "weight_state_format": NO_EFFECT, "throughput_baseline": NO_EFFECT,
    "embedding_local_norm_threshold": NO_EFFECT,
}  # fmt: skip

TRAIN: Schema = {
    "seed": SEED, "output_dir": TEXT, "run_mode": TEXT, "use_parallel": FLAG,
    "load_checkpoint": TEXT, "load_ckpt_format": Key((str,), ("safetensors",)), "pretrained_model_dir": TEXT,
    "auto_trans_ckpt": FLAG, "resume_training": Key((bool, str)),
    "ignore_data_skip": FLAG, "data_skip_steps": COUNT,
    "src_strategy_path_or_dir": TEXT, "only_save_strategy": Key((bool,), (False,)),
    "use_legacy": Key((bool,), (False,)),
    "trainer": {"type": Key((str,), ("CausalLanguageModelingTrainer",)), "model_name": NO_EFFECT},
    "runner_config": {
        "epochs": COUNT, "batch_size": COUNT, "gradient_accumulation_steps": COUNT,
        "sink_mode": NO_EFFECT, "sink_size": NO_EFFECT,
    },
    "optimizer": {
        "type": TEXT, "betas": Key((list,)), "eps": NUMBER, "weight_decay": NUMBER, "learning_rate": NUMBER,
    },
    "lr_schedule": LR_SCHEDULE,
    "train_dataset": DATASET,
    "train_dataset_task": {"type": NO_EFFECT, "dataset_config": NO_EFFECT},
    "eval_dataset": ANY, "eval_dataset_task": NO_EFFECT,
    "do_eval": FLAG, "eval_step_interval": COUNT, "eval_epoch_interval": NO_EFFECT,
    "context": {
        **CONTEXT_SCHEMA, "mode": Key((int,), (0, 1)),
        # The graph of a step is compiled anew in each run.
        "enable_compile_cache": NO_EFFECT, "compile_cache_path": NO_EFFECT,
    },
    "parallel_config": {
        "data_parallel": COUNT, "model_parallel": COUNT, "pipeline_stage": COUNT, "micro_batch_num": COUNT,
        "use_seq_parallel": FLAG, "gradient_aggregation_group": NO_EFFECT, "vocab_emb_dp": NO_EFFECT,
        "context_parallel": COUNT, "expert_parallel": Key((int,), (1,)),
        "seq_split_num": Key((int,), (1,)), "ulysses_degree_in_cp": Key((int,), (1,)),
        "context_parallel_algo": TEXT,
    },
    "micro_batch_interleave_num": NO_EFFECT,
    "parallel": {
        "enable_parallel_optimizer": FLAG, "parameter_broadcast": FLAG,
        "parallel_mode": NO_EFFECT, "full_batch": NO_EFFECT,
        "dataset_strategy": NO_EFFECT, "enable_alltoall": NO_EFFECT, "search_mode": NO_EFFECT,
        "gradients_mean": NO_EFFECT, "parallel_optimizer_config": NO_EFFECT,
        "strategy_ckpt_config": {"save_file": NO_EFFECT, "only_trainable_params": NO_EFFECT},
        "strategy_ckpt_save_file": NO_EFFECT, "pipeline_config": NO_EFFECT,
    },
    "recompute_config": {
        "recompute": ANY, "select_recompute": ANY,
        "parallel_optimizer_comm_recompute": NO_EFFECT, "mp_comm_recompute": NO_EFFECT,
        # What ranks exchange inside a recomputed part is exchanged again; parts are named, not taken out.
        "recompute_slice_activation": NO_EFFECT, "select_comm_recompute": NO_EFFECT,
        "select_recompute_exclude": NO_EFFECT, "select_comm_recompute_exclude": NO_EFFECT,
    },
    "model": {"model_config": MODEL_CONFIG, "arch": NO_EFFECT},
    "callbacks": [CALLBACK],
    "runner_wrapper": {
        "type": Key((str,), ("MFTrainOneStepCell",)), "scale_sense": NO_EFFECT, "use_clip_grad": FLAG,
        "max_grad_norm": NUMBER, "local_norm": NO_EFFECT,
    },
    "use_graceful_exit": FLAG,
    "use_skip_data_by_global_norm": FLAG, "check_for_nan_in_loss_and_grad": FLAG, "monitor_config": MONITOR,
    "use_checkpoint_health_monitor": NO_EFFECT, "tensorboard": NO_EFFECT,
    "profile": FLAG, "profile_start_step": COUNT, "profile_stop_step": COUNT,
    # In mindformers, too, it counts only where the window begins with step 1, as it does anyway.
    "init_start_profile": NO_EFFECT,
    "profile_pipeline": FLAG, "profile_output": TEXT, "profile_rank_ids": Key((list,)),
    "with_stack": FLAG,
    # What CANN records; MindSpore's CPU has none of it.
    "profiler_level": Key((int,), (0, 1, 2), effect="ascend"),
    "profile_communication": Key((bool,), effect="ascend"), "profile_memory": Key((bool,), effect="ascend"),
    "mstx": Key((bool,), effect="ascend"),
    "train_precision_sync": NO_EFFECT, "infer_precision_sync": NO_EFFECT, "remove_redundancy": NO_EFFECT,
    "load_ckpt_async": NO_EFFECT, "auto_tune": NO_EFFECT, "autotune_per_step": NO_EFFECT,
    "filepath_prefix": NO_EFFECT, "print_separate_loss": NO_EFFECT, "swap_config": NO_EFFECT,
    "moe_config": NO_EFFECT, "layers_per_stage": NO_EFFECT,
    "layer_scale": NO_EFFECT, "layer_decay": NO_EFFECT, "lr_scale_factor": NO_EFFECT,
}  # fmt: skip

# run_mindformer.py's own flags, which are short for keys.
FLAG_ALIASES = {
    "epochs": "runner_config.epochs",
    "batch_size": "runner_config.batch_size",
    "gradient_accumulation_steps": "runner_config.gradient_accumulation_steps",
    "sink_mode": "runner_config.sink_mode",
    "device_target": "context.device_target",
    "device": "context.device_target",
    "device_id": "context.device_id",
    "mode": "context.mode",
}
