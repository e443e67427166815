"""Security of the LWE parameter sets, by malb/lattice-estimator.

Needs the package ``estimator`` of https://github.com/malb/lattice-estimator on PYTHONPATH, and Sage for it
(``pip install passagemath-standard`` into an environment of its own is enough). Nothing else of the project needs either.

    PYTHONPATH=path/to/lattice-estimator python security.py sets          the parameter sets, as tables
    PYTHONPATH=path/to/lattice-estimator python security.py bounds        the largest modulus at 128 bits for each dimension

Attacks: primal uSVP, primal BDD and the dual hybrid of MATZOV, with the geometric series assumption and unlimited samples.
Measures: the gate counts of MATZOV (the estimator's default), and core-SVP (ADPS16), classical and quantum.
The dual hybrid is searched by the estimator first (it fixes m = n), then in steps down to one in every variable, m included.
BDD is searched in β and d from the optimum of uSVP: the estimator's own search for it can stop 1 to 2 bits above the least.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ATTACKS = ("usvp", "bdd", "dual_hybrid")
MEASURES = ("matzov", "classical", "quantum")
STANDARD_ERROR = 3.2
LEVEL = 128.0
GRID = 20  # steps to one bit of the modulus

OUTER_BITS = 44.826  # of the two largest primes below 5,600,000 that are 1 modulo 4,096
INNER = (1280, 1536, 2048)  # dimensions, modulus 2^32
OUTER_MODULI = (42.0, 43.0, 44.0, 44.25, 44.3, 44.5, 44.75, 45.0, 45.5, 46.0, 47.0, 48.0)


@dataclass(frozen=True)
class Problem:
    """LWE of dimension n, modulus 2^log2_q, a uniform ternary secret and a Gaussian error of standard deviation sigma."""

    n: int
    log2_q: float
    sigma: float = STANDARD_ERROR


@dataclass(frozen=True)
class Figure:
    """The cost of one attack in bits, and the attack's block size and other variables."""

    bits: float
    variables: dict[str, int] = field(default_factory=dict)


def load_estimator() -> Any:
    """Import the estimator, or end with one line that says what to install."""
    try:
        import estimator
    except ImportError as error:
        sys.exit(
            f"cannot import lattice-estimator ({error}): put github.com/malb/lattice-estimator on PYTHONPATH and "
            "pip install passagemath-standard"
        )
    return estimator


def cost_model(measure: str) -> Any:
    """The estimator's model of lattice reduction for a measure."""
    estimator = load_estimator()
    return estimator.RC.MATZOV if measure == "matzov" else estimator.reduction.ADPS16(mode=measure)


def lwe_parameters(problem: Problem) -> Any:
    """The problem as the estimator's parameters."""
    estimator = load_estimator()
    return estimator.LWE.Parameters(
        n=problem.n,
        q=round(2**problem.log2_q),
        Xs=estimator.ND.UniformMod(3),
        Xe=estimator.ND.DiscreteGaussian(problem.sigma),
    )


def descend(bits: Callable[..., float], start: tuple[int, ...], step: int = 32) -> tuple[int, ...]:
    """The point of least cost found from a start by steps in one variable, or in the first and another one."""
    axes = range(len(start))
    point = start
    while step:
        moves = [tuple(sign * step if i == axis else 0 for i in axes) for axis in axes for sign in (1, -1)]
        for first in (max(step // 16, 1), max(step // 4, 1)):
            moves += [
                tuple(sign * first if i == 0 else other * step if i == axis else 0 for i in axes)
                for axis in axes[1:]
                for sign in (1, -1)
                for other in (1, -1)
            ]
        best = min((tuple(a + b for a, b in zip(point, move, strict=True)) for move in moves), key=lambda x: bits(*x))
        if bits(*best) < bits(*point):
            point = best
        else:
            step //= 2
    return point


def refine_dual(params: Any, start: Any, model: Any) -> Figure:
    """Lower the dual hybrid's cost from the estimator's optimum by steps in β, ζ, t, p and m."""
    cost_of = load_estimator().LWE.dual_hybrid.cost
    params = params.normalize()

    @cache
    def bits(beta: int, zeta: int, t: int, p: int, m: int) -> float:
        if beta < 40 or zeta < 0 or t < 0 or p < 2 or m < 1 or zeta + t >= params.n:
            return math.inf
        try:
            return math.log2(cost_of(beta, params, m=m, p=p, k_enum=zeta, k_fft=t, red_cost_model=model)["rop"])
        except OverflowError:
            return math.inf

    names = ("beta", "zeta", "t", "p", "m")
    point = descend(bits, tuple(int(start[name]) for name in names))
    return Figure(bits(*point), dict(zip(names, point, strict=True)))


def refine_bdd(params: Any, start: Any, model: Any) -> Figure:
    """Lower the BDD attack's cost from the estimator's optimum by steps in β and d."""
    cost_of = load_estimator().LWE.primal_hybrid.cost
    params = params.normalize()

    @cache
    def cost(beta: int, d: int) -> Any:
        if beta < 60 or d < params.n or beta > d:
            return {"rop": math.inf}
        return cost_of(beta, params, zeta=0, babai=False, mitm=False, d=d, red_cost_model=model)

    def bits(beta: int, d: int) -> float:
        return math.log2(cost(beta, d)["rop"])

    starts = [(int(start["beta"]) - less, int(start["d"])) for less in (0, 16, 32)]
    beta, d = min((descend(bits, x) for x in starts), key=lambda x: bits(*x))
    return Figure(bits(beta, d), {"beta": beta, "eta": int(cost(beta, d)["eta"]), "d": d})


@cache
def figure(problem: Problem, attack: str, measure: str) -> Figure:
    """The cost of one attack on a problem under one measure."""
    lwe = load_estimator().LWE
    params, model = lwe_parameters(problem), cost_model(measure)
    if attack == "dual_hybrid":
        start = lwe.dual_hybrid(params, red_cost_model=model)
        return refine_dual(params, start, model)
    start = lwe.primal_usvp(params, red_cost_model=model)
    if attack == "bdd":
        return refine_bdd(params, start, model)
    return Figure(math.log2(start["rop"]), {name: int(start[name]) for name in ("beta", "d")})


def least(problem: Problem, measure: str, attacks: Iterable[str] = ATTACKS) -> tuple[float, str]:
    """The least cost of the attacks in bits, and the attack."""
    return min((figure(problem, attack, measure).bits, attack) for attack in attacks)


def largest_modulus(n: int, measure: str, sigma: float = STANDARD_ERROR, attacks: tuple[str, ...] = ATTACKS) -> float:
    """The largest log2 q, in steps of 1/GRID, at and below which every attack costs LEVEL bits or more."""
    low, high = round(10 * GRID), round(n / 8 * GRID)
    while high - low > 1:
        middle = (low + high) // 2
        if least(Problem(n, middle / GRID, sigma), measure, attacks)[0] >= LEVEL:
            low = middle
        else:
            high = middle
    return low / GRID


def table(problems: Iterable[Problem]) -> None:
    """Print a Markdown table of all attacks and measures, a row for each problem."""
    head = [
        "| n | log2 q | σ | MATZOV: uSVP | BDD | dual | **least** | core-SVP: uSVP | BDD | dual | **least** "
        "| quantum: uSVP | least |",
        "| --- " * 13 + "|",
    ]
    print(*head, sep="\n")
    for problem in problems:
        cells = [f"{problem.n:,}", f"{problem.log2_q:g}", f"{problem.sigma:g}"]
        for measure in MEASURES:
            bits = [figure(problem, attack, measure).bits for attack in ATTACKS]
            cells += [f"{x:.1f}" for x in (bits[:1] if measure == "quantum" else bits)]
            bold = "" if measure == "quantum" else "**"
            cells.append(f"{bold}{min(bits):.1f}{bold}")
        print("| " + " | ".join(cells) + " |", flush=True)


def bounds(dimensions: Iterable[int], sigma: float = STANDARD_ERROR) -> None:
    """Print a Markdown table of the largest moduli at LEVEL bits, a row for each dimension."""
    head = [
        "| n | MATZOV, least attack | core-SVP, uSVP | core-SVP, least of three | both measures, all attacks |",
        "| --- " * 5 + "|",
    ]
    print(*head, sep="\n")
    for n in dimensions:
        cells = []
        for measure, attacks in (("matzov", ATTACKS), ("classical", ("usvp",)), ("classical", ATTACKS)):
            bound = largest_modulus(n, measure, sigma, attacks)
            bits, attack = least(Problem(n, bound, sigma), measure, attacks)
            cells.append((bound, f"{bound:.2f} ({bits:.1f}, {attack})"))
        print(f"| {n:,} | " + " | ".join(text for _, text in cells) + f" | {min(cells)[0]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sets", "bounds"))
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    parser.add_argument("--sigma", type=float, default=STANDARD_ERROR, help="the error of the bounds")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1024, 1280, 1536, 2048, 4096])
    arguments = parser.parse_args()
    if arguments.what == "sets":
        problems = [Problem(n, 32.0) for n in INNER] + [Problem(2048, bits) for bits in OUTER_MODULI]
        problems += [Problem(2048, bits, sigma) for bits in (OUTER_BITS, 45.0) for sigma in (STANDARD_ERROR, 4.0, 5.0, 6.4)]
        problems += [Problem(1024, 32.0, 204.8), Problem(4096, 84.0)]  # the sets before batches
        table(problems)
        if arguments.json:
            rows = [
                {**asdict(p), "measure": m, "attack": a, **asdict(figure(p, a, m))}
                for p in problems
                for m in MEASURES
                for a in ATTACKS
            ]
            arguments.json.write_text(json.dumps(rows, indent=1))
    else:
        bounds(arguments.dimensions, arguments.sigma)


if __name__ == "__main__":
    main()
