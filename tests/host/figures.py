"""What models/README.md says the embedded models reach, and how much of it a test with few cases may ask for."""

from sanacog.headless import installation


def measured(row_name):
    """{column: share} of the row of that name in models/README.md's tables."""
    lines = (installation.ROOT / "models" / "README.md").read_text("utf-8").splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith(f"| {row_name} |"))
    head = next(i for i in range(row, 0, -1) if lines[i].startswith("|---")) - 1
    names, values = ([cell.strip() for cell in lines[i].strip("|").split("|")] for i in (head, row))
    return {name: float(value) for name, value in zip(names[1:], values[1:])}


def at_least(share, count):
    """How many of `count` are right in all but one of a thousand such tests, when `share` are on average."""
    return count * share - 3 * (count * share * (1 - share)) ** 0.5 - 0.5
