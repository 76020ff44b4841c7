"""`captune report RUN --watch`: the page of a run in progress, served on this machine only."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from captune.errors import CaptuneError, InputError
from captune.parsing import load_json

__all__ = ["PageServer", "training_state"]

_WAITING = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>captune</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; }}</style>
</head><body><h1>{name}</h1><p role="status">{text}</p></body></html>
"""


def training_state(log: Path) -> dict[str, Any]:
    """What the log of a run says about its training.

    Args:
        log: `log.jsonl`; a missing one is a training that has not begun.

    Returns:
        `step`, `steps`, `loss` (None before the first logged step), `seconds_left` (None before it can be estimated),
        `done`.
    """
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    events: list[dict[str, Any]] = []
    for line in lines:
        try:
            event = load_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    starts = [index for index, event in enumerate(events) if event.get("event") == "run"]
    begin = events[starts[-1]] if starts else {}
    # Times of an interrupted and resumed run are not comparable.
    current = events[starts[-1] :] if starts else []
    steps = [event for event in events if event.get("event") == "step" and _number(event, "step") is not None]
    recent = [event for event in current if event.get("event") == "step" and _number(event, "time") is not None]
    total = _number(begin, "steps") or 0.0
    last = steps[-1] if steps else {}
    left = None
    if len(recent) > 1 and recent[-1]["step"] > recent[0]["step"]:
        pace = (recent[-1]["time"] - recent[0]["time"]) / (recent[-1]["step"] - recent[0]["step"])
        left = max(0.0, pace * (total - recent[-1]["step"]))
    return {
        "step": int(_number(last, "step") or 0),
        "steps": int(total),
        "loss": _number(last, "loss"),
        "seconds_left": left,
        "done": bool(events) and events[-1].get("event") == "done",
    }


def _number(event: dict[str, Any], name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


class PageServer:
    """Serves the page of a run on 127.0.0.1; it is built again when the run's scores change.

    Args:
        run_dir: the run; it may have no scores yet.
        language: "en" or "zh", in which the page opens; empty for the browser's.
        port: to listen on; 0 is any that is free.

    Raises:
        InputError: the run's folder does not exist, or the port is in use.
    """

    def __init__(self, run_dir: Path, language: str = "", port: int = 0) -> None:
        if not run_dir.is_dir():
            raise InputError(f"{run_dir} is not a folder; give the folder of a run.")
        self.run_dir, self.language = run_dir, language
        self._lock, self._built = Lock(), ("", "")
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self._answer))
        except OSError as error:
            raise InputError(f"Port {port} cannot be used: {error.strerror}; choose another one.") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.port}/"

    def serve(self) -> None:
        """Answer requests until `close` is called or Ctrl-C is pressed."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        """Release the port."""
        self._server.server_close()

    def stop(self) -> None:
        """End `serve`, from another thread."""
        self._server.shutdown()

    def _answer(self, path: str) -> tuple[str, str] | None:
        """Type and text of an answer; None for an address that does not exist."""
        if path == "/state":
            state = {**training_state(self.run_dir / "log.jsonl"), "version": self._version()}
            return "application/json", json.dumps(state)
        return ("text/html; charset=utf-8", self._page()) if path == "/" else None

    def _version(self) -> str:
        """Changes with the scores."""
        try:
            status = (self.run_dir / "scores.json").stat()
        except OSError:
            return ""
        return f"{status.st_mtime_ns}-{status.st_size}"

    def _page(self) -> str:
        from captune.report import build_page, read_log, read_scores

        version = self._version()
        with self._lock:
            if version and self._built[0] == version:
                return self._built[1]
            text = "No scores yet: this page fills when the first evaluation has finished."
            if version:
                try:
                    page = build_page(
                        read_scores(self.run_dir),
                        read_log(self.run_dir / "log.jsonl"),
                        run_dir=self.run_dir,
                        language=self.language,
                        live=version,
                    )
                except CaptuneError as error:
                    text = str(error)
                else:
                    self._built = version, page
                    return page
        state = training_state(self.run_dir / "log.jsonl")
        if state["steps"]:
            loss = "" if state["loss"] is None else f", loss {state['loss']:.4f}"
            text += f" Step {state['step']:,} of {state['steps']:,}{loss}."
        return _WAITING.format(name=html.escape(self.run_dir.resolve().name), text=html.escape(text))


def _handler(answer: Callable[[str], tuple[str, str] | None]) -> type[BaseHTTPRequestHandler]:
    """A request handler for pages of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A name of another site that resolves to this machine must not read the page.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            result = answer(self.path.partition("?")[0]) if host in ("127.0.0.1", "localhost") else None
            kind, text = result or ("text/plain; charset=utf-8", "There is no such page.\n")
            body = text.encode("utf-8", "backslashreplace")
            self.send_response(200 if result else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

    return Handler
