"""Captions of a model behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, captune serve, OpenAI).

Requests are sent several at once, and again after errors that pass. Each answer is given to the caller when it arrives,
so that it can be stored. Needs no torch.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import queue
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from captune.common import split_thinking
from captune.data import has_rotation, load_image, plural
from captune.decoding import Caption, DecodingOptions
from captune.errors import ConfigError, InputError, ToolError
from captune.parsing import load_json

__all__ = ["API_KEY", "Answer", "Endpoint", "EndpointOptions", "GreedyRefusedError", "image_url", "is_endpoint"]

API_KEY = "CAPTUNE_API_KEY"
"""Environment variable with the key of endpoints."""
_OPENAI_KEY = "OPENAI_API_KEY"
"""Is sent to OpenAI's hosts only, if `API_KEY` is not set."""
_RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses of failures that may pass."""
_LONGEST_WAIT = 60.0
"""Seconds between two attempts."""
_MOST_REFUSED = 3
"""Images that may be refused before the first answer; then the request itself is taken to be wrong."""
_GREEDY_REFUSED = re.compile(r"temperature.*not support|unsupported.*temperature", re.IGNORECASE)
_FAILED_END = re.compile(r"error|abort|cancel|fail|timeout|insufficient", re.IGNORECASE)
"""In the `finish_reason` of an answer that the server did not complete."""
_LENGTH_ENDS = ("length", "max_tokens", "model_length")
_MOST_BYTES = 8 << 20
"""Of an answer."""
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


def is_endpoint(name: str) -> bool:
    """Whether a name is the address of an endpoint."""
    return re.match(r"https?://", name, re.IGNORECASE) is not None


@dataclass(frozen=True)
class EndpointOptions:
    """How requests are sent.

    Attributes:
        concurrency: requests at once.
        timeout: seconds without an answer after which a request has failed.
        attempts: how often a request is sent before the evaluation stops.
    """

    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6


@dataclass(frozen=True)
class Answer:
    """The answer about one image.

    Attributes:
        caption: its text is empty where the model refused, or answered with nothing.
        refused: why there is no caption, in the words of the server; empty if there is one or it is just empty.
        is_final: whether the model answered; False where the server refused the request for this image or failed.
        model: name of the model in the answer; empty if there is none.
    """

    caption: Caption
    refused: str = ""
    is_final: bool = True
    model: str = ""


class _RequestError(Exception):
    """A request without an answer.

    Args:
        status: of the HTTP answer; 0 if there was none.
        message: of the server or the system.
        code: of the error, for programs.
        wait: seconds after which the server wants the next request.
        of_image: the server works, and failed in the generation of this caption.
    """

    def __init__(
        self, status: int, message: str, code: str = "", wait: float | None = None, *, of_image: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.wait, self.of_image = status, message, code, wait, of_image

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later; a used-up quota does not come back in minutes."""
        return (self.status == 0 or self.status in _RETRIED) and self.code != "insufficient_quota"


class GreedyRefusedError(Exception):
    """A model that only samples; see `Endpoint.samples`."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: a POST cannot follow all of them, and the key is for one host."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


@dataclass
class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    Attributes:
        address: of the endpoint, up to `/v1`.
        model: name of the model.
        decoding: what is requested; only `max_new_tokens` and `repetition_penalty` can be.
        options: for requests.
        samples: whether the temperature is left to the server, because its model refuses 0.
        served: what the server says about the model, such as its folder; empty if nothing.
    """

    address: str
    model: str
    decoding: DecodingOptions
    options: EndpointOptions = field(default_factory=EndpointOptions)
    samples: bool = False
    served: str = ""
    _limit: str = "max_tokens"

    @classmethod
    def open(cls, url: str, decoding: DecodingOptions, options: EndpointOptions | None = None) -> Endpoint:
        """Contact an endpoint whose model is not named; otherwise the first request does.

        Args:
            url: address and model, `http://localhost:8000/v1#model`; the model may be left out where there is one.
            decoding: how captions are decoded.
            options: for requests.

        Raises:
            ConfigError: the address is wrong, the decoding cannot be requested, or a model has to be named.
            InputError: the server cannot be reached.
        """
        address, model = _parse(url)
        if decoding.beams > 1:
            raise ConfigError(
                f"evaluate.beams is {decoding.beams}, and {address} is an endpoint, of which beam search cannot be "
                "requested; set evaluate.beams=1."
            )
        endpoint = cls(address, model, decoding, options or EndpointOptions())
        _key(address)
        if not model:
            endpoint.model = endpoint._only_model()
        return endpoint

    @property
    def identity(self) -> str:
        """Differs between models whose captions may differ, as far as that can be seen from here."""
        served = f", serves {self.served}" if self.served else ""
        return f"endpoint {self.address}#{self.model}{', sampled' if self.samples else ''}{served}"

    def with_identity(self, identity: str) -> Endpoint | None:
        """This endpoint as it had an identity earlier; None if it is that of another one."""
        for samples in (False, True):
            start = replace(self, samples=samples, served="").identity
            rest = identity.removeprefix(start).removeprefix(", serves ")
            earlier = replace(self, samples=samples, served=rest)
            if earlier.identity == identity:
                return earlier
        return None

    def check(self, timeout: float | None = None) -> None:
        """Refuse a server that cannot be reached or accepts no key, and read what it says about the model.

        Args:
            timeout: seconds to wait at most; by default those of the options.

        Raises:
            InputError: names the address and the reason.
        """
        try:
            self.served = _description(self._send("/models", timeout=timeout), self.model)
        except _RequestError as failure:
            if failure.status in (0, 401, 403):
                raise self._unreachable(failure) from None

    def caption(
        self,
        files: Sequence[Path],
        instruction: str,
        on_answer: Callable[[int, Answer], None],
        *,
        exif_rotation: bool = True,
        answered: int = 0,
    ) -> None:
        """Request a caption of each image; several at once, and in no order.

        Args:
            files: N image files.
            instruction: sent with every image.
            on_answer: called in this thread with the index of an image and its answer, as it arrives.
            exif_rotation: send images upright.
            answered: images that the model has answered before; if there are some, it does not refuse every image.

        Raises:
            DataError: an image cannot be read.
            InputError: the server refuses the key, the model or every image.
            GreedyRefusedError: the model only samples.
            ToolError: the server fails although a request was repeated.
        """
        jobs: queue.SimpleQueue[int] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, Answer | Exception]] = queue.SimpleQueue()
        for index in range(len(files)):
            jobs.put(index)
        stopping = threading.Event()

        def work() -> None:
            while not stopping.is_set():
                try:
                    index = jobs.get_nowait()
                except queue.Empty:
                    return
                try:
                    results.put((index, self._answer(files[index], instruction, exif_rotation, stopping)))
                except Exception as error:  # raised again in the caller's thread
                    results.put((index, error))
                    return

        # Daemons, so that Ctrl-C does not wait for answers.
        for _ in range(min(self.options.concurrency, len(files))):
            threading.Thread(target=work, daemon=True, name="captune-endpoint").start()
        refused = 0
        try:
            for _ in range(len(files)):
                index, result = results.get()
                if isinstance(result, Exception):
                    raise result
                answered, refused = answered + result.is_final, refused + (not result.is_final)
                if not answered and refused == min(_MOST_REFUSED, len(files)):
                    raise InputError(
                        f"The model {self.model} of {self.address} captions none of the first "
                        f"{plural(refused, 'image')}: {result.refused}."
                    )
                on_answer(index, result)
        finally:
            stopping.set()

    def _answer(self, file: Path, instruction: str, exif_rotation: bool, stopping: threading.Event) -> Answer:
        content = [
            {"type": "image_url", "image_url": {"url": image_url(file, exif_rotation=exif_rotation)}},
            {"type": "text", "text": instruction},
        ]
        messages = [{"role": "user", "content": content}]
        attempt = 0
        while not stopping.is_set():
            request = self._request(messages)
            try:
                return _read_answer(self._send("/chat/completions", request), _key(self.address))
            except _RequestError as failure:
                if self._adapts(failure, request):
                    continue
                if failure.status in (401, 403, 404) or (failure.status == 429 and not failure.may_pass):
                    raise self._unreachable(failure) from None
                if not failure.may_pass:
                    return Answer(Caption("", 0, True), failure.message, is_final=False)
                attempt += 1
                if attempt == self.options.attempts:
                    if failure.of_image:
                        return Answer(Caption("", 0, True), failure.message, is_final=False)
                    raise ToolError(
                        f"{self.address} gave no answer in {attempt} attempts, at last: {failure.message}. The answers "
                        "so far are stored; give the same command again to continue."
                    ) from None
                stopping.wait(_delay(attempt, failure))
        raise ToolError("The evaluation was stopped.")

    def _request(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            self._limit: self.decoding.max_new_tokens,
        }
        if not self.samples:
            request["temperature"] = 0
        if self.decoding.repetition_penalty != 1:
            request["repetition_penalty"] = self.decoding.repetition_penalty
        return request

    def _adapts(self, failure: _RequestError, request: dict[str, Any]) -> bool:
        """Whether the next request differs: some models of OpenAI's refuse `max_tokens`.

        Raises:
            GreedyRefusedError: they also refuse temperature 0.
        """
        if failure.status != 400:
            return False
        if "max_tokens" in request and "max_completion_tokens" in failure.message:
            self._limit = "max_completion_tokens"
            return True
        if "temperature" in request and _GREEDY_REFUSED.search(failure.message):
            raise GreedyRefusedError(f"{self.model} of {self.address} does not decode greedily: {failure.message}.")
        return False

    def _only_model(self) -> str:
        """The model of an endpoint that has one.

        Raises:
            InputError: there are none or several, or the server cannot be reached.
        """
        try:
            names = _model_names(self._send("/models"))
        except _RequestError as failure:
            if failure.status in (0, 401, 403):
                raise self._unreachable(failure) from None
            names = []
        if len(names) == 1:
            return names[0]
        served = f"serves {len(names)} models ({', '.join(names[:10])})" if names else "does not list its models"
        example = names[0] if names else "MODEL"
        raise ConfigError(f"{self.address} {served}; name one after #, as in {self.address}#{example}")

    def _unreachable(self, failure: _RequestError) -> InputError:
        if failure.status == 0:
            return InputError(
                f"The endpoint {self.address} cannot be reached: {failure.message}; start the server, or correct the "
                "address."
            )
        if failure.status in (401, 403):
            has_key = _key(self.address) is not None
            state = f"refuses the key in {API_KEY}" if has_key else "needs a key"
            return InputError(f"{self.address} {state}: {failure.message}; set the environment variable {API_KEY}.")
        if failure.status == 404:
            try:
                names = _model_names(self._send("/models"))
            except _RequestError:
                names = []
            hint = f"it serves {', '.join(names[:10])}" if names else "check the address, which usually ends in /v1"
            return InputError(f"{self.address} has no model {self.model}: {failure.message}; {hint}.")
        return InputError(f"{self.address} refuses requests: {failure.message}.")

    def _send(self, path: str, body: dict[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Send one request and read its JSON.

        Raises:
            _RequestError: there is no answer, or it is an error.
        """
        key = _key(self.address)
        timeout = min(self.options.timeout, timeout or self.options.timeout)
        headers = {"User-Agent": "captune", "Accept": "application/json"}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data=data, headers=headers)
        handlers: list[Any] = [_NoRedirect]
        if urlsplit(self.address).hostname in ("localhost", "127.0.0.1", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as answer:
                content = answer.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise _http_failure(error, key) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            text = f"no answer in {timeout:g} seconds"
            if not isinstance(reason, TimeoutError):
                text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise _RequestError(0, text) from None
        try:
            return load_json(content)
        except ValueError:
            words = _readable(content.decode("utf-8", "replace"), key)[:100]
            raise _RequestError(0, f"its answer is not JSON: '{words}'" if words else "its answer is empty") from None


def _parse(url: str) -> tuple[str, str]:
    """The address of an endpoint up to `/v1`, and the name of the model after `#`.

    Raises:
        ConfigError: it is no such address.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url} is not an address: {error}; expected http://HOST:PORT/v1#MODEL.") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"The address of {parts.hostname} has a password, which would be stored; set the environment variable "
            f"{API_KEY} instead."
        )
    if not parts.hostname or parts.query:
        raise ConfigError(f"{url} is not the address of an endpoint; expected http://HOST:PORT/v1#MODEL.")
    path = re.sub(r"(/chat/completions|/models)?/*$", "", parts.path) or "/v1"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme.lower()}://{host}{'' if port is None else f':{port}'}{path}", parts.fragment


def _key(address: str) -> str | None:
    """The key of an endpoint; None if there is none.

    Raises:
        ConfigError: it cannot be sent.
    """
    host = urlsplit(address).hostname or ""
    names = [API_KEY, *([_OPENAI_KEY] if host == "openai.com" or host.endswith(".openai.com") else [])]
    name = next((name for name in names if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"The key in {name} has characters that a header cannot carry; set it again.")
    return key


def _http_failure(error: urllib.error.HTTPError, key: str | None) -> _RequestError:
    """The failure in an HTTP answer, in the server's words."""
    status, code, message = error.code, "", ""
    if 300 <= status < 400:
        return _RequestError(404, f"it redirects to {error.headers.get('Location')}; give that address")
    try:
        content = error.read(_MOST_BYTES)
        message = content.decode("utf-8", "replace")
        tree = load_json(content)
        message, code = _error_words(tree.get("error", tree), message)
    except (OSError, ValueError, AttributeError, http.client.HTTPException):
        pass
    message = _readable(message, key) or str(error.reason)
    wait = error.headers.get("Retry-After", "")
    seconds = float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None
    return _RequestError(status, f"{message} (status {status})", code, seconds)


def _error_words(body: Any, default: str = "") -> tuple[str, str]:
    """Message and code of the error object of an answer."""
    if not isinstance(body, dict):
        return str(body), ""
    return str(body.get("message") or body.get("detail") or default), str(body.get("code") or "")


def _readable(text: str, key: str | None) -> str:
    """The words of a server as part of one line, without HTML and without the key."""
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", text, flags=re.IGNORECASE | re.DOTALL)
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    text = text if key is None else text.replace(key, "***")
    return text[:300].rstrip(".")


def _delay(attempt: int, failure: _RequestError) -> float:
    """Seconds before the next attempt: what the server wants, else twice as long each time, with some randomness."""
    if failure.wait is not None:
        return min(failure.wait, _LONGEST_WAIT)
    return min(2.0 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)


def _model_names(answer: Any) -> list[str]:
    """The models in an answer of `/models`."""
    try:
        return [str(model["id"]) for model in answer["data"]]
    except (KeyError, TypeError):
        return []


def _description(answer: Any, model: str) -> str:
    """What differs between two models of one name in an answer of `/models`: folders, the size of a GGUF file."""
    try:
        entries = [entry for entry in answer["data"] if entry["id"] == model] or answer["data"]
        (entry,) = entries
        meta = entry.get("meta")
        known = {name: entry[name] for name in ("id", "root", "parent", "digest") if entry.get(name)}
        known |= {name: meta[name] for name in ("n_params", "size") if name in meta} if isinstance(meta, dict) else {}
    except (KeyError, TypeError, ValueError, AttributeError):
        return ""
    return "" if known == {"id": model} else json.dumps(known, sort_keys=True)


def _read_answer(tree: Any, key: str | None = None) -> Answer:
    """The caption in a chat completion.

    Raises:
        _RequestError: it is none, or the server did not complete it.
    """
    if isinstance(tree, dict) and tree.get("error"):
        message, code = _error_words(tree["error"], str(tree["error"]))
        status = int(code) if re.fullmatch(r"[45]\d\d", code) else 0
        raise _RequestError(status, _readable(message, key), code)
    try:
        choice = tree["choices"][0]
        message = choice["message"]
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        text = content.encode("utf-8", "replace").decode().strip()
        refusal = message.get("refusal") or ""
        finish = choice.get("finish_reason")
        failure = choice.get("error")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _RequestError(0, "its answer is no chat completion") from None
    if not refusal and finish == "content_filter":
        refusal = "filtered by the server"
    if isinstance(finish, str) and _FAILED_END.search(finish):
        words = f": {_readable(_error_words(failure, str(failure))[0], key)}" if failure else ""
        raise _RequestError(0, f"the answer ended with finish_reason '{finish}'{words}", of_image=True)
    is_cut = finish in _LENGTH_ENDS
    usage = tree.get("usage") or {}
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    written = split_thinking(text)
    thinking = written.thinking
    if reasoning and thinking == "none":  # the server has removed it
        thinking = "removed" if written.text or not is_cut else "unclosed"
    count = tokens if isinstance(tokens, int) else 0
    named = tree.get("model")
    caption = Caption("" if refusal else written.text, count, not is_cut, thinking)
    return Answer(caption, str(refusal), model=named if isinstance(named, str) else "")


def image_url(file: Path, *, exif_rotation: bool = True) -> str:
    """An image as a data URL.

    JPEG and PNG files are sent unchanged, with their metadata; other formats, and images of which EXIF notes a
    rotation, as PNG of their pixels.

    Raises:
        DataError: the image cannot be read.
    """
    content, kind = b"", None
    try:
        content = file.read_bytes()
        kind = next((kind for start, kind in _SIGNATURES.items() if content.startswith(start)), None)
    except OSError:
        pass  # `load_image` says why
    if kind is None or has_rotation(file):
        stream = io.BytesIO()
        load_image(file, exif=exif_rotation).save(stream, "PNG")
        content, kind = stream.getvalue(), "image/png"
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
