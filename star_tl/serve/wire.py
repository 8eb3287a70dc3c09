"""What goes over the wire: OpenAI's chat completions, and what star_tl adds to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]
WholeNumber = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Asks(BaseModel):
    """Something that a client sends: no field but the known ones, of their own types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Asks):
    """A part of a message."""

    type: Literal["text"]
    text: str


Nothing = Annotated[list[Any], Field(max_length=0)] | None


class Turn(Asks):
    """A message of the chat, as OpenAI's client has one and sends back what it was given."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Nothing = None
    tool_calls: Nothing = None

    @property
    def message(self) -> dict[str, str]:
        """As the model's chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Steering(Asks):
    """How this reply is steered: by a vector of the server's, so strongly or with so much drift, at these positions."""

    vector: str
    strength: Finite | None = None
    drift: Annotated[Finite, Field(ge=0, description="Nats per token, at the vector's own positions.")] | None = None
    positions: str | Annotated[list[WholeNumber], Field(min_length=1, max_length=1024)] | None = None

    @model_validator(mode="after")
    def _one_dose(self) -> Steering:
        if self.strength is not None and self.drift is not None:
            raise ValueError("strength and drift are both given: give one")
        if self.drift is not None and self.positions is not None:
            raise ValueError("drift is known at the vector's own positions: leave positions out, or give strength")
        return self


class StreamOptions(Asks):
    """What a stream holds beside the reply."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Asks):
    """A chat that asks for one reply. Fields of OpenAI's that would change the reply and are not known are refused."""

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=1024)]
    steering: Steering | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: WholeNumber | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Annotated[Finite, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=0, le=0)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are both given: give one")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class Problem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refusal(BaseModel):
    """The body of an answer that is no reply."""

    error: Problem


class Message(BaseModel):
    """A reply."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class LogProbs(BaseModel):
    """Log-probabilities of a reply's tokens."""

    content: list[dict[str, Any]]
    refusal: None = None


class Choice(BaseModel):
    """A reply and why it ended."""

    index: int = 0
    message: Message
    logprobs: LogProbs | None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Steered(BaseModel):
    """What was added."""

    vector: str
    strength: float
    positions: str | list[int]


class ChatReply(BaseModel):
    """A completed chat; ``seed`` and ``steering`` are what ``star_tl.generate`` writes the same reply with."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage
    seed: int
    steering: Steered | None = None


class VectorCard(BaseModel):
    """A vector that requests may name."""

    id: str
    trait: str
    locus: str
    fraction: float = Field(description="Strength 1 as a fraction of the residual norm.")
    drift: list[tuple[float, float]] = Field(description="Strength and its drift, nats per token, where measured.")


class ModelCard(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "star_tl"
    context: int
    max_tokens: int
    vectors: list[VectorCard]


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    """Whether replies are written, how many, and how many wait."""

    status: Literal["ok"] = "ok"
    running: int
    waiting: int
