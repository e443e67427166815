"""Rows taken side by side are those that were asked for, in order."""

from __future__ import annotations

import random

import torch

from veil.kernels.cuda_rows import gathered


def test_rows_of_several_matrices_in_any_order() -> None:
    choose = random.Random(1)
    matrices = [torch.randint(0, 2**31, (rows, 9), dtype=torch.int64).to(torch.uint32) for rows in (1, 4, 16)]
    for count in (1, 2, 5, 30):
        for neighbours in (False, True):
            rows = [(matrix, place) for matrix in matrices for place in range(len(matrix))][:count]
            if not neighbours:
                choose.shuffle(rows)
            for start, stop in ((0, 9), (2, 3), (4, 4)):
                made = gathered(rows, start, stop)
                expected = [matrix[place, start:stop].tolist() for matrix, place in rows]
                assert made.dtype == torch.uint32 and made.is_contiguous() and made.tolist() == expected


def test_neighbours_are_one_copy() -> None:
    matrix = torch.zeros((6, 4), dtype=torch.uint32)
    rows = [(matrix, place) for place in (3, 4, 5, 0, 1)]
    calls = []
    original = torch.cat
    torch.cat = lambda parts: calls.append([len(part) for part in parts]) or original(parts)  # type: ignore[method-assign]
    try:
        gathered(rows, 0, 4)
    finally:
        torch.cat = original  # type: ignore[method-assign]
    assert calls == [[3, 2]]
