// What every page shares: the session, calls of the service's methods, and making elements. No page ever puts text into
// HTML: el() and textContent are the only way in, so a prompt or a sample cannot become markup.

// The navigation. A page is shown to those who have one of its roles.
const kPages = [
  {path: "/", title: "Status", roles: ["viewer", "submitter", "overseer", "admin"]},
  {path: "/samples", title: "Samples", roles: ["viewer", "submitter", "overseer", "admin"]},
  {path: "/rate", title: "Compare", roles: ["rater", "admin"]},
];

let session = null;

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// An answer that says no: `code` is gRPC's ("NOT_FOUND"), `reason` the ErrorInfo's, `message` for people.
export class CallError extends Error {
  constructor(body, status) {
    super(body.message || `HTTP ${status}`);
    this.code = body.code || "UNKNOWN";
    this.reason = body.reason || "";
    this.status = status;
  }
}

async function ask(path, options) {
  const response = await fetch(path, {credentials: "same-origin", ...options});
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Not ours: a proxy's page, or an empty answer. The status tells enough.
  }
  if (!response.ok) throw new CallError(body, response.status);
  return body;
}

function toSignIn() {
  location.assign("/signin?next=" + encodeURIComponent(location.pathname + location.search));
}

// One of the service's methods: rpc("JobService/ListJobs", {page: {page_size: 10}}). 64-bit integers come as strings.
export function rpc(method, request = {}) {
  return rpcPath("rlhf.v1." + method, request);
}

// As rpc, for what the web server answers itself: rpcPath("web/TokenTexts", …).
export async function rpcPath(path, request = {}) {
  const call = () => ask("/api/" + path, {
    method: "POST",
    headers: {"Content-Type": "application/json", "X-CSRF-Token": session ? session.csrf : ""},
    body: JSON.stringify(request),
  });
  try {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 403 || !(await renewed())) throw error;
      return await call();
    }
  } catch (error) {
    if (error.status === 401) toSignIn();
    throw error;
  }
}

// After a refusal: whether the browser has another session by now than this page began with, as by a sign-in in another
// tab. The same person's is taken over. Somebody else's is not: nothing is done in their name that they did not see.
async function renewed() {
  const now = await ask("/session");
  if (!session || now.csrf === session.csrf) return false;
  if (now.subject !== session.subject) {
    throw new CallError({code: "PERMISSION_DENIED", message: `${now.subject} has signed in in this browser since, and this page is ` +
      `${session.subject}'s: reload it to go on as ${now.subject}, or sign in as ${session.subject} again in another tab`}, 403);
  }
  session = now;
  return true;
}

export async function signIn(token) {
  session = await ask("/session", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({token}),
  });
  return session;
}

async function signOut() {
  await ask("/session", {method: "DELETE", headers: {"X-CSRF-Token": session.csrf}});
  sessionStorage.clear();  // drafts
  location.assign("/signin");
}

// The page's frame. Returns the session {subject, roles, project, csrf, version}; goes to the sign-in page without one.
export async function openPage() {
  try {
    session = await ask("/session");
  } catch (error) {
    if (error.status === 401) {
      toSignIn();
      return new Promise(() => {});  // the browser is leaving
    }
    throw error;
  }
  const links = kPages.filter((page) => page.roles.some((role) => session.roles.includes(role)))
    .map((page) => el("a", {href: page.path, "aria-current": page.path === location.pathname ? "page" : null}, page.title));
  document.body.prepend(el("header", {},
    el("span", {class: "name"}, "rlhf"), el("nav", {}, links),
    el("span", {class: "who"}, `${session.subject} (${session.roles.join(", ")}) · project ${session.project} · `,
      session.insecure ? "no sign-in" : el("a", {href: "#", onclick: (event) => { event.preventDefault(); signOut(); }}, "sign out"))));
  return session;
}

// Calls fn now and again `seconds` after it ended, while the page is visible. Shows what went wrong in `errors`.
export function poll(seconds, errors, fn) {
  const round = async () => {
    if (!document.hidden) {
      try {
        await fn();
        errors.textContent = "";
      } catch (error) {
        errors.textContent = `${error.message} (${error.code || "no answer"}); trying again`;
      }
    }
    setTimeout(round, seconds * 1000);
  };
  return round();
}

// Numbers that are not finite come as "NaN", "Infinity" or "-Infinity": JSON has none.
export function number(value) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2);
  return size >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

export function ago(timestamp) {
  if (!timestamp) return "";
  const seconds = Math.max(0, (Date.now() - Date.parse(timestamp)) / 1000);
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}
