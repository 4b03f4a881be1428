"""A timeline as a picture: one line for each of the most probable classes, and below it a bar of the class that leads."""

import io
from typing import TYPE_CHECKING, Literal

from tubelet.show._figure import DARK, LIGHT, PALETTE, new_figure, style

if TYPE_CHECKING:
    from tubelet.timeline import Timeline

SHOWN = 10  # classes with a colour of their own
LARGEST_FONT_INCHES = 0.075  # of a letter in the bar


def picture(seen: "Timeline", format: Literal["png", "svg"] | str = "png", dark: bool = False) -> bytes:
    """The picture of a timeline as PNG or SVG; its background is that of the page it is made for."""
    from tubelet.timeline import cues

    ink = DARK if dark else LIGHT
    chances, times = seen.probabilities, seen.seconds.numpy()
    order = chances.amax(dim=0).argsort(descending=True)[:SHOWN].tolist()
    colours = {seen.class_names[number]: PALETTE[place % len(PALETTE)] for place, number in enumerate(sorted(order))}
    figure = new_figure(10.5, 4.0)
    figure.patch.set_facecolor(ink.page)
    figure.patch.set_alpha(1)
    lines, bar = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    middles = (times[1:] + times[:-1]) / 2
    for number in sorted(order):
        name = seen.class_names[number]
        lines.plot(middles, chances[:, number].numpy(), color=colours[name], linewidth=1.7, label=name)
    style(lines, ink, seen.path.rsplit("/", 1)[-1])
    lines.set_ylabel("probability")
    lines.set_ylim(0, 1.02)
    lines.legend(frameon=False, fontsize=8.5, labelcolor=ink.text, loc="center left", bbox_to_anchor=(1.005, 0.5))
    style(bar, ink, grid="")
    for cue in cues(seen):
        length = cue.end_seconds - cue.start_seconds
        colour = colours.get(cue.label, ink.grid)
        bar.barh(0, length, left=cue.start_seconds, height=1, color=colour, linewidth=0, alpha=0.25 + 0.75 * cue.score)
        if length / float(times[-1]) * 8.5 > LARGEST_FONT_INCHES * len(cue.label):
            bar.text(cue.start_seconds + length / 2, 0, cue.label, ha="center", va="center", fontsize=8, color=ink.text)
    bar.set_yticks([])
    bar.set_ylim(-0.5, 0.5)
    bar.set_xlim(0, float(times[-1]))
    bar.set_xlabel("seconds")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=130, facecolor=ink.page, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()
