"""Which exceptions a command answers in one sentence, and which keep their traceback because they are bugs."""

from pathlib import Path

import pytest

from experiments import cli
from gpt_jax.config.errors import ConfigError, MissingFile, Unreachable, UserError
from gpt_jax.runs.checkpoint import CheckpointError
from gpt_jax.runs.folder import FolderGone


def fail(error: BaseException) -> None:
    raise error


def import_missing(name: str) -> None:
    __import__(name)


def read(path: Path) -> None:
    path.read_text()


ANSWERED = {
    "a user error": (lambda: fail(UserError("one\n  two: three")), 1, "one two: three"),
    "a configuration": (lambda: fail(ConfigError("width must be even")), 2, "width must be even"),
    "a command line": (lambda: fail(cli.UsageError("--workdir is required")), 2, "--workdir is required"),
    "a missing file": (lambda: fail(MissingFile("there is no run in x")), 1, "there is no run in x"),
    "no network": (lambda: fail(Unreachable("the server does not answer")), 1, "the server does not answer"),
    "a subclass": (lambda: fail(CheckpointError("there is no checkpoint")), 1, "there is no checkpoint"),
    "a path of the system's": (lambda: read(Path("/no/such")), 1, "/no/such: No such file or directory"),
    "a folder for a file": (lambda: read(Path("/")), 1, "/: Is a directory"),
    "a package": (
        lambda: import_missing("no_such_package"),
        1,
        "install it, for example with pip install no_such_pack",
    ),
    "Ctrl-C": (lambda: fail(KeyboardInterrupt()), 130, "interrupted"),
}


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`quiet` changes the logging of the whole process."""
    monkeypatch.setattr(cli, "quiet", lambda: None)
    monkeypatch.setattr("sys.argv", ["/somewhere/train.py"])


@pytest.mark.parametrize("mistake", ANSWERED)
def test_a_user_error_is_one_sentence_and_an_exit_code(mistake: str, capsys: pytest.CaptureFixture) -> None:
    call, code, sentence = ANSWERED[mistake]
    with pytest.raises(SystemExit) as exit:
        cli._answer(call)
    told = capsys.readouterr()
    assert (exit.value.code, told.out) == (code, "")
    assert sentence in told.err and len(told.err.strip().splitlines()) == 1
    assert mistake == "Ctrl-C" or told.err.startswith("train: ")


def test_what_fails_in_the_wake_of_a_lost_folder_does_not_hide_it() -> None:
    lost = FolderGone("it was deleted")
    try:
        try:
            raise lost
        finally:
            raise KeyError("a save that was under way")
    except KeyError as error:
        assert cli.origin(error) is lost
    bug = KeyError("widht")
    assert cli.origin(bug) is bug


BUGS = {
    "a value error": ValueError("zip() argument 2 is shorter"),
    "a key error": KeyError("widht"),
    "a type error": TypeError("NoneType is not callable"),
    "an assertion": AssertionError(),
    "a broken pipe": BrokenPipeError(32, "Broken pipe"),
    "a connection": ConnectionResetError(104, "Connection reset by peer"),
    "a timeout": TimeoutError(),
    "a module of ours": ModuleNotFoundError("No module named 'gpt_jax.missing'", name="gpt_jax.missing"),
    "a module of the commands'": ModuleNotFoundError("No module named 'experiments.x'", name="experiments.x"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_keeps_its_traceback(bug: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(type(BUGS[bug])) as raised:
        cli._answer(fail, BUGS[bug])
    assert raised.value is BUGS[bug]
    assert capsys.readouterr().err == ""


def test_what_a_command_returns_comes_back() -> None:
    assert cli._answer(lambda a, b: a + b, 1, 2) == 3


def test_a_command_to_go_on_with_does_not_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/x/train.py", "--config=a.py", "--workdir=run", "--restart", "--process_id=1"])
    assert cli.command() == "python -m experiments.train --config=a.py --workdir=run"
    assert cli.command("--config.train.steps=9").endswith(" --workdir=run --config.train.steps=9")
