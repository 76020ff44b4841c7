"""The pages without a browser: blind, safe against what people paste, and closed to other sites."""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from simulated_raters import MakeStudy
from starlette.testclient import TestClient

from captune.apps.pages import LANGUAGES
from captune.apps.rating.server import MAX_BODY, PAGES, rating_application
from captune.apps.rating.store import DATABASE, Store
from captune.apps.rating.study_items import StudyItems
from captune.apps.security import LOCAL_HOSTS, SecurityMiddleware, answered_hosts
from captune.errors import InputError

Client = Callable[..., TestClient]


@pytest.fixture
def client() -> Iterator[Client]:
    """A function that opens a client for a study."""
    opened: list[TestClient] = []

    def make(store: Store, **settings: Any) -> TestClient:
        application: Any = rating_application(Store(store.folder), **settings)
        client = TestClient(application, base_url="http://localhost:8765", follow_redirects=False)
        opened.append(client.__enter__())
        return client

    yield make
    for one in opened:
        one.__exit__(None, None, None)


def _pages(client: TestClient, store: Store, rater: int) -> list[str]:
    """Every page that a rater sees, in order; every answer is the first choice or threes."""
    link = f"/r/{store.token(rater)}/"
    pages = [client.get(link).text]
    for position, trial in enumerate(store.trials(rater)):
        pages.append(client.get(link + "rate").text)
        fields = (
            {"choice": "first"}
            if trial.part == "pairwise"
            else dict.fromkeys(("precision", "recall", "fluency", "conciseness"), "3")
        )
        answer = client.post(link + "answer", data={"position": position, **fields})
        assert (answer.status_code, answer.headers["location"]) == (303, link + "rate")
    return [*pages, client.get(link + "rate").text]


def test_no_page_names_the_system_of_a_caption(make_study: MakeStudy, items: StudyItems, client: Client) -> None:
    """Under other names in another order of the same texts, every page is the same byte for byte."""
    renamed = tuple(replace(system, name=f"Z{number}") for number, system in enumerate(items.systems))
    first, second = make_study(images=4), make_study(replace(items, systems=renamed), images=4)
    pages = _pages(client(first), first, 0)
    assert pages == _pages(client(second), second, 0)
    seen = "\n".join(pages).lower()
    for name in ("pretrained", "epoch", "human", "attention", "repeat", "img-", "bleu", "cider"):
        assert name not in seen, name


def test_checks_and_repeats_look_like_any_other_screen(make_study: MakeStudy, client: Client) -> None:
    store = make_study(images=6, attention=0.3, repeats=0.3)
    pages = _pages(client(store), store, 0)[1:-1]

    def form(page: str) -> str:
        """The page without texts and numbers, which differ anyway."""
        page = re.sub(r"<bdi>.*?</bdi>|\d+", "", page)
        page = re.sub(r"<form[^>]*id=\"undo\".*?</form>|<details.*?</details>", "", page, flags=re.DOTALL)
        return " ".join(page.split())

    shapes: dict[tuple[str, str], set[str]] = {}
    for trial, page in zip(store.trials(0), pages, strict=True):
        shapes.setdefault((trial.part, trial.kind), set()).add(form(page))
    for part in ("pairwise", "rubric"):
        assert shapes[part, "task"] == shapes[part, "attention"] == shapes[part, "repeat"]
        assert len(shapes[part, "task"]) == 1


def test_a_screen_is_repeated_until_its_answer_is_complete(make_study: MakeStudy, client: Client) -> None:
    store = make_study(design="rubric")
    link, web = f"/r/{store.token(0)}/", client(store)
    complete = {"precision": "1", "recall": "2", "fluency": "3", "conciseness": "5"}
    for wrong in (
        {},
        {**complete, "precision": "6"},
        {**complete, "recall": ""},
        {**complete, "fluency": "1; DROP TABLE answer"},
        {**complete, "fluency": "３"},
        {"choice": "first"},
    ):
        answer = web.post(link + "answer", data={"position": "0", **wrong})
        assert answer.headers["location"].endswith("notice=incomplete")
    for position in ("", "-1", "1e9", "9" * 30, "²"):
        assert "incomplete" in web.post(link + "answer", data={"position": position, **complete}).headers["location"]
    assert store.answers() == []
    assert "Please answer every question" in web.get(link + "rate?notice=incomplete").text
    web.post(link + "answer", data={"position": "0", **complete})
    again = web.post(link + "answer", data={"position": "0", **dict.fromkeys(complete, "1")})
    assert again.headers["location"].endswith("notice=already")
    assert [answer.value for answer in store.answers()] == ["1235"]
    assert store.answers()[0].seconds is not None
    assert web.post(link + "undo", data={"position": "0"}).headers["location"].endswith("notice=undone")
    assert web.post(link + "undo", data={"position": "0"}).headers["location"] == link + "rate"
    assert store.answers() == []


def test_hostile_captions_are_shown_and_do_nothing(make_study: MakeStudy, items: StudyItems, client: Client) -> None:
    hostile = '</bdi><script>alert(1)</script><img src=x onerror="alert(1)">{{ 7*7 }}\u202e"\'>'
    systems = tuple(
        replace(s, captions=dict.fromkeys(s.captions, f"{n} {hostile}")) for n, s in enumerate(items.systems)
    )
    store = make_study(replace(items, systems=systems), images=3, attention=0)
    page = client(store).get(f"/r/{store.token(0)}/rate").text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert page.count("<script") == 1
    assert "<img src=x" not in page
    assert "\u202e" not in page


def test_hostile_names_on_the_results_page(make_study: MakeStudy, items: StudyItems, client: Client) -> None:
    bad = "<b onmouseover=alert(1)>"
    systems = (replace(items.systems[0], name=bad), *items.systems[1:])
    store = make_study(replace(items, systems=systems), names=(bad,))
    store.save_answer(0, 0, "first", 1.0)
    web = client(store)
    web.get(f"/results?key={store.results_key}", follow_redirects=True)
    page = web.get("/results").text
    assert bad not in page
    assert "&lt;b onmouseover=alert(1)&gt;" in page


def test_results_need_the_key(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web = client(store)
    for path in ("/results", "/results/results.json", "/results/answers.csv"):
        assert web.get(path).status_code == 401
        assert web.get(path, headers={"cookie": f"captune_results={store.token(0)}"}).status_code == 401
    assert web.get("/results?key=wrong").status_code == 403
    assert web.post("/results", data={"key": "wrong"}).status_code == 403
    assert web.post("/results", data={}).status_code == 403
    opened = web.post("/results", data={"key": store.results_key})
    assert opened.status_code == 303
    cookie = opened.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert web.get("/results").status_code == 200
    assert web.get("/results/results.json").json()["format"] == 1
    assert web.get("/results/answers.csv").text.startswith("rater,position")


def test_implausible_raters_are_marked_and_folders_are_not_shown(
    make_study: MakeStudy, client: Client, items: StudyItems
) -> None:
    hidden = replace(items, source="/home/me/secret/run, /data/other.json")
    store = make_study(hidden, names=("Quick", "Slow"), raters=2, judgements=2)
    for rater, seconds in ((0, 0.4), (1, 6.0)):
        for position, trial in enumerate(store.trials(rater)[:8]):
            store.save_answer(rater, position, "first" if trial.part == "pairwise" else "3333", seconds)
    web = client(store)
    web.post("/results", data={"key": store.results_key})
    page = web.get("/results").text
    assert "Made from run, other.json." in page
    assert "secret" not in page
    quick, slow = (page.index(f"<bdi>{name}</bdi>") for name in ("Quick", "Slow"))
    assert page.count("too fast to have read") == 1
    assert quick < page.index("too fast to have read") < slow


def test_results_follow_the_answers(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web = client(store)
    web.post("/results", data={"key": store.results_key})
    assert web.get("/results/results.json").json()["counted"] == 0
    link = f"/r/{store.token(0)}/"
    task = next(index for index, trial in enumerate(store.trials(0)) if trial.kind == "task")
    for position in range(task + 1):
        web.post(link + "answer", data={"position": position, "choice": "tie"})
    assert web.get("/results/results.json").json()["counted"] == 1
    web.post(link + "undo", data={"position": task})
    assert web.get("/results/results.json").json()["counted"] == 0


def test_unknown_links(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web, other = client(store), f"0-{'A' * 22}"
    for path in ("", "rate", "picture/0"):
        assert web.get(f"/r/{other}/{path}").status_code == 404
    assert web.post(f"/r/{other}/answer", data={"position": 0, "choice": "tie"}).status_code == 404
    assert web.post(f"/r/{other}/undo", data={"position": 0}).status_code == 404
    link = f"/r/{store.token(0)}/picture/"
    assert web.get(link + "0").headers["content-type"] == "image/jpeg"
    for wrong in ("6", "-1", "../study.sqlite", "%2e%2e%2fstudy.sqlite", "²", "0.jpg", "9" * 40):
        assert web.get(link + wrong).status_code == 404, wrong
    for wrong in ("study.sqlite", "base.html", "..%2fbase.html", "words.json"):
        assert web.get(f"/static/{wrong}").status_code == 404
    assert web.get("/openapi.json").status_code == 404


def test_posts_from_other_sites_are_refused(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web, path = client(store), f"/r/{store.token(0)}/answer"
    answer = {"position": "0", "choice": "first"}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert web.post(path, data=answer, headers=headers).status_code == 403, headers
    assert store.answers() == []
    headers = {"origin": "http://localhost:8765", "sec-fetch-site": "same-origin"}
    assert web.post(path, data=answer, headers=headers).status_code == 303


def test_other_hosts_are_refused_unless_it_listens_to_all(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    assert client(store).get("/", headers={"host": "evil.example"}).status_code == 400
    assert client(store, hosts=None).get("/", headers={"host": "raters.example"}).status_code == 200
    for host in ("localhost", "127.0.0.1:1", "[::1]:8765", "LOCALHOST:2", "localhost."):
        assert client(store).get("/", headers={"host": host}).status_code == 200, host


def test_a_proxys_address_lets_no_other_host_in(make_study: MakeStudy, client: Client) -> None:
    """DNS rebinding: a page of another name that leads here is refused, whatever it says of its origin."""
    store = make_study()
    answer, path = {"position": "0", "choice": "first"}, f"/r/{store.token(0)}/answer"
    for url, good in (
        ("https://study.example/rate", "study.example"),
        ("https://Study.Example:443", "STUDY.example:443"),
        ("http://study.example:8080/", "study.example:8080"),
        ("https://bücher.example", "xn--bcher-kva.example"),
        ("http://[2001:db8::7]:80", "[2001:DB8::7]"),
    ):
        web = client(store, hosts=answered_hosts("0.0.0.0", url), site=url)
        assert web.get("/", headers={"host": good}).status_code == 200
        assert web.get("/", headers={"host": "localhost:8765"}).status_code == 200
        assert web.get("/", headers={"host": socket.gethostname()}).status_code == 200
        for host in ("evil.example:8765", "study.example.evil", "evil.study.example", "192.0.2.1", ""):
            headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
            assert web.get("/", headers=headers).status_code == 400, host
            assert web.post(path, data=answer, headers=headers).status_code == 400, host
        assert web.post(path, data=answer, headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "server", "status"),
    [
        ("192.168.1.5:8000", "192.168.1.5", 200),
        ("192.168.1.5", "::ffff:192.168.1.5", 200),
        ("[fe80::1]", "fe80::1", 200),
        ("192.168.1.6", "192.168.1.5", 400),
        # A name is not believed to be the server's own, even where it says so.
        ("evil.example", "evil.example", 400),
    ],
)
def test_the_address_that_was_connected_to_is_answered(host: str, server: str, status: int) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    address = f"[{server}]" if ":" in server else server
    guard: Any = SecurityMiddleware(application, max_body=1)
    # The test client says that it has connected to the host of its URL.
    client = TestClient(guard, base_url=f"http://{address}:8000")
    assert client.get("/", headers={"host": host}).status_code == status


def test_hosts_that_are_answered() -> None:
    assert answered_hosts("127.0.0.1", None) == LOCAL_HOSTS
    assert answered_hosts("0.0.0.0", None) is None
    for url in (
        "demo.example",
        "ftp://a.example",
        "https://",
        "https://u:p@a.example",
        "http://a:99999",
        "http://[::1",
    ):
        with pytest.raises(InputError, match="expected the beginning of the address"):
            answered_hosts("127.0.0.1", url)


def test_behind_a_proxy(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    site = "https://study.example/rate"
    web = client(store, hosts=answered_hosts("127.0.0.1", site), site=site)
    path, answer = f"/r/{store.token(0)}/answer", {"position": "0", "choice": "first"}
    assert web.post(path, data=answer, headers={"origin": "https://study.example"}).status_code == 303
    for origin in ("http://study.example", "https://study.example.evil", "https://evil.example"):
        assert web.post(path, data=answer, headers={"origin": origin}).status_code == 403
    opened = web.post("/results", data={"key": store.results_key})
    assert "secure" in opened.headers["set-cookie"].lower()


def test_every_word_is_there_in_both_languages() -> None:
    english, chinese = (PAGES.words[language] for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert text.count("{}") == chinese[key].count("{}"), key


def test_large_requests_are_refused(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web, path = client(store), f"/r/{store.token(0)}/answer"
    assert web.post(path, content=b"x" * (MAX_BODY + 1)).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 1000 + 2):
            yield b"position=0&" * 100

    assert web.post(path, content=endless()).status_code == 413
    many = "&".join(f"a{number}=1" for number in range(500)) + "&position=0&choice=first"
    assert "incomplete" in web.post(path, content=many.encode()).headers["location"]
    assert "incomplete" in web.post(path, content=b"\xff\xfe\x00position=0").headers["location"]
    assert store.answers() == []


def test_headers_close_the_page(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    answer = client(store).get(f"/r/{store.token(0)}/rate")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert not re.search(r"<style|style=|<script(?! src=)|\son\w+=", answer.text)


def test_both_languages(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    link, web = f"/r/{store.token(0)}/", client(store)
    assert "Which caption" in web.get(link + "rate").text
    assert "哪条描述更好" in web.get(link + "rate", headers={"accept-language": "zh-CN,en;q=0.8"}).text
    assert "哪条描述更好" in web.get(link + "rate?lang=zh").text
    assert "哪条描述更好" in web.get(link + "rate").text, "the choice is remembered"
    assert "Which caption" in web.get(link + "rate?lang=en").text
    assert web.get(link + "rate?lang=<script>").status_code == 200


def test_a_form_does_not_reach_the_database(make_study: MakeStudy, client: Client) -> None:
    store = make_study()
    web = client(store)
    for text in ("'; DROP TABLE answer; --", "\x00", "first' OR '1'='1"):
        web.post(f"/r/{store.token(0)}/answer", data={"position": "0", "choice": text})
    tables = sqlite3.connect(store.folder / DATABASE).execute("SELECT COUNT(*) FROM answer").fetchone()
    assert tables == (0,)
