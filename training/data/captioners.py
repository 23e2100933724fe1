"""A vision-language model behind an OpenAI-style address that writes captions.

As `evaluation.vision_language.LocalModel`, which is one in a folder, it has `captions(list of frames, prompt) -> list of texts`,
frames being the PIL pictures of one row (a picture is one frame), and says who it is in `model`, `revision` and `seed`.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

from ...evaluation.vision_language import NoAnswer, shrunk


@dataclass
class Endpoint:
    """An OpenAI-style server: vLLM, llama.cpp, LM Studio or a paid service.

    url: up to /v1, or with /chat/completions. model: the name that the server knows it by. The key comes from the environment
    variable `key_variable`, if it is set, and is written nowhere. What may pass (no answer, 408, 409, 429, 5xx) is tried
    `tries` times in all, `wait` seconds after the first time and twice as long each further one, or as long as the server says.
    """

    url: str
    model: str
    batch_size: int = 4  # rows asked for at the same time
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 120.0  # seconds
    tries: int = 5
    wait: float = 1.0
    key_variable: str = "OPENAI_API_KEY"
    revision: str = ""

    def __post_init__(self):
        if not self.model:
            raise ValueError(f"{self.url}: the server wants to know which model: give its name.")
        self.url = self.url.rstrip("/")
        if not self.url.endswith("/chat/completions"):
            self.url += "/chat/completions"

    def captions(self, rows: list[list], prompt: str) -> list[str]:
        """A text for each row's frames, asked for at the same time. Raises NoAnswer."""
        with ThreadPoolExecutor(max(len(rows), 1)) as pool:
            return list(pool.map(lambda frames: self._ask(frames, prompt), rows))

    def _ask(self, frames, prompt):
        content = [{"type": "image_url", "image_url": {"url": data_url(frame)}} for frame in frames]
        if len(frames) > 1:
            prompt = f"These are {len(frames)} frames of one clip, in their order. {prompt}"
        body = json.dumps({
            "model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]}).encode()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        for number in range(self.tries):
            delay = self.wait * 2**number
            try:
                request = urllib.request.Request(self.url, body, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return text_of(answer.read(), self.url)
            except urllib.error.HTTPError as error:
                said = error.read(500).decode("utf-8", "replace").strip()
                problem = f"status {error.code} {error.reason}: {said}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise NoAnswer(f"{self.url}: {problem}") from None
                if (after := error.headers.get("Retry-After") or "").isdigit():
                    delay = float(after)
            except OSError as error:  # refused, reset, timed out, no such host
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if number + 1 < self.tries:
                time.sleep(delay)
        raise NoAnswer(f"{self.url}: no answer in {self.tries} tries, the last one: {problem}")


def data_url(frame) -> str:
    """A PIL picture as a JPEG in a data: address."""
    data = BytesIO()
    shrunk(frame).save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def text_of(answer: bytes, url: str) -> str:
    """The text in a server's answer. Raises NoAnswer."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
        return "".join(part.get("text", "") for part in text).strip() if isinstance(text, list) else text.strip()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise NoAnswer(f"{url}: this is no answer of an OpenAI-style server: {answer[:200]!r}") from None
