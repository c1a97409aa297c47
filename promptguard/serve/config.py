"""What `promptguard serve` can be told: one pydantic model per section, every key known, nothing in code.

`Config.model_json_schema()` describes the file. Where a value comes from (YAML, environment) is
`promptguard.serve.settings`' business.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, StrictInt, StrictStr, field_validator, model_validator

from promptguard.guard import Action, Policy
from promptguard.serve.certifier import Batching, Certifying, Count, Section

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip
_SCRYPT = re.compile(r"scrypt\$\d{1,7}\$\d{1,2}\$\d{1,2}\$[A-Za-z0-9+/=]+\$[A-Za-z0-9+/=]+")


class BlockMode(StrEnum):
    """What a client sees of a block."""

    ERROR = "error"
    REFUSAL = "refusal"


class Release(StrEnum):
    """When streamed output that is checked goes out."""

    BUFFER = "buffer"
    WINDOW = "window"


class Fsync(StrEnum):
    """When audit lines are forced to the disk."""

    ALWAYS = "always"
    ROTATION = "rotation"


class Choices(Section):
    """The owner's policy: `promptguard.guard.Policy`, field by field."""

    on_harmful: Action = Action.BLOCK
    on_error: Action = Action.BLOCK
    on_abstain: Action = Action.BLOCK
    on_over_budget: Action = Action.BLOCK
    on_unscannable: Action = Action.BLOCK
    refusal: Annotated[str, Field(pattern=r"\S")] = Policy().refusal
    trusted_roles: frozenset[str] = frozenset()
    roles: frozenset[str] = Policy().roles
    max_texts: Count = 1000

    def policy(self) -> Policy:
        """As the guard takes it."""
        return Policy(**{name: getattr(self, name) for name in type(self).model_fields})


class Picturing(Section):
    """What judges pictures in requests and answers. Without this section they are unscannable.

    Attributes:
        filter: folder of a transformers image classifier: config.json, preprocessor_config.json, safetensors.
        harmful: its harmful classes, by index or name.
        sigma: standard deviation of the noise, of pictures in [0, 1].
        radius: l2 norm of the change that is asked about, or nothing: the largest, which takes all votes.
        samples: votes on a picture, at most.
        alpha: chance that a certificate is false, for each picture.
        max_pixels: of a picture.
        max_pictures: different ones in a request.
        device: where the filter runs.
    """

    filter: Path
    harmful: Annotated[tuple[StrictInt | StrictStr, ...], Field(min_length=1)]
    sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    radius: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    samples: Count = 1000
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.001
    max_pixels: Annotated[int, Field(ge=1, le=2**26)] = 2**23
    max_pictures: Count = 8
    device: str = "cpu"


class UpstreamSection(Section):
    """The model behind the guard.

    Attributes:
        url: its base address with version, such as http://127.0.0.1:8000/v1.
        key_env: environment variable that holds its key.
        forward_authorization: send the client's own Authorization header instead; clients then give the key of this
            server as `x-promptguard-key`.
        connect_seconds: to connect.
        seconds: without a byte from it; the whole answer of a buffered request has `limits.answer_seconds`.
        max_bytes: of an answer.
        connections: at once.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$")] | None = None
    key_env: str | None = None
    forward_authorization: bool = False
    connect_seconds: Seconds = 5.0
    seconds: Seconds = 120.0
    max_bytes: Count = 16 * 2**20
    connections: Count = 256

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key_env and self.forward_authorization:
            raise ValueError("key_env and forward_authorization exclude each other")
        return self


class Limits(Section):
    """What a request may cost.

    Attributes:
        body_bytes: of a request.
        depth: arrays and objects inside each other.
        messages: messages, prompts or input items.
        parts: content parts over all messages.
        checks: scores over all texts of a request, and votes over all pictures, counted before inference.
        characters: code points that the filter reads for a request, counted before inference; of pictures, thousands
            of numbers: three for each pixel, and those that the filter reads, which are votes times its input.
        queue: requests that wait for a thread.
        threads: requests that are checked at once.
        seconds: from arrival to verdict; later is a 503.
        answer_seconds: for the upstream's whole answer, where it is held back.
        work_per_minute: characters per key and minute, None for no limit; one worker counts its own requests only.
    """

    body_bytes: Count = 2 * 2**20
    depth: Annotated[int, Field(ge=4, le=32)] = 32
    messages: Count = 1000
    parts: Count = 4000
    checks: Count = 200_000
    characters: Count = 20_000_000
    queue: Count = 256
    threads: Count = 8
    seconds: Seconds = 30.0
    answer_seconds: Seconds = 300.0
    work_per_minute: Count | None = None


class Streaming(Section):
    """How streamed output that is checked is released.

    Attributes:
        release: "buffer" holds everything until the verdict; "window" releases text that `hold_back` further
            characters of checked text stand behind.
        hold_back: characters; no harmful passage of at most that length leaves the server in part.
        stride: new characters between two checks.
    """

    release: Release = Release.BUFFER
    hold_back: Annotated[int, Field(ge=16)] = 1000
    stride: Annotated[int, Field(ge=1)] = 200


class Output(Section):
    """Whether the model's answers are checked too. The bundled filters judge requests, not answers.

    Attributes:
        check: hold answers back until a verdict.
        certifier: what judges them; default the one of requests.
    """

    check: bool = False
    certifier: Certifying | None = None


class Key(Section):
    """A client's key, hashed: `printf %s KEY | sha256sum`, or `scrypt$n$r$p$salt$hash` with salt and hash in base64.

    Attributes:
        name: for the audit log and the buckets.
        sha256: hex digest, for keys of 128 random bits or more.
        scrypt: for others.
        work_per_minute: instead of `limits.work_per_minute`.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    scrypt: str | None = None
    work_per_minute: Count | None = None

    @field_validator("scrypt")
    @classmethod
    def _is_scrypt(cls, value: str | None) -> str | None:
        if value is not None and not _SCRYPT.fullmatch(value):
            raise ValueError("must be scrypt$n$r$p$salt$hash")
        return value

    @model_validator(mode="after")
    def _one_hash(self) -> Self:
        if (self.sha256 is None) == (self.scrypt is None):
            raise ValueError("give sha256 or scrypt")
        return self


class Audit(Section):
    """The audit log; none without a path.

    Attributes:
        path: its file; a second worker appends `-1` before the suffix, and so on.
        key: secret of the chain and of the digests of texts, 16 characters or more.
        max_bytes: size at which a file is closed and the next one begun.
        fsync: "always" before an answer goes out, or when a file is closed only.
    """

    path: Path | None = None
    key: SecretStr | None = None
    max_bytes: Annotated[int, Field(ge=4096)] = 64 * 2**20
    fsync: Fsync = Fsync.ALWAYS

    @model_validator(mode="after")
    def _has_key(self) -> Self:
        if self.path is not None and (self.key is None or len(self.key.get_secret_value()) < 16):
            raise ValueError("needs a key of 16 characters or more; PGUARD_AUDIT__KEY holds it best")
        return self


class Serving(Section):
    """Where it listens; these do not change on reload.

    Attributes:
        host: address.
        port: 0 is any free one.
        workers: processes, each with its own models, buckets and audit file.
        drain_seconds: for the requests in flight when it is told to stop.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8900
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    drain_seconds: Count = 30


class Config(Section):
    """Everything.

    Attributes:
        images: what judges pictures; None blocks them.
        block_mode: "error" answers a blocked request with HTTP 400, "refusal" with a completion that refuses.
        category: where a harmful verdict is shown among the categories of `/v1/moderations`.
        expose_scores: put scores and witnesses into answers; they help whoever tunes an attack.
        playground: serve the page at `/`; default yes, unless there are keys, which a browser does not send.
        model: name of the guard in `/v1/models` and `/v1/moderations`.
    """

    certifier: Certifying = Certifying()
    images: Picturing | None = None
    policy: Choices = Choices()
    upstream: UpstreamSection = UpstreamSection()
    limits: Limits = Limits()
    batching: Batching = Batching()
    streaming: Streaming = Streaming()
    output: Output = Output()
    keys: tuple[Key, ...] = ()
    audit: Audit = Audit()
    server: Serving = Serving()
    block_mode: BlockMode = BlockMode.ERROR
    category: Literal[CATEGORIES] = "illicit"  # type: ignore[valid-type]
    expose_scores: bool = False
    playground: bool | None = None
    model: Annotated[str, Field(pattern=r"^[\w.:/-]{1,64}$")] = "promptguard"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len({key.name for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same name")
        if self.keys and self.playground:
            raise ValueError("playground and keys exclude each other: a browser sends no key")
        return self
