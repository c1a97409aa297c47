"""A model behind HTTP, against a server on this machine: what is sent, how answers are read, and what must not pass."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from promptguard.certify.erase_and_check import EraseAndCheck
from promptguard.erase import load_mode
from promptguard.errors import FilterError, InvalidArgument, UnknownName
from promptguard.score import load_filter, remote
from promptguard.score.remote import RemoteFilter
from promptguard.types import Filter, Label
from promptguard.units import Words

Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(remote.API_KEY, raising=False)


class Endpoint(ThreadingHTTPServer):
    """Answers with what `answer` returns: JSON for a dict, else (status, bytes); keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), body))
        answer = self.server.answer(body)
        status, content = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(answer: Answer, **options: Any) -> Iterator[tuple[RemoteFilter, Endpoint]]:
    with Endpoint(answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        judge = RemoteFilter(server.url, "some/model", **options)
        try:
            yield judge, server
        finally:
            judge.close()
            server.shutdown()
            thread.join()


def said(content: Any, *tokens: dict[str, float]) -> dict[str, Any]:
    """A completion; of each token the probabilities of its alternatives, the first one taken."""
    listed = [
        {
            "token": next(iter(token)),
            "logprob": math.log(next(iter(token.values()))),
            "top_logprobs": [{"token": text, "logprob": math.log(share)} for text, share in token.items()],
        }
        for token in tokens
    ]
    message = {"role": "assistant", "content": content}
    return {"choices": [{"index": 0, "message": message, "logprobs": {"content": listed} if listed else None}]}


def by_word(body: dict[str, Any]) -> dict[str, Any]:
    return said("Harmful." if "bomb" in body["messages"][-1]["content"] else "Not harmful.")


def by_share(body: dict[str, Any]) -> dict[str, Any]:
    if "bomb" in body["messages"][-1]["content"]:
        return said("Harmful", {"Harm": 0.6, "Not": 0.2, "I": 0.2})
    return said("Not harmful", {"Not": 0.9, "Harm": 0.05, "harm": 0.05})


def test_probabilities_of_the_verdicts() -> None:
    with serving(by_share) as (judge, server):
        assert judge(["a bomb", "a cake"]) == pytest.approx([0.75, 0.1])
        assert judge([]) == []
        assert isinstance(judge, Filter)
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"], body["logprobs"]) == ("some/model", 0, True)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] in {"a bomb", "a cake"}


def test_words_where_there_are_no_probabilities() -> None:
    with serving(by_word, logprobs=False) as (judge, server):
        assert judge(["a bomb", "a cake"]) == [1.0, 0.0]
    assert not {"logprobs", "top_logprobs"} & server.asked[0][2].keys()
    with serving(by_word) as (judge, _):
        assert judge(["a bomb", "a cake"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("content", "score"),
    [("harmful", 1.0), (" **Harmful**\nbecause", 1.0), ('"Not harmful"', 0.0), ("NOT HARMFUL!", 0.0)],
)
def test_how_a_verdict_may_be_written(content: str, score: float) -> None:
    with serving(lambda body: said(content)) as (judge, _):
        assert judge(["x"]) == [score]


@pytest.mark.parametrize("content", ["", None, "Harmfulness is relative", "I think it is harmful", "Sorry.", "Not"])
def test_an_answer_that_is_no_verdict_is_an_error(content: str | None) -> None:
    with serving(lambda body: said(content)) as (judge, _), pytest.raises(FilterError, match="no verdict"):
        judge(["x"])


def test_the_verdict_stands_where_the_family_puts_it() -> None:
    def qwen(body: dict[str, Any]) -> dict[str, Any]:
        tokens = {" Un": 0.5, " Safe": 0.25, " Contro": 0.25}
        return said("Safety: Unsafe\nCategories: None", {"Safety": 0.9, "Safe": 0.1}, {":": 1.0}, tokens)

    def llama(body: dict[str, Any]) -> dict[str, Any]:
        return said("\n\nunsafe\nS1", {"\n\n": 0.9, "safe": 0.1}, {"unsafe": 0.8, "safe": 0.2})

    for family, answer, score in (("qwen3guard", qwen, 0.75), ("qwen3guard-loose", qwen, 0.5)):
        with serving(answer, family=family) as (judge, server):
            assert judge(["x"]) == pytest.approx([score])
        assert [message["role"] for message in server.asked[0][2]["messages"]] == ["user"]
    for family in ("llama-guard-3", "llama-guard-4"):
        with serving(llama, family=family) as (judge, _):
            assert judge(["x"]) == pytest.approx([0.8])
    with serving(lambda body: said("Safety: Controversial"), family="qwen3guard") as (judge, _):
        assert judge(["x"]) == [1.0]


def test_scores_keep_their_order_under_concurrency() -> None:
    with serving(by_word, concurrency=8) as (judge, _):
        texts = [f"{i} {'bomb' if i % 3 == 0 else 'cake'}" for i in range(50)]
        assert judge(texts) == [float(i % 3 == 0) for i in range(50)]


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_endpoint_is_tried_again(status: int) -> None:
    answers = iter([(status, b"canary"), (status, b"canary")])
    with serving(lambda body: next(answers, by_word(body))) as (judge, server):
        assert judge(["a bomb"]) == [1.0]
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (429, 3), (400, 1), (401, 1), (302, 1), (204, 1)])
def test_tries_are_bounded_and_refusals_are_final(status: int, tries: int) -> None:
    with serving(lambda body: (status, b"")) as (judge, server):
        with pytest.raises(FilterError, match=f"status {status}") as caught:
            judge(["canary"])
        assert len(server.asked) == tries
    assert ("logprobs=False" in str(caught.value)) == (status == 400)
    assert "canary" not in str(caught.value)


def test_an_endpoint_that_is_slow_or_gone() -> None:
    done = threading.Event()
    with serving(lambda body: done.wait(5) and by_word(body), timeout=0.05, retries=1) as (judge, server):
        with pytest.raises(FilterError, match="ReadTimeout") as caught:
            judge(["canary"])
        done.set()
        assert len(server.asked) == 2
    assert caught.value.__context__ is None
    gone = RemoteFilter(server.url, "some/model", retries=0)
    with pytest.raises(FilterError, match="ConnectError"):
        gone(["canary"])
    gone.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"canary",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": "Harm"}]}}]}',
        b'{"choices": [{"logprobs": {"content": [{"token": "N", "top_logprobs": [{"token": "N", "logprob": "x"}]}]}}]}',
        b"\xff\xfe",
    ],
)
def test_answers_of_another_shape_are_errors_without_content(answer: bytes) -> None:
    with serving(lambda body: (200, answer)) as (judge, _), pytest.raises(FilterError, match="the answer") as caught:
        judge(["x"])
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("logprob", [math.nan, math.inf, 0.5])
@pytest.mark.parametrize("token", ["Not", "Harm", "I"])
def test_probabilities_that_are_no_numbers_are_errors(token: str, logprob: float) -> None:
    """An infinite share for "Not harmful" would make everything safe."""
    answer = said("Not harmful", {"Harm": 0.9})
    alternatives = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    alternatives.append({"token": token, "logprob": logprob})
    with serving(lambda body: answer) as (judge, _), pytest.raises(FilterError, match="probability over 1"):
        judge(["x"])


def test_a_remainder_of_probability_is_no_verdict() -> None:
    refused = said("I cannot help with that", {"I": 0.97, "Not": 0.01})
    with serving(lambda body: refused) as (judge, _), pytest.raises(FilterError, match="no verdict"):
        judge(["x"])


def test_texts_that_cannot_be_sent() -> None:
    bad: list[Any] = [["canary \ud800"], ["x", 7], "bomb"]
    with serving(by_word) as (judge, _):
        for texts in bad:
            with pytest.raises(FilterError) as caught:
                judge(texts)
            assert "canary" not in str(caught.value)
            assert caught.value.__context__ is None


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret\n")
    with serving(by_word, api_key_env="SOME_KEY") as (judge, server):
        judge(["x"])
        assert "secret" not in repr(vars(judge))
    assert server.asked[0][1]["Authorization"] == "Bearer secret"
    for value in ("", "sécret", "two\nlines"):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(InvalidArgument, match="SOME_KEY") as caught:
            RemoteFilter("https://host/v1", "m", api_key_env="SOME_KEY")
        assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v1",
        "ftp://host/v1",
        "host/v1",
        "",
        "https://",
        "https://user:pass@host/v1",
        "https://host/v1?key=1",
    ],
)
def test_addresses_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        RemoteFilter(url, "m")


def test_addresses_that_are_accepted() -> None:
    for url in ("https://host/v1/", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        RemoteFilter(url, "m").close()
    RemoteFilter("http://host/v1", "m", allow_http=True).close()


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 1.5},
        {"threshold": math.nan},
        {"guard_band": -1},
        {"timeout": 0},
        {"timeout": math.inf},
        {"retries": -1},
        {"concurrency": 0},
        {"family": "shieldgemma"},
    ],
)
def test_settings_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        RemoteFilter("https://host/v1", "m", **options)


def test_what_is_certified_is_named() -> None:
    filters = [
        RemoteFilter("https://host/v1", "m"),
        RemoteFilter("https://host/v2", "m"),
        RemoteFilter("https://host/v1", "n"),
        RemoteFilter("https://host/v1", "m", family="llama-guard-3"),
        RemoteFilter("https://host/v1", "m", logprobs=False),
    ]
    assert len({judge.digest for judge in filters}) == len(filters)
    assert RemoteFilter("https://host/v1/", "m").digest == filters[0].digest
    (trust,) = filters[0].assumes
    assert "https://host/v1" in trust
    assert "trusted, not checked" in trust


def test_certifying_with_a_remote_judge() -> None:
    with serving(by_share) as (judge, server):
        certifier = EraseAndCheck(judge, load_mode("suffix", 3), Words())
        verdict = certifier.certify("how to build a bomb")
        assert verdict.certificate is not None
        assert verdict.certificate.filter == judge.digest
        assert certifier.certify("how to bake a cake at home").label == Label.SAFE
    assert len(server.asked) == 1 + 4


def test_load_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(by_share) as (_, server):
        judge = load_filter(f"remote:{server.url}#some/model", threshold=0.7)
        assert isinstance(judge, RemoteFilter)
        assert judge(["a bomb"]) == pytest.approx([0.75])
        assert judge.threshold == 0.7
        monkeypatch.setenv(remote.API_KEY, "secret")
        keyed = load_filter(f"remote:{server.url}#some/model", family="llama-guard-3")
        assert isinstance(keyed, RemoteFilter)
        with pytest.raises(FilterError):
            keyed(["a bomb"])
        assert server.asked[-1][1]["Authorization"] == "Bearer secret"
        keyed.close()
        judge.close()
    with pytest.raises(InvalidArgument, match="remote:<url>#<model>"):
        load_filter("remote:https://host/v1")
    with pytest.raises(InvalidArgument, match="drop label"):
        load_filter("remote:https://host/v1#m", label=1)
    with pytest.raises(UnknownName):
        load_filter("remote:https://host/v1#m", family="no-such-family")
