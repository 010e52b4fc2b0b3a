"""An environment that says what it heard: the simplest one, to try things out with."""

from __future__ import annotations


class Echo:
    """Answers every turn with the agent's own words.

    Args:
        template: how; "{text}" stands for the words.

    Raises:
        ValueError: a template without "{text}".
    """

    def __init__(self, template: str = "{text}") -> None:
        if not isinstance(template, str) or "{text}" not in template:
            raise ValueError(f"echo: template={template!r} must be a text with '{{text}}' in it")
        self.template = template

    def __call__(self, text: str) -> str:
        return self.template.replace("{text}", text)
