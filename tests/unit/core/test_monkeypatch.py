"""Attributes replaced for a while, by record."""

import colorsys
from types import SimpleNamespace

import pytest

from pipeline.core.monkeypatch import Patch, other_versions, replaced


class Base:
    def name(self) -> str:
        return "base"


class Derived(Base):
    pass


def record(owner: str, *names: str, distribution: str = "torch", version: str = "2.13.0") -> Patch:
    return Patch(owner, names, distribution, version, "a test", digest="")


def test_what_was_there_is_restored_after_an_error() -> None:
    patch = record("colorsys", "rgb_to_hsv", "ONE_THIRD")
    before = colorsys.rgb_to_hsv, colorsys.ONE_THIRD
    with pytest.raises(ZeroDivisionError), replaced(patch.by(rgb_to_hsv=None, ONE_THIRD=0)):
        1 / colorsys.ONE_THIRD
    assert (colorsys.rgb_to_hsv, colorsys.ONE_THIRD) == before


def test_an_inherited_attribute_is_inherited_again() -> None:
    patch = record(f"{__name__}:Derived", "name")
    original = patch.original("name")
    with replaced(patch.by(name=lambda self: f"not {original(self)}")):
        assert Derived().name() == "not base"
    assert "name" not in vars(Derived)
    assert Derived().name() == "base"


def test_a_record_is_replaced_whole() -> None:
    patch = record("colorsys", "rgb_to_hsv", "hsv_to_rgb")
    for values in ({"rgb_to_hsv": None}, {"rgb_to_hsv": None, "hsv_to_rgb": None, "x": None}):
        with pytest.raises(TypeError, match="colorsys: replace rgb_to_hsv, hsv_to_rgb"):
            patch.by(**values)


def test_the_sources_are_the_names_and_what_the_replacement_relies_on() -> None:
    owners = SimpleNamespace(
        module=Patch("a.b", ("c",), "l", "1", "r", "", reads=("d:e",)).sources,
        klass=Patch("a.b:C", ("d", "e"), "l", "1", "r", "").sources,
        elsewhere=Patch("a.b:C", ("d",), "l", "1", "r", "", source=("x:y",)).sources,
    )
    assert owners.module == ("a.b:c", "d:e")
    assert owners.klass == ("a.b:C.d", "a.b:C.e")
    assert owners.elsewhere == ("x:y",)


def test_other_versions_are_named_and_a_builds_suffix_is_none() -> None:
    patches = [record("torch", "a"), record("numpy", "b", distribution="numpy", version="1.26.4")]
    assert other_versions(patches, {"torch": "2.13.0+cpu"}) == ""
    assert other_versions(patches, {"torch": "2.11.0+cu130", "numpy": "1.26.4"}) == (
        "torch 2.11.0+cu130 (patches: 2.13.0)"
    )
