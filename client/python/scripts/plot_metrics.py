"""Plots a job's metrics into a picture. Usage: plot_metrics.py CONTEXT JOB OUT.svg [METRIC...]

Without metrics: those that PPO is judged by. Matplotlib is used when it is installed; else a plain SVG is written by hand.
"""
import html
import sys

from rlhf_client import Client, RlhfError

DEFAULT = ["reward/mean", "gold/mean", "kl", "loss", "loss/policy", "loss/value", "entropy", "clip_ratio", "response_length"]
WIDTH, HEIGHT, COLUMNS = 320, 170, 3


def with_matplotlib(series, out):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    rows = -(-len(series) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 2.4 * rows), squeeze=False)
    for axis in axes.flat[len(series):]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, series.items()):
        axis.plot(*zip(*points))
        axis.set_title(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(out)


def by_hand(series, out):
    rows = -(-len(series) // COLUMNS)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{HEIGHT * rows}" font-family="sans-serif" font-size="12">']
    for i, (name, points) in enumerate(series.items()):
        left, top = WIDTH * (i % COLUMNS) + 15, HEIGHT * (i // COLUMNS) + 25
        width, height = WIDTH - 30, HEIGHT - 45
        steps, values = zip(*points)
        x = lambda step: left + width * (step - steps[0]) / ((steps[-1] - steps[0]) or 1)  # noqa: E731
        low, high = min(values), max(values)
        y = lambda value: top + height - height * (value - low) / ((high - low) or 1)  # noqa: E731
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<text x="{left}" y="{top - 8}">{html.escape(name)}: {values[-1]:.4g} ({low:.4g} to {high:.4g})</text>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="#2f6fd0" stroke-width="1.5"/>')
    with open(out, "w", encoding="utf-8") as file:
        file.write("\n".join(parts + ["</svg>", ""]))


def main() -> int:
    if len(sys.argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    context, job, out, *names = sys.argv[1:]
    try:
        with Client.from_context(context) as client:
            rows = client.metric_rows(client.get(job).id)
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    series = {}
    for name in names or DEFAULT:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            series[name] = points
    if not series:
        print(f"error: {job} has none of {', '.join(names or DEFAULT)}", file=sys.stderr)
        return 1
    try:
        with_matplotlib(series, out)
    except ImportError:
        if not out.endswith(".svg"):
            print("error: only .svg can be written without matplotlib", file=sys.stderr)
            return 1
        by_hand(series, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
