"""Vision-language models that write captions: one in a local folder, through transformers, or one behind an OpenAI-style address.

Both have `captions(list of frames, prompt) -> list of texts`, frames being the PIL pictures of one row (a picture is one frame),
and say who they are in `model`, `revision` and `seed`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

LONG_SIDE = 768  # pixels, of a frame as a model sees it
HASHED = 1 << 20  # bytes of each weights file that its folder's revision is made of


class CaptionError(RuntimeError):
    """A row could not be captioned."""


def shrunk(picture, long_side: int = LONG_SIDE):
    """The picture in RGB, scaled down until it has no side longer than `long_side` pixels."""
    picture = picture.convert("RGB")
    picture.thumbnail((long_side, long_side))
    return picture


# --- a model in a folder ---


@dataclass
class LocalModel:
    """A vision-language model that transformers can read without code from its folder.

    folder: as save_pretrained writes it. device: "cpu", "cuda", "cuda:1"; by itself a GPU where there is one. dtype: "bf16",
    "fp16", "fp32"; by itself bf16 on a GPU, fp32 on a CPU. batch_size is halved when memory runs out, and stays so.
    Raises FileNotFoundError and ValueError before weights are read.
    """

    folder: Path
    device: str = ""
    dtype: str = ""
    batch_size: int = 4
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    model: str = field(init=False)
    revision: str = field(init=False)

    def __post_init__(self):
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        self.folder = Path(self.folder)
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder}: a folder with a vision-language model in it is needed, and there is no "
                                    "config.json in this one.")
        self.model, self.revision = self.folder.resolve().name, revision_of(self.folder)
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = self.dtype or ("fp32" if self.device == "cpu" else "bf16")
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        if self.dtype not in dtypes:
            raise ValueError(f"dtype is {self.dtype!r}: choose one of {', '.join(dtypes)}.")
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            AutoConfig.from_pretrained(self.folder, **local)
            self.processor = AutoProcessor.from_pretrained(self.folder, **local)
            self.network = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=dtypes[self.dtype], **local)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"{self.folder}: transformers cannot read this as a model that makes text of pictures: {error} Code from a "
                "folder is never run: serve such a model with an OpenAI-style endpoint and give its address.") from error
        self.network.to(self.device).eval()
        if tokenizer := getattr(self.processor, "tokenizer", None):
            tokenizer.padding_side = "left"  # texts of a batch then end together, where the new tokens go on

    def captions(self, rows: list[list], prompt: str) -> list[str]:
        """A text for each row's frames. Raises CaptionError when memory is short even for one row."""
        texts = []
        while len(texts) < len(rows):
            batch = rows[len(texts):len(texts) + self.batch_size]
            try:
                texts += self._batch(batch, prompt)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                continue
            # Out of the handler: the exception holds the tensors that were too large.
            if len(batch) == 1:
                raise CaptionError(f"{self.model}: memory is short for a single row on {self.device}: give fewer frames or "
                                   "smaller ones, dtype bf16, or another device.")
            self.batch_size = len(batch) // 2
            empty_cache()
        return texts

    def _batch(self, rows, prompt):
        import torch

        inputs = self._inputs(rows, prompt).to(self.device)
        inputs = {name: value.to(self.network.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
                  for name, value in inputs.items()}
        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        torch.manual_seed(self.seed)
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=self.max_tokens, **sampling)
        asked = inputs.get("input_ids")
        if asked is not None and tokens.shape[1] >= asked.shape[1] and torch.equal(tokens[:, :asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1]:]  # models with a decoder alone repeat the question
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _inputs(self, rows, prompt):
        import numpy

        rows = [[shrunk(frame) for frame in frames] for frames in rows]
        if not getattr(self.processor, "chat_template", None):  # one picture and a task word: BLIP, Florence-2
            return self.processor(images=[frames[len(frames) // 2] for frames in rows], text=[prompt] * len(rows),
                                  padding=True, return_tensors="pt")
        as_video = getattr(self.processor, "video_processor", None) is not None
        chats, media = [], {}
        for frames in rows:
            if len(frames) > 1 and as_video:
                content = [{"type": "video"}]
                media.setdefault("videos", []).append(numpy.stack([numpy.asarray(frame) for frame in frames]))
            else:
                content = [{"type": "image"}] * len(frames)
                media.setdefault("images", []).append(frames)
            chats.append([{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}])
        texts = [self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        options = {"do_sample_frames": False} if "videos" in media else {}
        if "videos" in media and hasattr(self.processor.video_processor, "cap_pixels_per_frame"):
            options["cap_pixels_per_frame"] = True
        return self.processor(text=texts, padding=True, return_tensors="pt", **media, **options)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is a GPU's or the CPU allocator's."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def empty_cache():
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def revision_of(folder: Path) -> str:
    """Twelve hexadecimal digits of what a model's folder holds: its configuration, and of each weights file name, size and
    first MiB."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in (".json", ".safetensors", ".bin", ".model", ".jinja"):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with open(file, "rb") as stream:
                digest.update(stream.read(HASHED))
    return digest.hexdigest()[:12]


# --- a model behind an address ---


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
        """A text for each row's frames, asked for at the same time. Raises CaptionError."""
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
                    raise CaptionError(f"{self.url}: {problem}") from None
                if (after := error.headers.get("Retry-After") or "").isdigit():
                    delay = float(after)
            except OSError as error:  # refused, reset, timed out, no such host
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if number + 1 < self.tries:
                time.sleep(delay)
        raise CaptionError(f"{self.url}: no answer in {self.tries} tries, the last one: {problem}")


def data_url(frame) -> str:
    """A PIL picture as a JPEG in a data: address."""
    data = BytesIO()
    shrunk(frame).save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def text_of(answer: bytes, url: str) -> str:
    """The text in a server's answer. Raises CaptionError."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
        return "".join(part.get("text", "") for part in text).strip() if isinstance(text, list) else text.strip()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise CaptionError(f"{url}: this is no answer of an OpenAI-style server: {answer[:200]!r}") from None
