"""Durations, for people to read."""


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 42 s, 3:05 min, 2:10 h, 2.3 days."""
    whole = round(seconds)
    if whole < 10 and f"{seconds:.1f}"[-1] != "0":
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 2 * 86400:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{seconds / 86400:.1f} days"
