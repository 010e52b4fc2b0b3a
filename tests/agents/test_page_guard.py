"""Whose requests the labelling page answers: each case here is answered where the check that it is about is missing."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from benchmarks.robots import Rater, read
from textgen_env.agents.preferences import page_guard
from textgen_env.agents.preferences.page import make_app
from textgen_env.agents.preferences.page_guard import MOST_BYTES, is_loopback
from textgen_env.agents.preferences.pairs import Pair
from textgen_env.agents.preferences.store import PreferenceStore

HOME = "http://127.0.0.1:8421"
TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def store(tmp_path: Path) -> PreferenceStore:
    store = PreferenceStore(tmp_path / "store.db")
    store.add([Pair(f"prompt {i}", f"one {i}", f"two {i}") for i in range(1, 4)])
    return store


def client(store: PreferenceStore, base: str = HOME, **options: Any) -> TestClient:
    app = make_app(store, **options)
    return TestClient(app, base_url=base, follow_redirects=False, raise_server_exceptions=False)


# --- Host: names that were made to point here -------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1:8421", "localhost", "LOCALHOST:9", "[::1]:8421", "lab.example:8421"])
def test_our_own_names_are_answered(store: PreferenceStore, host: str):
    assert client(store, names=["Lab.example"]).get("/name", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8421", "127.0.0.1.evil.example", "localhost@evil.example", "localhost:x", "10.0.0.7"]
    + ["", "localhost/evil", "[::1", "evil.example#localhost", "localhost.", "user@localhost"],
)
def test_other_names_are_refused(store: PreferenceStore, host: str):
    answer = client(store).get("/name", headers={"host": host})
    assert answer.status_code == 421
    assert "name" not in answer.text


def test_with_a_token_any_address_is_answered_and_no_other_name(store: PreferenceStore):
    page = client(store, token=TOKEN, names=["lab.example"])
    page.cookies.set("label_token", TOKEN)
    for host, code in {"10.0.0.7:8421": 200, "[fe80::1]": 200, "lab.example": 200, "evil.example": 421}.items():
        assert page.get("/name", headers={"host": host, "cookie": f"label_token={TOKEN}"}).status_code == code


# --- Origin: forms of other pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:8422", "http://localhost:8421", "127.0.0.1:8421"]
)
def test_a_form_of_another_page_writes_nothing(store: PreferenceStore, origin: str | None):
    ann = Rater(client(store))
    ann.get()
    headers = {} if origin is None else {"origin": origin}
    for path, form in (("/choose", {"number": "1", "choice": "left"}), ("/undo", {}), ("/name", {"name": "eve"})):
        answer = ann.client.post(path, data=form, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    assert store.said() == []
    assert ann.post("/choose", {"number": "1", "choice": "left"}).status_code == 303  # the same from our own


def test_a_form_behind_a_proxy_that_speaks_tls_is_our_own(store: PreferenceStore):
    ann = Rater(client(store))
    ann.get()
    form = {"number": "1", "choice": "left"}
    answer = ann.client.post("/choose", data=form, headers={"origin": "https://127.0.0.1:8421"})
    assert answer.status_code == 303


def test_other_methods_do_nothing(store: PreferenceStore):
    page = client(store)
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"):
        assert page.request(method, "/compare", headers={"origin": HOME}).status_code == 405
        assert page.request(method, "/compare").status_code == 403
    for path in ("/choose", "/undo"):  # no link or picture of another page chooses
        assert page.get(path).status_code == 405
    with pytest.raises(RuntimeError, match="HTTP alone"), page.websocket_connect("/compare"):
        pass


# --- the token --------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_told(store: PreferenceStore):
    page = client(store, token=TOKEN)
    for path in ("/", "/compare", "/page.css", "/nothing", "/?token=", "/?token=wrong", f"/?token={TOKEN}x"):
        assert page.get(path).status_code == 401
    for cookie in ("", "wrong", TOKEN[:-1], TOKEN.upper(), "é"):
        assert page.get("/name", headers={"cookie": f"label_token={cookie}".encode()}).status_code == 401
    assert page.post(f"/name?token={TOKEN}", data={"name": "ann"}, headers={"origin": HOME}).status_code == 401


def test_the_token_is_asked_for_once_and_leaves_the_address(store: PreferenceStore):
    page = client(store, token=TOKEN)
    answer = page.get(f"/?token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert Rater(page).get().number == 1
    elsewhere = page.get(f"//evil.example/?token={TOKEN}")
    assert elsewhere.headers["location"] == "/"


def test_which_addresses_are_this_machines_own():
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.7", "lab.example", "localhost.evil")] == [False] * 5


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_large_forms_are_refused_before_they_are_read(store: PreferenceStore):
    ann = Rater(client(store))
    ann.get()
    form = {"number": "1", "choice": "left"}
    assert ann.post("/choose", {**form, "comment": "x" * MOST_BYTES}).status_code == 413
    assert ann.post("/choose", {**form, "comment": "x" * 2001}).status_code == 413
    assert ann.post("/choose", {**form, **{str(i): "x" for i in range(30)}}).status_code == 400
    assert store.said() == []
    read_so_far = 0

    def endless() -> Iterator[bytes]:
        nonlocal read_so_far
        for _ in range(10_000):
            read_so_far += 1024
            yield b"x" * 1024

    headers = {"content-type": "application/x-www-form-urlencoded", "origin": HOME}
    assert ann.client.post("/choose", content=endless(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"number": 1}', "application/json"),
        (b"number=1&choice=left", "text/plain"),  # what a form of another page can send without asking
        (b"number=1&choice=left&comment=%ff", "application/x-www-form-urlencoded"),
        (b"\xff\xfe", "application/x-www-form-urlencoded"),
    ],
)
def test_what_is_no_form_is_refused(store: PreferenceStore, content: bytes, kind: str):
    ann = Rater(client(store))
    ann.get()
    answer = ann.client.post("/choose", content=content, headers={"content-type": kind, "origin": HOME})
    assert answer.status_code in (400, 415)
    assert store.said() == []


@pytest.mark.parametrize(
    "form",
    [
        {"number": "9" * 400, "choice": "left"},
        {"number": "1", "choice": "a"},
        {"number": "1", "choice": "left; DROP TABLE choices"},
        {"number": "1 OR 1=1", "choice": "left"},
        {"number": "-1", "choice": "left"},
        {"number": "１", "choice": "left"},
        {"number": "1", "choice": "left", "strength": "6"},
        {"choice": "left"},
        {"number": "1", "choice": " "},
    ],
)
def test_values_that_the_page_does_not_send_are_refused(store: PreferenceStore, form: dict[str, str]):
    ann = Rater(client(store))
    ann.get()
    assert ann.post("/choose", form).status_code == 400
    assert store.said() == []


# --- paths and headers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/templates/base.html",
        "/page.py",
        "/../page.py",
        "/%2e%2e/page.py",
        "/page.css/../../store.py",
        "/pairs/..%2f..%2fetc%2fpasswd",
        "/pairs/" + "9" * 5000,
        "/pairs/1.0",
        "/compare/0x1",
        "/store.db",
        "//etc/passwd",
    ],
)
def test_no_address_leads_to_a_file(store: PreferenceStore, path: str):
    answer = Rater(client(store)).client.get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_every_answer_keeps_the_page_to_itself(store: PreferenceStore, monkeypatch: pytest.MonkeyPatch):
    """Errors of ours, too."""
    page = client(store)
    ann = Rater(page)
    answers = [page.get(path) for path in ("/compare", "/page.js", "/page.css", "/ready", "/nothing", "/")]
    answers += [page.get("/name", headers={"host": "evil.example"}), ann.post("/choose", {"choice": "left"})]
    monkeypatch.setattr(PreferenceStore, "next_task", lambda *_: 1 / 0)
    answers.append(page.get("/compare"))
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 404, 303, 421, 400, 500]
    assert "ZeroDivision" not in answers[-1].text
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        is_asset = answer.request.url.path in ("/page.js", "/page.css")
        assert ("immutable" if is_asset else "no-store") in answer.headers["cache-control"]
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    html = answers[0].text
    assert "style=" not in html
    assert "onclick" not in html
    assert "<style" not in html


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(store: PreferenceStore) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(store), log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_a_form_that_does_not_arrive_is_given_up(served: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_guard, "MOST_SECONDS", 0.3)
    host, port = served.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"POST /name HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {served}\r\nContent-Length: 9\r\n"
        connection.sendall(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\nname".encode())
        begin = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begin < 5


def test_several_raters_at_once_over_the_network(served: str, store: PreferenceStore):
    store.add([Pair(f"more {i}", "x", "y") for i in range(57)])
    failures: list[BaseException] = []

    def label(who: str) -> None:
        try:
            with httpx.Client(base_url=served) as connection:
                rater = Rater(connection, who)
                while (page := rater.get()).number is not None:
                    rater.press(page, "left")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=label, args=(f"rater {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(s.number for s in store.said(withdrawn=True)) == list(range(1, 61))
    assert sum(store.counts().values()) == 60


# --- the command ------------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "textgen_env.agents.label"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def test_other_hosts_than_this_machines_own_get_a_token(store: PreferenceStore):
    server = subprocess.Popen(
        [*COMMAND, str(store.path), "--host", "0.0.0.0", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert said.startswith("3 pairs in ")
        address = said.split(" at ")[1].strip()
        port, token = address.rpartition(":")[2].split("/?token=")
        assert len(token) >= 32
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as connection:
            assert connection.get("/name").status_code == 401
            assert connection.get(f"/?token={token}").status_code == 303
            assert read(connection.get("/name").text).title.startswith("Who is comparing?")
    finally:
        server.terminate()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def test_mistakes_are_one_line(store: PreferenceStore, tmp_path: Path):
    taken = socket.create_server(("127.0.0.1", 0))
    busy = str(taken.getsockname()[1])
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for arguments, message in (
        ([str(tmp_path / "none.db")], "none.db': there is no such file"),
        ([str(tmp_path / "none.jsonl")], "none.jsonl': there is no such file"),
        ([str(tmp_path)], "preferences.db': there is no such file"),
        ([str(tmp_path / "bad.jsonl")], "bad.jsonl"),
        ([str(store.path), "--port", busy], f"port={busy}: "),
        ([str(store.path), "--overlap", "0"], "overlap=0 must be"),
        ([str(store.path), "--host", "no.such.host.invalid"], "host='no.such.host.invalid'"),
    ):
        ended = run(*arguments)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.count("\n") == 1
        assert message in ended.stderr
    taken.close()
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "bad.db").exists()


def test_in_and_out_by_the_command(tmp_path: Path):
    """A file of TRL's becomes a store beside it; what stands comes out in both forms."""
    source, ours, trl = (tmp_path / name for name in ("pairs.jsonl", "ours.jsonl", "trl.jsonl"))
    source.write_text(
        '{"prompt": "p", "chosen": "x", "rejected": "y", "who": "file"}\n{"prompt": "q", "a": "1", "b": "2"}\n'
    )
    ended = run(str(source), "--export", str(ours), "--export-trl", str(trl))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"2 lines in {ours}", f"1 preferences in {trl}; 1 lines have none"]
    assert trl.read_text() == '{"prompt": "p", "chosen": "x", "rejected": "y"}\n'
    assert [p.choice for p in PreferenceStore(tmp_path / "pairs.db").pairs()] == ["a", None]
    assert run(str(source), "--export", str(ours)).returncode == 0  # read twice, kept once
    assert len(PreferenceStore(tmp_path / "pairs.db").pairs()) == 2
