"""Text, question and chat template as tokens: what is folded, and what is put behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from drift.errors import ConfigError
from drift.running.corpus import begins_with_bos

__all__ = ["Prompt", "template_of"]

#: Between text and question.
SEPARATOR = "\n\n"
# Characters of the private use area: no template writes them, and none takes them away.
_TEXT, _QUESTION = "\ue000", "\ue001"


def template_of(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


@dataclass(frozen=True)
class Prompt:
    """How a tokenizer turns a text and a question behind it into tokens.

    The pieces are made into tokens one by one, so that one prefill of the text serves every question: no token spans
    two of them. What looks like a special token in a text or a question is taken as the letters that it is written in.

    Attributes
    ----------
    tokenizer : PreTrainedTokenizerBase
    before, between, after : str
        What a chat template puts before the text, between text and question, and behind: all empty without one, save
        the separator.
    chat : bool
        Whether there is one.
    """

    tokenizer: Any
    before: str = ""
    between: str = SEPARATOR
    after: str = ""
    chat: bool = False

    @classmethod
    def of(cls, tokenizer: Any, chat: bool, separator: str = SEPARATOR) -> Prompt:
        """Take the chat template apart, or do without.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
        chat : bool
            Whether there is to be one.
        separator : str
            What stands between text and question; may be empty.

        Raises
        ------
        ConfigError
            If the tokenizer has no template, or one that text and question cannot be told apart in.
        """
        if not chat:
            return cls(tokenizer, between=separator)
        if not template_of(tokenizer):
            raise ConfigError("A chat template was asked for, but this tokenizer has none.")
        content = f"{_TEXT}{separator}{_QUESTION}"
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        if rendered.count(_TEXT) != 1 or rendered.count(_QUESTION) != 1:
            raise ConfigError(
                "This tokenizer's chat template does not write what the user says once, as it is: text and question "
                "cannot be told apart in it. Leave the template out (--no-chat, or chat=False)."
            )
        before, rest = rendered.split(_TEXT)
        between, after = rest.split(_QUESTION)
        return cls(tokenizer, before, between, after, True)

    def text(self, text: str) -> list[int]:
        """Tokens of what is folded.

        Raises
        ------
        ConfigError
            If there are none.
        """
        tokens = self.written(text)
        if not tokens:
            raise ConfigError("The text is empty: there is nothing to fold. Give a text of at least one token.")
        return [*self.opening(), *tokens]

    def opening(self) -> list[int]:
        """Tokens in front of the text: of the chat template, or BOS where the tokenizer puts it there."""
        if self.chat:
            return self._template(self.before)
        return [self.tokenizer.bos_token_id] if begins_with_bos(self.tokenizer) else []

    def question(self, question: str | None) -> list[int]:
        """Tokens that are put behind it: the question, and how an answer begins."""
        asked = [] if question is None else [*self._template(self.between), *self.written(question)]
        return [*asked, *self._template(self.after)]

    def written(self, text: str) -> list[int]:
        """Tokens of a piece of text by itself."""
        return self._ids(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False))

    def _template(self, piece: str) -> list[int]:
        return self._ids(self.tokenizer(piece, add_special_tokens=False, verbose=False)) if piece else []

    @staticmethod
    def _ids(encoded: Any) -> list[int]:
        ids: Sequence[int] = encoded["input_ids"]
        return [int(token) for token in ids]
