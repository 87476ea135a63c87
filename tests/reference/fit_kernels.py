#!/usr/bin/env python3
"""Derive the coefficients of the single-precision exp(x) and erf(x) kernels, and of the
quantile of the truncated normal distribution.

Needs numpy and mpmath; takes about ten seconds; prints C++ literals.

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


def horner(coefs, x):
    y = mp.mpf(0)
    for c in reversed(coefs):
        y = y * x + c
    return y


def rational(f, m, n, points=1500):
    """P of degree m and Q of degree n, Q(0) = 1, for a small largest |P / (Q f) - 1| on [0, 1].

    Remez exchange; the level stands beside Q in the equations P - f (1 + level) Q = 0, so each
    reference is solved by iteration. Stops when 60 exchanges no longer help.
    """
    x = [(1 - mp.cos(mp.pi * mp.mpf(i) / points)) / 2 for i in range(points + 1)]
    y, size = [f(v) for v in x], m + n + 2
    idx = [round(points * (1 - (1 - i / (size - 1)) ** 2)) for i in range(size)]
    for _ in range(60):
        level = mp.mpf(0)
        for _ in range(12):
            a, b = mp.matrix(size, size), mp.matrix(size, 1)
            for row, i in enumerate(idx):
                sign = (-1) ** row
                for j in range(m + 1):
                    a[row, j] = x[i] ** j
                for j in range(1, n + 1):
                    a[row, m + j] = -y[i] * (1 + sign * level) * x[i] ** j
                a[row, size - 1], b[row] = -sign * y[i], y[i]
            sol = mp.lu_solve(a, b)
            over, under = list(sol[:m + 1]), [mp.mpf(1)] + list(sol[m + 1:m + 1 + n])
            level, before = sol[size - 1], level
            if abs(level - before) < abs(level) * mp.mpf(10) ** -12:
                break
        e = np.array([float(horner(over, v) / horner(under, v) / w - 1) for v, w in zip(x, y)])
        if abs(e).max() <= abs(float(level)) * 1.001:
            break
        extrema = exchange(e, idx, abs(float(level)) * 0.999)
        idx = extrema
    return over, under, abs(e).max()


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

    # z = q R(q^2), with (1 + q) / 2 the probability below z of a normal number cut to |z| <= 2
    whole = mp.erf(mp.sqrt(2))
    over, under, err = rational(
        lambda t: mp.sqrt(2) * mp.erfinv(mp.sqrt(t) * whole) / mp.sqrt(t) if t else
        whole * mp.sqrt(mp.pi / 2), 5, 5)
    print(f"truncated normal: relative error {err:.2g}")
    for name, coefs in (("over", over), ("under", under)):
        print(f"    {name}: " + ", ".join(mp.nstr(c, 17) for c in reversed(coefs)))


if __name__ == "__main__":
    main()
