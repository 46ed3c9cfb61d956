import {el, number, openPage, rpc, rpcPath} from "/app.js";

const kPage = 50, kMost = 2000;
const kScales = {logprob: 5, kl: 1};  // nats at which a colour is full

await openPage();
const page = document.getElementById("page");
const error = el("p", {class: "error", role: "alert"});
const pick = el("select", {"aria-label": "Job", id: "pick"});
const search = el("input", {type: "search", placeholder: "search prompts and responses", id: "search", "aria-label": "Search"});
const step = el("input", {type: "number", min: 0, placeholder: "step", id: "step", "aria-label": "Step"});
const colour = el("select", {id: "colour", "aria-label": "Colour of tokens"},
  el("option", {value: "logprob"}, "colour: log-probability"), el("option", {value: "kl"}, "colour: KL to the reference"),
  el("option", {value: "none"}, "no colour"));
const more = el("button", {id: "more"}, "more"), list = el("div", {id: "samples"}), count = el("p", {class: "soft", id: "count"});
page.append(el("section", {}, el("div", {class: "bar"}, pick, step, search, colour), count, error, list, more));

let samples = [], pageToken = "";

// One number a token: what colours it.
function valuesOf(sample) {
  const policy = sample.behaviour_log_probs;
  if (colour.value === "logprob") return policy;
  const reference = sample.score ? sample.score.reference_log_probs : [];
  return reference.length === policy.length ? policy.map((value, i) => value - reference[i]) : [];
}

function tint(value, scale) {
  const strength = Math.min(1, Math.abs(value) / scale) * 0.75;
  return `rgba(var(${value < 0 ? "--neg" : "--pos"}), ${strength.toFixed(3)})`;
}

function tokensOf(view, texts) {
  const sample = view.sample, values = valuesOf(sample), reference = sample.score ? sample.score.reference_log_probs : [];
  return el("div", {class: "tokens"}, texts.map((text, i) => {
    const parts = [`token ${sample.response_tokens[i]}`, `log-probability ${number(sample.behaviour_log_probs[i])}`];
    if (reference.length) parts.push(`reference ${number(reference[i])}`, `KL ${number(sample.behaviour_log_probs[i] - reference[i])}`);
    const span = el("span", {title: parts.join(", ")}, text);
    if (colour.value !== "none" && values.length) span.style.backgroundColor = tint(values[i], kScales[colour.value]);
    return span;
  }));
}

function marked(text, wanted) {
  const at = wanted ? text.toLowerCase().indexOf(wanted) : -1;
  return at < 0 ? [text] : [text.slice(0, at), el("mark", {}, text.slice(at, at + wanted.length)), text.slice(at + wanted.length)];
}

function sumOf(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

function article(view, wanted) {
  const {row, sample} = view, id = `${row.id.step}/${row.id.ordinal}/${row.id.index}`;
  const facts = [id, row.state.toLowerCase()];
  const body = el("article", {class: "sample", "data-sample": id});
  if (!sample) {
    body.append(el("div", {class: "soft"}, facts.concat(row.reason || []).join(" · ")));
    return body;
  }
  if (sample.score) facts.push(`score ${number(sample.score.total)}`, ...sample.score.components.map((part) => `${part.name} ${number(part.value)}`));
  if (sample.score && sample.score.reference_log_probs.length)
    facts.push(`KL ${number(sumOf(sample.behaviour_log_probs) - sumOf(sample.score.reference_log_probs))} nats`);
  facts.push(sample.finish_reason.toLowerCase().replaceAll("_", " "), `policy ${sample.version_low ? sample.version_low.step : "?"}`, sample.worker_id);
  const response = el("div", {class: "tokens"}, marked(sample.response_text, wanted));
  body.append(el("div", {class: "soft"}, facts.join(" · ")), el("div", {}, marked(sample.prompt.text, wanted)), response);
  // The tokens' texts are asked for when the sample is looked at, and colour it then.
  if (colour.value !== "none" && sample.response_tokens.length) onSight(body, async () => {
    view.texts = view.texts || (await rpcPath("web/TokenTexts", {job_id: row.id.job_id, tokens: sample.response_tokens})).texts;
    response.replaceWith(tokensOf(view, view.texts));
    body.dataset.coloured = colour.value;
  });
  return body;
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    entry.target.seen().catch((problem) => { error.textContent = problem.message; });
  }
});
function onSight(element, fn) {
  element.seen = fn;
  watcher.observe(element);
}

function show() {
  const wanted = search.value.trim().toLowerCase();
  const found = samples.filter(({sample}) => !wanted ||
    (sample && (sample.prompt.text.toLowerCase().includes(wanted) || sample.response_text.toLowerCase().includes(wanted))));
  list.replaceChildren(...found.map((view) => article(view, wanted)));
  count.textContent = `${found.length} of ${samples.length} samples${pageToken ? ", and there are more" : ""}`;
  more.hidden = !pageToken;
}

async function load() {
  const request = {job_id: pick.value, page: {page_size: kPage, page_token: pageToken}};
  if (step.value !== "") request.step = step.value;
  const answer = await rpc("JobService/ListSamples", request);
  samples.push(...answer.samples);
  pageToken = answer.next_page_token;
}

// A search looks further, page by page, until it has found a screenful or looked at enough.
async function searchOn() {
  const wanted = search.value.trim().toLowerCase();
  show();
  while (wanted && pageToken && list.children.length < 20 && samples.length < kMost) {
    await load();
    show();
  }
}

function guarded(fn) {
  return async () => {
    error.textContent = "";
    try {
      await fn();
    } catch (problem) {
      error.textContent = `${problem.message} (${problem.code || "no answer"})`;
    }
    document.body.dataset.ready = "yes";
  };
}

const restart = guarded(async () => {
  samples = [];
  pageToken = "";
  if (pick.value) await load();
  await searchOn();
});

await guarded(async () => {
  const jobs = (await rpc("JobService/ListJobs", {include_stages: true, page: {page_size: 200}})).jobs
    .filter((job) => job.spec.ppo || job.spec.sample || job.spec.evaluate);
  pick.replaceChildren(...jobs.map((job) => el("option", {value: job.id}, `${job.spec.name} (${job.id})`)));
  const asked = new URLSearchParams(location.search).get("job");
  if (jobs.some((job) => job.id === asked)) pick.value = asked;
  if (jobs.length === 0) count.textContent = "No job has made samples yet.";
})();
pick.addEventListener("change", restart);
step.addEventListener("change", restart);
search.addEventListener("input", guarded(searchOn));
colour.addEventListener("change", show);
more.addEventListener("click", guarded(async () => { await load(); show(); }));
await restart();
