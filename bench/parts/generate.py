"""Generation: the rollout worker's engine against transformers, CTranslate2 and llama.cpp, each with the same checkpoint."""
import report
from report import Row

UNIT = "tokens/s"


def peer(bench, library, model, batch, precision):
    return ("generate", "--peer", library, "--model", model, "--batch", batch, "--threads", bench.flags.threads, "--precision", precision, "--cache", bench.scratch / "converted")


def what_is(model, batch, precision):
    return f"generation, {model}, batch {batch}, {precision}"


def measure(bench):
    tiny(bench)
    one_batch(bench)
    one_sequence(bench)
    gpt2s(bench)
    ragged(bench)


def tiny(bench):
    model = bench.model("tiny")
    for batch, factor in ((1, 1.0), (64, 1.3)):
        peers = {f"{name} float32": peer(bench, name, model, batch, "float32") for name in ("transformers", "ctranslate2", "llama.cpp")}
        bench.compare(what_is("tiny", batch, "float32"), UNIT, lambda batch=batch: bench.generate(model, batch, "float32"), peers, bench.token_limit("tiny", 1), factor)


def one_batch(bench, name="llama288", batch=64):
    """All precisions and all peers in turn, for bfloat16 is compared with float32 peers too."""
    model = bench.model(name)
    peers = {precision: {f"{library} {precision}": peer(bench, library, model, batch, precision) for library in libraries}
             for precision, libraries in (("float32", ("transformers", "ctranslate2", "llama.cpp")), ("bfloat16", ("transformers", "llama.cpp")), ("int8", ("ctranslate2", "llama.cpp")))}
    measures = {precision: lambda precision=precision: bench.generate(model, batch, precision) for precision in peers}
    missing = {}
    for asked in peers.values():
        missing |= bench.with_peers(measures, asked)
    median, _ = report.alternate(bench.flags.rounds, measures)
    for precision, factor in (("float32", 1.5), ("bfloat16", 2.0), ("int8", 1.3)):
        what = what_is(name, batch, precision)
        limit = None if precision == "int8" else bench.token_limit(name, 1, precision)
        bench.rows.append(Row(what, median[precision], UNIT, limit, "products alone", 0.35 * limit if precision == "bfloat16" else None))
        also = list(peers["float32"]) if precision == "bfloat16" else []
        bench.rows += report.peer_rows(what, UNIT, {**median, "ours": median[precision]}, missing, list(peers[precision]), factor, also)
    int8_over_others(bench, batch, median)


def one_sequence(bench, name="llama288"):
    model = bench.model(name)
    measures = {precision: lambda precision=precision: bench.generate(model, 1, precision) for precision in ("float32", "bfloat16", "int8")}
    peers = {f"{library} int8": peer(bench, library, model, 1, "int8") for library in ("ctranslate2", "llama.cpp")}
    missing = bench.with_peers(measures, peers)
    median, _ = report.alternate(bench.flags.rounds, measures)
    bench.rows.append(Row(what_is(name, 1, "int8"), median["int8"], UNIT))
    bench.rows += report.peer_rows(what_is(name, 1, "int8"), UNIT, {**median, "ours": median["int8"]}, missing, list(peers))
    int8_over_others(bench, 1, median)


def int8_over_others(bench, batch, median):
    bench.rows += [Row(f"int8, batch {batch}: ratio to {precision}", median["int8"] / median[precision], "×") for precision in ("float32", "bfloat16")]


def gpt2s(bench, batch=32):
    model = bench.model("gpt2s")
    peers = {"llama.cpp bfloat16": peer(bench, "llama.cpp", model, batch, "bfloat16")}
    bench.compare(what_is("gpt2s", batch, "bfloat16"), UNIT, lambda: bench.generate(model, batch, "bfloat16"), peers, bench.token_limit("gpt2s", 1, "bfloat16"), 1.5)


def ragged(bench):
    """Continuous batching against fixed batches twice: of this engine, which computes nothing for a row that ended, and of engines that compute every row to the longest of its batch."""
    model, least, most = bench.model("llama288"), 8, 128
    batch = ("generate", "--model", model, "--requests", 256, "--slots", 64)
    wanted = (least + most) / 2 / most  # of what such an engine computes
    median, _ = report.alternate(bench.flags.rounds, {"continuous": lambda: bench.engine(*batch, "--least-new-tokens", least)["tokens_per_second"],
                                                      "fixed": lambda: bench.engine(*batch, "--least-new-tokens", least, "--fixed-batches")["tokens_per_second"],
                                                      "padded": lambda: wanted * bench.engine(*batch, "--new-tokens", most)["tokens_per_second"]})
    bench.rows.append(Row(f"generation, llama288, ragged ({least}…{most} new tokens, 256 requests)", median["continuous"], UNIT, bench.token_limit("llama288", 1), "products alone"))
    bench.rows.append(Row("ragged: ratio to the same engine in fixed batches, where rows that ended cost nothing", median["continuous"] / median["fixed"], "×", target=1.6))
    bench.rows.append(Row("ragged: ratio to the same engine in fixed batches, every row computed to the longest", median["continuous"] / median["padded"], "×", target=1.6))
