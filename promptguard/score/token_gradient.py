"""White-box access to the tokens of a transformers model: the derivative of a score by the one-hot tokens of a text.

This is what gradient-guided attacks on discrete text need (HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023,
section 2.2): with E the embedding matrix, d score / d onehot_i = E (d score / d embedding_i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer

from promptguard.capabilities import TokenGradient
from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.score.classifier import Classifier
from promptguard.score.windows import Window
from promptguard.view import canonical

_CHUNK = 32_768  # rows of the embedding matrix that are multiplied at once

# The score of a text from its encoding and its embeddings of shape (1, tokens, width); a tensor of no dimensions.
Score = Callable[[Encoding, torch.Tensor], torch.Tensor]


class ModelTokens:
    """A model's tokens and the derivative of a score by them, as a `TokenAccess`.

    Args:
        model: a transformers model, in evaluation mode.
        tokenizer: its fast tokenizer; copied when it is first needed.
        score: what is differentiated.
        limit: tokens that the model reads at once, special ones included.
        before: text that stands before every text.
        after: text that stands behind every text.
        plain: names of special tokens in a text are read as plain text.
        add_special_tokens: put the tokenizer's own special tokens around the text.
        view: a text as the model reads it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        score: Score,
        *,
        limit: int,
        before: str = "",
        after: str = "",
        plain: bool = True,
        add_special_tokens: bool = True,
        view: Callable[[str], str] = canonical,
    ) -> None:
        self._model = model
        self._source = tokenizer
        self._score = score
        self._limit = limit
        self._before = before
        self._after = after
        self._plain = plain
        self._specials = add_special_tokens
        self._view = view

    @cached_property
    def usable(self) -> Sequence[int]:
        """Ids whose text is no special token, not blank, and the same in the canonical view."""
        return tuple(self._texts)

    @cached_property
    def words(self) -> Mapping[str, int]:
        """Texts that are one token behind white space, with its id."""
        texts = list(dict.fromkeys(self._texts.values()))
        found = self._tokenizer.encode_batch([f"a {text}" for text in texts], add_special_tokens=False)
        start = len(self._tokenizer.encode("a", add_special_tokens=False).ids)
        cut = {text: encoding.ids[start:] for text, encoding in zip(texts, found, strict=True)}
        return {text: ids[0] for text, ids in cut.items() if len(ids) == 1}

    def view(self, text: str) -> str:
        """The text as the model reads it."""
        return self._view(text)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The tokens of viewed texts, what stands before and after them included.

        Raises:
            FilterError: the tokenizer refuses a text.
        """
        whole = [f"{self._before}{text}{self._after}" for text in texts]
        encode = self._tokenizer.encode_batch
        found: list[Encoding] = discreetly("the tokenizer", lambda: encode(whole, add_special_tokens=self._specials))
        return found

    def ids(self, texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
        """The tokens that stand in a span of each text.

        Args:
            texts: as `view` gives them.
            spans: half-open ranges of code points. A token belongs where its first character that is no white space
                stands.

        Raises:
            FilterError: the tokenizer refuses a text.
        """
        found = zip(self.encode(texts), texts, spans, strict=True)
        return [tuple(encoding.ids[at] for at in self._inside(encoding, text, span)) for encoding, text, span in found]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, white space around it dropped."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False)).strip()

    def gradient(self, text: str, start: int, end: int) -> TokenGradient:
        """Derivative of the score by the one-hot tokens in text[start:end].

        Raises:
            InvalidArgument: the text is over the window.
            FilterError: the tokenizer refuses the text, the model takes no embeddings, or the result is not finite.
        """
        encoding = self.encode([text])[0]
        if len(encoding.ids) > self._limit:
            raise InvalidArgument(f"{len(encoding.ids)} tokens are over the window of {self._limit}: shorten the text")
        places = self._inside(encoding, text, (start, end))
        with torch.inference_mode(False), torch.enable_grad():
            embedded = self._embed(torch.tensor([encoding.ids])).detach().requires_grad_()
            score = self._score(encoding, embedded)
            # Not backward(): the parameters' own gradients must stay untouched.
            (slope,) = torch.autograd.grad(score, embedded)
        by_token = torch.cat([slope[0, places].float() @ rows.T for rows in self._rows()], dim=1).cpu()
        if not bool(torch.isfinite(by_token).all()):
            raise FilterError("the model gave a token gradient that is not finite")
        return TokenGradient(float(score.detach()), tuple(encoding.ids[at] for at in places), by_token)

    def vectors(self) -> torch.Tensor:
        """The input embeddings of all ids, float32 of shape (vocabulary, width)."""
        return torch.cat([rows.cpu() for rows in self._rows()])

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        backend = getattr(self._source, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InvalidArgument(f"{type(self._source).__name__} is no fast tokenizer: save a tokenizer.json for it")
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self._plain
        return tokenizer

    @cached_property
    def _texts(self) -> dict[int, str]:
        special = {at for at, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        ids = [at for at in sorted(self._tokenizer.get_vocab().values()) if at not in special and at < self._size]
        decoded = self._tokenizer.decode_batch([[at] for at in ids], skip_special_tokens=False)
        texts = {at: text.strip() for at, text in zip(ids, decoded, strict=True)}
        return {at: text for at, text in texts.items() if text and "\ufffd" not in text and canonical(text) == text}

    def _inside(self, encoding: Encoding, text: str, span: tuple[int, int]) -> list[int]:
        """Positions of the tokens of a span; the space before a word may be part of the word's token."""
        shift, places = len(self._before), []
        for at, (special, offsets) in enumerate(zip(encoding.special_tokens_mask, encoding.offsets, strict=True)):
            left, right = (max(0, min(offset - shift, len(text))) for offset in offsets)
            first = next((place for place in range(left, right) if not text[place].isspace()), None)
            if not special and first is not None and span[0] <= first < span[1]:
                places.append(at)
        return places

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        def embed() -> torch.Tensor:
            return torch.as_tensor(self._model.get_input_embeddings()(ids.to(self._model.device)))

        return discreetly("the embedding layer", embed)

    def _rows(self) -> Iterator[torch.Tensor]:
        """Embeddings of all ids, some at a time: by the layer itself, which may scale them."""
        for ids in (torch.arange(a, min(a + _CHUNK, self._size)) for a in range(0, self._size, _CHUNK)):
            with torch.no_grad():
                yield self._embed(ids).float()

    @property
    def _size(self) -> int:
        return discreetly("the embedding layer", lambda: int(self._model.get_input_embeddings().num_embeddings))


def classifier_tokens(
    classifier: Classifier,
    tokenizer: Any,
    window: int,
    inputs: Callable[[Sequence[Window]], dict[str, torch.Tensor]] | None = None,
) -> ModelTokens:
    """The tokens of a sequence classifier, and the derivative of its harm score; for texts of one window.

    Args:
        classifier: the model and which of its logits mean harm. Heads on every token are read at the last one.
        tokenizer: its fast tokenizer.
        window: tokens that the model reads at once.
        inputs: what else the model reads besides embeddings; default nothing.
    """

    def score(encoding: Encoding, embedded: torch.Tensor) -> torch.Tensor:
        classifier.refuse_training()
        more = inputs([Window(encoding.ids, encoding.type_ids)]) if inputs else {}
        more.pop("input_ids", None)
        logits = classifier.call(classifier.model, inputs_embeds=embedded, **more).logits
        return classifier.harm(logits[:, -1] if logits.ndim == 3 else logits)[0]

    return ModelTokens(classifier.model, tokenizer, score, limit=window)
