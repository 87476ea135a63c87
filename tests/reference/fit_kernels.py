#!/usr/bin/env python3
"""Derive the coefficients of the single-precision exp(x) and erf(x) kernels.

Needs numpy and mpmath; takes about a second; prints C++ float literals.

Method: weighted minimax (Remez exchange, solved in 120-bit arithmetic on a
Chebyshev-spaced grid), the weight being 1/ulp(result), so the quantity that is
levelled is the error of the final float result in units in its last place.
Coefficients are rounded to float one at a time from the constant term upwards,
and those not yet rounded are fitted again after each step, so that they absorb
the rounding of the earlier ones.

  exp : x = n ln2 + r, |r| <= ln2/2;  exp(x) = 2^n p(r),  p(0) = 1 held exact.
        ln2 = LN2_HI + LN2_LO, LN2_HI of 16 significant bits: n LN2_HI is exact
        for |n| <= 256 with and without a fused multiply-add.
  erf : |x| <= CUT : erf(x) = x + x P(x^2)
        |x| >  CUT : erf(x) = sign(x) (1 - exp(G(a))),  a = min(|x|, TOP),
        G(a) ~ log(erfc(a)); erfc(TOP) < 2^-25, hence the result is 1 there.
"""
import numpy as np
from mpmath import mp

mp.prec = 120
LD = np.longdouble          # error curves are evaluated in 64-bit significands
EXP_DEGREE, SMALL_DEGREE, BIG_DEGREE = 6, 5, 6
CUT, TOP = 0.875, 3.925


def ld(v):
    """mpf -> long double without losing the low bits."""
    return LD(float(v)) + LD(float(v - float(v)))


def mpf(v):
    """long double -> mpf, exactly."""
    return mp.mpf(float(v)) + mp.mpf(float(v - LD(float(v))))


def ulp(y):
    """Spacing of floats (24-bit significand) at y."""
    return np.exp2(np.floor(np.log2(np.abs(y))) - 23)


def sample(f, a, b, n=2000):
    """n Chebyshev-spaced points of [a, b] and f there, as long doubles."""
    t = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    return np.array([ld(x) for x in t]), np.array([ld(f(x)) for x in t])


def exchange(e, idx, level):
    """The next reference: as many extrema of e, alternating, none below level."""
    n, above = len(idx), abs(e) > level
    above[idx] = True
    keep = np.flatnonzero(above)
    runs = np.split(keep, np.flatnonzero(np.diff(np.sign(e[keep]))) + 1)
    ext = [r[np.argmax(abs(e[r]))] for r in runs]
    assert len(ext) >= n, "the error alternates too rarely: a degenerate fit"
    while len(ext) > n:
        ext.pop(0 if abs(e[ext[0]]) < abs(e[ext[-1]]) else -1)
    return ext


def minimax(x, y, w, degree):
    """Polynomial minimising max |w (p - y)| over the points x."""
    n = degree + 2
    idx = np.round(np.linspace(0, len(x) - 1, n)).astype(int)
    for _ in range(60):
        rows = [[mpf(x[k]) ** j for j in range(degree + 1)] + [(-1) ** i / mpf(w[k])]
                for i, k in enumerate(idx)]
        sol = list(mp.lu_solve(mp.matrix(rows), mp.matrix([mpf(y[k]) for k in idx])))
        p = np.zeros_like(x)
        for c in reversed(sol[:-1]):
            p = p * x + ld(c)
        e = (p - y) * w
        level = abs(float(sol[-1]))
        if abs(e).max() <= level * 1.0001:
            return sol[:-1], float(abs(e).max())
        idx = exchange(e, idx, level)
    raise ArithmeticError("no convergence")


def fit(name, x, y, w, degree, fixed=()):
    """Float coefficients c[0..degree]; the leading ones may be prescribed."""
    coefs, real = [], None
    for k in range(degree + 1):
        if k < len(fixed):
            c = np.float32(fixed[k])
        else:
            free, err = minimax(x, y, w, degree - k)
            real = err if real is None else real
            c = np.float32(float(free[0]))
        coefs.append(c)
        y = (y - LD(c)) / x         # what is left for c[k+1] + c[k+2] x + ...
        w = w * abs(x)
    final = float(abs(y * w).max())  # the last remainder is the error itself
    print(f"{name}: approximation error {real:.4f} ulp, {final:.4f} ulp once rounded")
    for k, c in enumerate(coefs):
        print(f"    c{k} = {c:.9g}f   ({float(c).hex()})")
    return coefs


def main():
    hi = mp.floor(mp.log(2) * 2 ** 16 + 0.5) / 2 ** 16
    for name, v in (("LOG2E", 1 / mp.log(2)), ("LN2_HI", hi), ("LN2_LO", mp.log(2) - hi)):
        print(f"{name} = {np.float32(float(v)):.9g}f")

    x, y = sample(mp.exp, -mp.log(2) / 2, mp.log(2) / 2)
    fit("exp p(r)", x, y, 1 / ulp(y), EXP_DEGREE, fixed=[1])

    x, y = sample(lambda s: mp.erf(mp.sqrt(s)) / mp.sqrt(s) - 1, mp.mpf(0), mp.mpf(CUT) ** 2)
    fit("erf P(s)", x, y, np.sqrt(x) / ulp(np.sqrt(x) * (1 + y)), SMALL_DEGREE)

    x, y = sample(lambda a: mp.log(mp.erfc(a)), mp.mpf(CUT), mp.mpf(TOP))
    fit("erf G(a)", x, y, np.exp(y) / ulp(1 - np.exp(y)), BIG_DEGREE)


if __name__ == "__main__":
    main()
