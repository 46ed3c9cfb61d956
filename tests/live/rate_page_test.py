"""The raters' page in a real browser: signing in, comparing by mouse and by keyboard, rating, editing, skipping, on a desk and on a phone."""
import json
import os
import pathlib
import sys
import unittest
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import chromium  # noqa: E402
from service import Service, until  # noqa: E402

PROMPTS = 12

# WCAG's contrast of two colours, and what is wrong with a page: controls without a name, text that is hard to read.
AUDIT = """(() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  const problems = [];
  for (const e of document.querySelectorAll("input, textarea, button, select")) {
    const named = (e.labels && e.labels.length) || e.getAttribute("aria-label") || (e.tagName === "BUTTON" && e.textContent.trim());
    if (!named) problems.push("no label: " + e.outerHTML.slice(0, 80));
  }
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  for (const e of document.querySelectorAll("p, h1, h2, legend, label, button, kbd, a, span, textarea, input")) {
    if (!(e.value || e.textContent).trim() || e.offsetParent === null) continue;
    const text = ratio(light(getComputedStyle(e).color), light(ground(e)));
    if (text < 4.5) problems.push(`contrast ${text.toFixed(2)}: ` + e.outerHTML.slice(0, 80));
  }
  // What shows where a control is: its edge, against what surrounds it (WCAG 1.4.11).
  for (const e of document.querySelectorAll("textarea, input[type=password], button:not(.primary), .choices label")) {
    const edge = ratio(light(getComputedStyle(e).borderTopColor), light(ground(e.parentElement)));
    if (edge < 3) problems.push(`edge ${edge.toFixed(2)}: ` + e.outerHTML.slice(0, 80));
  }
  if (!document.documentElement.lang) problems.push("no language");
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth) problems.push("scrolls sideways");
  return problems;
})()"""


class RatePageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not chromium.find():
            raise unittest.SkipTest("no chromium here")
        cls.service = Service()
        samples = cls.service.scratch / "samples.jsonl"
        with open(samples, "w") as file:
            for p in range(PROMPTS):
                for i in range(2):
                    file.write(json.dumps({"id": str(p), "index": i, "prompt": f"Question {p}?", "response": f"Answer {i} <b>of</b> {p}"}) + "\n")
        cls.service.ctl("data", "push", samples, "--alias", "samples")

    @classmethod
    def tearDownClass(cls):
        cls.service.close()

    def setUp(self):
        self.browser = chromium.Browser()

    def tearDown(self):
        self.browser.close()

    def submit(self, name, more):
        path = self.service.scratch / f"{name}.yaml"
        path.write_text(f"name: {name}\ncollect:\n  samples: samples\n{more}")
        self.service.ctl("submit", path)

    def open(self, job):
        web = self.service.ports()["coordinator"]["web"]
        self.browser.go(f"https://127.0.0.1:{web}/signin?next={urllib.parse.quote(f'/rate?job={job}', safe='')}")
        self.browser.wait("document.querySelector('input[name=token]') !== null")
        self.browser.js(f"document.querySelector('input[name=token]').value = {json.dumps(self.service.token('rater'))}")
        self.browser.js("document.querySelector('form').requestSubmit()")
        self.browser.wait("document.querySelector('#form') !== null")

    def signed_in_to(self):
        """Where the browser went from the sign-in page, whether or not somebody is there; None until it went."""
        try:
            history = self.browser.call("Page.getNavigationHistory")
        except AssertionError:
            return None  # the page is changing under us
        address = history["entries"][history["currentIndex"]]["url"]
        return None if "/signin" in address else address

    def test_signing_in_stays_on_this_site(self):
        here = f"https://127.0.0.1:{self.service.ports()['coordinator']['web']}/"
        elsewhere = ("/\t/example.com/", "/\n/example.com/", "//example.com/", "/\\example.com/", "/.//example.com/", "https://example.com/", "\x01//example.com/")
        for wanted in (*elsewhere, "/rate?job=x"):
            self.browser.go("about:blank")
            self.browser.go(f"{here}signin?next={urllib.parse.quote(wanted, safe='')}")
            self.browser.wait("document.querySelector('input[name=token]') !== null")
            self.browser.js(f"document.querySelector('input[name=token]').value = {json.dumps(self.service.token('rater'))}")
            self.browser.js("document.querySelector('form').requestSubmit()")
            address = until("the browser is elsewhere", 20, self.signed_in_to)
            self.assertTrue(address.startswith(here), f"{wanted!r} led to {address}")
        self.assertEqual(address, here + "rate?job=x")

    def prompt(self):
        return self.browser.wait("document.querySelector('#prompt') && document.querySelector('#prompt').textContent")

    def after(self, prompt):
        self.browser.wait(f"!!document.querySelector('#done') || (document.querySelector('#prompt') && document.querySelector('#prompt').textContent !== {json.dumps(prompt)})")

    def press(self, key, code=None):
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        extra = {"windowsVirtualKeyCode": 13} if key == "Enter" else {}
        self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **extra)
        self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key, **extra)

    def comparisons(self, job):
        out = self.service.ctl("feedback", "export", "--job", job, "--format", "own").stdout
        return [json.loads(line) for line in out.splitlines()]

    def test_answers_are_compared_by_mouse_and_keyboard_and_the_order_is_mixed(self):
        self.submit("compare", f"  comparisons: {PROMPTS}\n  criteria: [helpful]\n")
        self.open("compare")
        browser, chosen, left = self.browser, {}, {}
        for scheme in ("dark", "light"):
            browser.scheme(scheme)
            self.assertEqual(browser.js(AUDIT), [], scheme)
        self.assertEqual(browser.js("document.querySelectorAll('#task b').length"), 0, "an answer is text, never markup")
        browser.js("document.getElementById('send').click()")
        browser.wait("document.querySelector('[role=alert]').textContent.includes('which answer is better')")
        for i in range(PROMPTS):
            prompt = self.prompt()
            left[prompt] = browser.js("document.querySelector('#answer-a .text').textContent")
            if i == 0:  # by mouse: the left one
                chosen[prompt] = left[prompt]
                browser.js("document.getElementById('prefer-a').click()")
                browser.js("document.getElementById('strength-1').click()")
                browser.js("document.querySelector('input[name=\"a:helpful\"][value=\"5\"]').click()")
                browser.js("document.querySelector('input[name=\"b:helpful\"][value=\"2\"]').click()")
                browser.js("document.getElementById('comment').value = 'clearer'")
                self.assertTrue(browser.js("document.getElementById('answer-a').classList.contains('chosen')"))
                browser.js("document.getElementById('send').click()")
            else:  # by keyboard only: the right one, or a tie at last
                tie = i == PROMPTS - 1
                chosen[prompt] = None if tie else browser.js("document.querySelector('#answer-b .text').textContent")
                self.press("3" if tie else "2")
                self.press("Enter")
            self.after(prompt)
        browser.wait("!!document.querySelector('#done')")
        self.assertIn(f"{PROMPTS} of {PROMPTS} answered, {PROMPTS} by you", browser.js("document.getElementById('counts').textContent"))
        self.assertEqual(browser.problems, [])
        swapped = 0
        for made in self.comparisons("compare"):
            prompt, first, second = made["prompt"]["text"], made["first"]["text"], made["second"]["text"]
            preferred = {"FIRST": first, "SECOND": second, "TIE": None}[made["preference"]]
            self.assertEqual(preferred, chosen[prompt], prompt)
            swapped += left[prompt] == second
            self.assertEqual(made["second_shown_first"], left[prompt] == second)
            if made.get("comment"):
                best = "first_ratings" if preferred == first else "second_ratings"
                worst = "second_ratings" if preferred == first else "first_ratings"
                self.assertEqual((made[best], made[worst], made["strength"]), ({"helpful": 5}, {"helpful": 2}, 1))
        self.assertTrue(0 < swapped < PROMPTS, f"{swapped} of {PROMPTS} were shown the other way round")
        until("the job ends", 20, lambda: self.service.job("compare")["state"] == "SUCCEEDED")

    def focused(self):
        """The focused element: its id, or its name and value; and whether the focus can be seen."""
        return self.browser.js("""(() => {
          const e = document.activeElement, seen = [e, e.closest("label")].some((x) => {
            if (!x) return false;
            const s = getComputedStyle(x);
            return s.outlineStyle !== "none" && parseFloat(s.outlineWidth) > 0;
          });
          return {what: e.id || e.tagName, name: e.name || "", seen};
        })()""")

    def tab_to(self, wanted, most=60):
        """Presses Tab until the wanted element has the focus; every control on the way shows its own."""
        for _ in range(most):
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9)
            self.browser.call("Input.dispatchKeyEvent", type="keyUp", key="Tab", code="Tab", windowsVirtualKeyCode=9)
            now = self.focused()
            if now["what"] != "BODY":
                self.assertTrue(now["seen"], f"the focus on {now} cannot be seen")
            if wanted in (now["what"], now["name"]):
                return
        self.fail(f"Tab does not come to {wanted}")

    def type(self, text):
        self.browser.call("Input.insertText", text=text)

    def test_everything_can_be_done_with_the_keyboard_alone(self):
        self.submit("keys", "  comparisons: 3\n  criteria: [helpful]\n")
        web = self.service.ports()["coordinator"]["web"]
        self.browser.go(f"https://127.0.0.1:{web}/signin?next={urllib.parse.quote('/rate?job=keys', safe='')}")
        self.browser.wait("document.querySelector('input[name=token]') !== null")
        self.assertEqual(self.browser.js(AUDIT), [])
        if self.focused()["name"] != "token":
            self.tab_to("token")
        self.type(self.service.token("rater"))
        self.press("Enter")
        self.browser.wait("document.querySelector('#form') !== null")
        self.assertEqual(self.focused()["what"], "question", "a new task is announced: its question has the focus")
        prompt = self.prompt()
        # Ratings of the left answer, its preference, how clearly, a comment, whose letters are no commands.
        self.tab_to("a:helpful")
        self.press(" ")
        self.press("1")
        self.press("w")
        self.tab_to("comment")
        self.type("right ")
        self.press("s")
        self.press("2")
        self.tab_to("send")
        self.press("Enter")
        self.after(prompt)
        # Skipped by its key; the last by a tie.
        prompt = self.prompt()
        self.press("s")
        self.after(prompt)
        prompt = self.prompt()
        self.press("3")
        self.press("Enter")
        self.browser.wait("!!document.querySelector('#done')")
        self.assertEqual(self.browser.problems, [])
        made = self.comparisons("keys")
        self.assertEqual(sorted(one["preference"] == "TIE" for one in made), [False, True])
        first = next(one for one in made if one["preference"] != "TIE")
        self.assertEqual((first["comment"], first["strength"]), ("right s2", 0.67))
        self.assertIn({"helpful": 1}, (first.get("first_ratings"), first.get("second_ratings")))

    def sign_in(self, token):
        """Signs in where the page asks for it."""
        self.browser.wait("document.querySelector('input[name=token]') !== null")
        self.browser.js(f"document.querySelector('input[name=token]').value = {json.dumps(token)}")
        self.browser.js("document.querySelector('form').requestSubmit()")

    def in_another_tab(self, token):
        """What a sign-in in another tab of this browser does: the cookie is another session's."""
        self.assertEqual(self.browser.js(f"""fetch("/session", {{method: "POST", headers: {{"Content-Type": "application/json"}},
            body: JSON.stringify({{token: {json.dumps(token)}}})}}).then((answer) => answer.status)"""), 200)

    def test_what_was_typed_outlives_a_session_that_expires(self):
        self.submit("drafts", "  comparisons: 2\n  criteria: [helpful]\n")
        self.open("drafts")
        browser, prompt = self.browser, self.prompt()
        browser.js("document.getElementById('comment').focus()")
        self.type("half a thought")
        browser.js("document.getElementById('prefer-b').click()")
        browser.js("document.querySelector('input[name=\"a:helpful\"][value=\"2\"]').click()")
        right = browser.js("document.querySelector('#answer-b .text').textContent")
        # The cookie is gone, as when the session is too old.
        browser.call("Network.clearBrowserCookies")
        browser.js("document.getElementById('send').click()")
        self.sign_in(self.service.token("rater"))
        self.assertEqual(self.prompt(), prompt, "the task that was in hand")
        self.assertEqual(browser.js("document.getElementById('comment').value"), "half a thought")
        self.assertTrue(browser.js("document.getElementById('prefer-b').checked && document.getElementById('answer-b').classList.contains('chosen')"))
        browser.js("document.getElementById('send').click()")
        self.after(prompt)
        self.assertEqual(browser.js("document.getElementById('comment').value"), "", "another task is another draft")
        self.assertEqual(browser.js("Object.keys(sessionStorage).length"), 0, "what was sent is not kept")
        [made] = self.comparisons("drafts")
        self.assertEqual((made["comment"], made["first"]["text"] if made["preference"] == "FIRST" else made["second"]["text"]), ("half a thought", right))
        self.assertIn({"helpful": 2}, (made.get("first_ratings"), made.get("second_ratings")))

    def test_a_sign_in_in_another_tab_is_no_dead_end(self):
        self.submit("tabs", "  comparisons: 2\n")
        self.open("tabs")
        browser, prompt = self.browser, self.prompt()
        self.in_another_tab(self.service.token("rater"))
        self.press("1")
        self.press("Enter")
        self.after(prompt)
        self.assertEqual(browser.js("document.querySelector('[role=alert]').textContent"), "", "the same person goes on")
        prompt = self.prompt()
        self.in_another_tab(self.service.token("overseer"))
        self.press("2")
        self.press("Enter")
        browser.wait("document.querySelector('[role=alert]').textContent.includes('reload it to go on as')")
        self.assertEqual(self.prompt(), prompt, "nothing is sent in another's name, and nothing is lost")
        self.in_another_tab(self.service.token("rater"))
        self.press("Enter")
        browser.wait("!!document.querySelector('#done')")

    def test_a_key_that_is_held_answers_one_task(self):
        self.submit("held", "  comparisons: 4\n")
        self.open("held")
        prompt = self.prompt()
        self.press("1")
        # Held: the tasks that come meanwhile are not answered, nor skipped, by it.
        for key, more in (("Enter", {"text": "\r", "windowsVirtualKeyCode": 13}), ("s", {"text": "s"})):
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
            self.after(prompt)
            prompt = self.prompt()
            for repeated in (("1", {"text": "1"}), (key, more), (key, more)):
                self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=repeated[0], autoRepeat=True, **repeated[1])
            self.browser.js("document.getElementById('send').focus()")
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, autoRepeat=True, **more)
            self.browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)
            self.assertEqual(self.prompt(), prompt)
            self.assertFalse(self.browser.js("document.getElementById('prefer-a').checked"))
        stats = json.loads(self.service.ctl("--output", "json", "feedback", "stats", "--job", "held").stdout)
        self.assertEqual((int(stats["answered"]), int(stats["skipped"])), (1, 1))

    def test_texts_run_in_the_direction_of_their_script(self):
        samples = self.service.scratch / "hebrew.jsonl"
        samples.write_text("".join(json.dumps({"id": "0", "index": i, "prompt": "מה שלומך?", "response": text}) + "\n"
                                   for i, text in enumerate(("טוב, תודה", "Fine, thanks"))))
        self.service.ctl("data", "push", samples, "--alias", "hebrew")
        path = self.service.scratch / "hebrew.yaml"
        path.write_text("name: hebrew\ncollect:\n  samples: hebrew\n  comparisons: 1\n")
        self.service.ctl("submit", path)
        self.open("hebrew")
        direction = lambda what: self.browser.js(f"getComputedStyle({what}).direction")
        self.assertEqual(direction("document.getElementById('prompt')"), "rtl")
        for text, expected in (("טוב, תודה", "rtl"), ("Fine, thanks", "ltr")):
            self.assertEqual(direction(f"[...document.querySelectorAll('.answer .text')].find((e) => e.textContent === '{text}')"), expected)
        self.browser.js("document.getElementById('comment').value = 'ברור'")
        self.assertEqual(direction("document.getElementById('comment')"), "rtl")

    def test_edits_ratings_and_skips_on_a_phone(self):
        self.submit("edits", "  comparisons: 6\n  edit_fraction: 0.5\n  rating_fraction: 0.5\n  criteria: [helpful, honest]\n")
        self.browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        self.open("edits")
        skipped = kinds = 0
        for i in range(6):
            prompt = self.prompt()
            self.assertEqual(self.browser.js(AUDIT), [])
            smallest = self.browser.js("Math.min(...[...document.querySelectorAll('.choices label, .actions button')].map((e) => e.getBoundingClientRect().height))")
            self.assertGreaterEqual(smallest, 44, "large enough for a finger")
            if i == 2:
                skipped += 1
                self.browser.js("document.getElementById('skip').click()")
            elif self.browser.js("document.getElementById('written') !== null"):
                kinds |= 1
                self.browser.js("document.getElementById('written').value += ', better'")
                self.browser.js("document.getElementById('send').click()")
            else:
                kinds |= 2
                for criterion in ("helpful", "honest"):
                    self.browser.js(f"document.querySelector('input[name=\"a:{criterion}\"][value=\"4\"]').click()")
                self.browser.js("document.getElementById('send').click()")
            self.after_any(prompt)
        self.browser.wait("!!document.querySelector('#done')")
        self.assertEqual(self.browser.problems, [])
        self.assertEqual(len(self.comparisons("edits")), 6 - skipped)
        if folder := os.environ.get("RLHF_KEEP_PICTURES"):
            self.browser.screenshot(pathlib.Path(folder) / "rate-phone.png")

    def after_any(self, prompt):
        """The same prompt may come again as another kind of task: the form is a new one."""
        self.browser.wait("!!document.querySelector('#done') || !!document.querySelector('#send:not([disabled])')")


if __name__ == "__main__":
    unittest.main()
