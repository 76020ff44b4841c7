"""`captune serve` and `demo.py` as commands: what is wrong is one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captune.cli import app, run


def _call(*arguments: object) -> int:
    return run(lambda: app([str(argument) for argument in arguments], standalone_mode=False))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been served; the server returns at once."""
    applications: list[Any] = []
    monkeypatch.setattr("captune.apps.run_server", lambda application, listener: applications.append(application))
    return applications


def test_the_address_goes_to_stdout(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert _call("serve", "toy", "--port", 0) == 0
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:")
    assert out.count("\n") == 1
    assert "toy: page at http://127.0.0.1:" in err
    assert len(served) == 1
    assert _call("serve", "toy", "--port", 0, "--host", "0.0.0.0") == 0
    assert "without a password" in capsys.readouterr().err


def test_a_key_for_clients_and_browsers(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    from starlette.testclient import TestClient

    assert _call("serve", "toy", "--port", 0, "--host", "0.0.0.0", "--api-key", "s3cret+/=") == 0
    assert "clients need the key" in capsys.readouterr().err
    web = TestClient(served[0], follow_redirects=False)
    for headers in ({}, {"authorization": "Bearer s3cret"}, {"authorization": "Basic s3cret+/="}, {"cookie": "key=x"}):
        refused = web.get("/v1/models", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
        assert "nosniff" in refused.headers["x-content-type-options"]
    assert web.post("/v1/chat/completions", json={}).status_code == 401
    assert web.get("/health").status_code in (200, 503)
    assert web.get("/v1/models", headers={"authorization": "Bearer s3cret+/="}).json()["data"][0]["id"] == "toy"
    opened = web.get("/", params={"key": "s3cret+/="})
    assert (opened.status_code, opened.headers["location"]) == (303, "/")
    assert "samesite=strict" in opened.headers["set-cookie"].lower()
    assert "Ask about an image" in web.get("/").text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("/nowhere/at/all",), "There is no model folder /nowhere/at/all"),
        (("toy", "--host", "203.0.113.9"), "no address of this machine"),
        (("toy", "--slots", "0"), "--slots"),
        (("toy", "--api-key", "é"), "printable ASCII"),
        (("toy", "--url", "demo.example"), "expected the beginning of the address"),
        (("toy", "--examples", "/nowhere.png"), "/nowhere.png does not exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    served: list[Any], arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from captune.cli import call

    assert run(lambda: call(app, ["serve", *arguments, "--port", "0"])) == 2
    assert sentence in capsys.readouterr().err
    assert served == []


def test_a_taken_port(served: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    from captune.apps import listening_socket

    with listening_socket("127.0.0.1", 0) as taken:
        assert _call("serve", "toy", "--port", taken.getsockname()[1]) == 2
    assert "is in use" in capsys.readouterr().err


def test_the_original_demo_command(repository: Path, tmp_path: Path) -> None:
    help_text = subprocess.run(
        [sys.executable, repository / "demo.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "--cfg-path" in help_text
    assert "--gpu-id" in help_text
    wrong = subprocess.run(
        [sys.executable, repository / "demo.py", "--cfg-path", tmp_path / "none.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2
    assert "none.yaml" in wrong.stderr
    assert "Traceback" not in wrong.stderr
