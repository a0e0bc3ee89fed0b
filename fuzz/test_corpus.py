"""Every kept input still does what its target says. Runs without atheris."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from mutator import mutate, take_apart
from run import CORPUS, mutation_for, seeds
from targets import TARGETS, pack, unpack

from ycore import RemoteProtocolError, check_update

UPDATES = seeds("update")


@pytest.mark.parametrize("target", TARGETS)
def test_kept_inputs(target: str) -> None:
    paths = sorted((CORPUS / target).iterdir())
    assert paths
    for path in paths:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as exc:
            exc.add_note(f"on {path.relative_to(Path(__file__).parent)}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_some_mutations(target: str) -> None:
    """A taste of what `make fuzz` does, always the same."""
    rng = random.Random(target)
    change = mutation_for(target, UPDATES)
    for data in seeds(target)[:40]:
        for _ in range(5):
            data = change(data, rng)  # noqa: PLW2901
            TARGETS[target](data)


def test_taken_apart_and_put_together_an_update_is_the_same() -> None:
    honest = [path.read_bytes() for path in (CORPUS / "update").glob("[0-9]*")]
    assert len(honest) > 100
    for update in honest:
        assert take_apart(update).encode() == update


def test_the_mutator_gets_past_the_grammar_often_but_not_always() -> None:
    rng = random.Random(0)
    accepted = 0
    for _ in range(2000):
        try:
            check_update(mutate(rng.choice(UPDATES), rng, UPDATES))
            accepted += 1
        except RemoteProtocolError:
            pass
    assert 600 < accepted < 1600


def test_the_mutator_takes_anything() -> None:
    rng = random.Random(0)
    for _ in range(500):
        mutate(rng.randbytes(rng.randrange(40)), rng, [b"", b"\xff"])


def test_packing() -> None:
    parts = [b"", b"a", b"bc" * 200]
    assert unpack(pack(parts)) == parts
    assert unpack(b"\x00") == []
