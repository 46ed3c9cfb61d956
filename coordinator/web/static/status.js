import {ago, el, number, openPage, poll, rpc, svg} from "/app.js";
import {alertsOf} from "/alerts.js";
import {curves} from "/curves.js";

const kCurves = [
  ["reward/mean", ""], ["gold/mean", ""], ["kl", "nats a sequence"], ["kl_coefficient", ""], ["loss", ""],
  ["loss/policy", ""], ["loss/kl", "a token"], ["loss/value", ""], ["loss/ptx", ""], ["log_loss", ""], ["accuracy", ""], ["clip_ratio", ""],
  ["entropy", "nats"], ["explained_variance", ""], ["response_length", "tokens"], ["grad_norm/policy", ""],
  ["samples_per_second", ""], ["learning_rate", ""], ["learning_rate/critic", ""],
];
const kStates = [["queued", "#8a94a3"], ["leased", "#c08a2d"], ["generated", "#5b8fd9"], ["scored", "#7b6fd0"],
  ["assigned", "#3f7fbf"], ["trained", "#2f9e66"], ["delivered", "#2f9e66"], ["stale", "#b58b5a"], ["failed", "#c4473d"],
  ["cancelled", "#777f8a"]];
const kActive = ["PENDING", "RUNNING", "PAUSED", "WAITING"];

const session = await openPage();
const error = el("p", {class: "error", role: "alert"}), refused = el("p", {class: "error", role: "alert", id: "refused"});
const part = (title, id) => {
  const body = el("div", {id, class: "scroll"});
  document.getElementById("page").append(el("section", {}, el("h2", {}, title), body));
  return body;
};
document.getElementById("page").append(error, refused);
const wanted = new URLSearchParams(location.search), chosen = wanted.get("job"), chosenGate = wanted.get("gate");
const alerts = part("Alerts", "alerts"), gate = chosenGate ? part("Gate", "gate") : null, jobs = part("Jobs", "jobs"),
  job = part("Job", "job"), gates = part("Gates", "gates"), fleet = part("Fleet", "fleet");

function kindOf(spec) {
  return ["sft", "reward_model", "sample", "collect", "ppo", "evaluate", "pipeline"].find((kind) => spec[kind]) || "";
}

function table(heads, rows, empty) {
  if (rows.length === 0) return el("p", {class: "soft"}, empty);
  return el("table", {}, el("tr", {}, heads.map((head) => el("th", {}, head))), rows);
}

function jobRow(row) {
  const total = Number(row.total_steps), step = Number(row.step);
  return el("tr", {"data-job": row.id},
    el("td", {}, el("a", {href: `/?job=${encodeURIComponent(row.id)}`}, row.stage ? `· ${row.stage}` : row.spec.name)),
    el("td", {}, kindOf(row.spec)),
    el("td", {class: "state " + row.state}, row.state.toLowerCase()),
    el("td", {}, total > 0 ? el("div", {class: "steps"}, el("progress", {max: total, value: step}), `${step}/${total}`) : ""),
    el("td", {class: "soft"}, row.reason || ago(row.created_at)));
}

// Newest first, as they come; but a pipeline before its stages, and those in the order in which they ran.
function inOrder(list) {
  const ids = new Set(list.map((row) => row.id)), stages = new Map();
  for (const row of list) {
    if (!ids.has(row.parent_id)) continue;
    stages.set(row.parent_id, [row, ...(stages.get(row.parent_id) || [])]);
  }
  return list.filter((row) => !ids.has(row.parent_id)).flatMap((row) => [row, ...(stages.get(row.id) || [])]);
}

function ledgerOf(counts) {
  const issued = Number(counts.issued);
  if (issued === 0) return null;
  const bar = svg("svg", {viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img"});
  const legend = el("div", {class: "legend"}, el("span", {}, `issued ${issued}`));
  let from = 0, sum = 0;
  for (const [state, colour] of kStates) {
    const count = Number(counts[state]);
    sum += count;
    if (count === 0) continue;
    const width = (count / issued) * 1000;
    bar.append(svg("rect", {x: from, y: 0, width, height: 10, fill: colour}));
    from += width;
    legend.append(el("span", {}, `${state} ${count}`));
  }
  legend.append(el("span", {class: sum === issued ? "soft" : "error"},
    sum === issued ? "every sample is accounted for" : `the states add up to ${sum}`));
  return el("div", {id: "ledger"}, el("h2", {}, "Ledger"), el("div", {class: "ledger"}, bar), legend);
}

async function allMetrics(id) {
  const points = [];
  let token = "";
  do {
    const page = await rpc("JobService/ListMetrics", {job_id: id, page: {page_size: 1000, page_token: token}});
    points.push(...page.points);
    token = page.next_page_token;
  } while (token);
  return points;
}

// Commands are written between backquotes.
function withCode(text) {
  return text.split("`").map((piece, i) => (i % 2 ? el("code", {}, piece) : piece));
}

async function showJob(row) {
  const [points, ledger, why] = await Promise.all([allMetrics(row.id),
    rpc("JobService/GetLedger", {job_id: row.id}), rpc("JobService/ExplainJob", {job_id: row.id})]);
  const active = kActive.includes(row.state);
  job.replaceChildren(
    el("p", {}, el("strong", {}, row.spec.name), ` ${row.stage ? "stage " + row.stage : ""} `,
      el("span", {class: "state " + row.state}, row.state.toLowerCase()),
      el("span", {class: "soft"}, ` ${row.reason || ""} submitted by ${row.submitted_by}, ${ago(row.created_at)} `),
      Number(ledger.counts.issued) > 0 ? el("a", {href: `/samples?job=${encodeURIComponent(row.id)}`}, "samples") : null),
    ...(active ? [el("p", {}, `Waits for ${why.waits_for} since ${why.since_seconds} s. `,
      el("span", {class: "soft"}, withCode(why.what_to_do)))] : []),
    el("div", {class: "curves", id: "curves"}, curves(kCurves, points)), ledgerOf(ledger.counts) || "");
  return points;
}

// Of the gate as it is shown: an approval names the report that it rests on.
async function decide(gate, approve) {
  const comment = prompt(approve ? "Why may it go on?" : "Why not?");
  if (comment === null) return;
  refused.textContent = "";
  try {
    await rpc("OversightService/DecideGate", {gate_id: gate.id, approve, comment, report_sha256: gate.report_sha256});
    await refresh();
  } catch (problem) {
    refused.textContent = `${gate.id}: ${problem.message} (${problem.code || "no answer"})`;
  }
}

function gateRow(gate) {
  const may = gate.state === "GATE_WAITING" && session.roles.includes("overseer");
  const link = (text) => el("a", {href: `/?gate=${encodeURIComponent(gate.id)}`}, text);
  return el("tr", {}, el("td", {}, link(gate.id)), el("td", {class: "state " + gate.state}, gate.state.slice(5).toLowerCase()),
    el("td", {}, gate.results.map((result) => el("div", {class: result.holds ? "" : "error"},
      `${result.condition.metric} ${result.found ? number(result.found.value) : result.problem} `,
      "min" in result.condition ? `≥ ${result.condition.min} ` : "", "max" in result.condition ? `≤ ${result.condition.max}` : ""))),
    el("td", {}, `${gate.approvals.filter((approval) => approval.approved).length} of ${gate.spec.required_approvals}`),
    el("td", {}, may ? link("read the report and decide") : ago(gate.opened_at)));
}

function interval(metric) {
  return "low" in metric && "high" in metric ? `[${number(metric.low)}, ${number(metric.high)}]` : "";
}

// Everything that the report's digest is of, and below it the decision, which names that digest.
function gateReport(row) {
  const cells = (...texts) => el("tr", {}, texts.map((text) => el("td", {}, text)));
  const may = row.state === "GATE_WAITING" && session.roles.includes("overseer");
  return [
    el("p", {}, el("strong", {}, row.id), " ", el("span", {class: "state " + row.state}, row.state.slice(5).toLowerCase()),
      el("span", {class: "soft"}, ` opened ${ago(row.opened_at)}; ${row.approvals.filter((approval) => approval.approved).length} of ` +
        `${row.spec.required_approvals} approvals`)),
    el("p", {}, "Report ", el("code", {id: "report-digest"}, row.report_sha256), row.policy ? ["; it approves the policy ", el("code", {}, row.policy)] : null),
    table(["Condition", "At least", "At most", "Found", "Holds"], row.results.map(({condition, found, problem, holds}) =>
      el("tr", {class: holds ? "" : "error"}, [condition.stage ? `${condition.stage}.${condition.metric}` : condition.metric,
        "min" in condition ? number(condition.min) : "", "max" in condition ? number(condition.max) : "",
        problem || (found ? number(found.value) : ""), holds ? "yes" : "no"].map((text) => el("td", {}, text)))), "No condition."),
    table(["Metric", "Value", "95 % interval", "n"], Object.entries(row.metrics).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, metric]) =>
      cells(name, number(metric.value), interval(metric), Number(metric.n) > 0 ? metric.n : "")), "No metric."),
    table(["Artifact", "Digest"], Object.entries(row.artifacts).sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, digest]) =>
      cells(name, el("code", {}, digest))), "No artifact."),
    ...row.approvals.map((approval) => el("p", {}, `${approval.approved ? "approved" : "rejected"} by ${approval.subject}, ${ago(approval.at)}`,
      approval.comment ? `: ${approval.comment}` : "")),
    may ? el("p", {class: "bar"}, el("button", {class: "primary", onclick: () => decide(row, true)}, "approve"),
      el("button", {onclick: () => decide(row, false)}, "reject"),
      el("span", {class: "soft"}, "Your decision is of this report: it names the digest above.")) : ""];
}

async function findGate(id, list) {
  let found = list.find((row) => row.id === id), token = "";
  while (!found) {
    const page = await rpc("OversightService/ListGates", {page: {page_size: 1000, page_token: token}});
    found = page.gates.find((row) => row.id === id);
    token = page.next_page_token;
    if (!token) break;
  }
  return found;
}

function workerRow(worker) {
  return el("tr", {}, el("td", {}, worker.instance_id), el("td", {}, worker.role.slice(5).toLowerCase()),
    el("td", {class: "state " + worker.state}, worker.state.toLowerCase()), el("td", {}, worker.device),
    el("td", {}, worker.slots > 0 ? `${worker.leased}/${worker.slots}` : ""),
    el("td", {}, worker.policy && worker.role === "ROLE_ROLLOUT_WORKER" ? `step ${worker.policy.step}` : ""), el("td", {}, worker.job_id),
    el("td", {class: "soft"}, worker.seconds_since_heartbeat < 0 ? "away" : `${worker.seconds_since_heartbeat.toFixed(1)} s ago`));
}

async function refresh() {
  const [service, list, workers, waiting, decided] = await Promise.all([
    rpc("OversightService/GetServiceState"),
    rpc("JobService/ListJobs", {include_stages: true, page: {page_size: 50}}),
    rpc("AdminService/ListWorkers", {page: {page_size: 1000}}),
    rpc("OversightService/ListGates", {states: ["GATE_WAITING"], page: {page_size: 100}}),
    rpc("OversightService/ListGates",
      {states: ["GATE_APPROVED", "GATE_REJECTED", "GATE_CONDITIONS_FAILED"], page: {page_size: 50}})]);
  // Those that wait for somebody first, however old they are.
  const gateList = waiting.gates.concat(decided.gates);
  jobs.replaceChildren(table(["Job", "Kind", "State", "Steps", ""], inOrder(list.jobs).map(jobRow),
    "No job yet. rlhfctl submit JOB.yaml --follow starts one."));
  gates.replaceChildren(table(["Gate", "State", "Conditions", "Approvals", ""], gateList.map(gateRow), "No gate."));
  if (gate) {
    const row = await findGate(chosenGate, gateList);
    gate.replaceChildren(...(row ? gateReport(row) : [el("p", {class: "soft"}, `There is no gate ${chosenGate}.`)]));
  }
  fleet.replaceChildren(table(["Instance", "Role", "State", "Device", "Leased", "Policy", "Job", "Heartbeat"],
    workers.workers.map(workerRow), "Nobody has registered."));
  const shown = list.jobs.find((row) => row.id === chosen) ||
    list.jobs.find((row) => row.state === "RUNNING" && kindOf(row.spec) !== "pipeline") || list.jobs[0];
  const points = shown ? await showJob(shown) : [];
  if (!shown) job.replaceChildren(el("p", {class: "soft"}, "Nothing to show."));
  const found = alertsOf({service, jobs: list.jobs, workers: workers.workers, gates: gateList, shown, points});
  alerts.replaceChildren(...(found.length ? found.map((alert) =>
    el("div", {class: "alert " + alert.severity, "data-alert": alert.name}, el("strong", {}, alert.name), " ", alert.text)) :
    [el("p", {class: "soft"}, "None.")]));
  document.body.dataset.ready = "yes";
}

await poll(2, error, refresh);
