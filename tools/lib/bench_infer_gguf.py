"""Write a Hugging Face folder of Qwen3's weights as a GGUF file without a vocabulary, for llama.cpp.

In an environment with `gguf`: python bench_infer_gguf.py MODEL_DIR FILE [--dtype bf16]
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    options = parser.parse_args()
    config = json.loads((options.model_dir / "config.json").read_text("utf-8"))
    writer = gguf.GGUFWriter(options.file, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_BF16 if options.dtype == "bf16" else gguf.LlamaFileType.ALL_F32
    )
    for path in sorted(options.model_dir.glob("*.safetensors")):
        add_tensors(writer, path, options.dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensors(writer: gguf.GGUFWriter, path: Path, dtype: str) -> None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    data = np.memmap(path, np.uint8, "r", 8 + size)
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        kind = {"BF16": np.uint16, "F32": np.float32}[tensor["dtype"]]
        values = data[begin:end].view(kind).reshape(tensor["shape"])
        if kind is np.uint16 and (dtype == "f32" or values.ndim == 1):
            values = (values.astype(np.uint32) << 16).view(np.float32)
        if values.dtype == np.uint16:
            writer.add_tensor(
                gguf_name(name), values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16
            )
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))


def gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem in NAMES:
        return f"{NAMES[stem]}.weight"
    _, _, number, rest = stem.split(".", 3)
    return f"blk.{number}.{LAYER_NAMES[rest]}.weight"


if __name__ == "__main__":
    main()
