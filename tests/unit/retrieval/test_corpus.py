"""Which documents are indexed, and who may see each."""

import pytest

from pipeline.core.errors import DataError
from pipeline.retrieval.corpus import sources
from tests.unit.retrieval.indexes import index_config, write_documents


def test_documents_have_names_below_the_folder_and_the_labels_of_their_globs(tmp_path):
    config = index_config(
        write_documents(tmp_path), labels={"staff/*": ["staff"], "**/*.md": ["readers"]}
    )
    found = {source.name: source.labels for source in sources(config)}
    assert found == {
        "cards.txt": (),
        "staff/limits.md": ("readers", "staff"),
        "wires.md": ("readers",),
    }


def test_a_label_that_no_document_has_is_refused_since_the_documents_would_be_open(tmp_path):
    config = index_config(write_documents(tmp_path), labels={"stuff/*": ["staff"]})
    with pytest.raises(DataError, match=r"no document matches 'stuff/\*'"):
        sources(config)


@pytest.mark.parametrize("glob", ["/etc/*", "../*.md", ""])
def test_documents_outside_of_the_folder_are_refused(tmp_path, glob):
    with pytest.raises(ValueError, match=r"not below index\.folder"):
        index_config(tmp_path, documents=[glob])


def test_a_link_to_outside_is_refused(tmp_path):
    (tmp_path / "secret.md").write_text("secret")
    write_documents(tmp_path / "docs")
    (tmp_path / "docs/link.md").symlink_to(tmp_path / "secret.md")
    with pytest.raises(DataError, match="link to outside"):
        sources(index_config(tmp_path / "docs"))


def test_what_is_not_there_and_what_is_no_document_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        sources(index_config(tmp_path / "none"))
    with pytest.raises(DataError, match="nothing below"):
        sources(index_config(tmp_path))
    (tmp_path / "photo.png").write_bytes(b"png")
    with pytest.raises(DataError, match="known format"):
        sources(index_config(tmp_path, documents=["*"]))
