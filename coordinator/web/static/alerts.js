// What needs a person, judged from what the page shows. The names and the bounds are those of the Prometheus rules
// (deploy/monitoring/rules.yml), which remain what pages somebody; docs/operations.md says what to do about each.

const kMinutes = 60 * 1000;

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function fromCurves(job, points) {
  const found = [];
  const last = (name, n) => points.slice(-n).map((point) => (point.values || {})[name]).filter(Number.isFinite);
  const kl = last("kl", 1)[0];
  if (kl > 20) found.push({name: "KLRunaway", severity: "page", text: `${job.spec.name}: KL ${kl.toFixed(1)} nats a sequence.`});
  const alarms = last("monitor/alarms", 5).filter((count) => count > 0).length;
  if (alarms) {
    found.push({name: "RewardHackingSuspected", severity: "page",
      text: `${job.spec.name}: its monitors raised alarms at ${alarms} of the last 5 steps; rlhfctl watch says which.`});
  }
  const rewards = points.map((point) => (point.values || {})["reward/mean"]).filter(Number.isFinite);
  if (rewards.length >= 10) {
    const best = Math.max(...rewards), now = mean(rewards.slice(-3));
    if (best > 0 && now < best / 2) {
      found.push({name: "RewardCollapse", severity: "page", text: `${job.spec.name}: reward ${now.toFixed(2)}, best ${best.toFixed(2)}.`});
    }
  }
  return found;
}

export function alertsOf({service, jobs, workers, gates, shown, points}) {
  const found = [];
  if (service.halted) found.push({name: "ServiceHalted", severity: "page", text: `by ${service.by}: ${service.reason}`});
  for (const worker of workers) {
    if (worker.state === "LOST") found.push({name: "WorkerLost", severity: "", text: `${worker.instance_id} sends no heartbeat.`});
  }
  for (const gate of gates) {
    const waited = Date.now() - Date.parse(gate.opened_at);
    if (gate.state === "GATE_WAITING") {
      found.push({name: "GateWaiting", severity: waited > 24 * 60 * kMinutes ? "page" : "",
        text: `${gate.id} waits for ${gate.spec.required_approvals} approval(s) since ${Math.round(waited / kMinutes)} min.`});
    }
  }
  for (const job of jobs) {
    if (job.state === "PAUSED" && job.reason) found.push({name: "JobPaused", severity: "", text: `${job.spec.name}: ${job.reason}`});
  }
  if (shown && shown.state === "RUNNING") found.push(...fromCurves(shown, points));
  return found;
}
