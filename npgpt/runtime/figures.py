"""Numbers as text."""

LONGEST = 1e9


def figure(value, decimals, sign=""):
    """Return a number with so many decimals; from LONGEST on with an exponent, 8.84e+86, since nobody reads 90 digits.

    sign  "+": also write the sign of a positive number
    """
    return f"{value:{sign},.{decimals}f}" if abs(value) < LONGEST else f"{value:{sign}.3g}"
