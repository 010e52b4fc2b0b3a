"""Search beside sampling: no fewer decodes for sampling, and a table whose interval is worked out by hand."""

from __future__ import annotations

from benchmarks.search import SearchSettings, measure, table


def test_sampling_reads_the_model_no_less_often():
    settings = SearchSettings(scorer='{"name": "lipogram", "without": "t", "words": 4}', responses=2, prompts=2)
    settings.seeds = (1, 2)
    records = list(measure(settings))
    assert [(record["seed"], record["prompt"]) for record in records] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for record in records:
        assert record["forwards"] >= record["search_forwards"] > 0
        assert {4 * record[name] % 1 for name in ("sampled", "searched")} == {0.0}  # quarters: four words


def test_the_interval_is_over_prompts_not_over_seeds():
    """Prompts gain 0.1 and 0.3 in the mean of two seeds: 0.2 ± 1.96·0.1."""
    rest = {"env": "e", "scorer": "s", "forwards": 9, "search_forwards": 8, "cpu_seconds": 0.0}
    rest["search_cpu_seconds"] = 0.0
    found = [(0, 0.5, 0.5), (1, 0.5, 0.7), (0, 0.5, 0.7), (1, 0.5, 0.9)]
    text = table([{**rest, "prompt": prompt, "sampled": low, "searched": high} for prompt, low, high in found])
    assert "| s | 0.500 | 0.700 | +0.200 ± 0.196 | 9, 8 |" in text
