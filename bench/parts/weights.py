"""Weights: from the learner's publisher into a rollout worker's model, and from and to files."""
from report import Row


def measure(bench):
    run = bench.engine("weights", "--model", bench.model("llama768"), "--rounds", bench.flags.rounds)
    size, bare, tcp = f"weights of {run['bytes'] / 1e6:,.0f} MB", run["bare_stream"], bench.limits["loopback_gb_per_second"]
    bench.rows += [Row(f"{size}, a bare gRPC stream of the same messages", bare, "GB/s", tcp, "loopback TCP"),
                   Row(f"{size}, fetched whole and checked", run["fetch"], "GB/s", bare, "bare gRPC stream", 0.9 * bare),
                   Row(f"{size}, fetched whole and checked, against TCP", run["fetch"], "GB/s", tcp, "loopback TCP", 0.75 * tcp),
                   Row(f"{size}, fetched whole and checked, TLS", run["fetch_tls"], "GB/s", bare, "bare gRPC stream"),
                   Row(f"{size}, fetched whole, checked and applied", run["fetch_and_apply"], "GB/s", bare, "bare gRPC stream"),
                   Row(f"{size}, same host by shared memory, checked", run.get("map"), "GB/s", run["memcpy"], "memcpy", 0.5 * run["memcpy"],
                       note="" if "map" in run else "/dev/shm is not there, or has not twice the room"),
                   Row(f"{size}, same host by shared memory, checked and applied", run.get("map_and_apply"), "GB/s", run["memcpy"], "memcpy"),
                   Row("weights, delta in bfloat16 after an update at 1e-6: share of the bytes", 100 * run["delta_share"], "%", target=3, at_most=True),
                   Row("weights, delta: encoding, a core", run["delta_encode"], "GB/s of model", run["memcpy"], "memcpy", 4),
                   Row("weights, delta: applying, a core", run["delta_apply"], "GB/s of model", run["memcpy"], "memcpy", 4)]


def measure_files(bench):
    model = bench.model("llama768")
    loaded = bench.measured("rlhf-model", "bench-load", "--model", model)
    limit = loaded["memcpy_gb_per_second"]
    bench.rows.append(Row("model load from the page cache", loaded["load_gb_per_second"], "GB/s", limit, "memcpy", 0.8 * limit))
    what = "model save without fsync"

    def save():
        saved = bench.measured("rlhf-model", "bench-save", "--model", model, "--out", bench.scratch / "saved")
        bench.rows.append(Row(what, saved["save_gb_per_second"], "GB/s", saved["memcpy_gb_per_second"], "memcpy", 5))

    bench.or_why(what, save, target=5)
