"""Training: a forward and a backward pass of the learner's model against PyTorch's, in tokens a second and in memory."""
import report
from report import Row

BATCH, TOKENS = 8, 256


def ours(bench, model, *more):
    return bench.measured("rlhf-model", "bench", "--model", model, "--batch", BATCH, "--prompt-tokens", TOKENS, "--new-tokens", 1, *more)


def peer(bench, what, model, *more):
    return (what, "--model", model, "--batch", BATCH, "--tokens", TOKENS, "--threads", bench.flags.threads, *more)


def measure(bench):
    for name in ("tiny", "llama288"):
        model = bench.model(name)
        bench.compare(f"training, {name}, {BATCH} × {TOKENS}, float32", "tokens/s", lambda model=model: ours(bench, model)["training_tokens_per_second"],
                      {"transformers eager": peer(bench, "train", model)}, bench.token_limit(name, 3), 1.8 if name == "llama288" else None)
    what = f"training, llama288, {BATCH} × {TOKENS}, bfloat16"
    bench.or_why(f"{what}: ratio to the best peer", lambda: bfloat16(bench, what), target=1.5)
    what = f"learner's step, gpt2s (50,257 tokens of vocabulary), {BATCH} × {TOKENS}, float32"
    bench.or_why(f"{what}: peak memory against PyTorch eager's", lambda: memory(bench, what), target=60, unit="%", at_most=True)


def bfloat16(bench, what):
    model = bench.model("llama288")
    asked = peer(bench, "train", model, "--precision", "bfloat16")
    bench.compare(what, "tokens/s", lambda: ours(bench, model, "--precision", "bfloat16")["training_tokens_per_second"],
                  {"transformers eager": asked, "transformers compiled": (*asked, "--compiled")}, bench.token_limit("llama288", 3, "bfloat16"), 1.5)


def memory(bench, what):
    """What a forward and a backward pass add to the resident memory, at its peak; once, for it does not vary with what else runs."""
    model = bench.model("gpt2s")
    bytes_ = {"whole": ours(bench, model)["training_peak_bytes"], "checkpointed": ours(bench, model, "--gradient-checkpointing")["training_peak_bytes"]}
    eager, why = bench.peer_or_why("transformers eager", peer(bench, "memory", model))
    missing = "the kernel does not let /proc/self/clear_refs be written"
    for name, figure in bytes_.items():
        checkpointed = ", gradient checkpointing" if name == "checkpointed" else ""
        bench.rows.append(Row(f"{what}{checkpointed}: peak memory", figure and figure / 1e9, "GB", note="" if figure else missing))
    bench.rows.append(Row(f"{what}: peak memory of transformers eager", eager and eager / 1e9, "GB", note=why))
    for name, figure in bytes_.items():
        checkpointed = ", gradient checkpointing" if name == "checkpointed" else ""
        bench.rows.append(Row(f"{what}{checkpointed}: peak memory against PyTorch eager's", 100 * figure / eager if figure and eager else None, "%",
                              target=None if checkpointed else 60, at_most=True, note=why or ("" if figure else missing)))
