"""The page: well-formed, self-contained, and with the numbers that were put in."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from dsfjax.report.comparison import Comparison
from dsfjax.report.page import render
from tests.report.synthetic import MIXERS, comparison

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects what the tests ask about, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.keys: list[list[str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if values.get("id") is not None:
            self.ids.append(str(values["id"]))
        for value in values.values():
            self.references += re.findall(r"url\(#([^)]*)\)", value or "")
        for name in ("href", "xlink:href"):
            if (values.get(name) or "").startswith("#"):
                self.references.append(str(values[name])[1:])
        if tag == "tr":
            self.rows.append([])
            self.keys.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.keys[-1].append(values.get("data-value"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page() -> str:
    return render(comparison(), "Recall & more", ["summary.csv"])


def test_every_mixer_has_a_row_a_histogram_and_a_heat_map(page: str) -> None:
    reader = read(page)
    assert [row[0] for row in reader.rows[1:]] == list(MIXERS)
    assert reader.tags.count("svg") == 2 + 2 * len(MIXERS)
    assert "Recall & more" in reader.text


def test_row_shows_the_numbers_and_sorts_by_them(page: str) -> None:
    reader = read(page)
    entry = comparison().entries[2]
    shown, keys = reader.rows[3], reader.keys[3]
    mean, std = 100 * entry.accuracy_mean, 100 * entry.accuracy_std
    assert shown[:3] == ["ssd", f"{mean:.1f}\xa0% ± {std:.1f}", f"{entry.learning_rate:.3g}"]
    assert shown[3:5] == ["400", "4\u202f096"]
    assert keys[1] == str(entry.accuracy_mean)
    assert reader.rows[1][7] == "unbounded (ηt−1/ηt)"
    assert keys[5:7] == [str(entry.num_params), str(entry.tokens_per_second)]
    # A mixer that never got to 90 % has no number there to sort by.
    assert (reader.rows[8][3], reader.keys[8][3]) == ("–", "")


def test_needs_nothing_from_elsewhere(page: str) -> None:
    without_namespaces = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//[a-z]+\.|@import", without_namespaces)
    assert not {"link", "img", "iframe", "object"} & set(read(page).tags)
    assert not re.search(r"\bsrc\s*=", without_namespaces)
    sources = re.findall(r'href="([^"#]{1,40})', without_namespaces)
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_identifiers_are_unique_and_references_resolve(page: str) -> None:
    reader = read(page)
    assert len(reader.ids) > 100
    assert len(set(reader.ids)) == len(reader.ids)
    assert reader.references
    assert set(reader.references) <= set(reader.ids)


def test_same_numbers_same_page(page: str) -> None:
    assert render(comparison(), "Recall & more", ["summary.csv"]) == page


def test_placeholder_colours_are_all_replaced(page: str) -> None:
    assert "var(--ink)" in page
    assert not re.search("#010203|#040506|#070809|#0a0b0c", page)


def test_names_are_escaped() -> None:
    entry = dataclasses.replace(
        comparison().entries[0], mixer='<b>&"', bounds="|λ| < 1", probe=None
    )
    reader = read(render(Comparison({"Task": "a < b"}, 0.1, 0.2, (entry,)), "<i>", ["<x>.csv"]))
    assert reader.rows[1][0] == '<b>&"'
    assert not {"b", "i", "x"} & set(reader.tags)


def test_without_probes_the_page_has_only_accuracy() -> None:
    whole = comparison()
    entries = tuple(dataclasses.replace(entry, probe=None) for entry in whole.entries)
    reader = read(render(dataclasses.replace(whole, entries=entries), "t", []))
    assert reader.tags.count("svg") == 2


def test_diverged_members_are_counted() -> None:
    whole = comparison()
    bad = dataclasses.replace(whole.entries[0], num_diverged=2)
    reader = read(render(dataclasses.replace(whole, entries=(bad,)), "t", []))
    assert "2 of 6 members" in reader.text
