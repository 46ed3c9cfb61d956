"""Writes a checkpoint in transformers' layout as a GGUF file for llama.cpp: Llama (tied or not, without rope scaling) and GPT-2.

There is no vocabulary in the file (`no_vocab`): token ids are fed and read. Needs the packages gguf, numpy and safetensors but for
`rope_order` and `tensor_names`.
"""
import json
import pathlib

QUANTIZATION = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}


def rope_order(rows, heads):
    """Which row of a query or key projection goes where: transformers rotates a head's first half against its second, GGUF's Llamas have the
    two rows of a rotation side by side (llama.cpp's convert_hf_to_gguf.py, `permute`)."""
    size = rows // heads
    if size * heads != rows or size % 2:
        raise ValueError(f"expected {heads} heads of an even size, found {rows} rows")
    return [head * size + half * size // 2 + pair for head in range(heads) for pair in range(size // 2) for half in range(2)]


def tensor_names(family, layers):
    """GGUF's name -> the checkpoint's, without `.weight` and `.bias`."""
    if family == "llama":
        names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
        block, prefix = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
                         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}, "model.layers"
    elif family == "gpt2":
        names = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"}
        block, prefix = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, "h"
    else:
        raise ValueError(f"expected a llama or a gpt2, found {family}")
    return names | {f"blk.{i}.{ours}": f"{prefix}.{i}.{theirs}" for i in range(layers) for ours, theirs in block.items()}


def write_gguf(model, out, precision):
    import gguf
    import safetensors.numpy
    model = pathlib.Path(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in safetensors.numpy.load_file(model / "model.safetensors").items()}
    family = config["model_type"]
    writer = gguf.GGUFWriter(out, family)
    if family == "llama":
        layers, heads, hidden = config["num_hidden_layers"], config["num_attention_heads"], config["hidden_size"]
        kv_heads = config.get("num_key_value_heads", heads)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_dimension_count(hidden // heads)
        writer.add_rope_freq_base(float(config.get("rope_theta", 10000.0)))
    else:
        layers, heads, hidden = config["n_layer"], config["n_head"], config["n_embd"]
        writer.add_context_length(config["n_positions"])
        writer.add_feed_forward_length(config.get("n_inner") or 4 * hidden)
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    quantization = gguf.GGMLQuantizationType[QUANTIZATION[precision]]
    for ours, theirs in tensor_names(family, layers).items():
        for kind in ("weight", "bias"):
            tensor = tensors.get(f"{theirs}.{kind}")
            if tensor is None:
                if kind == "weight" and ours != "output":
                    raise SystemExit(f"{model}: expected a tensor {theirs}.weight")
                continue
            tensor = tensor.astype("float32")
            if family == "llama" and ours.endswith(("attn_q", "attn_k")):
                tensor = tensor[rope_order(tensor.shape[0], heads if ours.endswith("attn_q") else kv_heads)]
            if family == "gpt2" and tensor.ndim == 2 and ours.startswith("blk."):
                tensor = tensor.T.copy()  # Conv1D has inputs × outputs
            kept = quantization if tensor.ndim == 2 and ours != "position_embd" else gguf.GGMLQuantizationType.F32
            writer.add_tensor(f"{ours}.{kind}", gguf.quants.quantize(tensor, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
