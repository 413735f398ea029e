"""Passages know their place, are small enough, and lose nothing of a document."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.converters.structure import Document, Paragraph, Section
from pipeline.data.documents import read_document
from pipeline.retrieval.chunks import read_chunk, split


def document(*paragraphs: str) -> Document:
    parts = tuple(Paragraph(text, line) for line, text in enumerate(paragraphs, 3))
    return Document("Fees", "text", (Section(("Wires",), 2, parts, 2),))


def texts(found, size=80, overlap=0):
    return [c.text for c in split(found, "a.md", (), size=size, overlap=overlap)]


def test_a_passage_has_its_documents_headings_line_and_labels(tmp_path):
    file = tmp_path / "fees.md"
    file.write_text("# Fees\n\n## Wires\n\n### Abroad\n\nThey cost 40 dollars.\n")
    (chunk,) = split(read_document(file), "a/fees.md", ("staff",), size=500, overlap=50)
    assert (chunk.document, chunk.title, chunk.line) == ("a/fees.md", "Fees", 7)
    assert chunk.headings == ("Fees", "Wires", "Abroad")
    assert chunk.labels == ("staff",)
    assert chunk.indexed == "Fees > Wires > Abroad\nThey cost 40 dollars."
    assert read_chunk(chunk.to_json()) == chunk


def test_short_paragraphs_share_a_passage_and_long_ones_are_cut_at_sentences():
    assert texts(document("One.", "Two.")) == ["One.\n\nTwo."]
    long = "First sentence of it. " * 6
    parts = texts(document(long.strip()))
    assert len(parts) > 1
    assert all(part.endswith(".") and part.startswith("First") for part in parts)


def test_the_overlap_repeats_whole_sentences_of_the_passage_before():
    first, second = texts(document("A b c d e f. G h i j k l.", "M n o p q r."), 38, 18)[:2]
    assert first == "A b c d e f. G h i j k l."
    assert second == "G h i j k l. M n o p q r."


@given(
    st.lists(st.text("ab .\n", min_size=1, max_size=300), max_size=5),
    st.integers(50, 120),
    st.integers(0, 25),
)
def test_no_passage_is_too_long_and_every_letter_is_in_one(paragraphs, size, overlap):
    found = texts(document(*paragraphs), size, overlap)
    assert all(0 < len(text) <= size for text in found)
    letters = "".join("".join(paragraphs).split())
    assert len(letters) <= len("".join("".join(found).split()))
    if not overlap:
        assert letters == "".join("".join(found).split())


def test_the_line_that_gave_the_title_is_no_passage(tmp_path):
    file = tmp_path / "fees.txt"
    file.write_text("Fees of the bank\n\n## Wires\n\nThey cost 40 dollars.\n")
    assert texts(read_document(file)) == ["They cost 40 dollars."]
