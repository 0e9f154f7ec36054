"""One line of words in a visitor's window: what was done, or what was wrong."""

import contextlib
from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = "padding: 0 0.9em 0.5em; font-size: 0.85em; line-height: 1.35; overflow-wrap: anywhere"


def words(text: str, colour: str = "inherit") -> str:
    """A line as words of a page, whatever letters it holds."""
    return f'<div style="{STYLE}; color: {colour}">{escape(text)}</div>' if text else ""


class Line:
    """Stands where it was made; errors are in red, and also above the window, where a phone shows them."""

    def __init__(self, client: Any) -> None:
        self.client, self.wrong = client, False
        self.text = client.gui.add_html("")

    def say(self, text: str) -> None:
        """Say this in place of what was said before."""
        self.wrong, self.text.content = False, words(text)

    def error(self, text: str) -> None:
        """Say what was wrong."""
        self.wrong, self.text.content = True, words(text, "#e03131")
        self.client.add_notification("Not done", text, color="red", auto_close_seconds=20)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What the visitor can mend is said in place of being raised."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.error(" ".join(str(error).split()))
