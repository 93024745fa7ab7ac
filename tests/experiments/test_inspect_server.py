"""The server of `experiments.inspect --serve`: it answers this machine alone, and shows what was typed, not runs it."""

import html
import http.client
from collections.abc import Iterator
from threading import Thread
from urllib.parse import urlencode

import pytest

from experiments import inspecting
from experiments.inspecting import HOST, open_study_arms, server_of
from gpt_jax.ablation.findings import ArmResults, RunRecord, StudyResults
from gpt_jax.config.errors import UserError
from gpt_jax.pages.walkthrough import walkthrough_page

TYPED = '<script>alert(1)</script>\n"é"</textarea>'


def page(prompt: str) -> str:
    if prompt == "too long":
        raise UserError("a prompt <b>too</b> long")
    return walkthrough_page("A walk", prompt, [], "command", asks=True)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(page, "at first", 0) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(HOST, port, timeout=20)
    connection.request("GET", path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_each_prompt_has_its_page(port: int) -> None:
    code, text = get(port, "/")
    assert code == 200 and "<bdi>at first</bdi>" in text
    code, text = get(port, "/?" + urlencode({"prompt": TYPED.replace("\n", "\r\n")}))
    assert code == 200 and f"<bdi>{html.escape(TYPED)}</bdi>" in text
    assert f'rows="2">\n{html.escape(TYPED)}</textarea>' in text and "<script>alert" not in text
    code, text = get(port, "/?prompt=too+long")
    assert code == 400 and "a prompt &lt;b&gt;too&lt;/b&gt; long" in text and "too long</textarea>" in text
    assert get(port, "/favicon.ico")[0] == 404


@pytest.mark.parametrize("host", ["example.org", "example.org:80", "127.0.0.1.example.org:80", "", "localhost.evil:1"])
def test_other_names_are_refused(port: int, host: str) -> None:
    code, text = get(port, "/?prompt=x", host)
    assert code == 403 and f"http://{HOST}:{port}/" in text and "<bdi>" not in text
    assert get(port, "/", f"localhost:{port}")[0] == 200


def test_it_listens_here_only_and_a_taken_port_is_a_sentence(port: int) -> None:
    with pytest.raises(UserError, match=f"port {port} is taken"):
        server_of(page, "", port)
    with server_of(page, "", 0) as other:
        assert other.server_address[0] == HOST


def test_arms_of_a_study_stand_at_the_rates_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a seed that trained at several learning rates, the run of the arm's own; the folder may be in a bucket."""

    def arm(name: str, chosen: float | None, *rates: float) -> ArmResults:
        runs = tuple(
            RunRecord(seed, rate, f"runs/{name}-{seed}-{rate}", "finished") for seed in (1, 2) for rate in rates
        )
        return ArmResults(name=name, learning_rate=chosen, runs=runs)

    arms = (arm("mha", 3e-3, 1e-3, 3e-3, 1e-2), arm("mqa", 1e-2, 1e-3, 3e-3, 1e-2), arm("old", None, 1e-3))
    results = StudyResults(question="?", baseline="mha", smallest_difference=0.01, arms=arms, verdict="")
    asked: list[list[str]] = []
    monkeypatch.setattr(inspecting, "collect", lambda workdir: results)
    monkeypatch.setattr(inspecting, "open_arms", lambda folders: asked.append(folders) or [])
    for names in (["mqa"], ["mqa", "old"]):
        with pytest.raises(ValueError, match="zip"):  # there is nothing in those folders
            open_study_arms("gs://bucket/study", names)
    in_bucket = "gs://bucket/study/runs/{}".format
    assert asked[0] == [in_bucket("mha-1-0.003"), in_bucket("mqa-1-0.01")]
    assert asked[1] == [in_bucket("mqa-1-0.01"), in_bucket("old-1-0.001")]
