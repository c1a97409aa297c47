"""Packing windows into batches: sorted by length, padded as little as possible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from promptguard.score.windows import Window


def pack(lengths: Sequence[int], batch_tokens: int, *, equal: bool = False, padded: bool = True) -> Iterator[list[int]]:
    """Batches of indices, shortest first; each index occurs once.

    Args:
        lengths: tokens in each window.
        batch_tokens: a batch has at most this many tokens including padding; a longer window makes a batch alone.
        equal: only windows of one length share a batch, so that nothing is padded.
        padded: the windows of a batch are filled up to the longest.
    """
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        tokens = (len(batch) + 1) * length if padded else tokens + length
        if batch and (tokens > batch_tokens or (equal and length != lengths[batch[0]])):
            yield batch
            batch, tokens = [], length
        batch.append(index)
    if batch:
        yield batch


def pad(windows: Sequence[Window], pad_id: int) -> dict[str, list[list[int]]]:
    """Windows as the rows of a model's inputs, filled on the right to the longest: positions in a text stay put."""
    longest = max(len(window.ids) for window in windows)
    short = [longest - len(window.ids) for window in windows]
    return {
        "input_ids": [window.ids + [pad_id] * missing for window, missing in zip(windows, short, strict=True)],
        "attention_mask": [[1] * (longest - missing) + [0] * missing for missing in short],
        "token_type_ids": [window.types + [0] * missing for window, missing in zip(windows, short, strict=True)],
    }
