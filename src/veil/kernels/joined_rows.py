"""Rows of several groups as a table of numbers: what a product of all of them reads without the interpreter."""

from __future__ import annotations

WEIGHTS, OUTPUTS, WIDTH, UP, DOWN, SHARES, STRIDE, DATA, ROW_BYTES, COUNT = range(10)
"""Columns of ``COUNT`` rows of one group: where its weights are, its outputs and inputs, the bits of its inputs and results,
where the first row's shares are and how many bytes further the next one's, where the packed rows are, the bytes of one."""

COLUMNS = COUNT + 1

PLACE, FIRST, END = range(3)
"""Columns of a reply: the place of its connection, where its results begin and end."""

REPLY_COLUMNS = END + 1
