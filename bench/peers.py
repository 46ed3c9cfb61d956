"""What another library makes of a model, for bench/run --peers; runs in the peers' own Python environment.

    peers.py list
    peers.py generate --peer transformers|ctranslate2|llama.cpp --model DIR --batch B [--precision float32] [--prompt-tokens 64] [--new-tokens 128] [--threads N] [--cache DIR] [--device cuda]
    peers.py train --model DIR --batch B [--precision float32] [--compiled] [--tokens 256] [--threads N]
    peers.py memory --model DIR --batch B [--tokens 256] [--threads N]
    peers.py ppo --model DIR --prompts FILE --samples 64 [--updates 2] [--precision float32] [--new-tokens 64] [--epochs 4] [--stop-at-eos] [--threads N]

Prints JSON: {NAME: version, or null when it is not installed}; {"tokens_per_second": x}, new tokens or tokens of a forward and a backward pass;
{"peak_bytes": n}, what such a pass adds to the resident memory at its peak, gradients included; {"samples_per_second": x} of whole PPO updates.
Several workers of one thread are CTranslate2's best layout on CPUs, and TRL's policy, reference, critic and reward model are of one shape.
`--precision int8` is CTranslate2's, and llama.cpp's Q8_0. --device is transformers' alone.
"""
import argparse
import ctypes
import importlib.metadata
import json
import pathlib
import statistics
import tempfile
import time

PEERS = {"transformers": "transformers", "ctranslate2": "ctranslate2", "llama.cpp": "llama-cpp-python", "trl": "trl"}


def installed():
    versions = {}
    for name, package in PEERS.items():
        try:
            versions[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def loaded(flags, **more):
    import torch
    import transformers
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    return torch, transformers.AutoModelForCausalLM.from_pretrained(flags.model, dtype=getattr(torch, flags.precision), **more)


def prompt_ids(flags, vocabulary):
    return [[(i * 7 + 3) % (vocabulary - 3) + 3 for i in range(row * flags.prompt_tokens, (row + 1) * flags.prompt_tokens)] for row in range(flags.batch)]


def timed(flags, generate):
    """New tokens a second of generate(count) -> how many; after a short run that warms."""
    generate(8)
    start = time.perf_counter()
    count = generate(flags.new_tokens)
    if count != flags.batch * flags.new_tokens:
        raise SystemExit(f"expected {flags.batch * flags.new_tokens} new tokens, {flags.peer} made {count}")
    return count / (time.perf_counter() - start)


def generate_transformers(flags):
    torch, model = loaded(flags)
    model.eval().to(flags.device)
    prompts = torch.tensor(prompt_ids(flags, model.config.vocab_size), device=flags.device)

    def generate(count):
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, min_new_tokens=count, max_new_tokens=count)
        if flags.device != "cpu":
            torch.cuda.synchronize()
        return (out.shape[1] - flags.prompt_tokens) * flags.batch

    return timed(flags, generate)


def generate_ctranslate2(flags):
    import ctranslate2
    converted = flags.cache / f"{pathlib.Path(flags.model).name}-{flags.precision}"
    if not converted.exists():
        ctranslate2.converters.TransformersConverter(flags.model).convert(str(converted), quantization=flags.precision)
    generator = ctranslate2.Generator(str(converted), device="cpu", inter_threads=flags.threads, intra_threads=1, compute_type=flags.precision)
    vocabulary = json.loads((converted / "vocabulary.json").read_text(encoding="utf-8"))
    prompts = [[vocabulary[i] for i in row] for row in prompt_ids(flags, len(vocabulary))]

    def generate(count):
        results = generator.generate_batch(prompts, max_batch_size=-(-flags.batch // flags.threads), min_length=count, max_length=count, sampling_topk=0,
                                           sampling_temperature=1.0, include_prompt_in_result=False)
        return sum(len(result.sequences_ids[0]) for result in results)

    return timed(flags, generate)


def generate_llama_cpp(flags):
    from gguf_model import write_gguf
    from llama_cpp_batch import Batch
    file = flags.cache / f"{pathlib.Path(flags.model).name}-{flags.precision}.gguf"
    if not file.exists():
        flags.cache.mkdir(exist_ok=True)
        write_gguf(flags.model, file, flags.precision)
    batch = Batch(file, flags.batch, flags.prompt_tokens, flags.new_tokens, flags.threads)
    prompts = prompt_ids(flags, batch.vocabulary)
    return timed(flags, lambda count: batch.generate(prompts, count).size)


def train(flags):
    """bfloat16 is autocast over float32 weights, as PyTorch's users do it."""
    bfloat16, flags.precision = flags.precision == "bfloat16", "float32"
    torch, model = loaded(flags)
    model.train()
    step = torch.compile(model) if flags.compiled else model
    tokens = (torch.arange(flags.batch * flags.tokens).view(flags.batch, -1) * 7 + 3) % model.config.vocab_size
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = step(input_ids=tokens, labels=tokens).loss
        loss.backward()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return flags.batch * flags.tokens / statistics.median(seconds[1:])  # the first one allocates and compiles


def memory(flags):
    """PyTorch eager in float32: VmHWM after a forward and a backward pass, reset before, less what was resident after loading."""
    torch, model = loaded(flags)
    model.train()
    tokens = (torch.arange(flags.batch * flags.tokens).view(flags.batch, -1) * 7 + 3) % model.config.vocab_size
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status_bytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    model(input_ids=tokens, labels=tokens).loss.backward()
    return status_bytes("VmHWM") - before


def status_bytes(name):
    line = next(line for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def ppo(flags):
    """TRL's PPOTrainer: samples a second over the updates after the first, which warms."""
    import datasets
    import torch
    import transformers
    from trl.experimental.ppo import PPOConfig, PPOTrainer
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, flags.precision)
    tokenizer = transformers.AutoTokenizer.from_pretrained(flags.model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    policy, reference = (transformers.AutoModelForCausalLM.from_pretrained(flags.model, dtype=dtype) for _ in range(2))
    critic, reward = (transformers.AutoModelForSequenceClassification.from_pretrained(flags.model, num_labels=1, dtype=dtype) for _ in range(2))
    texts = [json.loads(line)["prompt"] for line in pathlib.Path(flags.prompts).read_text(encoding="utf-8").splitlines()]
    rows = datasets.Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in texts])
    ends = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    updates = flags.updates + 1
    with tempfile.TemporaryDirectory() as out:
        config = PPOConfig(output_dir=out, use_cpu=True, bf16=False, report_to=[], num_sample_generations=0, save_strategy="no", logging_strategy="no", per_device_train_batch_size=flags.samples // 4,
                           gradient_accumulation_steps=4, num_mini_batches=1, num_ppo_epochs=flags.epochs, total_episodes=updates * flags.samples,
                           local_rollout_forward_batch_size=flags.samples // 4, response_length=flags.new_tokens, temperature=1.0, learning_rate=1e-6, gradient_checkpointing=False,
                           stop_token="eos" if flags.stop_at_eos else None)
        PPOTrainer(args=config, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward, value_model=critic, train_dataset=rows,
                   eval_dataset=rows, callbacks=[Watch()]).train()
    if len(ends) < 2:
        raise SystemExit(f"expected {updates} updates, TRL reported {len(ends)}")
    return (len(ends) - 1) * flags.samples / (ends[-1] - ends[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["list", "generate", "train", "memory", "ppo"])
    parser.add_argument("--peer", choices=["transformers", "ctranslate2", "llama.cpp"], default="transformers")
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "int8"], default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompts", help="a file of lines {\"prompt\": …}")
    parser.add_argument("--samples", type=int, default=64, help="of a PPO update")
    parser.add_argument("--updates", type=int, default=2, help="that are timed")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--stop-at-eos", action="store_true", help="a response ends with the end of text, a batch with its longest response")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=pathlib.Path, help="keeps converted models between calls")
    flags = parser.parse_args()
    if flags.what != "list" and not flags.model:
        parser.error("expected --model DIR")
    if flags.precision == "int8" and (flags.what != "generate" or flags.peer == "transformers"):
        parser.error("--precision int8: expected --peer ctranslate2 or llama.cpp and generate")
    if flags.device != "cpu" and (flags.what, flags.peer) != ("generate", "transformers"):
        parser.error("--device: expected --peer transformers and generate")
    with tempfile.TemporaryDirectory() as scratch:
        flags.cache = flags.cache or pathlib.Path(scratch)
        print(json.dumps(answer(flags)))


def answer(flags):
    if flags.what == "list":
        return installed()
    if flags.what == "memory":
        return {"peak_bytes": memory(flags)}
    if flags.what == "ppo":
        return {"samples_per_second": ppo(flags)}
    generators = {"transformers": generate_transformers, "ctranslate2": generate_ctranslate2, "llama.cpp": generate_llama_cpp}
    return {"tokens_per_second": train(flags) if flags.what == "train" else generators[flags.peer](flags)}


main()
