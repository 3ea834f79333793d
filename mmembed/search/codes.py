"""Search through codes, from the size on where it pays: two bits a number for all vectors, float32 for those that come first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lancedb.index import IvfRq

if TYPE_CHECKING:
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

FROM = 20_000
"""Rows from which codes are made: below, a scan of all vectors takes no time that anyone sees (`benchmarks/measure_ann.py`)."""
BITS = 2
RESCORED = 4
"""So many times the rows that are wanted are scored anew by their float32 vectors, which stay in the table."""
ALL = 2**16
"""Lists that are looked through: more than there are. Pictures lie in other lists than the texts that ask for them."""


def make(table: Table) -> bool:
    """Code the vectors of a table that is large enough and has no codes; whether it did. Rows that come later are scanned until
    `optimize` codes them too.

    RaBitQ (arXiv 2405.12497, 2409.09913 for more bits than one) as LanceDB has it, which takes whole bytes of signs."""
    width = table.schema.field("vector").type.list_size
    if width % 8 or table.count_rows() < FROM or _name(table) is not None:
        return False
    table.create_index("vector", config=IvfRq(distance_type="dot", num_bits=BITS))
    return True


def through(query: LanceVectorQueryBuilder) -> LanceVectorQueryBuilder:
    """A query that goes through codes, where there are."""
    return query.nprobes(ALL).refine_factor(RESCORED)


def said(table: Table) -> str:
    """How a table is searched, in words."""
    name = _name(table)
    if name is None:
        return "exact"
    stats: Any = table.index_stats(name)
    return (
        f"codes of {BITS} bits, rescored in float32 (IVF_RQ of {stats.num_indexed_rows} rows, "
        f"{stats.num_unindexed_rows} scanned beside)"
    )


def _name(table: Table) -> str | None:
    return next((index.name for index in table.list_indices() if index.columns == ["vector"]), None)
