"""The table of bench/run: what was measured against what limits it and what is asked of it."""
import dataclasses
import statistics


@dataclasses.dataclass
class Row:
    what: str
    figure: float | None = None  # None: not measured; `note` says why
    unit: str = ""
    limit: float | None = None  # the most that this machine allows, in the same unit
    limit_is: str = ""
    target: float | None = None  # what is asked, in the figure's unit
    at_most: bool = False  # smaller is better
    note: str = ""

    def share(self):
        return None if self.figure is None or not self.limit else self.figure / self.limit

    def verdict(self):
        if self.figure is None:
            return f"not measured: {self.note}" if self.note else "not measured"
        if self.target is None:
            return self.note
        if self.figure <= self.target if self.at_most else self.figure >= self.target:
            return "reached"
        if self.at_most:
            return f"missed: {self.figure / self.target:.2f} × what is allowed" if self.target else "missed"
        return f"missed by {1 - self.figure / self.target:.0%}"

    def as_json(self):
        return {**dataclasses.asdict(self), "share_of_limit": self.share(), "verdict": self.verdict()}


def number(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows):
    """A Markdown table, in the order of the rows."""
    lines = ["| figure | measured | limit | share of limit | target | |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        limit = f"{number(row.limit)} ({row.limit_is})" if row.limit else "–"
        share = "–" if row.share() is None else f"{row.share():.0%}"
        target = "–" if row.target is None else f"{'≤' if row.at_most else '≥'} {number(row.target)}"
        measured = number(row.figure) + (f" {row.unit}" if row.figure is not None and row.unit else "")
        lines.append(f"| {row.what} | {measured} | {limit} | {share} | {target} | {row.verdict()} |")
    return "\n".join(lines)


def alternate(rounds, measures):
    """Runs each of `measures` (name -> function) in turn, `rounds` times, so that a busy neighbour slows all alike.

    Returns name -> median, and name -> all results, in order."""
    results = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            results[name].append(measure())
    return {name: statistics.median(values) for name, values in results.items()}, results


def peer_rows(what, unit, median, missing, peers, factor=None, also=()):
    """A row of each peer, and one of the ratio of median["ours"] to the best of them; without either, rows that say why.

    median: name -> figure; missing: name -> why there is none; also: peers whose rows are elsewhere and with which it is compared too."""
    rows = [Row(f"{what}: {name}", median.get(name), unit, note=missing.get(name, "")) for name in peers]
    best = max((name for name in [*peers, *also] if name in median), key=median.get, default=None)
    why = "no peer" if best is None else "no figure of ours" if "ours" not in median else ""
    rows.append(Row(f"{what}: ratio to the best peer", None if why else median["ours"] / median[best], "×", target=factor, note=why or f"to {best}"))
    return rows


def samples(exposition):
    """Prometheus' text format -> {(name, (("label", "value"), …)): float}."""
    out = {}
    for line in exposition.splitlines():
        if not line or line.startswith("#"):
            continue
        series, value = line.rsplit(" ", 1)
        name, _, rest = series.partition("{")
        labels = []
        for part in rest.rstrip("}").split('",') if rest else []:
            key, _, text = part.partition('="')
            labels.append((key.strip(), text.rstrip('"')))
        out[name, tuple(sorted(labels))] = float(value)
    return out


def total(metrics, name, **labels):
    """The sum over the series of that name with these labels; 0 when there is none."""
    wanted = set(labels.items())
    return sum(value for (series, have), value in metrics.items() if series == name and wanted <= set(have))


def rate_of_steps(seen, samples_per_step):
    """Samples a second from [(seconds, steps committed)]: between the first and the last commit that were seen, so that
    loading and the first step's warming do not count. None with fewer than two commits."""
    commits = []
    for when, steps in seen:
        if steps >= 1 and (not commits or steps > commits[-1][1]):
            commits.append((when, steps))
    if len(commits) < 2:
        return None
    (begin, first), (end, last) = commits[0], commits[-1]
    return (last - first) * samples_per_step / (end - begin)


def union(intervals):
    """[(begin, end)] that may overlap -> the same time as intervals that do not, in order."""
    merged = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > begin:
            merged.append((begin, end))
    return merged


def idle_share(trace):
    """The share of time in which no sample was generated or scored and nothing trained, of `rlhfctl trace`'s events: from the end of the first update
    to the end of the last. None with fewer than two updates.

    A sample is generated from its lease until its result arrives at the coordinator, so both calls count as generating."""
    spans = [(event["name"], event["cat"], event["ts"], event["ts"] + event["dur"]) for event in trace if event["ph"] == "X"]
    updates = sorted((begin, end) for name, category, begin, end in spans if category == "learner" and name.startswith("update"))
    if len(updates) < 2:
        return None
    first, last = updates[0][1], updates[-1][1]
    busy = union([(begin, end) for _, category, begin, end in spans if category in ("generation", "scoring")] + updates)
    return 1 - sum(max(0, min(end, last) - max(begin, first)) for begin, end in busy) / (last - first)
