"""What a published model's folder says of its tokens, and conversations."""

import functools
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from types import ModuleType

import jinja2
import numpy as np
import pytest
from hypothesis import given

from gpt_jax.config.errors import UserError
from gpt_jax.data import confined
from gpt_jax.data.tokenizer import (
    BpeTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    HuggingFaceTokenizer,
    Roles,
    chat,
    load_tokenizer,
    read_pretrained,
    write_pretrained,
)
from gpt_jax.data.tokenizer import template as templates
from gpt_jax.data.tokenizer.chat import render_chat
from tests.fuzz import bounded, damaged, examples, read_or_refuse

TEXT = "the quick brown fox\n jumps wörld " * 4
BPE = BpeTokenizer.train([TEXT], 290, "gpt2", ["<|endoftext|>", "<s>", "<end>"])
TEMPLATE = (
    "{{ bos_token }}{%- for message in messages %}\n"
    "    {%- if message.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}\n"
    "{{ '<' + message['role'] + '>' + message['content'] | trim }}<end>\n"
    "{%- endfor %}\n"
    "{% if add_generation_prompt %}\n<assistant>\n{%- endif %}"
)
TURNS = [{"role": "user", "content": " fox <b> & é"}, {"role": "assistant", "content": "brown"}]
ROLES = Roles({"bos_token": "<s>", "eos_token": "<end>", "pad_token": "<end>"}, (3,), TEMPLATE)


def chatting() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(BPE.to_hugging_face().to_str(), roles=ROLES)


def test_a_conversation() -> None:
    tokenizer = chatting()
    assert tokenizer.chats and not BPE.chats
    text = render_chat(TEMPLATE, TURNS, ROLES.tokens, add_generation_prompt=True)
    assert text.startswith("<s>") and "<user>fox <b> & é<end>" in text and text.endswith("<assistant>")
    assert tokenizer.chat(TURNS) == tokenizer.encode(text, "all")
    assert tokenizer.chat(TURNS)[0] == BPE.special_tokens["<s>"]
    assert len(tokenizer.chat(TURNS, add_generation_prompt=False)) < len(tokenizer.chat(TURNS))
    with pytest.raises(ValueError, match="cannot render this conversation: no"):
        tokenizer.chat([*TURNS, {"role": "system", "content": "a"}])
    with pytest.raises(ValueError, match="no chat template"):
        BPE.chat(TURNS)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        ("{{ messages | tojson }}", json.dumps(TURNS, ensure_ascii=False)),
        ("{% generation %}{{ 1 }}{% endgeneration %}", "1"),
        ("{{ strftime_now('x') }}{{ tools is none }}", "xTrue"),
    ],
)
def test_what_templates_may_use(template: str, text: str) -> None:
    assert render_chat(template, TURNS, {}, add_generation_prompt=False) == text


ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}' | format(1) | upper }}{{ ().__class__ }}",
    "{{ messages.append(1) }}",
    "{{ messages | attr('append') }}{{ messages.pop() }}",
    "{% for",
    "{{ messages.x.y }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.from_string('') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__code__ }}",
    "{{ strftime_now.__globals__.datetime }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ range.__class__.mro() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends '/etc/passwd' %}",
    "{{ messages | map(attribute='__class__') | list | first | attr('x') }}{{ ''.__doc__ }}",
    "{{ [''.format, 1][0].__self__ }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% set messages[0].role = 1 %}",
    "{{ (messages | groupby('role'))[0].__class__ }}",
    "{{ loop.__class__ }}{{ caller.__func__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "{{ (messages | map('upper')).gi_frame }}",
    "{{ ('' | e).__html__.__func__ }}",
    "{{ ''.join.__func__ }}{{ config.items() }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_templates_are_other_peoples_programs(template: str) -> None:
    """In the interpreter with limits as in any other, they do not come out of the sandbox."""
    values = {"messages": [dict(turn) for turn in TURNS]}
    try:
        text = templates.render(template, values)
    except (jinja2.TemplateError, TypeError, AttributeError, LookupError):
        text = ""
    assert not text.strip()  # what is unsafe is undefined
    assert values == {"messages": TURNS}


def test_what_a_template_may_take_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "SECONDS", 1)
    for template, reason in (
        ("{{ messages[0].content.nothing.at_all }}", "has no attribute"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 seconds"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nests too deep"),
        ("{{ 'a' * 10**10 }}", "more than 512 MB"),
        ("{{ 'a' | center(10**9) }}", "more than 512 MB"),
        ("{{ '%1000000000d' | format(1) }}", "more than 512 MB"),
        ("{{ '" + "a" * 2**20 + "' }}", "more than 1,048,576 characters"),
    ):
        with (
            bounded(),
            pytest.raises(UserError, match=f"^the chat template cannot render this conversation: .*{reason}"),
        ):
            render_chat(template, TURNS, {}, add_generation_prompt=False)
    tokenizer = HuggingFaceTokenizer(
        BPE.to_hugging_face().to_str(), roles=Roles({}, (3,), "{{ 'a' * 10**10 }}" + TEMPLATE)
    )
    assert tokenizer.stop == sorted([3, BPE.special_tokens["<|endoftext|>"]])


def test_a_template_sees_nothing_of_its_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "secret")
    module = ModuleType("module")
    module.__file__ = str(tmp_path / "module.py")
    Path(module.__file__).write_text(
        "import os, sys\n"
        "def names(): return [*os.environ, *(name for name in sys.modules if name.startswith('gpt_jax'))]\n"
        "def write(path): open(path, 'w', 1).write('text\\n')\n"
        "def end(code): os._exit(code)\n"
        "def sleep(seconds): import time; time.sleep(seconds)\n"
    )
    call = functools.partial(confined.call, module, seconds=1, megabytes=256)
    assert "OURS" not in call("names") and "gpt_jax" not in call("names")
    with pytest.raises(confined.Refused, match="File too large"):
        call("write", str(tmp_path / "file"))
    assert not (tmp_path / "file").read_text()
    with pytest.raises(confined.Refused, match="breaks the interpreter"):
        call("end", 3)
    monkeypatch.setattr(confined, "START_SECONDS", 0.0)
    with pytest.raises(confined.Refused, match="more than 1 seconds"):
        call("sleep", 60)
    # On macOS the system bounds no memory: the caller asks for it.
    monkeypatch.setattr(confined, "START_SECONDS", 30.0)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(confined, "_resident", lambda pid: 2**40)
    with pytest.raises(confined.Refused, match="more than 256 MB"):
        call("sleep", 60)


def test_where_sampling_stops() -> None:
    """At the end of a text, the end-of-sequence token, what generation_config.json adds, and a turn's end."""
    special = BPE.special_tokens
    assert chatting().stop == sorted([3, special["<end>"], special["<|endoftext|>"]])
    without = HuggingFaceTokenizer(BPE.to_hugging_face().to_str(), roles=Roles({}, (), TEMPLATE))
    assert without.stop == sorted([special["<end>"], special["<|endoftext|>"]])  # found in the template
    assert ByteTokenizer().stop == [256] and ByteTokenizer(()).stop == []
    with pytest.warns(UserWarning, match="no token 999"):
        assert 999 not in HuggingFaceTokenizer(BPE.to_hugging_face().to_str(), roles=Roles({}, (999,))).stop


def test_saved_in_a_run(tmp_path: Path) -> None:
    tokenizer = chatting()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.content_hash() == tokenizer.content_hash() and again.roles == tokenizer.roles
    assert again.chat(TURNS) == tokenizer.chat(TURNS)
    plain = HuggingFaceTokenizer(BPE.to_hugging_face().to_str())
    assert plain.manifest() == {} and plain.content_hash() != tokenizer.content_hash()


def test_a_folder_out_and_in(tmp_path: Path) -> None:
    write_pretrained(chatting(), tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.roles.tokens == ROLES.tokens and again.roles.chat_template == TEMPLATE
    assert again.stop == chatting().stop and again.chat(TURNS) == chatting().chat(TURNS)


def test_a_folders_other_files(tmp_path: Path) -> None:
    write_pretrained(BPE, tmp_path)
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": None,
        "mask_token": "<unheard of>",
        "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}],
        "added_tokens_decoder": {str(BPE.vocab_size): {"content": "<new>", "special": True}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    tokenizer = read_pretrained(tmp_path)
    assert tokenizer is not None
    assert tokenizer.roles == Roles({"bos_token": "<s>"}, (7, 8, 9), "d")
    assert tokenizer.encode("<new>", "all") == [BPE.vocab_size] and tokenizer.vocab_size == BPE.vocab_size + 1
    (tmp_path / "chat_template.jinja").write_text("j")
    assert read_pretrained(tmp_path).roles.chat_template == "j"
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json is not JSON"):
        read_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    with pytest.warns(UserWarning, match="tokenizer.model and no tokenizer.json"):
        assert read_pretrained(tmp_path) is None


@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer(), CharacterTokenizer.train([TEXT])], ids=lambda t: t.kind)
def test_each_of_our_kinds_for_transformers(tokenizer: BpeTokenizer, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_pretrained(tokenizer, tmp_path)
        again = load_tokenizer(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT) and again.end_of_text == tokenizer.end_of_text
    assert again.decode(again.encode(TEXT)) == TEXT


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_transformers_renders_and_encodes_alike(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer
    write_pretrained(chatting(), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in (True, False):
        ids = theirs.apply_chat_template(TURNS, add_generation_prompt=prompt)["input_ids"]
        np.testing.assert_array_equal(ids, chatting().chat(TURNS, add_generation_prompt=prompt))
    assert theirs.eos_token == "<end>" and theirs.bos_token == "<s>"


@examples(4)
@given(damaged(TEMPLATE.encode()))
def test_fuzz_template(content: bytes) -> None:
    template = content.decode("utf-8", "replace")
    read_or_refuse(lambda: render_chat(template, TURNS, ROLES.tokens, add_generation_prompt=True))
