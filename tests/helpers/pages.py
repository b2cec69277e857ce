"""Reader of HTML pages as a browser sees them, with the checks that every report must pass."""

import re
from html.parser import HTMLParser

from pruneengine.report.figures.svg import COLOURS

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Parser that checks the order of elements, and gathers the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.references, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag], f"</{tag}> closes nothing"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def read(text):
    """Return the page's reader after the checks that hold for every page."""
    reader = Reader(text)
    assert text.startswith("<!doctype html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<link|<iframe", text)
    assert all(reference.startswith("#") and reference[1:] in reader.ids for reference in reader.references)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(reader.ids)
    assert len(reader.ids) == len(set(reader.ids))
    assert not any(colour in text for colour in COLOURS.values())
    return reader
