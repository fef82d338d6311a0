"""Pages that are found in the same time among a thousand rows and among a million.

A page is read along one index, from where the page before ended. What that index does not answer is looked at row by
row, at most SCANNED of them: then the page ends there, with as many rows as were found, and says where to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Double, FromClause, Text, UnaryExpression, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

SCANNED: Final = 500
"""Rows that are looked at for one page beyond what an index answers: each may be a page of the file that is not in
memory."""


class Keyset(NamedTuple):
    """The columns of the index that a page is read along, the last of them unique, and its direction. A place in it is
    a value of each."""

    columns: Sequence[ColumnElement[Any]]
    descending: bool

    def clauses(self) -> list[UnaryExpression[Any]]:
        """For ORDER BY."""
        return [column.desc() if self.descending else column.asc() for column in self.columns]

    def after(self, place: Sequence[Any]) -> ColumnElement[bool]:
        """Rows that follow a place."""
        return self._compare(place, "<" if self.descending else ">")

    def until(self, place: Sequence[Any]) -> ColumnElement[bool]:
        """Rows up to a place, and the one there."""
        return self._compare(place, ">=" if self.descending else "<=")

    async def border(
        self, connection: AsyncConnection, source: FromClause, along: Sequence[ColumnElement[bool]]
    ) -> tuple[Any, ...] | None:
        """The place of the last row that may be looked at among those that fit `along`; None if there are not so
        many."""
        query = (
            select(*self.columns)
            .select_from(source)
            .where(*along)
            .order_by(*self.clauses())
            .offset(SCANNED - 1)
            .limit(1)
        )
        row = (await connection.execute(query)).one_or_none()
        return None if row is None else tuple(row)

    def _compare(self, place: Sequence[Any], operator: str) -> ColumnElement[bool]:
        literals = [literal(value, Text() if isinstance(value, str) else Double()) for value in place]
        if len(self.columns) == 1:
            return self.columns[0].op(operator, is_comparison=True)(literals[0])
        # Compared as one value, of which both databases make a range of the index.
        return tuple_(*self.columns).op(operator, is_comparison=True)(tuple_(*literals))
