"""The models that bench/run measures, all of random parameters, and what a forward pass of them costs."""
import json
import math
import random
import shutil
import struct

WORDS = "the a of what when how why you me city river answer question make tell know think people water light stone paper always never".split()
EOS = 2


def llama(hidden, layers, heads, intermediate, vocabulary, kv_heads=None):
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads or heads, "max_position_embeddings": 1024,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": 0}


GPT2S = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
         "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 1, "eos_token_id": EOS, "tie_word_embeddings": True}
CONFIGS = {"tiny": llama(128, 4, 4, 512, 512), "llama288": llama(288, 6, 6, 768, 4096), "llama768": llama(768, 12, 12, 2048, 32000), "gpt2s": GPT2S,
           "llama1024": llama(1024, 28, 16, 4096, 151936, 8)}  # 0.6 billion


def products(config):
    """Multiply-adds a token in matrix products, the head's included: what bounds a forward pass. As many weights are read in a step of decoding."""
    if config["model_type"] == "gpt2":
        return config["n_layer"] * 12 * config["n_embd"] ** 2 + config["vocab_size"] * config["n_embd"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    return config["num_hidden_layers"] * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner) + config["vocab_size"] * hidden


def decode_bytes(config, batch, context, width):
    """What one step of decoding a Llama must read, in numbers of `width` bytes: the weights, and the keys and values of `context` tokens a row."""
    keys = config["hidden_size"] * config["num_key_value_heads"] // config["num_attention_heads"]
    return width * (products(config) + 2 * batch * context * config["num_hidden_layers"] * keys)


def write_text(path, lines=400):
    rng = random.Random(0)
    path.write_text("\n".join(" ".join(rng.choices(WORDS, k=12)) for _ in range(lines)), encoding="utf-8")


def write_prompts(directory):
    prompts = directory / "prompts.jsonl"
    rng = random.Random(1)
    prompts.write_text("".join(json.dumps({"prompt": f"{i} " + " ".join(rng.choices(WORDS, k=8))}) + "\n" for i in range(256)), encoding="utf-8")
    return prompts


def read_safetensors(path):
    """The header, and the bytes after it."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8:8 + size]), bytearray(raw[8 + size:])


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def append_tensor(path, name, values):
    """Adds a float32 tensor of one row to a safetensors file."""
    header, data = read_safetensors(path)
    header[name] = {"dtype": "F32", "shape": [1, len(values)], "data_offsets": [len(data), len(data) + 4 * len(values)]}
    write_safetensors(path, header, data + struct.pack(f"<{len(values)}f", *values))


def make_reward_model(model, config, out):
    """The model with a score for a head."""
    shutil.copytree(model, out)
    append_tensor(out / "model.safetensors", "score.weight", [0.01 * (-1) ** i for i in range(config["hidden_size"])])
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    written |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    (out / "config.json").write_text(json.dumps(written), encoding="utf-8")


CONSTANT = 100.0  # far above the rest of a hidden state, so that the last norm makes nearly sqrt(hidden) of it at every position


def end_of_text_offset(probability, vocabulary, hidden):
    """By how much the end of text's embedding exceeds the others' CONSTANT, so that its logit is log(p / (1 − p) · (vocabulary − 1)) above theirs."""
    return math.log(probability / (1 - probability) * (vocabulary - 1)) / math.sqrt(hidden)


def end_early(path, config, probability):
    """Changes a Llama of random parameters with tied embeddings so that each token is the end of text with about this probability.

    The first coordinate of every embedding becomes CONSTANT, which adds the same to all logits but the end of text's; the layers' norms
    leave that coordinate out, so that attention and feed-forward see the random rest."""
    header, data = read_safetensors(path)
    floats = memoryview(data).cast("f")

    def first(name):
        found = header[name]
        if found["dtype"] != "F32":
            raise ValueError(f"{path}: expected {name} in F32, found {found['dtype']}")
        return found["data_offsets"][0] // 4

    start, hidden = first("model.embed_tokens.weight"), config["hidden_size"]
    for token in range(config["vocab_size"]):
        floats[start + token * hidden] = CONSTANT
    floats[start + config["eos_token_id"] * hidden] += end_of_text_offset(probability, config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            floats[first(f"model.layers.{layer}.{norm}.weight")] = 0.0
    floats.release()
    write_safetensors(path, header, data)
