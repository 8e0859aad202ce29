"""The picture of the road on the front page: `python tools/road.py` writes nbs/images/road.png."""

from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
BOXES = (  # x, y, width, text, colour
    (0.0, 1.0, 1.9, "stories\nwords, sound", "#dfe9f5"),
    (0.0, 0.0, 1.9, "fMRI of listeners\nor readers", "#dfe9f5"),
    (2.6, 0.5, 2.0, "tune a language\nmodel on some", "#fde8c9"),
    (5.3, 0.5, 2.1, "encoding model\non other stories", "#e3f1df"),
    (8.1, 0.5, 2.1, "score unheard\nstories and people", "#e3f1df"),
    (10.9, 0.5, 1.9, "gain beside\nevery control", "#f3dfe9"),
)
ARROWS = (((1.9, 1.3), (2.6, 1.0)), ((1.9, 0.3), (2.6, 0.7)), ((4.6, 0.8), (5.3, 0.8)))
ARROWS += (((7.4, 0.8), (8.1, 0.8)), ((10.2, 0.8), (10.9, 0.8)))


def draw() -> plt.Figure:
    "Six boxes from stories and fMRI to the gain."
    fig, ax = plt.subplots(figsize=(9, 1.45))
    for x, y, width, text, colour in BOXES:
        ax.add_patch(plt.Rectangle((x, y), width, 0.6, facecolor=colour, edgecolor="0.4", lw=0.8))
        ax.text(x + width / 2, y + 0.3, text, ha="center", va="center", fontsize=8.5)
    for start, end in ARROWS:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})
    ax.set(xlim=(-0.1, 12.9), ylim=(-0.1, 1.7))
    ax.axis("off")
    fig.tight_layout(pad=0.2)
    return fig


if __name__ == "__main__":
    draw().savefig(ROOT / "nbs/images/road.png", dpi=140)
