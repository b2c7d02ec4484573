"""Chat templates of strangers do what jinja2 does, within limits of time, memory and length."""

# ruff: noqa: E501 - a template a line

import resource
import time
from types import SimpleNamespace

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen3_model.errors import FormatError
from qwen3_model.text.chat_template import LONGEST_TEMPLATE, render_chat_template
from qwen3_model.text.template_budget import TemplateLimitError

MOST_SECONDS = 8
"""Of processor time for any refusal, on a slow machine."""
MOST_KB = 700_000
"""By which a refusal may grow the process."""

VALUES = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a < b & 'c'"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\nyes\n", "tool_calls": [{"name": "f"}]},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": [1, 2.5, None, True]}}}],
    "add_generation_prompt": True,
}

ORDINARY = [
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ m.role }}: {{ m['content']|trim }}\n{% endfor %}",
    "{% for m in messages[::-1] if m.role != 'system' %}{{ loop.last }}{{ m.content }}{% else %}-{% endfor %}",
    "{%- set ns = namespace(n=0, t='', l=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.t = ns.t ~ m.role ~ ns.n %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.t }}{{ ns.l }}",
    "{% macro show(m, sep=': ') %}{{ m.role + sep + m.content }}{% endmacro %}{{ show(messages[0]) }}",
    "{% macro deep(n) %}{{ n }}{% if n %}{{ deep(n - 1) }}{% endif %}{% endmacro %}{{ deep(9) }}",
    "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}",
    "{{ messages|rejectattr('tool_calls', 'defined')|map(attribute='content')|map('upper')|join }}",
    "{{ messages[2].content.split('</think>')[-1].lstrip('\\n') }}|{{ messages[2].content.replace('\\n', ' ') }}",
    "{{ messages[0].content.startswith('Be') }}{{ 'x' in messages[0].content }}{{ messages[0].keys()|list }}",
    "{{ '%s has %05.2f' % (messages[0].role, 1.5) }}{{ '{} {:>5}'.format('a', 7) }}{{ '%s'|format('b') }}",
    "{{ (7 * 6) % 5 }}{{ 2 ** 10 }}{{ 7 // 2 }}{{ 1 / 4 }}{{ -3 }}{{ 'ab' * 3 }}{{ [1] * 2 + [2] }}{{ (1, 2) }}",
    "{{ {'a': messages[0].role, 'b': [1]} }}{{ dict(a=1) }}{{ {'b': 1, 'a': 2}|dictsort }}{{ {'b': 1}|items|list }}",
    "{% for k, v in tools[0]['function'].items() %}{{ k }}={{ v }};{% endfor %}{{ range(3)|list }}{{ none }}",
    "{{ 'a\\nb'|indent(2) }}{{ 'Ab'|title|lower|capitalize }}{{ [3, 1, 2]|sort|first }}{{ [1, 1, 2]|unique|list }}",
    "{{ ' x '|trim|center(5) }}{{ 3.14159|round(2) }}{{ ['a', 'b']|join('-') }}{{ undefined_name|default('d') }}",
    "{% filter upper %}{{ messages[0].role }}{% endfilter %}{% set x %}[{{ messages|length }}]{% endset %}{{ x }}",
    "{% for m in messages recursive %}{{ m.role or m }}{% if m.tool_calls %}{{ loop(['f']) }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.role }}{% break %}{% endfor %}",
    "{% macro w() %}{{ caller('y') }}{% endmacro %}"
    "{% call(x) w() %}<{{ x }}>{% endcall %}{% with a = 1 %}{{ a }}{% endwith %}{{ cycler('a', 'b').next() }}",
    "{{ messages[0].content is string }}{{ tools is mapping }}{{ 4 is even }}{{ missing is defined }}{{ 'x' if 1 }}",
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% endif %}{{ rest|length }}{{ 5|string }}",
]


@pytest.mark.parametrize("template", ORDINARY)
def test_an_ordinary_template_gives_what_jinja2_gives(template):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    assert render_chat_template(template, VALUES) == environment.from_string(template).render(**VALUES)


DOUBLING = "{% set ns = namespace(x=X) %}{% for i in range(90) %}{% set ns.x = Y %}{% endfor %}"
HOSTILE = {
    "power": "{{ 10**100000000 % 7 }}",
    "power_of_powers": "{{ ((9**99)**99)**99 }}",
    "square": DOUBLING.replace("X", "3").replace("Y", "ns.x * ns.x") + "{{ ns.x }}",
    "percent_width": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (1000000000, 1) }}",
    "percent_precision": "{{ '%.1000000000f' % 1 }}",
    "percent_again": "{{ ('%(a)s' * 2000) % {'a': 'x' * 1000000} }}",
    "format_filter": "{{ '%1000000000d'|format(1) }}",
    "format_method": "{{ '{:1000000000d}'.format(1) }}",
    "format_from_value": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format_again": "{{ ('{0}' * 2000).format('x' * 1000000) }}",
    "format_by_attr": "{{ ('{:1000000000}'|attr('format'))(1) }}",
    "repeated_text": "{{ 'x' * 1000000000 }}",
    "repeated_list": "{{ [1] * 1000000000 }}",
    "repeated_constant": "{% for i in range(99999) %}{% for j in range(99999) %}"
    + "x" * 5000
    + "{% endfor %}{% endfor %}",
    "doubled_text": DOUBLING.replace("X", "'ab'").replace("Y", "ns.x + ns.x") + "{{ ns.x }}",
    "doubled_by_tilde": DOUBLING.replace("X", "'ab'").replace("Y", "ns.x ~ ns.x") + "{{ ns.x }}",
    "doubled_list": DOUBLING.replace("X", "['ab']").replace("Y", "ns.x + ns.x") + "{{ ns.x }}",
    "doubled_by_join": DOUBLING.replace("X", "'ab'").replace("Y", "[ns.x, ns.x]|join") + "{{ ns.x }}",
    "nested_lists": DOUBLING.replace("X", "['ab']").replace("Y", "[ns.x, ns.x]") + "{{ ns.x }}",
    "nested_tuples": DOUBLING.replace("X", "('ab',)").replace("Y", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "nested_dicts": DOUBLING.replace("X", "{}").replace("Y", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x|tojson }}",
    "nested_by_dict": DOUBLING.replace("X", "{}").replace("Y", "dict(a=ns.x, b=ns.x)") + "{{ ns.x == ns.x }}",
    "nested_namespaces": DOUBLING.replace("X", "1").replace("Y", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "namespace_in_list": DOUBLING.replace("X", "1").replace("Y", "[ns, ns]") + "{{ ns.x }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops_of_slices": "{% for a in range(99999) %}{% set x = ('x' * 9000000)[1:] == ('x' * 9000000)[1:] %}{% endfor %}",
    "recursive_loop": "{% for a in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "range": "{{ range(10**9)|list }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "branching_recursion": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "growing_macro": "{% macro m(n) %}x{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "growing_set": "{% set x = 'x' * 9000000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}{{ y }}",
    "center": "{{ 'x'|center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "translate": "{{ 'x'.translate({120: 'y' * 1000000}) }}",
    "indent": "{{ 'x\\ny'|indent(1000000000) }}",
    "indent_lines": "{{ ('x\\n' * 1000000)|indent(9000) }}",
    "replace": "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
    "replace_nothing": "{{ ('x' * 1000000)|replace('', 'y' * 1000000) }}",
    "join": "{{ ('x' * 1000000).join('y' * 1000000) }}",
    "join_filter": "{{ (['x'] * 100000)|join('y' * 1000000) }}",
    "batch": "{{ [1]|batch(1000000000, 'x')|list }}",
    "slice": "{{ [1]|slice(1000000000, 'x')|list }}",
    "round": "{{ 1|round(-1000000000) }}",
    "tojson": "{{ [[1]]|tojson(indent=1000000000) }}",
    "sum": "{{ ([[1] * 1000] * 1000)|sum(start=[]) }}",
    "lipsum": "{{ lipsum(1000000) }}",
    "wordwrap": "{{ ('x ' * 1000000)|wordwrap(1, wrapstring='y' * 1000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "lazy_filters": "{{ range(99999)|map('string')|map('center', 9000)|list }}",
    "date": "{{ strftime_now('%Y' * 1000000) }}",
    "division": "{{ 1 / 0 }}",
    "overflow": "{{ 1e300 ** 99 }}",
    "deep_expression": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep_lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep_blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "deep_loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "many_attributes": "{{ a" + ".b" * 30000 + " }}",
    "too_long": "x" * (LONGEST_TEMPLATE + 1),
    "unclosed": "{% for",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends messages %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attributes_by_filter": "{{ (''|attr('__class__')).__mro__ }}",
    "attributes_by_format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "attributes_by_format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "attributes_of_globals": "{{ cycler.__init__.__globals__ }}",
    "attributes_of_names": "{{ raise_exception.__globals__.x }}",
    "budget": "{{ self._budget.x }}{{ caller.y.z }}{{ budget.x }}",
    "changed_values": "{% set _ = messages.append(1) %}",
    "changed_message": "{% set _ = messages[0].update({'role': 'x'}) %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_sentence_soon(name):
    started_s, before_kb = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError) as found:
        render_chat_template(HOSTILE[name], VALUES)
    sentence = str(found.value)
    assert sentence.startswith("the chat template ")
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert time.process_time() - started_s < MOST_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < MOST_KB
    assert VALUES["messages"][0]["role"] == "system"


def test_a_limit_is_an_error_of_its_own():
    with pytest.raises(
        TemplateLimitError, match=r"^the chat template goes beyond its limits: it takes more than"
    ):
        render_chat_template(HOSTILE["loops"], VALUES)


def test_a_long_conversation_stays_within_the_limits():
    messages = [{"role": "user", "content": "word " * 400}] * 2000
    text = render_chat_template(ORDINARY[0], {"messages": messages})
    assert len(text) > 4_000_000


def test_objects_of_the_program_have_no_attributes_for_a_template():
    with pytest.raises(FormatError):
        render_chat_template("{{ x._secret.y }}", {"x": SimpleNamespace(_secret=1)})
