"""Longest common subsequences of token lists. No metric lives here.

Their length is rapidfuzz's. Which tokens they are, where several are equally long, is ROUGE's convention, so these are
found here by bit-parallel dynamic programming: Python's integers serve as bit vectors as long as a text, a row of the
table costs a few machine words, and a text of 10,000 tokens a fraction of a second (Hyyrö, "Bit-parallel LCS-length
computation revisited", 2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rapidfuzz.distance import LCSseq


def lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of a longest common subsequence of two token lists, by rapidfuzz."""
    return LCSseq.similarity(a, b)


def lcs_indices(reference: Sequence[str], candidate: Sequence[str]) -> list[int]:
    """Positions in `reference` of the longest common subsequence that ROUGE counts.

    Among equally long ones it is the one that ROUGE-1.5.5 and rouge-score read out of their table from its end: on a
    tie between leaving out the last token of the reference and that of the candidate, the reference's goes.
    """
    rows = [(1 << len(candidate)) - 1, *_rows(reference, candidate)]
    found = []
    i, j = len(reference), len(candidate)
    while i > 0 and j > 0:
        if reference[i - 1] == candidate[j - 1]:
            found.append(i - 1)
            i, j = i - 1, j - 1
        elif _cell(rows[i], j - 1) > _cell(rows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return found[::-1]


def _rows(a: Sequence[str], b: Sequence[str]) -> Iterator[int]:
    """For each prefix of `a` one row of the table: bit j is 0 where the length grows with token j of `b`."""
    places: dict[str, int] = {}
    for j, token in enumerate(b):
        places[token] = places.get(token, 0) | 1 << j
    everything = (1 << len(b)) - 1
    row = everything
    for token in a:
        hits = row & places.get(token, 0)
        row = ((row + hits) | (row - hits)) & everything
        yield row


def _cell(row: int, j: int) -> int:
    """Length of the longest common subsequence with the first j tokens of the candidate: the zeros among j bits."""
    return j - (row & ((1 << j) - 1)).bit_count()
