"""A GPU's limits, and generation on it: against its memory's bandwidth, kernels launched one by one, and transformers on the same device."""
import models
import report
from report import Row

PROMPT, NEW = 64, 128
SHAPES = (("llama288", 1, "float32"), ("llama1024", 1, "bfloat16"), ("llama1024", 64, "bfloat16"), ("llama1024", 256, "bfloat16"))
TARGET_BATCH = 256


def engine(bench, *arguments):
    return bench.engine("--device", bench.flags.device, *arguments)


def limits(bench):
    bench.limits = engine(bench, "limits")
    bench.rows += [Row("the device's memory, copy", bench.limits["copy_gb_per_second"], "GB/s"), Row("the device's memory, read", bench.limits["read_gb_per_second"], "GB/s")]
    bench.rows += [Row(f"to the device, {kind}", rate, "GB/s") for kind, rate in bench.limits["to_device_gb_per_second"].items()]
    for dtype, shapes in bench.limits["gemm_gflops"].items():
        bench.rows += [Row(f"GEMM {dtype} {shape}", figure, "GFLOP/s") for shape, figure in shapes.items()]


def generate(bench):
    """Steps as recorded graphs. The prompts' prefill counts as time, so that the share of the limit is a lower bound of decoding's."""
    for name, batch, precision in SHAPES:
        model, asked = bench.model(name), batch == TARGET_BATCH
        read = models.decode_bytes(models.CONFIGS[name], batch, PROMPT + NEW // 2, 2 if precision == "bfloat16" else 4)
        limit = batch * bench.limits["read_gb_per_second"] * 1e9 / read
        arguments = ("generate", "--model", model, "--requests", batch, "--slots", batch, "--precision", precision, "--prompt-tokens", PROMPT, "--new-tokens", NEW)
        measures = {"ours": lambda arguments=arguments: engine(bench, *arguments)["tokens_per_second"],
                    "launched": lambda arguments=arguments: engine(bench, *arguments, "--no-cuda-graphs")["tokens_per_second"]}
        peers = {"transformers": ("generate", "--model", model, "--batch", batch, "--precision", precision, "--device", bench.flags.device, "--threads", bench.flags.threads,
                                  "--prompt-tokens", PROMPT, "--new-tokens", NEW)} if asked else {}
        missing = bench.with_peers(measures, peers)
        median, _ = report.alternate(bench.flags.rounds, measures)
        what = f"generation on {bench.flags.device}, {name}, batch {batch}, {precision}"
        bench.rows += [Row(what, median["ours"], "tokens/s", limit, "the memory's reads alone", 0.6 * limit if asked else None),
                       Row(f"{what}: ratio to kernels launched one by one", median["ours"] / median["launched"], "×")]
        if asked:
            bench.rows += report.peer_rows(what, "tokens/s", median, missing, list(peers), 10)


def absent(bench):
    """The rows of what is not measured, each with the reason."""
    why = "needs a GPU: not measured here"
    if bench.flags.device == "cpu":
        bench.rows += [Row("H200, decode, 0.6 B, bfloat16, batch 256: share of the memory's bandwidth", target=60, unit="%", note=why), Row("H200, decode: ratio to transformers", target=10, note=why)]
    else:
        why = "bench/run has no measure of it"
    bench.rows += [Row("H200, training, 0.6 B, bfloat16, 8k packed: MFU", target=40, unit="%", note=why),
                   Row("H200, policy update on the same GPU: against a device copy", target=2, at_most=True, note=why)]
