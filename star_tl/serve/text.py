"""The part of a reply that will not change any more, for a stream."""

from __future__ import annotations

from star_tl.generation.writing import Writing

_HALF = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a character are decoded to


def printable_text(writing: Writing) -> str:
    """What of the reply stands for good: at its end all of it, as :class:`star_tl.generation.writing.Reply` has it.

    Before, blanks at the end are held back, for a reply is stripped of them; so are half characters, what may become a
    stop string, and the last word where the tokenizer draws words and punctuation together.
    """
    ended = writing.ended  # before the text: what is added in between is then only held back too long
    text = writing.text
    if ended is not None:
        return text.strip()
    # Between a token and the end that it brings, a whole stop string stands there.
    text = text[: min((text.find(s) for s in writing.options.stop if s in text), default=len(text))]
    held = min((len(text) - n for s in writing.options.stop for n in _begun(text, s)), default=len(text))
    text = text[:held].rstrip(_HALF)
    if getattr(writing.tokenizer, "clean_up_tokenization_spaces", False):
        text = text[: max(text.rfind(" "), text.rfind("\n"), 0)]
    return text.strip()


def _begun(text: str, stop: str) -> list[int]:
    """Lengths of the text's ends that begin a stop string."""
    return [n for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])]
