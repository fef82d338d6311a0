"""A device's connections against a plain dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge.agents.links import Links


class Line:
    """A connection: only its identity matters."""

    client_id = ""

    def kick(self, cause: str) -> None:
        """Nobody does."""


LINES = [Line(), Line(), Line()]
steps = st.lists(st.tuples(st.sampled_from(["put", "take"]), st.integers(0, 2), st.booleans()), max_size=30)


@given(steps)
def test_knows_who_is_there_and_who_listens(steps: list[tuple[str, int, bool]]) -> None:
    links = Links()
    model: dict[int, bool] = {}
    for step, number, listens in steps:
        if step == "put":
            assert links.put(LINES[number], listens=listens) is model.get(number)
            model[number] = listens or model.get(number, False)
        else:
            assert links.take(LINES[number]) is (model.pop(number, None) is not None)
        assert bool(links) is bool(model)
        assert links.listening is any(model.values())
