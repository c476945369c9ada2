"""The table of mutants is sound: each changes code that is there, in one place, as no other does."""

from pathlib import Path

import pytest

from tests.mutation.mutants import MUTANTS, TABLE, Mutant, code, mutate

PACKAGE = Path(__file__).parents[2] / "npgpt"


@pytest.mark.parametrize("file", TABLE)
def test_each_mutant_changes_the_code_in_a_way_of_its_own(file):
    source = (PACKAGE / file).read_text(encoding="utf-8")
    mutated = {mutant.wrong: mutate(mutant, source) for mutant in MUTANTS if mutant.file == file}
    for wrong, text in mutated.items():
        compile(text, f"{file}: {wrong}", "exec")
    assert len(mutated) == len(TABLE[file]), "two mutants have the same words"
    assert len({code(text) for text in mutated.values()}) == len(mutated), "two mutants are the same"


def test_there_are_mutants_enough():
    assert len(MUTANTS) >= 90


@pytest.mark.parametrize("before, message", [
    ("absent", "occurs 0 times"),
    ("a + b", "occurs 2 times"),
    ("Add", "in no code"),
    ("why", "in no code"),
    ("Returns", "in no code"),
])
def test_a_text_that_is_not_in_one_place_of_the_code_is_found(before, message):
    source = 'def add(a, b):\n    """Add. Returns a + b."""\n    y = a + b  # why\n    return y\n'
    with pytest.raises(ValueError, match=f"words: its text .*{message}"):
        mutate(Mutant("file.py", "words", before, "something else"), source)
