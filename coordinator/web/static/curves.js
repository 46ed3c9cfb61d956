// Small line charts as SVG. A chart keeps its element and is redrawn in place.
import {el, number, svg} from "/app.js";

const kWidth = 300, kHeight = 96;

function draw(points) {
  const steps = points.map((point) => point.step), values = points.map((point) => point.value);
  const x0 = Math.min(...steps), x1 = Math.max(...steps), y0 = Math.min(...values), y1 = Math.max(...values);
  const x = (step) => (x1 === x0 ? kWidth / 2 : ((step - x0) / (x1 - x0)) * kWidth);
  const y = (value) => (y1 === y0 ? kHeight / 2 : kHeight - 4 - ((value - y0) / (y1 - y0)) * (kHeight - 8));
  const path = points.map((point, i) => `${i ? "L" : "M"}${x(point.step).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
  const zero = y0 < 0 && y1 > 0 ? [svg("line", {x1: 0, x2: kWidth, y1: y(0), y2: y(0)})] : [];
  return svg("svg", {class: "curve", viewBox: `0 0 ${kWidth} ${kHeight}`, preserveAspectRatio: "none", role: "img"},
    ...zero, svg("path", {d: points.length > 1 ? path : `${path}h1`}));
}

// One chart a name, of the names that have points. `points` is what JobService.ListMetrics gave.
export function curves(names, points) {
  const charts = [];
  for (const [name, unit] of names) {
    const series = points.filter((point) => point.values && Number.isFinite(point.values[name]))
      .map((point) => ({step: Number(point.step), value: point.values[name]}));
    if (series.length === 0) continue;
    const last = series[series.length - 1];
    charts.push(el("figure", {"data-curve": name},
      el("figcaption", {}, el("span", {}, name + (unit ? ` (${unit})` : "")),
        el("span", {class: "soft"}, `${number(last.value)} at ${last.step}`)),
      draw(series)));
  }
  return charts;
}
