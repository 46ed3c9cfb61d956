"""Writes cases.json: what `transformers` makes of the templates here for several conversations, and of small pieces of template syntax.

Run in an environment with transformers and jinja2:  python generate.py [--out FILE]
"""
import argparse
import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).resolve().parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def m(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    m(("user", "Hello!")),
    m(("system", "You are terse."), ("user", "What is 2 + 2?")),
    m(("user", "  spaces \n around  "), ("assistant", "\nyes \t"), ("user", "and then?")),
    m(("system", " Be kind. \n"), ("user", "Grüße, 你好, 🙂"), ("assistant", "<think>\nhm\n</think>\n\nHallo"), ("user", "again\r\nplease")),
    m(("user", "{{ not a template }} {% if %} \"quotes\" 'single' \\n")),
    m(("assistant", "I speak first")),
    m(("user", "one"), ("user", "two")),
    m(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "<think>x</think>d")),
    m(("user", "call"), ("assistant", "ok"), ("tool", "{\"temp\": 3}"), ("tool", "more"), ("assistant", "it is 3")),
    m(("system", ""), ("user", "")),
    m(("critic", "An unknown role"), ("user", "x")),
]

# Small pieces; `messages` is the fourth conversation.
SNIPPETS = [
    "{{ messages|length }}", "{{ messages[-1].content }}", "{{ messages[1:3]|map(attribute='role')|join(', ') }}", "{{ 'abc'[::-1] }}{{ 'äöü'[1] }}{{ 'hello'[1:4] }}{{ 'x'[5] }}|{{ 'abcdef'[-3:-1] }}{{ 'abc'[:-1] }}",
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 1 + 2 * 3 - 4 }} {{ 1.5 + 1 }} {{ 10 / 5 }} {{ 1e3 if false else 3.0 }}", "{{ true }} {{ none }} {{ false and x }} {{ 1 or 2 }} {{ [] or 'empty' }} {{ not 0 }}",
    "{{ [1, 'a', none, true, 2.5] }} {{ {'k': 'v', 'n': [1]} }} {{ (1, 2)|list }} {{ \"it's\" }} {{ [\"it's\", 'q\"q', 'a\\nb'] }}", "{{ {'a': 1, 'b': ['x', {'c': none}], 'd': true, 'ü': 'é\\n\"'}|tojson }}", "{{ {'a': [1, 2], 'b': {}, 'c': []}|tojson(indent=2) }}",
    "{% for c in 'abc' %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ c }} {% endfor %}", "{% for a in [1,2,3] %}{{ loop.previtem }}<{{ a }}>{{ loop.nextitem }} {{ loop.cycle('x', 'y') }};{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }},{% endfor %}{% for k in {'x': 1} %}{{ k }}{% endfor %}{% for k, v in {'a': 1}|items %}{{ k ~ v }}{% endfor %}", "{% for x in [] %}a{% else %}none{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}{{ range(1, 10, 3)|list }}{{ range(5, 0, -2)|list }}",
    "{% for x in [1,2,3,4,5] if x is odd %}{{ x }}{{ loop.index }}{% endfor %}", "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(n=0, s='') %}{% for i in [1,2,3] %}{% set ns.n = ns.n + i %}{% set ns.s = ns.s ~ i %}{% endfor %}{{ ns.n }}{{ ns.s }}", "{% set a, b = [1, 2] %}{{ a }}{{ b }}{% set t = 1, 2 %}{{ t|list }}", "{% set block %}in {{ 1 + 1 }} block{% endset %}[{{ block }}]",
    "{% macro f(a, b='B') %}({{ a }}{{ b }}){% endmacro %}{{ f('1') }}{{ f('1', '2') }}{{ f(b='x', a='y') }}{{ f() }}", "{% macro inner(x) %}<{{ x }}>{% endmacro %}{% macro outer(x) %}{{ inner(x) }}{{ inner(x ~ '!') }}{% endmacro %}{{ outer('q') }}",
    "{{ undefined_thing }}|{{ undefined_thing is defined }}|{{ messages is defined }}|{{ undefined_thing|default('d') }}|{{ ''|default('d') }}|{{ ''|default('d', true) }}|{{ none is none }}", "{{ messages[0].missing }}|{{ messages[0]['missing'] is defined }}|{{ messages[0].get('missing', 'x') }}|{{ messages[0].get('none') }}",
    "{{ ' ab '|trim }}|{{ '  ab '.strip() }}|{{ 'xxabxx'.strip('x') }}|{{ 'ab\\n\\n'.rstrip('\\n') }}|{{ ' a'.lstrip() }}|{{ 'aXbX'.replace('X', '-') }}|{{ 'aXbX'|replace('X', '') }}|{{ 'aXbX'.replace('X', '-', 1) }}",
    "{{ 'a,b,c'.split(',') }}{{ 'a,b,c'.split(',', 1) }}{{ ' a  b '.split() }}{{ 'a,b,c'.rsplit(',', 1) }}{{ 'a\\nb\\r\\nc'.splitlines() }}{{ ','.join(['x', 'y']) }}", "{{ 'Hello wORLD'|upper }}{{ 'Hello'|lower }}{{ 'hello wORLD'|capitalize }}{{ 'hello wORLD-two it\\'s'|title }}{{ 'straße'.upper() }}{{ 'ÄÖ'.lower() }}{{ 'ab'.title() }}",
    "{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}{{ 'b' in 'abc' }}{{ 'z' not in 'abc' }}{{ 2 in [1, 2] }}{{ 'k' in {'k': 1} }}{{ 'abcabc'.find('c') }}{{ 'abcabc'.count('b') }}{{ 'x1'.isdigit() }}{{ '12'.isdigit() }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ messages|rejectattr('role', 'eq', 'user')|map(attribute='role')|list }}{{ [1, 0, 2]|select|list }}{{ [1, 2, 3]|reject('odd')|list }}{{ ['a', 'b']|map('upper')|join }}{{ messages|selectattr('tool_calls')|list }}{{ messages|selectattr('role', 'in', ['system'])|list|length }}",
    "{{ [3, 1, 2]|sort }}{{ [3, 1, 2]|first }}{{ [3, 1, 2]|last }}{{ [1, 2]|reverse|list }}{{ 'abc'|reverse }}{{ [1, 1, 2]|unique|list }}{{ [1, 2]|sum }}{{ [1, 5, 2]|max }}{{ [4, 2]|min }}{{ {'b': 1, 'a': 2}|dictsort }}", "{{ 'a' ~ 1 ~ none ~ true }}{{ 'ab' * 3 }}{{ [1] * 2 + [3] }}{{ 'x' + 'y' }}", "{{ '3'|int + 1 }}{{ 'x'|int(7) }}{{ 3.9|int }}{{ '2.5'|float }}{{ -3|abs }}{{ 5|string ~ 'x' }}{{ 'x'|safe }}",
    "{{ 'a\\nb\\n\\nc'|indent(2) }}|{{ 'a\\nb'|indent(3, true) }}", "{{ 1 if true else 2 }}{{ 1 if false }}{{ 'a' if messages else 'b' }}{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' < 'b' }}{{ 1 == 1.0 }}{{ true == 1 }}{{ [1] == [1] }}{{ 'a' != 'b' }}{{ 2 >= 2 }}",
    "{{ 1 is number }}{{ 'a' is string }}{{ [] is iterable }}{{ {} is mapping }}{{ 1 is integer }}{{ 1.0 is float }}{{ true is boolean }}{{ [] is sequence }}{{ 4 is divisibleby 2 }}{{ 3 is even }}{{ none is not none }}{{ 1 is true }}{{ true is true }}{{ 2 is gt 1 }}{{ 'a' is in ['a'] }}",
    "a\n  {% if true %}\nb\n  {% endif %}\nc", "a\n  {%- if true -%}\n  b  \n  {%- endif -%}\n  c", "a\n  {%+ if true %}\nb{% endif +%}\nc", "{# comment #}\nx {#- strip -#} y\n  {# line #}\nz", "x{{ 1 }}\n{{ 2 }}\n", "line\n", "{{ 'a' }}\n\n", "{{ \"a\" 'b' }}{{ '\\x41\\u00e9\\t' }}{{ 'a\\'b' }}{{ 'x\\qy' }}",
    "{% if messages[0]['role'] == 'system' and messages|length > 1 %}S{% elif x %}E{% else %}N{% endif %}", "{% generation %}inside {{ 1 }}{% endgeneration %} after", "{{ dict(a=1, b='x')|tojson }}", "{{ messages[0].keys()|list }}{{ messages[0].values()|list|length }}{{ messages[0].items()|list|length }}", "{{ [[1, 2], [3]]|map('length')|list }}{{ [1,2,3][0] }}{{ [1,2,3].1 }}{{ {'a': {'b': 5}}.a.b }}{{ {'a': {'b': 5}}['a']['b'] }}",
    "{{ -2 ** 2 }}{{ 2 - -1 }}{{ - 3|abs }}{{ not true or true }}{{ 1 not in [2] and 3 }}{{ 'a' ~ 'b' == 'ab' }}", "{{ loop is defined }}{% for i in [1] %}{{ loop is defined }}{% endfor %}", "{%- set x = 'a' if true else 'b' -%} {{ x }}", "{{ 'A' 'B' ~ ('c') }}{{ ()|list }}{{ (1,)|list }}", "{{ 'ab\\u0000c'|length }}{{ '🙂é'|length }}", "{{ strftime_now('%Y')|length }}",
    # What cannot be printed, as repr writes it; tojson leaves it.
    "{{ ['\x01\x1b\x7f\x85\xa0\xad', '\u200b\u2028\ufeff\ue000', '\U0001f642\U000e0001é\u3000 ', \"'\x07\"] }}", "{{ {'k\u200b': '\xa0'} }}{{ ['\x01\x7f\xa0\u200b\u2028']|tojson }}{{ '\u200b' }}{{ ['a\u200b']|string }}",
    # Refused by both.
    "{{ undefined_thing.attribute }}", "{{ 1 + 'a' }}", "{{ raise_exception('no') }}", "{% for x in none %}{% endfor %}", "{{ 1 // 0 }}", "{{ 'a'|nofilter }}", "{% if %}{% endif %}", "{% endfor %}", "{{ [1, 2 }}", "{% for x in [1] %}", "{{ 'open }}", "{{ nothing() }}", "{{ [].append(1) }}", "{{ range(1000000)|list|length }}",
]


def render(source, messages, generation):
    # What apply_chat_template runs, without the checks of the model's tokenizer around it.
    try:
        text = _compile_jinja_template(source).render(messages=messages, tools=None, documents=None, add_generation_prompt=generation, **SPECIAL)
        return {"text": text}
    except Exception as error:  # noqa: BLE001: any refusal is one
        return {"error": type(error).__name__}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=str(HERE / "cases.json"))
    flags = parser.parse_args()
    out = {"made_with": {"transformers": transformers.__version__, "jinja2": jinja2.__version__}, "special": SPECIAL, "conversations": CONVERSATIONS, "templates": {}, "snippets": []}
    for file in sorted((HERE / "templates").glob("*.jinja")):
        source = file.read_text(encoding="utf-8")
        if file.stem == "llama31":
            # Ours has no strftime_now unless asked for: a prompt must not depend on the day.
            source = source.replace("strftime_now is defined", "false")
        out["templates"][file.stem] = [[render(source, c, g) for g in (False, True)] for c in CONVERSATIONS]
    for source in SNIPPETS:
        out["snippets"].append({"source": source, **render(source, CONVERSATIONS[3], True)})
    pathlib.Path(flags.out).write_text(json.dumps(out, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n", encoding="utf-8")
    refused = sum("error" in s for s in out["snippets"])
    print(f"{len(out['templates'])} templates, {len(out['snippets'])} snippets ({refused} refused)")


main()
