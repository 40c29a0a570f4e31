"""How many of something may come, in words. Knows ranges only."""


def describe_counts(counts: range) -> str:
    """Say which numbers a range that holds any has: `4`, `1 to 15`, or `17, 34, 51`."""
    if len(counts) > 1 and counts.step == 1:
        return f"{counts.start} to {counts[-1]}"
    return ", ".join(str(count) for count in counts)
