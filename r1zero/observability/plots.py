"""The two plots by which the recipe is judged: mean reward and mean response length over iterations."""

from pathlib import Path

from r1zero.observability import metrics

CURVES = (
    ("reward.png", "grpo/rewards/mean", "mean reward"),
    ("response_length.png", "response_length/mean", "mean response length (tokens)"),
)


def draw(folder: Path) -> list[Path]:
    """Draw reward.png and response_length.png from the folder's metrics.jsonl. Returns their paths."""
    from matplotlib.figure import Figure

    lines = [line for line in metrics.read(folder) if line["iteration"]]  # iteration 0 is an evaluation
    iterations = [line["iteration"] for line in lines]
    paths = []
    for name, key, label in CURVES:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(iterations, [line[key] for line in lines], color="#1f77b4", linewidth=1.8, marker=".", markersize=4)
        axes.set(xlabel="iteration", ylabel=label)
        axes.set_title(folder.name, parse_math=False)  # a "$" in the name is not a formula
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        paths.append(folder / name)
        figure.savefig(paths[-1], dpi=120)
    return paths
