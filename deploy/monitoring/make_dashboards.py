#!/usr/bin/python3
"""Writes dashboards/*.json (Grafana) and consoles/*.html (Prometheus) from dashboards.yaml; with --check, compares instead."""
import html
import json
import pathlib
import sys

import yaml

HERE = pathlib.Path(__file__).resolve().parent


def grafana(board):
    panels = []
    for i, panel in enumerate(board["panels"]):
        panels.append({
            "id": i + 1,
            "type": "timeseries",
            "title": panel["title"],
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"h": 8, "w": 8, "x": 8 * (i % 3), "y": 8 * (i // 3)},
            "fieldConfig": {"defaults": {"unit": panel["unit"], "custom": {"showPoints": "never"}}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "targets": [
                {"refId": chr(ord("A") + n), "expr": query, "legendFormat": legend}
                for n, (query, legend) in enumerate(panel["queries"])
            ],
        })
    return {
        "uid": board["uid"],
        "title": board["title"],
        "tags": ["rlhf"],
        "schemaVersion": 39,
        "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}}]},
        "panels": panels,
    }


def console(board):
    """A console template: looks like a dashboard, needs Prometheus only (--web.console.templates)."""
    out = [
        '{{ template "head" . }}',
        '{{ template "prom_content_head" . }}',
        f"<h1>{html.escape(board['title'])}</h1>",
    ]
    for i, panel in enumerate(board["panels"]):
        exprs = [query.replace("$__rate_interval", "5m") for query, _ in panel["queries"]]
        names = [legend.replace("{{", "[[").replace("}}", "]]") for _, legend in panel["queries"]]
        out += [
            f"<h3>{html.escape(panel['title'])}</h3>",
            f'<div id="graph{i}"></div>',
            "<script>",
            "new PromConsole.Graph({",
            f"  node: document.querySelector('#graph{i}'),",
            f"  expr: {json.dumps(exprs)},",
            f"  name: {json.dumps(names)},",
            "  yAxisFormatter: PromConsole.NumberFormatter.humanize,",
            "  yHoverFormatter: PromConsole.NumberFormatter.humanize,",
            "})",
            "</script>",
        ]
    out += ['{{ template "prom_content_tail" . }}', '{{ template "tail" }}', ""]
    return "\n".join(out)


def main():
    boards = yaml.safe_load((HERE / "dashboards.yaml").read_text())
    wanted = {}
    for board in boards:
        name = board["uid"].removeprefix("rlhf-")
        wanted[f"dashboards/{name}.json"] = json.dumps(grafana(board), indent=1) + "\n"
        wanted[f"consoles/rlhf-{name}.html"] = console(board)
    stale = []
    for path, content in wanted.items():
        file = HERE / path
        if file.exists() and file.read_text() == content:
            continue
        stale.append(path)
        if "--check" not in sys.argv:
            file.parent.mkdir(exist_ok=True)
            file.write_text(content)
    if "--check" in sys.argv and stale:
        sys.exit("differ from dashboards.yaml, run deploy/monitoring/make_dashboards.py: " + ", ".join(stale))


if __name__ == "__main__":
    main()
