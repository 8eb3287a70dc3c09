"""What is used of a tokenizer: a fast one of transformers has it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypedDict


class Encoding(TypedDict):
    """A text's tokens, and of each where it begins and ends in the text where that was asked for."""

    input_ids: list[int]
    offset_mapping: list[tuple[int, int]]


class Tokenizer(Protocol):
    """A fast tokenizer of transformers, as far as it is used.

    ``chat_template`` is a template, several by name, or None; ``chat_format`` what
    :func:`star_tl.data.chat.set_chat_format` puts there.
    """

    chat_template: object
    chat_format: object
    pad_token: str | None

    @property
    def bos_token(self) -> str | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token(self) -> str | None: ...

    @property
    def eos_token_id(self) -> int | None: ...

    @property
    def pad_token_id(self) -> int | None: ...

    def __len__(self) -> int: ...

    def __call__(
        self, text: str, *, add_special_tokens: bool = ..., return_offsets_mapping: bool = ...
    ) -> Encoding: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = ...) -> str: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        chat_template: str,
        tokenize: Literal[False],
        add_generation_prompt: bool,
        **template_args: object,
    ) -> str: ...

    def save_pretrained(self, save_directory: Path) -> object: ...
