"""What a model says of texts that could follow: the log-probability of every token of several options.

What lives here: `continuation_log_probs`, which reads a beginning once for all options that differ in their last token
alone (single tokens: once in all). What does not: tokens that have been written (`log_probs.py`), and what tokens a
text is (`scorers/policy_view.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from textgen_env.lm.backbone import evaluating
from textgen_env.lm.log_probs import TOKENS_PER_CHUNK, predicting, states
from textgen_env.lm.sampling import PLAIN, SamplingParams, warp_logits
from textgen_env.lm.token_batch import TokenBatch

TOKENS_AT_A_TIME = 4096  # padded tokens in a forward pass
Tokens: TypeAlias = Sequence[int]
Path: TypeAlias = tuple[int, tuple[int, ...]]
"""A row, and all tokens of an option but its last."""


@torch.no_grad()
def continuation_log_probs(
    model: nn.Module,
    prefixes: Sequence[Tokens],
    options: Sequence[Sequence[Tokens]],
    sampling: SamplingParams = PLAIN,
    *,
    vocab_size: int | None = None,
) -> list[list[list[float]]]:
    """log π of each token of each option, given its row's prefix and the option's tokens before it; no gradient.

    Args:
        model: a causal LM of transformers, or one wrapped by peft; asked in evaluation mode.
        prefixes: n lists of tokens, none of them empty.
        options: n lists of lists of tokens, none of these empty.
        sampling: warps the distribution.
        vocab_size: number of actions; None: all columns of the logits.

    Returns:
        For each row and option one number per token, nats.
    """
    sharing: dict[Path, list[int]] = defaultdict(list)
    for row, each in enumerate(options):
        for at, tokens in enumerate(each):
            sharing[row, tuple(tokens[:-1])].append(at)
    found: list[list[list[float]]] = [[[] for _ in each] for each in options]
    with evaluating(model):
        for paths in _batches(list(sharing), prefixes):
            lasts = [[options[row][at][-1] for at in sharing[row, head]] for row, head in paths]
            read = _read(model, [prefixes[row] for row, _ in paths], paths, lasts, sampling, vocab_size)
            for (row, head), (of_head, of_lasts) in zip(paths, read, strict=True):
                for at, last in zip(sharing[row, head], of_lasts, strict=True):
                    found[row][at] = [*of_head, last]
    return found


def _batches(paths: list[Path], prefixes: Sequence[Tokens]) -> Iterator[list[Path]]:
    """The paths, the longest first, as many at a time as fit into a forward pass."""
    paths.sort(key=lambda path: -len(prefixes[path[0]]) - len(path[1]))
    while paths:
        row, head = paths[0]
        count = max(1, TOKENS_AT_A_TIME // (len(prefixes[row]) + len(head) + 1))
        yield paths[:count]
        del paths[:count]


def _read(
    model: nn.Module,
    prefixes: Sequence[Tokens],
    paths: Sequence[Path],
    lasts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    vocab_size: int | None,
) -> Iterator[tuple[list[float], list[float]]]:
    """For each path log π of its own tokens, and of all the last tokens that share it."""
    heads = [list(head) for _, head in paths]
    # one of the last tokens stands behind each, so that the state before it is read
    ends = [[*head, last[0]] for head, last in zip(heads, lasts, strict=True)]
    texts = TokenBatch.from_tokens(prefixes, ends).to(next(model.parameters()).device)
    _, logits_at = states(model, texts.input_ids, texts.attention_mask, predicting(texts.response_mask))
    width = max(map(len, lasts))
    rows = [tokens for head, last in zip(heads, lasts, strict=True) for tokens in [*([t] for t in head), last]]
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    wanted = torch.tensor(padded, device=texts.input_ids.device)

    def of(chunk: Tensor) -> Tensor:
        return warp_logits(logits_at(chunk)[:, :vocab_size], sampling).log_softmax(-1).gather(-1, wanted[chunk])

    chunks = torch.arange(len(wanted), device=wanted.device).split(TOKENS_PER_CHUNK)
    told = iter(torch.cat([of(chunk) for chunk in chunks]).tolist())
    for head, last in zip(heads, lasts, strict=True):
        of_head = [next(told)[0] for _ in head]
        yield of_head, next(told)[: len(last)]
