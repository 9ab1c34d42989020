"""Conversations as transcripts and through templates, which are code and bounded."""

import gc
import time

import pytest

from alignment.data import chats, template_worker
from alignment.data.chats import Conversation
from alignment.types import UserError

ASKED = Conversation(({"role": "user", "content": "hi"},))


def render(source: str, conversation: Conversation = ASKED, as_prompt=True) -> str:
  template = chats.ChatTemplate(source, "t.jinja", {"bos_token": "<s>"})
  return template.render(conversation, as_prompt=as_prompt)


def message(role: str, content: str) -> dict[str, str]:
  return {"role": role, "content": content}


# --- transcripts ----------------------------------------------------------------------


def test_transcript_and_back():
  conversation = Conversation(
    (message("system", "Be kind."), message("user", "a"), message("assistant", "b"),
     message("user", " c\n"))
  )  # fmt: skip
  text = "Be kind.\n\nHuman: a\n\nAssistant: b\n\nHuman:  c\n\n\nAssistant:"
  assert chats.transcript(conversation) == text
  assert chats.parse_transcript(text) == conversation


@pytest.mark.parametrize(
  "text",
  ["", "a question", "\n\nHuman: a", "\n\nHuman:a\n\nAssistant:", "\n\nAssistant:",
   "\n\nHuman: a\n\nAssistant: b\n\nAssistant:"],
)  # fmt: skip
def test_what_is_no_transcript(text):
  assert chats.parse_transcript(text) is None


@pytest.mark.parametrize(
  ("messages", "error"),
  [
    ([], "must end with a message of role 'user'"),
    ([message("assistant", "a")], "must end with a message of role 'user'"),
    ([message("user", "a"), message("system", "b"), message("user", "c")], "before"),
    ([message("tool", "a"), message("user", "c")], "role 'tool' has no place"),
    ([{"role": "user", "content": None}], "must be text"),
    ([{"role": "user", "content": "a", "thinking": "b"}], "field 'thinking'"),
  ],
)
def test_what_a_transcript_cannot_hold(messages, error):
  with pytest.raises(UserError, match=error):
    chats.transcript(Conversation(tuple(messages)))


def test_tools_have_no_place_in_a_transcript():
  with pytest.raises(UserError, match="field 'tools'"):
    chats.transcript(Conversation(ASKED.messages, tools=({"name": "light"},)))


# --- templates ------------------------------------------------------------------------


def test_what_templates_are_given():
  assert render("{{ bos_token }}|{{ tools }}|{{ add_generation_prompt }}") == (
    "<s>|None|True"
  )
  assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hi"}]'
  assert render("{{ 'é<' | tojson }}") == '"é<"'
  assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
  assert (
    render("{% for m in [1, 2] %}{% break %}{% endfor %}\n  {% if 1 %}\nx{% endif %}")
    == "x"
  )
  assert render("{% generation %}a{% endgeneration %}") == "a"


def test_reasoning_has_three_names():
  reply = message("assistant", "b") | {"thinking": "t"}
  source = "{{ messages[-1].reasoning_content }}{{ messages[-1].thinking }}"
  assert render(source, ASKED.then(reply)) == "tt"


@pytest.mark.parametrize(
  ("source", "error"),
  [
    ("{{ raise_exception('roles must\n alternate') }}", "fails: roles must alternate$"),
    ("{% for %}", "fails: Expected"),
    ("{{ messages[7].content.x }}", "fails: .*has no"),
    ("{{ messages.append(1) }}", "unsafe|immutable|not callable|is not safely"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    ("{{ 'a' * 10**10 }}", "too much memory"),
    ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "over 20,000,000 char"),
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "over 0.3 s of processor time"),
    ("{{ 10 ** (10 ** 9) }}", "over 0.3 s of processor time"),
  ],
)  # fmt: skip
def test_hostile_templates_end_in_one_line(monkeypatch, source, error):
  monkeypatch.setattr(chats, "SECONDS", 0.3)
  start = time.monotonic()
  with pytest.raises(UserError, match=error) as info:
    render(source)
  assert str(info.value).startswith("t.jinja: the chat template fails: ")
  assert str(info.value).isprintable() and len(str(info.value)) < 300
  assert time.monotonic() - start < 20


def test_a_template_goes_on_after_a_failure(monkeypatch):
  monkeypatch.setattr(chats, "SECONDS", 0.3)
  source = (
    "{% if messages[0].content == 'loop' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}"
    "{% if messages[0].content == 'raise' %}{{ raise_exception('no') }}{% endif %}ok"
  )
  template = chats.ChatTemplate(source, "t.jinja", {})
  for content, error in ("raise", "no"), ("loop", "processor time"):
    with pytest.raises(UserError, match=error):
      template.render(Conversation((message("user", content),)), as_prompt=True)
    assert template.render(ASKED, as_prompt=True) == "ok"


def test_the_process_ends_with_its_template():
  template = chats.ChatTemplate("x", "t.jinja", {})
  template.render(ASKED, as_prompt=True)
  process = template._process
  assert process is not None and process.poll() is None
  process.kill()  # as the system does when memory is short
  with pytest.raises(UserError, match=r"ended its process \(status -9\)"):
    template.render(ASKED.then(message("user", "other")), as_prompt=True)
  template.render(ASKED.then(message("user", "another")), as_prompt=True)
  process = template._process
  del template
  gc.collect()
  assert process.returncode is not None


def test_a_template_too_long_and_messages_that_are_not_json():
  with pytest.raises(UserError, match="over 1,000,000 characters"):
    chats.ChatTemplate("x" * 1_000_001, "t.jinja", {})
  with pytest.raises(UserError, match="not JSON"):
    render("x", Conversation((message("user", "a") | {"x": object()},)))


def test_the_workers_own_functions():
  template = template_worker.compiled("{{ a }}")
  assert template_worker.rendered(template, {"a": "b"}, 1) == "b"
  with pytest.raises(ValueError, match="over 1 characters"):
    template_worker.rendered(template, {"a": "bb"}, 1)
