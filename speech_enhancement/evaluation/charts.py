"""Charts as SVG: widths in per cent and heights in pixels, so that letters keep their size on any screen."""

import itertools
from html import escape


def ticks(low: float, high: float, n_most: int = 6) -> list[float]:
    """Return round numbers from low to high, at most about n_most."""
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(n_most, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) + 0.0 for value in values if low - 1e-9 <= value <= high + 1e-9]


def with_margin(values: list[float]) -> tuple[float, float]:
    """Return a range that holds the values and 0, a little wider."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.04 * (high - low) or 1.0
    return low - margin * (low < 0), high + margin * (high > 0 or low == 0)


def bar_chart(title: str, bars: list[tuple[str, float, float, str]], form: str) -> str:
    """Return horizontal bars with their spread.

    Args:
      title: what is shown, for those who cannot see it.
      bars: name, mean, standard deviation and CSS class of each.
      form: format of the numbers.
    """
    low, high = with_margin([mean + sign * std for _, mean, std, _ in bars for sign in (-1, 1)])

    def x(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    bottom = 44 * len(bars) + 6
    parts = [
        f'<line class="{"zero" if tick == 0 else "grid"}" x1="{x(tick)}" x2="{x(tick)}" y1="0" y2="{bottom}"/>'
        f'<text class="tick" x="{x(tick)}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        for tick in ticks(low, high)
    ]
    for row, (name, mean, std, css) in enumerate(bars):
        y, text = 44 * row, f"{mean:+{form}} ± {std:{form}}"
        short = name if len(name) <= 28 else f"{name[:27]}…"
        parts.append(
            f'<g><title>{escape(name)}: {text}</title><text x="4" y="{y + 14}">{escape(short)}</text>'
            f'<text class="value" x="100%" y="{y + 14}" text-anchor="end">{text}</text>'
            f'<rect class="bar {css}" x="{x(min(mean, 0))}" y="{y + 21}" '
            f'width="{100 * abs(mean) / (high - low):.2f}%" height="16" rx="2"/>'
            f'<line class="spread" x1="{x(mean - std)}" x2="{x(mean + std)}" y1="{y + 29}" y2="{y + 29}"/></g>'
        )
    spoken = "; ".join(f"{name} {mean:+{form}}" for name, mean, _, _ in bars)
    return _svg("bars", f"{title}: {spoken}", bottom + 22, parts)


def line_chart(title: str, points: list[tuple[float, float, float]], unit: str, form: str) -> str:
    """Return points joined by lines, with their spread.

    Args:
      title: what is shown, for those who cannot see it.
      points: x, mean and standard deviation of each, at least two, in rising order of x.
      unit: of x.
      form: format of the means.
    """
    low, high = with_margin([mean + sign * std for _, mean, std in points for sign in (-1, 1)])
    first, last = points[0][0], points[-1][0]

    def x(value: float) -> str:
        return f"{3 + 94 * (value - first) / (last - first):.2f}%"

    def y(mean: float) -> str:
        return f"{10 + 200 * (high - mean) / (high - low):.1f}"

    parts = [
        f'<line class="{"zero" if tick == 0 else "grid"}" x1="0" x2="100%" y1="{y(tick)}" y2="{y(tick)}"/>'
        f'<text class="tick" x="-8" y="{y(tick)}" dy="4" text-anchor="end">{tick:g}</text>'
        for tick in ticks(low, high)
    ]
    for (value, mean, _), (next_value, next_mean, _) in itertools.pairwise(points):
        parts.append(
            f'<line class="curve" x1="{x(value)}" y1="{y(mean)}" x2="{x(next_value)}" y2="{y(next_mean)}"/>'
        )
    for value, mean, std in points:
        parts.append(
            f"<g><title>{value:g} {unit}: {mean:+{form}} ± {std:{form}}</title>"
            f'<line class="spread" x1="{x(value)}" x2="{x(value)}" y1="{y(mean - std)}" y2="{y(mean + std)}"/>'
            f'<circle class="point" cx="{x(value)}" cy="{y(mean)}" r="4.5"/>'
            f'<text class="tick" x="{x(value)}" y="228" text-anchor="middle">{value:g} {unit}</text></g>'
        )
    spoken = "; ".join(f"{value:g} {unit} {mean:+{form}}" for value, mean, _ in points)
    return _svg("lines", f"{title}: {spoken}", 236, parts)


def _svg(css: str, spoken: str, height: int, parts: list[str]) -> str:
    return f'<svg class="{css}" role="img" aria-label="{escape(spoken)}" height="{height}">{"".join(parts)}</svg>'
