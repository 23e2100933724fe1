"""A vision-language model in a local folder, through transformers: what it says of pictures and clips, and whether it finds that
they show their prompt.

Nothing is downloaded, and no code from the folder runs.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .files import config_of

LONG_SIDE = 768  # pixels, of a frame as a model sees it
HASHED = 1 << 20  # bytes of each weights file that its folder's revision is made of
QUESTION = 'Does this {} show "{}"? Please answer yes or no.'
HAVE_ONE = ("A folder with a vision-language model that chats is expected, as `hf download Qwen/Qwen2.5-VL-3B-Instruct --local-dir "
            "FOLDER` fetches it.")


def is_vlm(folder: Path) -> bool:
    """Whether this is the folder of a network that sees and reads, and no CLIP."""
    config = config_of(folder)
    return "vision_config" in config and config.get("model_type") != "clip"


class NoAnswer(RuntimeError):
    """A row of which a model could not say anything."""


def shrunk(picture, long_side: int = LONG_SIDE):
    """The picture in RGB, scaled down until it has no side longer than `long_side` pixels."""
    picture = picture.convert("RGB")
    picture.thumbnail((long_side, long_side))
    return picture


@dataclass
class LocalModel:
    """A vision-language model that transformers can read without code from its folder.

    folder: as save_pretrained writes it. device: "cpu", "cuda", "cuda:1"; by itself a GPU where there is one. dtype: "bf16",
    "fp16", "fp32"; by itself bf16 on a GPU, fp32 on a CPU. answers: it will be asked for `agreements`, and has to chat. batch_size is halved when memory runs out, and stays so.
    Raises FileNotFoundError and ValueError before weights are read.
    """

    folder: Path
    device: str = ""
    dtype: str = ""
    batch_size: int = 4
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    answers: bool = False
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
        except (ValueError, OSError, KeyError) as error:
            raise self._unreadable(error) from error
        if self.answers and not self._chats:
            raise ValueError(f"{self.folder}: has no chat template, so it writes captions and answers no questions. {HAVE_ONE}")
        try:
            self.network = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=dtypes[self.dtype], **local)
        except (ValueError, OSError, KeyError) as error:
            raise self._unreadable(error) from error
        self.network.to(self.device).eval()
        if tokenizer := getattr(self.processor, "tokenizer", None):
            tokenizer.padding_side = "left"  # texts of a batch then end together, where the new tokens go on

    def _unreadable(self, error):
        return ValueError(
            f"{self.folder}: transformers cannot read this as a model that makes text of pictures: {error} Code from a "
            "folder is never run: serve such a model with an OpenAI-style endpoint and give its address.")

    @property
    def _chats(self):
        return bool(getattr(self.processor, "chat_template", None))

    def captions(self, rows: list[list], prompt: str) -> list[str]:
        """A text for each row's frames. Raises NoAnswer when memory is short even for one row."""
        return self._in_batches(rows, [prompt] * len(rows), self._said)

    def agreements(self, rows: list[list], prompts: list[str]) -> list[float]:
        """How sure the model is, 0 to 1, that each row's frames show its prompt: of the answers yes and no to the question
        whether they do, the share of yes (VQAScore, Lin et al. 2024, there beside all answers). Several frames are a clip.

        Raises NoAnswer as `captions` does.
        """
        asked = [QUESTION.format("clip" if len(frames) > 1 else "picture", prompt) for frames, prompt in zip(rows, prompts)]
        return self._in_batches(rows, asked, self._agreed)

    def _in_batches(self, rows, questions, ask: Callable) -> list:
        answers = []
        while len(answers) < len(rows):
            batch = slice(len(answers), len(answers) + self.batch_size)
            try:
                answers += ask(self._given(rows[batch], questions[batch]))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            else:
                continue
            # Out of the handler: the exception holds the tensors that were too large.
            if len(rows[batch]) == 1:
                raise NoAnswer(f"{self.model}: memory is short for a single row on {self.device}: give fewer frames or "
                               "smaller ones, dtype bf16, or another device.")
            self.batch_size = len(rows[batch]) // 2
            empty_cache()
        return answers

    def _said(self, inputs):
        import torch

        sampling = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        torch.manual_seed(self.seed)
        with torch.inference_mode():
            tokens = self.network.generate(**inputs, max_new_tokens=self.max_tokens, **sampling)
        asked = inputs.get("input_ids")
        if asked is not None and tokens.shape[1] >= asked.shape[1] and torch.equal(tokens[:, :asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1]:]  # models with a decoder alone repeat the question
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _agreed(self, inputs):
        import torch

        yes, no = self._begun_with("yes"), self._begun_with("no")
        with torch.inference_mode():
            last = self.network(**inputs).logits[:, -1].double()
        return (last[:, sorted(yes - no)].logsumexp(1) - last[:, sorted(no - yes)].logsumexp(1)).sigmoid().tolist()

    def _begun_with(self, word):
        """The tokens that the word can begin with. A tokenizer that puts the space before it in one of its own has both words
        begin with that."""
        encode = self.processor.tokenizer.encode
        return {encode(space + letters, add_special_tokens=False)[0] for space in ("", " ") for letters in (word, word.capitalize())}

    def _given(self, rows, questions):
        import torch

        inputs = self._inputs(rows, questions).to(self.device)
        return {name: value.to(self.network.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
                for name, value in inputs.items()}

    def _inputs(self, rows, questions):
        import numpy

        rows = [[shrunk(frame) for frame in frames] for frames in rows]
        if not self._chats:  # one picture and a task word: BLIP, Florence-2
            return self.processor(images=[frames[len(frames) // 2] for frames in rows], text=questions,
                                  padding=True, return_tensors="pt")
        as_video = getattr(self.processor, "video_processor", None) is not None
        chats, media = [], {}
        for frames, question in zip(rows, questions):
            if len(frames) > 1 and as_video:
                content = [{"type": "video"}]
                media.setdefault("videos", []).append(numpy.stack([numpy.asarray(frame) for frame in frames]))
            else:
                content = [{"type": "image"}] * len(frames)
                media.setdefault("images", []).append(frames)
            chats.append([{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
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
