"""Pages that are found in the same time among a thousand rows and among a million.

A page is read along one index, from where the page before ended. What that index does not answer is looked at row by
row, at most SCANNED of them: then the page ends there, with as many rows as were found, and says where to go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Double, Row, Select, Text, UnaryExpression, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

SCANNED: Final = 500
"""Rows that are looked at for one page beyond what an index answers: each may be a page of the file that is not in
memory."""


Place = tuple[Any, ...]
"""Where a page begins: a value of each column that it is read along."""


class Keyset(NamedTuple):
    """The columns of the index that a page is read along, the last of them unique, and its direction."""

    columns: Sequence[ColumnElement[Any]]
    descending: bool

    async def page(
        self,
        connection: AsyncConnection,
        query: Select[Any],
        limit: int,
        after: Sequence[Any] | None = None,
        *,
        along: Sequence[ColumnElement[bool]] = (),
        beside: Sequence[ColumnElement[bool]] = (),
    ) -> tuple[list[Row[*tuple[Any, ...]]], Place | None]:
        """The rows of `query` that follow the place `after`, `limit` at most, and the place where the next page begins,
        None at the end. `along` is what the index answers, `beside` what has to be looked at."""
        within = [*along] if after is None else [*along, self._compare(after, "<" if self.descending else ">")]
        end: Place | None = None
        if beside:
            end = await self._border(connection, within)
            if end is not None:
                within.append(self._compare(end, ">=" if self.descending else "<="))
        query = query.where(*within, *beside).order_by(*self._order()).limit(limit)
        rows = list(await connection.execute(query))
        if len(rows) == limit:
            end = tuple(getattr(rows[-1], column.key or "") for column in self.columns)
        return rows, end

    async def _border(self, connection: AsyncConnection, within: Sequence[ColumnElement[bool]]) -> Place | None:
        """The place of the last row that may be looked at; None if there are not so many."""
        query = select(*self.columns).where(*within).order_by(*self._order())
        row = (await connection.execute(query.offset(SCANNED - 1).limit(1))).one_or_none()
        return None if row is None else tuple(row)

    def _order(self) -> list[UnaryExpression[Any]]:
        return [column.desc() if self.descending else column.asc() for column in self.columns]

    def _compare(self, place: Sequence[Any], operator: str) -> ColumnElement[bool]:
        literals = [literal(value, Text() if isinstance(value, str) else Double()) for value in place]
        if len(self.columns) == 1:
            return self.columns[0].op(operator, is_comparison=True)(literals[0])
        # Compared as one value, of which both databases make a range of the index.
        return tuple_(*self.columns).op(operator, is_comparison=True)(tuple_(*literals))
