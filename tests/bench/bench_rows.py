"Rows of the bench scripts as text: on the screen and in tables."

from pathlib import Path


def rounded(row, digits):
    "The values of a row as text, numbers with so many digits."
    return {k: f"{v:.{digits}g}" if isinstance(v, float) else str(v) for k, v in row.items()}


def five_digits(row):
    "A row for a table: numbers with five digits after the point, the rest as it is."
    return {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()}


def table(rows, columns):
    "Rows as text in columns of one width."
    text = [dict(zip(columns, columns)), *(rounded(row, 4) for row in rows)]
    width = dict.fromkeys(columns, 0)
    for row in text:
        width |= {c: max(w, len(row[c])) for c, w in width.items()}
    line = lambda row: " | ".join(row[c].ljust(w) for c, w in width.items())
    return "\n".join(map(line, text))


def peak_megabytes():
    "The most memory that this process has held, in MB."
    status = Path("/proc/self/status").read_text().split("\n")
    return int(next(l for l in status if l.startswith("VmHWM")).split()[1]) / 1024


def losses_of(losses, plain, same):
    "First and last loss, and the largest difference from the plain arm where steps are the same."
    differences = [abs(a - b) for a, b in zip(losses, plain)]
    return dict(
        first_loss=losses[0],
        last_loss=losses[-1],
        largest_loss_difference=max(differences) if same else float("nan"),
        losses=" ".join(f"{v:.6f}" for v in losses),
    )
