"""Personas by name, built in and one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from personaplex.errors import PersonaError
from personaplex.persona import read_personas
from personaplex.text import PROMPTS


def test_the_built_in_personas_are_whole() -> None:
    personas = read_personas()
    assert list(personas) == ["assistant", "focused", "customer-service", "teacher", "claudia", "aria", "sage"]
    assert all(personas[name].prompt == text for name, text in PROMPTS.items())
    assert "Claudia" in personas["claudia"].prompt and personas["aria"].sampling == {"text_temperature": 0.6}


def test_the_first_voice_that_a_model_has_is_taken() -> None:
    claudia = read_personas()["claudia"]
    assert claudia.settings(["NATM0", "VARF2", "NATF2"], seed=3).voice == "NATF2"
    assert claudia.settings(["NATM0", "VARF2"]).voice == "VARF2"
    other = claudia.settings(["somebody"], seed=3)
    assert (other.voice, other.seed, other.sampling) == (None, 3, {"text_temperature": 0.8})


def test_ones_own_file_adds_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[sage]\nprompt = "You are terse."\n[pirate]\nprompt = "You are a pirate."\nvoices = ["NATM3"]\n')
    personas = read_personas(path)
    assert personas["sage"].prompt == "You are terse." and personas["pirate"].voices == ("NATM3",)
    assert len(personas) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "not TOML"),
        ("a = 1", "must be a table"),
        ("[a]\nvoices = []", "needs a prompt"),
        ('[a]\nprompt = " "', "needs a prompt"),
        ('[a]\nprompt = "x y"\nvioces = []', "unknown field 'vioces'"),
        ('[a]\nprompt = "x y"\nvoices = "NATF2"', "list of names"),
        ('[a]\nprompt = "x y"\n[a.sampling]\ntop = 3', "sampling must be a table"),
        ('[a]\nprompt = "x y"\n[a.sampling]\ntext_top_k = "3"', "numbers"),
        ('[a]\nprompt = "x y"\n[a.sampling]\ntext_temperature = -1', "text temperature"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(PersonaError, match=message) as error:
        read_personas(tmp_path / "bad.toml")
    assert "bad.toml" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(PersonaError, match="cannot be read"):
        read_personas(tmp_path / "nothing.toml")
