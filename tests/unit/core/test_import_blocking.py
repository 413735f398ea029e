"""Packages are hidden, loaded or not, and are back afterwards."""

import sys

import pytest

from pipeline.core.import_blocking import absent, stand_in


def test_a_loaded_package_is_hidden_with_all_that_is_in_it() -> None:
    import xml.dom.minidom

    with absent("xml", "no_such_package"):
        with pytest.raises(ModuleNotFoundError):
            import xml.dom.pulldom
        with pytest.raises(ModuleNotFoundError):
            from xml.dom import minidom  # noqa: F401
        with pytest.raises(ModuleNotFoundError):
            import no_such_package  # noqa: F401
    from xml.dom import minidom as back

    assert back is xml.dom.minidom
    assert "no_such_package" not in sys.modules


def test_an_error_inside_brings_them_back() -> None:
    import xml.dom

    with pytest.raises(RuntimeError), absent("xml"):
        raise RuntimeError
    assert sys.modules["xml.dom"] is xml.dom


def test_a_stand_in_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    for _ in range(2):  # the second time it is imported by then
        with stand_in("colorsys", answer=42):
            from colorsys import answer

            assert answer == 42
            with pytest.raises(ImportError):
                from colorsys import hls_to_rgb
        from colorsys import hls_to_rgb

        assert hls_to_rgb(0, 0, 0) == (0, 0, 0)
