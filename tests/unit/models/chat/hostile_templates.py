"""Chat templates that would fill the memory or run forever, by what they use.

Run as a program, it renders each under limits of the process, and prints a line of JSON about it.
"""

import json
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

R = "range(99999)"  # what stands for R below

_HOSTILE = {
    # loops
    "nested empty loops": "{% for a in R %}{% for b in R %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for a in R %}{% for b in R if false %}{% endfor %}{% endfor %}",
    "a loop over a text": "{% set s = 'x' * 999999 %}{% for a in s %}{% for b in s %}{% endfor %}"
    "{% endfor %}",
    "loops of output": "{% for a in R %}{{ 'x' * 10000 }}{% endfor %}",
    "loops of written text": "{% for a in R %}{% for b in R %}x{% endfor %}{% endfor %}",
    "a loop's length": "{% for a in R %}{% for b in R | map('string') %}{{ loop.length }}"
    "{% break %}"
    "{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "loops in a loop's test": "{% for a in R if R | map('string') | list | length %}{% endfor %}",
    "changed values": "{% set s = [R | list] * 99 %}{% for a in R %}{% if loop.changed(s) %}"
    "{% endif %}{% endfor %}",
    # macros
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}"
    "{% endif %}{% endmacro %}{{ m(45) }}",
    "macros that take turns": "{% macro a(n) %}{{ b(n) }}{{ b(n) }}{% endmacro %}"
    "{% macro b(n) %}{{ a(n) }}{% endmacro %}{{ a(1) }}",
    "a macro's doubled text": "{% macro m(s, n) %}{% if n %}{{ m(s ~ s, n - 1) }}{% endif %}"
    "{% endmacro %}{{ m('x', 45) }}",
    "a caller": "{% macro m() %}{% for a in R %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}{% for b in R %}{% endfor %}{% endcall %}",
    "arguments of a macro": "{% macro m() %}{{ varargs }}{% endmacro %}"
    "{% for a in R %}{{ m(*R) }}{% endfor %}",
    "nested arguments": "{% macro m(n) %}{% if n %}{{ m(n - 1, varargs, varargs) }}{% else %}"
    "{{ varargs }}{% endif %}{% endmacro %}{{ m(45, 1) }}",
    # texts that grow
    "doubled by +": "{% set n = namespace(s='x') %}{% for a in R %}{% set n.s = n.s + n.s %}"
    "{% endfor %}",
    "doubled by ~": "{% set n = namespace(s='x') %}{% for a in R %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}",
    "squared by join": "{% set n = namespace(s='xx') %}{% for a in R %}"
    "{% set n.s = n.s.join(n.s) %}{% endfor %}",
    "squared by the filter join": "{% set n = namespace(s='xx') %}{% for a in R %}"
    "{% set n.s = n.s | join(n.s) %}{% endfor %}",
    "squared by replace": "{% set n = namespace(s='xx') %}{% for a in R %}"
    "{% set n.s = n.s.replace('x', n.s) %}{% endfor %}",
    "squared by the filter replace": "{% set n = namespace(s='xx') %}{% for a in R %}"
    "{% set n.s = n.s | replace('', n.s) %}{% endfor %}",
    "doubled in a set block": "{% set n = namespace(s='x') %}{% for a in R %}"
    "{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}{% endfor %}",
    "doubled by %": "{% set n = namespace(s='x') %}{% for a in R %}{% set n.s = '%s%s' % (n.s, n.s)"
    " %}{% endfor %}",
    "doubled by a named %": "{% set n = namespace(s='x') %}{% for a in R %}"
    "{% set n.s = '%(a)s%(a)s%(a)s' % {'a': n.s} %}{% endfor %}",
    "doubled by the filter format": "{% set n = namespace(s='x') %}{% for a in R %}"
    "{% set n.s = '%s%s' | format(n.s, n.s) %}{% endfor %}",
    "doubled by format": "{% set n = namespace(s='x') %}{% for a in R %}"
    "{% set n.s = '{0}{0}{0}'.format(n.s) %}{% endfor %}",
    "doubled by format_map": "{% set n = namespace(s='x') %}{% for a in R %}"
    "{% set n.s = '{a}{a}'.format_map({'a': n.s}) %}{% endfor %}",
    "longer by escape": "{% set n = namespace(s='&' * 99) %}{% for a in R %}"
    "{% set n.s = (n.s ~ '') | forceescape ~ '' %}{% endfor %}",
    "longer by urlencode": "{% set n = namespace(s='%') %}{% for a in R %}"
    "{% set n.s = n.s | urlencode %}{% endfor %}",
    "longer by tojson": "{% set n = namespace(s='\"') %}{% for a in R %}"
    "{% set n.s = n.s | tojson %}{% endfor %}",
    "longer by upper": "{% set n = namespace(s='ß' * 9999999) %}{% for a in R %}"
    "{% set n.s = n.s | upper + n.s | lower %}{% endfor %}",
    "copied over and over": "{% set s = 'x' * 9999999 %}{% for a in R %}{% set t = s ~ a %}"
    "{% endfor %}",
    "trimmed over and over": "{% set s = ' ' * 9999999 %}{% for a in R %}{% set t = s | trim %}"
    "{% endfor %}",
    "sliced over and over": "{% set s = 'x' * 9999999 %}{% for a in R %}{% set t = s[a:] %}"
    "{% endfor %}",
    # texts of a given width
    "* on a text": "{{ 'x' * 10**10 }}",
    "* on a text, from the left": "{{ 10**10 * 'x' }}",
    "* on Markup": "{{ ('x' | safe) * 10**10 }}",
    "* on a list": "{{ ([1] * 10**10) | length }}",
    "* in steps": "{% set a = 'x' * 99999 %}{% set b = [a] * 99999 %}{{ b | join }}",
    "ljust": "{{ 'x'.ljust(10**9) }}",
    "rjust": "{{ 'x'.rjust(10**9, 'y') }}",
    "center": "{{ 'x'.center(10**9) }}",
    "the filter center": "{{ 'x' | center(10**9) }}",
    "a constant filter": "{{ 'x' | center(999999999) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "expandtabs": "{{ ('\\t' * 999).expandtabs(10**7) }}",
    "indent": "{{ ('x\\n' * 99999) | indent(99999) }}",
    "indent by a text": "{{ ('x\\n' * 99999) | indent('y' * 99999) }}",
    "a % width": "{{ '%999999999d' % 1 }}",
    "a % precision": "{{ '%.999999999f' % 1 }}",
    "a % star": "{{ '%*d' % (999999999, 1) }}",
    "a filter's % width": "{{ '%999999999s' | format(1) }}",
    "a test that formats": "{{ '%0999999999d' is odd }}",
    "another test that formats": "{{ '%0999999999d' is divisibleby(3) }}",
    "a format's width": "{{ '{:>999999999}'.format(1) }}",
    "a format's nested width": "{{ '{:>{}}'.format(1, 999999999) }}",
    "indented JSON": "{{ [[[1] * 9999]] | tojson(indent=99999) }}",
    "JSON with separators": "{{ ([1] * 9999) | tojson(separators=('x' * 99999, ':')) }}",
    "wordwrap": "{{ ('x ' * 99999) | wordwrap(1, wrapstring='y' * 9999) }}",
    "lipsum": "{{ lipsum(10**6) }}",
    "lipsum in a loop": "{% for a in R %}{% set t = lipsum(n=100) %}{% endfor %}",
    "bytes": "{{ (5).to_bytes(10**9, 'big') }}",
    "encoded text": "{{ 'x'.encode().ljust(10**9) }}",
    # lists and mappings
    "a list of lists": "{% set n = namespace(l=[1]) %}{% for a in R %}{% set n.l = [n.l, n.l] %}"
    "{% endfor %}{{ n.l }}",
    "lists, as JSON": "{% set n = namespace(l=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l | tojson }}",
    "lists, compared": "{% set n = namespace(l=[1], m=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l == n.m }}",
    "lists, compared by a test": "{% set n = namespace(l=[1], m=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l is eq n.m }}",
    "lists, found": "{% set n = namespace(l=[1], m=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l in [n.m] }}",
    "lists, sorted": "{% set n = namespace(l=[1], m=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ [n.l, n.m] | sort }}",
    "tuples, as keys": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ {n.t: 1} }}",
    "tuples, looked up": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ {}[n.t] }}",
    "tuples, got": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ {}.get(n.t) }}",
    "tuples, as pairs": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ dict([(n.t, 1)]) }}",
    "tuples, unique": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ [n.t] | unique | list }}",
    "tuples, as a filter's name": "{% set n = namespace(t=(1,)) %}{% for a in range(60) %}"
    "{% set n.t = (n.t, n.t) %}{% endfor %}{{ n.t is filter }}",
    "lists in a message": "{% set n = namespace(l=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% endfor %}{{ raise_exception(n.l) }}",
    "lists in an error": "{% set n = namespace(l=[1]) %}{% for a in range(60) %}"
    "{% set n.l = [n.l, n.l] %}{% endfor %}{{ {}[n.l].x.y }}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.n = [n, n] %}{{ n }}",
    "a list that grows": "{% set n = namespace(l=[1]) %}{% for a in R %}{% set n.l = n.l + n.l %}"
    "{% endfor %}",
    "a sum of lists": "{{ ([[1] * 999] * 9999) | sum(start=[]) | length }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "characters": "{{ ('xy' * 9999999) | list | length }}",
    "words": "{{ ('xy ' * 9999999).split() | length }}",
    "lines": "{{ ('xy\\n' * 9999999).splitlines() | length }}",
    "lists of texts": "{% set n = namespace(l=[]) %}{% for a in R %}"
    "{% set n.l = n.l + ['x' * 9999 ~ a] %}{% endfor %}",
    "mappings": "{% set n = namespace(l=()) %}{% for a in R %}"
    "{% set n.l = ({'a': n.l, 'b': 1}, {'c': 1}) %}{% endfor %}{{ n.l }}",
    "products of ranges": "{% for a in R %}{% for b in R | list %}{{ a * b }}{% endfor %}"
    "{% endfor %}",
    "sorted over and over": "{% set l = R | list %}{% for a in R %}{% set m = l | sort %}"
    "{% endfor %}",
    "mapped over and over": "{% for a in R %}{% set m = R | map('string') | list %}{% endfor %}",
    "selected over and over": "{% for a in R %}{% set m = R | select('odd') | list %}{% endfor %}",
    "a chain of maps": "{% set n = namespace(l=R) %}{% for a in R %}"
    "{% set n.l = n.l | map('string') %}{% endfor %}{{ n.l | list }}",
    "grouped": "{% set l = R | list %}{% for a in R %}{% set m = l | groupby('real') %}"
    "{% endfor %}",
    "a long attribute": "{% set p = 'real.' * 99999 ~ 'real' %}"
    "{{ R | map(attribute=p) | list | length }}",
    # searches
    "searches": "{% set s = 'x' * 29999 %}{% set t = 'x' * 50 ~ 'y' ~ 'x' * 48 %}{% for a in R %}"
    "{% if t in s %}{% endif %}{% endfor %}",
    "a search backwards": "{% set s = 'x' * 999999 %}{% set t = 'y' ~ 'x' * 499999 %}"
    "{{ s.rfind(t) }}",
    "splits backwards": "{% set s = 'x' * 999999 %}{% set t = 'y' ~ 'x' * 499999 %}"
    "{{ s.rsplit(t) | length }}",
    "counts": "{% set s = 'x' * 999999 %}{% for a in R %}{% set c = s.count('xy') %}{% endfor %}",
    "stripped characters": "{% set s = 'x' * 999999 %}{% set c = 'y' * 999999 ~ 'x' %}"
    "{{ s.strip(c) }}",
    "tags": "{{ ('<!---->' * 99999) | striptags }}",
    "links": "{{ ('www.x.com(' * 99999) | urlize }}",
    # numbers
    "a power": "{{ 10 ** 10 ** 10 }}",
    "a tower of powers": "{% set n = namespace(i=9) %}{% for a in R %}{% set n.i = n.i ** 9 %}"
    "{% endfor %}",
    "squares": "{% set n = namespace(i=9) %}{% for a in R %}{% set n.i = n.i * n.i %}{% endfor %}",
    "sums": "{% set n = namespace(i=9) %}{% for a in R %}{% set n.i = n.i + n.i %}{% endfor %}",
    "a long number": "{{ ('f' * 999999) | int(base=16) % 7 }}",
    "a long constant": "{{ 0x" + "f" * 50000 + " }}",
    "rounded": "{{ 1 | round(999999999, 'floor') }}",
    "a rounded text": "{{ 'x' | round(9, 'ceil') }}",
    # everything else
    "a template in a template": "{% include 'x' %}",
    "an import": "{% import 'x' as x %}",
    "a block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "the class of a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a price of its own": "{{ [-10**9] | map('charge node') | list }}{% for a in R %}"
    "{% for b in R %}"
    "{% endfor %}{% endfor %}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep loops": "{% for a in [1] %}" * 3000 + "{% endfor %}" * 3000,
    "a long sum": "{{ " + "1+" * 20000 + "1 }}",
    "a long template": "{{ a }}" * 8000
    + "{% for a in R %}{% for b in R %}{% endfor %}{% endfor %}",
    "a template of megabytes": "x" * 2**21,
}
HOSTILE = {name: re.sub(r"\bR\b", R, text) for name, text in _HOSTILE.items()}
MEMORY = 200 * 2**20  # bytes that they may add


def verdicts() -> Iterator[dict[str, object]]:
    """What becomes of each: the error, and seconds of CPU."""
    from pipeline.core.errors import DataError
    from pipeline.models.chat.template import ChatTemplate

    pages = resource.getpagesize()
    held = int(Path("/proc/self/statm").read_text().split()[0]) * pages
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for name in HOSTILE:
        began, error = time.process_time(), None
        try:
            template = ChatTemplate(HOSTILE[name], {}, "here")
            template.expand([{"role": "user", "content": "Hi"}], generation_prompt=True)
        except DataError as refusal:
            error = str(refusal)
        yield {"name": name, "error": error, "seconds": time.process_time() - began}


if __name__ == "__main__":
    for verdict in verdicts():
        print(json.dumps(verdict), flush=True)
