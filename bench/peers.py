"""What another library makes of a model, for bench/run --peers; runs in the peers' own Python environment.

    peers.py generate --model DIR --batch B [--prompt-tokens 64] [--new-tokens 128] [--threads N]
    peers.py train --model DIR --batch B [--tokens 256] [--threads N]

Prints {"tokens_per_second": x}: new tokens, or tokens of a forward and a backward pass.
"""
import argparse
import json
import time

import torch
import transformers


def generate(model, flags):
    vocabulary = model.config.vocab_size
    prompts = (torch.arange(flags.batch * flags.prompt_tokens).view(flags.batch, -1) * 7 + 3) % (vocabulary - 3) + 3

    def run(count):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=1.0, top_k=0, min_new_tokens=count, max_new_tokens=count)
        return (out.shape[1] - flags.prompt_tokens) * flags.batch / (time.perf_counter() - start)

    run(8)  # warms
    return run(flags.new_tokens)


def train(model, flags):
    tokens = (torch.arange(flags.batch * flags.tokens).view(flags.batch, -1) * 7 + 3) % model.config.vocab_size
    for _ in range(2):  # the first one allocates
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        seconds = time.perf_counter() - start
        model.zero_grad()
    return flags.batch * flags.tokens / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "train"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(flags.model, torch_dtype=torch.float32)
    figure = generate(model.eval(), flags) if flags.what == "generate" else train(model.train(), flags)
    print(json.dumps({"tokens_per_second": figure}))


main()
