"""The page: well-formed, self-contained, and with the numbers that were put in."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from dsfjax.aspects import memory_curves, state_use
from dsfjax.guidance import Profile, recommend
from dsfjax.report import page as pages
from dsfjax.report import sections
from dsfjax.report.entries import Comparison
from dsfjax.report.verdict import decide
from tests.guidance.results import evidence
from tests.report.synthetic import MIXERS, changed, comparison, diverged, errors

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects what the tests ask about, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.keys: list[list[list[str | None]]] = []
        self.captions: list[str] = []
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
        if tag == "figcaption":
            self.captions.append("")
        if tag == "table":
            self.tables.append([])
            self.keys.append([])
        if tag == "tr":
            self.tables[-1].append([])
            self.keys[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.keys[-1][-1].append(values.get("data-value"))

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
            self.tables[-1][-1][-1] += data
        if "figcaption" in self.open:
            self.captions[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def render(whole: Comparison, title: str, files: list[str]) -> str:
    return pages.render(whole, decide(whole), title, files)


@pytest.fixture(scope="module")
def page() -> str:
    return render(comparison(), "Recall & more", ["summary.csv"])


def test_every_mixer_has_rows_and_panels(page: str) -> None:
    reader = read(page)
    assert len(reader.tables) == 3
    for table in reader.tables:
        assert [row[0] for row in table[1:]] == list(MIXERS)
    # Four of all mixers; |λ|, horizon and trace of each; two kernels; use and gradients where there
    # is a finite state.
    count = len(MIXERS)
    assert reader.tags.count("svg") == 4 + 3 * count + 2 * count + 2 * (count - 1)
    assert "Recall & more" in reader.text


def test_every_figure_says_how_to_read_it_and_where_its_numbers_are(page: str) -> None:
    reader = read(page)
    assert len(reader.captions) == reader.tags.count("svg")
    assert all(len(caption) > 20 and caption.endswith(" data") for caption in reader.captions)
    sections = page.split("<section>")[1:]
    drawn = [part for part in sections if '<div class="panels">' in part]
    assert len(drawn) == 5
    assert all("How to read" in part for part in drawn)


def test_rows_show_the_numbers_and_sort_by_them(page: str) -> None:
    reader = read(page)
    entry = comparison().entries[2]
    shown, keys = reader.tables[0][3], reader.keys[0][3]
    mean, std = 100 * entry.score_mean, 100 * entry.score_std
    assert shown[:3] == ["ssd", f"{mean:.1f}\xa0% ± {std:.1f}", f"{entry.learning_rate:.3g}"]
    assert shown[3:6] == ["400", "0 of 9", "4\u202f096"]
    assert keys[1] == str(entry.score_mean)
    assert reader.tables[0][1][8] == "unbounded (ηt−1/ηt)"
    assert keys[6:8] == [str(entry.num_params), str(entry.tokens_per_second)]
    # A mixer that never got to 90 % has no number there to sort by.
    assert (reader.tables[0][8][3], reader.keys[0][8][3]) == ("–", "")
    assert reader.tables[0][1][5] == "4\u202f096 grows"


def test_errors_have_their_own_words_and_order() -> None:
    whole = errors()
    found = sections.results(whole)
    reader = read(found)
    heads = ["mixer", "MSE ↓", "MAE ↓", "best lr", "diverged", "state size N"]
    assert reader.tables[0][0][:6] == heads
    assert 'data-first="descending" aria-sort="ascending"' in found
    best, last = reader.tables[0][1], reader.tables[0][-1]
    mean, std = whole.entries[0].score_mean, whole.entries[0].score_std
    assert best[1:3] == [f"{mean:.3f} ± {std:.3f}", "0.500 ± 0.125"]
    assert last[1:3] == ["∞", "∞"] and reader.keys[0][-1][1] == ""
    assert "(the one with the lowest mean)" in found and "diverged counts as ∞" in found
    assert "ccuracy" not in found and "90 %" not in found and "Guessing" not in found
    assert "only what is clearly below it has learnt the task" in found
    assert "Dash-dotted: a linear model of the whole input (0.500)." in found
    assert "Further down and left is better." in found and "still falls at its end" in found


def test_row_of_the_analysis(page: str) -> None:
    reader = read(page)
    found = comparison().entries[2].findings
    assert found is not None
    memory, use = found["memory"], found["state_use"]
    shown, keys = reader.tables[1][3], reader.keys[1][3]
    assert shown[2:6] == ["14", "7", "0.3×", "11.8"]
    assert memory_curves.horizon(memory) == 14 and memory_curves.mean_age(memory) == 11.75
    assert shown[6:9] == ["0.9", "24", f"{100 * 24 / 96:.1f}\xa0%"]
    assert keys[8] == str(state_use.share_used(use)) == "0.25"
    # Softmax has no finite state.
    assert (reader.tables[1][1][7], reader.keys[1][1][7]) == ("–", "")
    assert reader.tables[2][3][-1] == reader.tables[2][3][-2]


def test_needs_nothing_from_elsewhere(page: str) -> None:
    without_namespaces = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r"https?://|//[a-z]+\.|@import", without_namespaces)
    assert not {"link", "img", "iframe", "object"} & set(read(page).tags)
    assert not re.search(r"\bsrc\s*=", without_namespaces)
    sources = set(re.findall(r'href="([^"#]{1,40})', without_namespaces))
    images = {source for source in sources if source.startswith("data:image/png;base64,")}
    assert all(re.fullmatch(r"data/[\w.]+\.csv", source) for source in sources - images)


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
        comparison().entries[0], mixer='<b>&"', bounds="|λ| < 1", findings=None
    )
    whole = Comparison({"Task": "a < b"}, 0.1, 0.2, (entry,))
    reader = read(render(whole, "<i>", ["<x>.csv"]))
    assert reader.tables[0][1][0] == '<b>&"'
    assert not {"b", "i", "x"} & set(reader.tags)


def test_a_mixer_that_diverged_is_shown_and_said() -> None:
    whole = comparison()
    entries = (whole.entries[0], diverged(whole.entries[1]))
    reader = read(render(dataclasses.replace(whole, entries=entries), "t", []))
    assert reader.tags.count("svg") == 4 + 3 + 2
    assert reader.tables[0][2][:2] == ["normalized_attention", "0.0\xa0% ± 0.0"]
    assert reader.tables[0][2][4] == "9 of 9"
    assert reader.tables[1][2][2:] == ["–"] * (len(reader.tables[1][0]) - 2)
    assert "normalized_attention: every member at its best learning rate diverged" in reader.text
    assert "Members diverged in normalized_attention (9 of 9)." in reader.text


def test_eigenvalues_that_turn_get_a_histogram_of_angles() -> None:
    whole = comparison()
    found = whole.entries[2].findings
    assert found is not None
    turned = changed(found, "eigenvalues", phases=found["eigenvalues"][0].phases[::-1].copy())
    entry = dataclasses.replace(whole.entries[2], findings=turned)
    one = dataclasses.replace(whole, entries=(entry,))
    straight = dataclasses.replace(whole, entries=(whole.entries[2],))
    count = read(render(one, "t", [])).tags.count("svg")
    assert count == read(render(straight, "t", [])).tags.count("svg") + 1
    assert "All are real and positive." not in render(one, "t", [])


def test_all_results_on_tasks_like_this_are_a_section() -> None:
    known = [
        evidence("softmax_attention", 0.99),
        evidence("ssd", 0.985, 0.02, source="the folder of this run", scale=""),
        evidence("s6", 0.5),
    ]
    profile = Profile(length=4096, demands=("recall", "language"), vocab_size=16)
    advice = recommend(profile, known, priced=False)
    shown = sections.guidance(dataclasses.replace(comparison(), advice=advice))
    reader = read(shown)
    assert [row[:4] for row in reader.tables[0]] == [
        ["mixer", "rank", "gain", "made_up, L = 64"],
        ["softmax_attention", "1", "100.0\xa0%", "99.0\xa0% ± 1.0, top"],
        ["ssd", "1", "99.0\xa0%", "98.5\xa0% ± 2.0, top"],
        ["s6", "3", "0.0\xa0%", "50.0\xa0% ± 1.0, not learnt"],
    ]
    assert len(reader.tables) == 1  # nothing was run that demands the other
    for text in (
        advice.answer,
        "Recall. Nearest tasks: made_up, L = 64 (64× shorter, 1 demand not shared).",
        "3 results of 4 seeds, from 1 experiment at scale small and the folder of this run;",
        "None of these tasks has more than 64 steps; this extrapolates 64×.",
        "Nothing was run that demands language",
    ):
        assert text in reader.text
    assert sections.guidance(comparison()) == ""
