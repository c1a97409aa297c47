"""A language model as an objective: make it continue a prompt with a target (Zou et al. 2023, section 2.1).

The score is the mean negative log-likelihood of the target's tokens behind the prompt, in nats. A prompt gets through
when the model, choosing the most probable token each time, writes the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Encoding
from torch.nn import functional

from promptguard.attack.base import Outcome
from promptguard.errors import FilterError, InvalidArgument, discreetly
from promptguard.score.batches import pack
from promptguard.score.introspect import default_window
from promptguard.score.token_gradient import ModelTokens


class ContinuationObjective:
    """The target's likelihood after `before + text + after`, which is tokenised as one string.

    Args:
        model: a transformers `...ForCausalLM`, on its device; put into evaluation mode.
        tokenizer: its fast tokenizer; copied.
        target: what the model shall write, tokenised by itself.
        before: template before the prompt; names of control tokens in it are control tokens.
        after: template behind it.
        add_special_tokens: put the tokenizer's own special tokens around the string, for instance where `before` does
            not begin with one already.
        batch_tokens: tokens in one forward pass.

    Raises:
        InvalidArgument: the target has no tokens, or batch_tokens is below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        target: str,
        *,
        before: str = "",
        after: str = "",
        add_special_tokens: bool = True,
        batch_tokens: int = 4096,
    ) -> None:
        self._model = model.eval()
        self._target: list[int] = tokenizer(target, add_special_tokens=False)["input_ids"]
        if not self._target or batch_tokens < 1:
            raise InvalidArgument("the target must have tokens, and batch_tokens must be at least 1")
        self._batch_tokens = batch_tokens
        self._limit = default_window(model, tokenizer) - len(self._target)
        self.tokens = ModelTokens(
            model,
            tokenizer,
            self._loss,
            limit=self._limit,
            before=before,
            after=after,
            plain=False,
            add_special_tokens=add_special_tokens,
            view=str,
        )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome per text; a prompt that leaves the target no room in the window is refused.

        Raises:
            FilterError: the tokenizer refuses a text, or the model fails or gives no finite likelihood.
        """
        rows = [encoding.ids for encoding in self.tokens.encode(texts)]
        outcomes = [Outcome.refusal()] * len(rows)
        fit = [at for at, ids in enumerate(rows) if 0 < len(ids) <= self._limit]
        lengths = [len(rows[at]) + len(self._target) for at in fit]
        for batch in pack(lengths, self._batch_tokens, equal=True):
            ids = torch.tensor([rows[fit[at]] + self._target for at in batch], device=self._model.device)
            losses, written = self._judge(input_ids=ids)
            for at, loss, is_written in zip(batch, losses.tolist(), written.tolist(), strict=True):
                outcomes[fit[at]] = Outcome(loss, loss, is_written)
        return outcomes

    def _judge(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For each row, the mean loss over the target at its end, and whether all its tokens are the most probable."""
        logits = discreetly("the model", lambda: torch.as_tensor(self._model(**inputs).logits))
        predicted = logits[:, -len(self._target) - 1 : -1].float()
        wanted = torch.tensor([self._target] * len(logits), device=logits.device)
        losses = functional.cross_entropy(predicted.transpose(1, 2), wanted, reduction="none").mean(dim=1)
        if not bool(torch.isfinite(losses).all()):
            raise FilterError("the model gave a likelihood that is not finite: check its weights")
        return losses, (predicted.argmax(dim=2) == wanted).all(dim=1)

    def _loss(self, encoding: Encoding, embedded: torch.Tensor) -> torch.Tensor:
        target = self._model.get_input_embeddings()(torch.tensor([self._target], device=embedded.device))
        return self._judge(inputs_embeds=torch.cat([embedded, target], dim=1))[0][0]
