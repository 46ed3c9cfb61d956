import {el, signIn} from "/app.js";

const error = el("p", {class: "error", role: "alert"});
const token = el("input", {type: "password", name: "token", autocomplete: "off", required: true, autofocus: true});

// Only a page of this site, so that a link cannot send a person who signed in elsewhere. Judged as the browser reads it:
// "/<tab>/example.com" is another site's.
function next() {
  const wanted = new URLSearchParams(location.search).get("next") || "/";
  try {
    const page = new URL(wanted, location.origin);
    return page.origin === location.origin ? page.href : "/";
  } catch {
    return "/";
  }
}

document.getElementById("page").append(el("form", {
  class: "card",
  onsubmit: async (event) => {
    event.preventDefault();
    try {
      await signIn(token.value.trim());
      location.assign(next());
    } catch (problem) {
      error.textContent = problem.message;
    }
  },
}, el("h1", {}, "Sign in"),
  el("p", {class: "soft"}, "With a token of yours. An admin makes one with “rlhfctl token create”."),
  el("label", {}, "Token", token), el("button", {class: "primary"}, "Sign in"), error));
