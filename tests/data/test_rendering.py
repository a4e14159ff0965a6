"""What a chat template may take of time and memory, whatever it is made of."""

from __future__ import annotations

import resource
import signal
import threading
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from ftscale.base.errors import UserError
from ftscale.data import rendering
from ftscale.data.chat import encode_chat
from ftscale.data.rendering import TooMuch, bounded_rendering, check_rendered

LARGE = {  # each asks for gigabytes
    "product": "{{ 'a' * 2147483648 }}",
    "product of a variable": "{% set n = 2147483648 %}{{ messages[0].content * n }}",
    "list": "{{ [0] * 2147483648 }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>4000000000}'.format(1) }}",
    "centre": "{{ 'a'.center(4000000000) }}",
    "filter": "{{ 'a' | center(4000000000) }}",
    "indent": "{{ 'a\nb' | indent(4000000000) }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "join": "{{ range(100000) | join('a' * 1000000) }}",
    "doubled": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "json": "{{ 1 | tojson(indent=4000000000) }}{{ [1] | tojson(indent=4000000000) }}",
    "at the 2nd turn": "{% if messages | length > 1 %}{{ 'a' * 2147483648 }}{% endif %}",
}
LONG = {  # each takes years
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "texts": "{% set s = 'a' * 9999 %}{% for a in s %}{% for b in s %}{% for c in s %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "recursive": "{% for a in [60] recursive %}{% if a %}{{ loop([a - 1]) }}{{ loop([a - 1]) }}{% endif %}{% endfor %}",
}
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


@pytest.fixture(scope="module")
def tokenizer(shared: Path):
    return AutoTokenizer.from_pretrained(shared / "weights/tokenizers/qwen2")


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_takes_gigabytes_is_refused(template: str, tokenizer):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match=r"task\.chat_template.*: it (takes more than 536870912 bytes|writes \d+ char)"):
        encode_chat(TALK, tokenizer, targets="all", template=template)
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.parametrize("template", LONG.values(), ids=LONG)
def test_a_template_that_takes_years_is_refused(template: str, tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "MOST_CPU_S", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(UserError, match=r"task\.chat_template.*: it takes more than 0\.2 s of the processor; set"):
        encode_chat(TALK, tokenizer, targets="all", template=template)
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.parametrize(
    "template", ["{{ 9 ** 9 ** 9 }}", "{% set n = 9 %}{{ n**n**n }}", "{{ (1 + 1) ** 999999999 }}"]
)
def test_a_power_which_nothing_interrupts_is_refused(template: str, tokenizer):
    with pytest.raises(UserError, match=r"it has a power \(\*\*\), which can take hours"):
        encode_chat(TALK, tokenizer, targets="all", template=template)


def test_named_arguments_and_stars_of_a_text_are_no_power():
    template = "**bold** {{ dict(**{'a': 1}).a }} {{ dict({}, **{'a': 2}).a }} {{ '2 ** 3' }}"
    with bounded_rendering(template):
        assert ImmutableSandboxedEnvironment().from_string(template).render() == "**bold** 1 2 2 ** 3"


def test_a_template_of_the_tokenizer_itself_is_bounded_too(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{% generation %}{{ 'a' * 2147483648 }}{% endgeneration %}")
    with pytest.raises(UserError, match=r"the tokenizer's own template: it takes more than 536870912 bytes of memory"):
        encode_chat(TALK, tokenizer, targets="assistant")


def test_a_long_text_is_refused_before_a_tokenizer_gets_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendering, "MOST_CHARACTERS", 10)
    check_rendered("x" * 10)
    with pytest.raises(TooMuch, match="writes 11 characters, and 10 are the most"):
        check_rendered("x" * 11)


def test_another_thread_renders_in_bounded_memory():
    found: list[type] = []

    def render() -> None:
        try:
            with bounded_rendering(""):
                bytes(2**30)
        except TooMuch as error:
            found.append(type(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert found == [TooMuch]
