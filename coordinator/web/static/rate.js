// The raters' page: one task at a time, two answers side by side, and nothing that says where they come from.
import {el, openPage, rpc} from "/app.js";

const kScale = [1, 2, 3, 4, 5];

const session = await openPage();
const page = document.getElementById("page");
const job = new URLSearchParams(location.search).get("job") || "";
const progress = el("progress", {max: 1, value: 0, "aria-label": "Progress"});
const counts = el("p", {class: "soft", id: "counts", role: "status"});
const error = el("p", {class: "error", role: "alert"});
const card = el("section", {id: "task", "aria-live": "polite"});
page.append(el("section", {}, progress, counts, error), card);

let task = null, swapped = false, sending = false;
let mine = 0;  // answers of this person; a job that has closed counts them no more

// What was typed and chosen for a task, kept in this tab until it is sent: a session that expires, or a reload, loses
// nothing, for the rater gets the same task again.
const draftKey = () => `draft/${session.subject}/${task.job_id}/${task.id}`;

function keepDraft() {
  const form = card.querySelector("#form");
  if (!form || !task) return;
  const texts = {}, chosen = [];
  for (const box of form.querySelectorAll("textarea")) texts[box.id] = box.value;
  for (const input of form.querySelectorAll("input:checked")) chosen.push(input.id);
  try {
    sessionStorage.setItem(draftKey(), JSON.stringify({texts, chosen}));
  } catch {
    // No room, or forbidden: then it is kept as long as the page is.
  }
}

function restoreDraft() {
  const draft = JSON.parse(sessionStorage.getItem(draftKey()) || "null");
  if (!draft) return;
  for (const [id, text] of Object.entries(draft.texts)) {
    const box = document.getElementById(id);
    if (box) box.value = text;
  }
  for (const id of draft.chosen) {
    const input = document.getElementById(id);
    if (input) input.checked = true;
  }
  mark();
}

// Which answer stands left: by chance, but the same for this rater whenever the task is shown, so that a reload is no second draw.
function drawsSwap(text) {
  let hash = 2166136261;
  for (const char of text) hash = Math.imul(hash ^ char.codePointAt(0), 16777619) >>> 0;
  hash ^= hash >>> 13;
  hash = Math.imul(hash, 0x5bd1e995) >>> 0;
  return ((hash ^ (hash >>> 15)) & 1) === 1;
}

function radios(name, legend, options) {
  const group = el("fieldset", {}, el("legend", {}, legend));
  group.append(el("div", {class: "choices"}, options.map(([value, label, key]) =>
    el("label", {}, el("input", {type: "radio", name, value, id: `${name}-${value}`}), label, key ? el("kbd", {}, key) : null))));
  return group;
}

function ratings(side, label) {
  return task.criteria.map((criterion) =>
    radios(`${side}:${criterion}`, `${criterion}, ${label}`, kScale.map((value) => [String(value), String(value)])));
}

function answerCard(side, heading, text, rated) {
  return el("article", {class: "answer", id: `answer-${side}`, "aria-labelledby": `heading-${side}`},
    el("h2", {id: `heading-${side}`}, heading), el("p", {class: "text", dir: "auto"}, text), rated ? ratings(side, heading.toLowerCase()) : []);
}

function show() {
  card.replaceChildren();
  const kind = task.kind === "FEEDBACK_RATING" || task.kind === "FEEDBACK_EDIT" ? task.kind : "FEEDBACK_COMPARISON";
  const writes = kind === "FEEDBACK_COMPARISON" && !task.second.text;
  const form = el("form", {id: "form", onsubmit: (event) => { event.preventDefault(); submit(kind, writes); }});
  form.append(el("h1", {id: "question", tabindex: "-1"}, kind === "FEEDBACK_RATING" ? "How good is this answer?" :
    kind === "FEEDBACK_EDIT" ? "Improve this answer" : writes ? "Write an answer, then compare" : "Which answer is better?"));
  form.append(el("p", {class: "text", id: "prompt", dir: "auto"}, task.prompt.text));
  if (kind === "FEEDBACK_RATING" || kind === "FEEDBACK_EDIT") {
    form.append(answerCard("a", "Answer", task.first.text, kind === "FEEDBACK_RATING"));
  } else if (writes) {
    form.append(answerCard("a", "The model's answer", task.first.text, true));
  } else {
    const [left, right] = swapped ? [task.second, task.first] : [task.first, task.second];
    form.append(el("div", {class: "pair"}, answerCard("a", "Answer A", left.text, true), answerCard("b", "Answer B", right.text, true)));
  }
  if (writes || kind === "FEEDBACK_EDIT") {
    const box = el("textarea", {id: "written", required: true, dir: "auto"});
    if (kind === "FEEDBACK_EDIT") box.value = task.first.text;
    form.append(el("label", {for: "written"}, kind === "FEEDBACK_EDIT" ? "Your better version" : "Your own answer"), box);
  }
  if (kind === "FEEDBACK_COMPARISON") {
    form.append(radios("prefer", "Better", writes
      ? [["a", "the model's", "1"], ["b", "mine", "2"], ["tie", "equally good", "3"]]
      : [["a", "A", "1"], ["b", "B", "2"], ["tie", "equally good", "3"]]));
    form.append(radios("strength", "How clearly", [["0.33", "slightly", "q"], ["0.67", "clearly", "w"], ["1", "very much", "e"]]));
  }
  form.append(el("label", {for: "comment"}, "Comment (optional)"), el("textarea", {id: "comment", maxlength: "2000", dir: "auto"}));
  form.append(el("div", {class: "actions"}, el("button", {type: "submit", class: "primary", id: "send"}, "Send ", el("kbd", {}, "Enter")),
    el("button", {type: "button", id: "skip", onclick: skip}, "Skip ", el("kbd", {}, "s"))));
  form.addEventListener("change", mark);
  for (const change of ["change", "input"]) form.addEventListener(change, keepDraft);
  card.append(form);
  restoreDraft();
  form.querySelector("#question").focus();
}

function mark() {
  const preferred = chosen("prefer");
  for (const side of ["a", "b"]) {
    const answer = document.getElementById(`answer-${side}`);
    if (answer) answer.classList.toggle("chosen", preferred === side);
  }
}

function chosen(name) {
  const input = card.querySelector(`input[name="${CSS.escape(name)}"]:checked`);
  return input ? input.value : "";
}

function ratingsOf(side) {
  const values = {};
  for (const criterion of task.criteria) {
    const value = chosen(`${side}:${criterion}`);
    if (value) values[criterion] = Number(value);
  }
  return values;
}

async function submit(kind, writes) {
  const answer = {task_id: task.id, job_id: task.job_id, comment: card.querySelector("#comment").value};
  const written = card.querySelector("#written");
  if (written) answer.written = written.value;
  if (kind === "FEEDBACK_RATING") {
    answer.first_ratings = ratingsOf("a");
    if (Object.keys(answer.first_ratings).length < task.criteria.length) return fail("Rate the answer by every criterion.");
  } else if (kind === "FEEDBACK_COMPARISON") {
    const preferred = chosen("prefer");
    if (!preferred) return fail("Say which answer is better, or that they are equally good.");
    const turned = swapped && !writes;
    answer.second_shown_first = turned;
    answer.preference = preferred === "tie" ? "TIE" : (preferred === "a") !== turned ? "FIRST" : "SECOND";
    if (preferred !== "tie" && chosen("strength")) answer.strength = Number(chosen("strength"));
    answer.first_ratings = ratingsOf(turned ? "b" : "a");
    answer.second_ratings = writes ? {} : ratingsOf(turned ? "a" : "b");
  }
  await act(async () => {
    const verdict = (await rpc("FeedbackService/SubmitFeedback", {answers: [answer]})).verdicts[0];
    if (!verdict.accepted) throw new Error(verdict.problem);
    mine += 1;
  });
}

async function skip() {
  await act(() => rpc("FeedbackService/SkipTask", {job_id: task.job_id, task_id: task.id}));
}

function fail(text) {
  error.textContent = text;
}

// Sends, then shows the next task; on an error the task stays as it is, so nothing that was written is lost.
async function act(send) {
  if (sending) return;
  sending = true;
  const buttons = card.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    await send();
    error.textContent = "";
    sessionStorage.removeItem(draftKey());
  } catch (problem) {
    buttons.forEach((button) => { button.disabled = false; });
    return fail(problem.message);
  } finally {
    sending = false;
  }
  await next();
}

async function next() {
  card.replaceChildren(el("p", {class: "soft"}, "Looking for a task …"));
  task = null;
  while (task === null) {
    try {
      const response = await rpc("FeedbackService/NextTasks", {job_id: job, max_tasks: 1, wait_ms: 1000});
      const answered = Number(response.answered || 0), wanted = Number(response.wanted || 0);
      progress.max = Math.max(1, wanted);
      progress.value = answered;
      mine = Math.max(mine, Number(response.mine || 0));
      counts.textContent = wanted ? `${answered} of ${wanted} answered, ${mine} by you` : "";
      error.textContent = "";
      if (response.tasks && response.tasks.length) task = response.tasks[0];
      else if (response.closed) return card.replaceChildren(el("h1", {id: "done"}, "Thank you: there is nothing left to do."));
      else {
        card.replaceChildren(el("p", {class: "soft", id: "waiting"}, "There is no task for you now; this page keeps looking."));
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    } catch (problem) {
      fail(`${problem.message}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, 3000));
    }
  }
  swapped = drawsSwap(`${session.subject}/${task.job_id}/${task.id}`);
  show();
}

const kKeys = {1: "prefer-a", 2: "prefer-b", 3: "prefer-tie", q: "strength-0.33", w: "strength-0.67", e: "strength-1"};
document.addEventListener("keydown", (event) => {
  if (!task || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("textarea, input[type=text]");
  if (typing) return;
  // A key that is held answers nothing more: the task that it would answer was not read.
  if (event.repeat) {
    if (event.key === "Enter") event.preventDefault();
    return;
  }
  if (event.key === "Enter" && !event.target.matches("button, a")) {
    event.preventDefault();
    card.querySelector("#send").click();
  } else if (event.key === "s") {
    skip();
  } else if (kKeys[event.key]) {
    const input = document.getElementById(kKeys[event.key]);
    if (input) {
      input.checked = true;
      input.focus();
      mark();
      keepDraft();
    }
  }
});

await next();
