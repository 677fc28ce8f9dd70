"""Templates, contexts and what transformers renders of them: cases.json, a case a line.

Run with transformers 5 and jinja2 3.1.6: `python make.py`. A case without a context gets CONTEXT. Where transformers
refuses, null is expected. `strftime_now` is tested beside its code: it has no fixed answer.
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

PARAMETERS = {
    "type": "object",
    "description": "Gdzie łazik ma jechać: „do kuchni” albo <tam> & z powrotem",
    "properties": {"items": {"type": "array", "items": {"type": "string"}}, "prędkość": {"type": "number", "default": 0.1, "maximum": 1e20}, "cicho": {"type": "boolean", "default": True, "x": None}},
    "required": ["items"],
}
CONTEXT = {
    "messages": [
        {"role": "system", "content": "Mów zwięźle, żółwiu. 🐢"},
        {"role": "user", "content": "  Cześć!\n\tIt's \"fine\"  "},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "abc123def", "type": "function", "function": {"name": "jedź", "arguments": {"items": ["kuchnia", 3], "prędkość": 1.0}}}]},
        {"role": "tool", "content": "{\"ok\": true}", "tool_call_id": "abc123def"},
    ],
    "tools": [{"type": "function", "function": {"name": "jedź", "description": "Jedzie.", "parameters": PARAMETERS}}],
    "words": ["ala", "ma", "kota"], "numbers": [3, -7, 0], "text": "Zażółć gęślą jaźń", "empty": "", "nothing": None, "yes": True,
    "floats": [1.0, 0.1, 1e20, 1e16, 123456789.125, 1e-5, 0.0001, -0.0, 1e15, 2.5e-300], "big": 18446744073709551615, "small": -9223372036854775808,
    "person": {"name": "Żaneta", "age": 41, "tags": ["a'b", 'c"d', "e'\"f", "\\", "\n\t\x07\x7f", "ą\u00a0\u200b\ue000\U0001f916"]},
    "eos_token": "</s>", "bos_token": "<s>", "add_generation_prompt": True,
}

CASES = r"""
{{ tools | tojson }}
{{ tools | tojson(indent=4) }}
{{ tools | tojson(indent='\t') }}
{{ tools | tojson(indent='--') }}
{{ tools | tojson(indent=0) }}
{{ tools | tojson(ensure_ascii=True) }}
{{ tools | tojson(ensure_ascii=False, indent=2, sort_keys=True) }}
{{ tools | tojson(separators=(',', ':')) }}
{{ tools | tojson(separators=[', ', '='], sort_keys=true) }}
{{ person | tojson(true) }}|{{ person | tojson(false, 2) }}
{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ [[], {}] | tojson(indent=2) }}
{{ floats | tojson }} {{ big | tojson }} {{ small | tojson }} {{ [true, false, none] | tojson }}
{{ {2: 2, 1.5: 3, true: 4, none: 5} | tojson }}
{{ '</script> & \'q\' "' | tojson }}
{{ (1, 'a') | tojson }} {{ words[1:] | tojson }} {{ (words + ['x']) | tojson }}
{{ unknown | tojson }}
{{ words }} {{ numbers }} {{ floats }}
{{ person }}
{{ tools }}
{{ messages[2].tool_calls }}
{{ yes }} {{ nothing }} {{ not yes }} {{ [yes, nothing] }} {{ unknown }}
{{ ('a', 1) }} {{ ('a',) }} {{ () }} {{ [('x', [()])] }}
{{ person.items() | list }} {{ person.keys() | list }} {{ person.values() | list | length }}
{{ {'a': 1}.items() }} {{ {'a': 1}.keys() }} {{ {'a': 'b'}.values() }}
{% for item in {'a': 1}.items() %}{{ item }}{{ item[0] }}{% endfor %}
{% for k, v in person | dictsort %}{{ k }}={{ v }};{% endfor %}{{ person | dictsort(reverse=true) | first }}
{% for k, v in person | items %}{{ k }};{% endfor %}
{{ floats | join(' ') }} {{ [none, true, 1.0, [1]] | join('-') }}
{{ 'a' ~ none ~ true ~ 1.5 ~ 1e20 ~ ['x'] ~ {'k': 'v'} ~ unknown }}
{{ words | string ~ 1 }} {{ 1.0 | string }} {{ none | string }}
{{ '%s' % text }}|{{ '%s' % words }}|{{ '%s and %s' % (text, 3) }}
{{ '%d %r %5.2f %x %o %e %g %c %%' % (7, text, 3.14159, 255, 8, 12345.678, 0.00001, 'z') }}
{{ '%-8s|%8s|%08.3f|%+d|% d|%#x|%.3s' % ('ab', 'cd', -3.5, 4, 5, 255, 'żółw') }}
{{ '%(name)s is %(age)d' % person }}
{{ '%s' % (words,) }} {{ '%s' % none }} {{ '%r' % 'it\'s' }} {{ '%a' % text }}
{{ '%*d|%-*d|' % (5, 1, 5, 2) }} {{ '%i%%' % 99.9 }} {{ '%G' % 1e-10 }} {{ '%g' % 100000 }} {{ '%g' % 1000000 }}
{{ '%d' % 'x' }}
{{ '%s' % (1, 2) }}
{{ '%s %s' % 1 }}
{{ "%s-%s" | format('a', 2) }} {{ "%(a)s" | format(a='x') }}
{{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 // -2 }} {{ 7.5 // 2 }} {{ 7 / 2 }} {{ 2 ** 10 }}
{{ 2 + 3 * 4 - 6 / 2 }} {{ 'a' ~ 2 * 3 ~ 4 + '1' }} {{ 1 ~ 2 * 3 % 4 }}
{{ 10 % 4 * 3 }} {{ 3 * 10 % 4 }} {{ (1, 2) * 2 }} {{ -2 * 3 }} {{ -numbers[1] }} {{ -person.age | abs }} {{ 5 - -person.age }}
{{ '-' * 5 }}{{ 3 * 'ab' }}{{ 'x' * -1 }}|{{ [1, 2] * 2 }} {{ [0] * 0 }}
{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1.0 == true }} {{ 'a' < 'b' <= 'b' }} {{ [1, 2] == [1, 2] }} {{ 'a' != 'b' != 'a' }}
{{ 'gęś' in text }} {{ 'x' not in text }} {{ 'name' in person }} {{ 'ala' in words }} {{ 3 in numbers }} {{ '' in '' }} {{ 'x' in unknown }}
{{ not 'x' in text and yes or nothing }} {{ nothing or 'or' }} {{ empty and 'x' }} {{ 'y' if yes else 'n' }} {{ 'y' if nothing }}
{{ 1 if 0 else 2 if 0 else 3 }} {{ (1 if yes) ~ 'x' }}
{{ text[0] }} {{ text[-1] }} {{ text[1:4] }} {{ text[::-1] }} {{ text[-3:] }} {{ text[:-3] }} {{ text[::2] }} {{ text[99:] }}|
{{ words[::-1] }} {{ words[2:0:-1] }} {{ words[1:2:-1] }} {{ words[-2:] }} {{ words[:1] }} {{ words[5:] }} {{ words[0:3:2] }} {{ (1, 2, 3)[1:] }}
{{ messages[1:][0].role }} {{ messages[::-1][0].role }} {{ messages[-1]['role'] }} {{ messages | length }}
{{ words[9] }}|{{ person['no'] }}|{{ person.no }}|{{ nothing.x }}|{{ text.x }}|
{{ unknown.x }}
{{ nothing[1:] }}
{{ unknown['x'] }}
{{ unknown + 'x' }}
{{ text.upper() }} {{ text.lower() }} {{ text.title() }} {{ text.swapcase() }} {{ 'ŻÓŁW ß'.casefold() }} {{ 'żÓŁW'.capitalize() }} {{ "it's o'clock-ish".title() }}
{{ text | upper }} {{ text | lower }} {{ text | title }} {{ "it's (a) żółw-x" | title }} {{ 'ŻÓŁW żuk' | capitalize }} {{ nothing | upper }}
[{{ messages[1].content.strip() }}][{{ messages[1].content.lstrip() }}][{{ messages[1].content.rstrip() }}][{{ messages[1].content | trim }}]
{{ 'xxhixx'.strip('x') }} {{ 'abcba'.lstrip('ab') }} {{ 'abcba'.rstrip('ab') }} {{ 'xxhixx' | trim('x') }} {{ 'żhiż'.strip('ż') }}
{{ 'a,b,,c'.split(',') }} {{ 'a,b,,c'.split(',', 1) }} {{ ' a  b c '.split() }} {{ ' a  b c '.split(none, 1) }} {{ 'a,b,c'.split(',', maxsplit=1) }} {{ ''.split() }} {{ ''.split(',') }}
{{ 'a,b,,c'.rsplit(',', 1) }} {{ ' a  b c '.rsplit() }} {{ ' a  b c '.rsplit(none, 1) }} {{ 'a b'.rsplit(sep=' ') }} {{ 'a</think>b</think>c'.split('</think>')[-1] }}
{{ 'k=v=w'.partition('=') }} {{ 'k=v=w'.rpartition('=') }} {{ 'kv'.partition('=') }} {{ 'kv'.rpartition('=') }}
{{ 'a\nb\r\nc\rd'.splitlines() }} {{ 'a\nb\n'.splitlines(true) }} {{ 'a\u2028b\x0bc'.splitlines(keepends=True) }} {{ ''.splitlines() }}
{{ '<think>x'.removeprefix('<think>') }} {{ 'x</s>'.removesuffix('</s>') }} {{ 'x'.removeprefix('y') }} {{ 'x'.removesuffix('') }}
{{ 'ab'.center(7, '*') }}|{{ 'abc'.center(6, '*') }}|{{ 'ab'.ljust(5) }}|{{ 'ab'.rjust(5, '.') }}|{{ '-42'.zfill(6) }}|{{ 'ż'.zfill(3) }}|{{ 'ab' | center(7) }}|
{{ 'żółw w żabim'.find('w') }} {{ 'żółw w żabim'.rfind('ż') }} {{ 'żółw'.find('x') }} {{ 'żółw w'.find('w', 4) }} {{ 'żółw w'.index('ł') }} {{ 'abab'.count('ab') }} {{ 'aaa'.count('a', 1) }} {{ 'ab'.count('') }} {{ 'abc'.rindex('c') }}
{{ 'x'.index('y') }}
{{ text.startswith('Za') }} {{ text.startswith(('x', 'Za')) }} {{ text.endswith(('ń', 'x')) }} {{ text.startswith('ż', 2) }} {{ text.endswith('Za', 0, 2) }} {{ 'a'.startswith('') }}
{{ 'aXbXc'.replace('X', '-') }} {{ 'aXbXc'.replace('X', '-', 1) }} {{ 'ab'.replace('', '.') }} {{ 'aXbXc' | replace('X', '-', 1) }} {{ 'aXb' | replace('X', '') }} {{ 123 | replace('2', 'x') }}
{{ ', '.join(words) }} {{ ''.join([]) }} {{ '-'.join('abc') }} {{ words | join }} {{ words | join(', ') }} {{ messages | join('|', attribute='role') }}
{{ ', '.join([1, 2]) }}
{{ '{} {}'.format('a', 1) }} {{ '{1}{0}'.format('a', 'b') }} {{ '{n}!'.format(n=text) }} {{ '{{}} {:>5} {:.2f} {:05d}'.format('x', 3.14159, 42) }} {{ '{}'.format(words) }}
{{ '12'.isdigit() }} {{ '1a'.isdigit() }} {{ ''.isdigit() }} {{ 'żó'.isalpha() }} {{ ''.isalpha() }} {{ ' \t'.isspace() }} {{ ''.isspace() }} {{ 'AB1'.isupper() }} {{ '1'.isupper() }} {{ 'aż1'.islower() }} {{ 'Ab Cd'.istitle() }} {{ 'a1'.isalnum() }} {{ 'aż'.isascii() }} {{ 'a_1'.isidentifier() }}
{{ 'a\tbc\td'.expandtabs(4) }}
{{ person.get('name') }} {{ person.get('x') }} {{ person.get('x', 'y') }}
{% for name, p in tools[0].function.parameters.properties.items() %}{{ name }}:{{ p.type }}{{ p['default'] }}; {% endfor %}{{ tools[0].function.parameters.properties['items']['items'] }}
{{ words.index('ma') }} {{ words.count('ma') }} {{ (1, 2, 1).count(1) }} {{ (1, 2).index(2) }}
{{ words.append('x') }}
{{ person.update({'x': 1}) }}
{{ person.pop('name') }}
{{ 'Ala ma kota, a kot ma Alę_2 – 3.' | wordcount }} {{ '' | wordcount }}
{{ text | truncate(9) }} {{ text | truncate(9, true) }} {{ text | truncate(9, true, '', 0) }} {{ text | truncate(99) }} {{ 'raz dwa trzy cztery' | truncate(10, leeway=0) }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb\n\nc\n' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ', first=true) }}|
{{ '<a href="x">\'&\'</a>' | e }} {{ '<b>x</b>  <i>y</i>' | striptags }} {{ '<x>' | safe }} {{ 5 | escape }}
{{ '<a>' + (person.tags | tojson | safe) + '</a>' }} {{ '<' ~ ('&' | safe) }} {{ ('<' | e) + '>' }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ 1 + 2.5 }} {{ true + 1 }} {{ 5 + 3 - 2 + 1 }}
{{ [1] + (2,) }}
{{ PLUS }}
{{ 1 - 2 + 3 - 4 + 5 }} {{ 'a' + 'b' ~ 'c' + 'd' }} {{ 10 - (2 + 3) }} {{ -1 + 2 }}
{% macro m() %}<{% endmacro %}{% set b %}&{% endset %}{{ m() + '<' + b + ('"' | upper) + m() | trim }}
{{ 'a' + 1 }}
{{ '42' | int }} {{ '4.9' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ 3.9 | int }} {{ -3.9 | int }} {{ 'ff' | int(base=16) }} {{ '0x1f' | int(0, 16) }} {{ none | int }} {{ ' 5 ' | int }}
{{ '1.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ 'x' | float(2.5) }} {{ '1e3' | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.675 | round(2) }} {{ 42.55 | round(1) }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ 7 | round }} {{ -1.5 | round | int }}
{{ numbers | sum }} {{ numbers | max }} {{ numbers | min }} {{ numbers | sort }} {{ numbers | sort(reverse=true) }} {{ -5 | abs }} {{ [1.5, 2] | sum }}
{{ ['b', 'A', 'c'] | sort }} {{ ['b', 'A', 'c'] | sort(case_sensitive=true) }} {{ messages | sort(attribute='role') | map(attribute='role') | list }}
{{ [1, 2, 1] | unique | list }} {{ ['a', 'A'] | unique | list }} {{ words | first }} {{ words | last }} {{ words | reverse | list }} {{ text | reverse }} {{ [] | first }}|
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 0) | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }}
{% for role, group in messages | groupby('role') %}{{ role }}:{{ group | length }};{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='role') | join(',') }} {{ messages | selectattr('tool_calls') | list | length }} {{ messages | selectattr('tool_calls', 'defined') | list | length }}
{{ words | map('upper') | list }} {{ words | select('in', ['ma']) | list }} {{ numbers | reject('odd') | list }} {{ numbers | select | list }} {{ messages | map(attribute='x', default='-') | join }}
{{ unknown | default('d') }} {{ nothing | default('d') }} {{ nothing | default('d', true) }} {{ '' | d('e', boolean=true) }} {{ 0 | default(1) }}
{{ 'abc' | list }} {{ person | list }} {{ text | length }} {{ person | length }} {{ '' | length }} {{ words | count }}
{{ yes is boolean }} {{ 1 is boolean }} {{ 1 is integer }} {{ yes is integer }} {{ 1.0 is float }} {{ 1 is float }} {{ 1 is number }} {{ yes is number }} {{ '1' is number }}
{{ text is string }} {{ words is string }} {{ text is sequence }} {{ words is sequence }} {{ person is sequence }} {{ 1 is sequence }} {{ nothing is sequence }} {{ (1, 2) is sequence }}
{{ text is iterable }} {{ words is iterable }} {{ person is iterable }} {{ 1 is iterable }} {{ nothing is iterable }} {{ unknown is iterable }} {{ words | map('upper') is iterable }}
{{ person is mapping }} {{ words is mapping }} {{ nothing is none }} {{ unknown is none }} {{ unknown is defined }} {{ unknown is undefined }} {{ nothing is defined }} {{ debug is defined }} {{ pad_token is defined }} {{ bos_token is defined }}
{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 'a' is in 'abc' }} {{ 'a' is in ['b'] }} {{ nothing is sameas none }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 2 is gt 1 }} {{ 1 is lessthan 2 }} {{ 'A' is upper }} {{ 'a' is lower }} {{ yes is true }} {{ yes is false }} {{ range is callable }} {{ text is callable }}
{{ text is not none and text is not string or words is not mapping }} {{ not text is string }} {{ 1 is not eq 2 }} {{ 5 is divisibleby 2 + 3 }}
{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.n }}{{ ns.found }}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% for w in words %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('a', 'b') }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(w[0]) }};{% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %} {{ range(1, 10, 3) | list }} {{ range(3, 0, -1) | list }}
{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}{% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}{% endif %}{% endfor %}
{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, d) = (3, 4) %}{{ c ~ d }}
{% macro show(m, prefix='> ', n=2 * 3) %}{{ prefix ~ m.role ~ n }}{% endmacro %}{{ show(messages[0]) }} {{ show(messages[1], prefix='- ', n=7 % 4) }}
{% macro box(t) %}[{{ t }}:{{ caller('x') }}]{% endmacro %}{% call(v) box('a' ~ 'b') %}{{ v * 2 }}{% endcall %}{% filter upper | replace('A', 'b' ~ 'c') %}abc{% endfilter %}
{% set block %}in {{ text }}{% endset %}{{ block | length }}{% with a = 1, b = text[0] ~ 'x' %}{{ a }}{{ b }}{% endwith %}|{{ a }}
{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}
{% for m in messages %} {%- generation -%} {{ m.role }} {%- endgeneration -%} {% endfor %}
{%generation%}a{%endgeneration%} {%+ generation %}b{%+ endgeneration %} {%-generation%} c {%endgeneration-%} d {%   generation +%} e {%  endgeneration  -%} f
{% set v = 1 %}{% generation %}{% set v = 2 %}{{ v }}{% endgeneration %}{{ v }}
{% raw %}{{ not % this }}{% endraw %}{# {{ nor this }} #}|{#- x -#}|{%- raw -%} {% x %} {%- endraw -%} |
{{ "}}" }}{{ '%}' }}{{ "{{" ~ '{%' }}{{ {'a': {'b': 1}}['a']['b'] }}
{{ 'a\'b' }}{{ "c\"d" }}{{ 'e\\f' }}{{ 'g\nh' }}{{ '\u0105\x41\t|' }}{{ 'ź' '-' "ó" }}{{ '\d' }}{{ '\U0001f916' }}
{{- text -}} x {{- ' y ' -}} {{ -1 }}{{ - 1 }}{{ +1 }} {{ (-1) | abs }} {{ -1 | abs }}
{{ raise_exception('Nie tak: ' ~ text) }}
{{ dict(a=1, b='x') }} {{ {'a': 1, 'b': [true, none]} }} {{ {'x': 'y'}.x }} {{ {'x': 1} == {'x': 1} }} {{ dict(person, name='Ola').name }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }} {% set j = joiner('; ') %}{{ j() }}x{{ j() }}y
{{ big }} {{ small }} {{ big + 1 }} {{ 9007199254740993 }} {{ 1_000 }} {{ 0x1f }} {{ 1e3 }} {{ 1.50 }} {{ 1.5e-7 }} {{ 100000000000000000000.0 }}
{{ messages | map(attribute='content') | list }}
{% if tools %}{{ tools | map(attribute='function') | map(attribute='name') | join(', ') }}{% endif %}{{ tools[0]['function']['parameters']['properties'] | length }}
{{ messages[2]['tool_calls'][0].function.arguments | tojson }} {{ messages[2].tool_calls[0].function.arguments.items() | list }}
{{ bos_token + 'x' + eos_token }}{{ messages[0]['role'] + '\n' + messages[0]['content'] | trim + eos_token }}
{{ namespace(a=1).a }} {{ (messages | last).role }} {{ (text ~ '!') | upper }} {{ (1 if yes else 2) + 1 }} {{ ([1] + [2])[1] }} {{ ('a' ~ 'b')[0] }}
{{ words | map('length') | list }} {{ words | map('replace', 'a', 'o') | join(' ') }} {{ [[1, 2], [3]] | map('first') | list }} {{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }}
{{ messages | tojson | length }} {{ person | attr('x') }}|
""".replace("PLUS", " + ".join(["text[0]"] * 60)).strip("\n").split("\n")

# White space is what these are about.
BLOCKS = [
    "a\n  {% if yes %}\n    b\n  {% endif %}\nc\n",
    "a\n  {%+ if yes %}\n    b\n  {% endif +%}\nc\n\n",
    "a \n {%- if yes -%} \n b \n {%- endif -%} \n c",
    "a\r\n{% if yes %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "  {# note #}\nb\n   {#- note -#}  \n  c  {# x #}  d\n",
    "{% for m in messages %}\n    {{- m.role }}:\n    {{ m.content | trim }}\n{% endfor %}\nend",
    "{% set a = [\n  'x',\n  'y' ~\n  'z',\n] %}\n{{ a\n  | join(\n ',') }}\n",
    "{%- for m in messages -%}\n<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n{%- endfor -%}",
    "\n\n{% if true %}x{% endif %}\n\n",
    "{% raw %}\n  {{ x }}\n{% endraw %}\n  {% raw -%}\n y {%+ endraw %}",
    "\t{% if yes %} tab {% endif %}\t\n",
    "{% if yes %}a{% elif nothing %}b{% else %}c{% endif %}\n\n{% if nothing %}a{% elif yes ~ '' %}b{% else %}c{% endif %}",
]

# Their own contexts.
OWN = [
    ["{{ x }}", {"x": [{"a": "it's", "b": 'say "hi"', "c": "'\""}, "żółw 🐢", 1e22, None, True, []]}],
    ["{{ x | tojson }} {{ x }}", {"x": "\u0000\u001f\u007f\u0080\u2028\ud7ff\ue000\ufeff\U0001f600"}],
    ["{{ x | tojson(ensure_ascii=true) }}", {"x": {"ż": "🤖 \u2028"}}],
    ["{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}{{ x.keys() | list }}{{ x['items'] }}", {"x": {"items": 1, "keys": 2, "get": 3}}],
    ["{{ x.get('get') }} {{ x['values'] }} {{ x.values() | list }}", {"x": {"get": 3, "values": [4]}}],
    ["{{ x == 1 }} {{ x is true }} {{ x }} {{ x + 1 }}", {"x": True}],
    ["{% if x is defined and x is not none %}set{% else %}unset{% endif %}{{ x }}", {"x": None}],
    ["{{ x[0] }}{{ x[1]['a'][-1] }}{{ x | length }}", {"x": ["ą", {"a": ["b", "ć"]}]}],
    ["{% for m in x %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}{% endfor %}", {"x": [{"role": "user"}, {"role": "assistant"}]}],
    ["{% for m in x %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role }}{% endfor %}", {"x": [{"role": "assistant"}]}],
    ["{{ '%s' % x }} {{ '%d' % x }} {{ '%.1f' % x }} {{ '%5s|' % x }} {{ '%05d' % x }}", {"x": -42}],
    ["{{ '%s' % x }} {{ x ~ '' }} {{ x | int }} {{ x // 1 }} {{ x % 1 }}", {"x": 2.5}],
]


def render(template, context):
    try:
        return _compile_jinja_template(template).render(**context)
    except Exception as error:  # whatever it says, it refuses
        print(f"refused: {template}: {error!r}")
        return None


if __name__ == "__main__":
    cases = [[template, None] for template in CASES + BLOCKS] + OWN
    lines = [json.dumps([template, context, render(template, context or CONTEXT)], ensure_ascii=False) for template, context in cases]
    lines.insert(0, json.dumps(CONTEXT, ensure_ascii=False))
    Path(__file__).with_name("cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
