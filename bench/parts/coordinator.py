"""The coordinator under `rlhf-load-generator`: a fleet without models."""
from report import Row


def measure(bench):
    run = bench.measured("rlhf-load-generator", "--seconds", bench.flags.seconds)
    bench.rows.append(Row("coordinator, leases of one sample", run["leases_per_second"], "/s", target=2000 * 0.98, note="2 % of noise allowed"))
    bench.rows.append(Row("coordinator, samples of 200 tokens", run["samples_per_second"], "/s", target=2000 * 0.98))
    for call in ("LeasePrompts", "SubmitSamples"):
        bench.rows.append(Row(f"coordinator, {call}, p99", run["calls"][call]["p99_ms"], "ms", target=100, at_most=True))
    limited = bench.measured("rlhf-load-generator", "--seconds", bench.flags.seconds, "--response-tokens", 2000, "--rate", 500, "--limits")
    bench.rows.append(Row("coordinator, samples of 2000 tokens", limited["data_mb_per_second"], "MB/s", limited["limits"]["disk_append_mb_per_second"], "disk"))
