# SPDX-License-Identifier: BSD-3-Clause
"""figures: what the values of many rounds say, and on what machine."""
import math
import os
import pathlib
import platform
import re
import statistics


def rank(number):
    """Between the value of this rank and the one of this rank from the end lies the median, with 95 % or more: that fewer values than
    this lie below the median happens in at most 2.5 % of all cases, whatever their distribution. 0: there are too few values."""
    at, chance = 0, 1 / 2 ** number
    while chance <= 0.025:
        at += 1
        chance += math.comb(number, at) / 2 ** number
    return at


def spread(values):
    """None for no values. `low` and `high` are None where there are fewer than six."""
    if not values:
        return None
    ordered, at = sorted(values), rank(len(values))
    return {"median": statistics.median(ordered), "low": ordered[at - 1] if at else None, "high": ordered[-at] if at else None,
            "min": ordered[0], "max": ordered[-1], "values": len(ordered)}


def rounds(number):
    return f"{number} round{'s' if number > 1 else ''}"


HEADS = f"{'median':>9}   {'95 % interval':<18}   {'min .. max':<18}"


def text(seen):
    """A spread as it stands under HEADS."""
    def pair(low, high):
        return "too few rounds" if low is None else f"{low:.3f} .. {high:.3f}"

    return f"{seen['median']:>9.3f}   {pair(seen['low'], seen['high']):<18}   {pair(seen['min'], seen['max']):<18}"


def machine():
    model = re.findall(r"^model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"Linux {platform.release()}, {os.cpu_count()} CPUs {model[0] if model else platform.machine()}"
