"""Colours by role, and an SVG that follows the reader's light or dark setting.

Figures are drawn once, in the light colours. In the SVG every colour of the palette becomes `var(--role, #light)`, so a
page that defines the variables recolours the figure, a file opened on its own carries both sets, and a program that
knows no variables still shows the light ones.
"""

import re
from html import escape

LIGHT = {
    "ink": "#1b1f23",
    "muted": "#59636e",
    "rule": "#d8dce0",
    "surface": "#fdfdfc",
    "accent": "#0a5ea8",
    "reported": "#a34a06",
    "teacher": "#0b6e55",
    "untrained": "#6f6a63",
    "violet": "#85398c",
    "ochre": "#8a6100",
    "cyan": "#00788c",
}
DARK = {
    "ink": "#e9ebed",
    "muted": "#a0a9b2",
    "rule": "#363d44",
    "surface": "#15181b",
    "accent": "#74b6f5",
    "reported": "#f2a25c",
    "teacher": "#5fcaa6",
    "untrained": "#b5aea4",
    "violet": "#d79add",
    "ochre": "#e3bd4f",
    "cyan": "#4fd0e3",
}
LIGHT_RAMP = ("#b86e00", "#857a58", "#4f7f9f", "#1763a6", "#0a2f5c")
DARK_RAMP = ("#cf8f35", "#a39a7c", "#6f9dbd", "#6db4f4", "#d6eaff")
RAMP_STEPS = 20
MATPLOTLIB_STYLE = '<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>'
"""Would reach everything on a page; the same stands in `_style` for figures alone."""


def _hex(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _ramp(anchors: tuple[str, ...]) -> list[str]:
    """`RAMP_STEPS` colours that pass evenly through the anchors."""
    colours = []
    for step in range(RAMP_STEPS):
        place = step / (RAMP_STEPS - 1) * (len(anchors) - 1)
        index = min(int(place), len(anchors) - 2)
        low, high = _hex(anchors[index]), _hex(anchors[index + 1])
        mixed = (round(a + (b - a) * (place - index)) for a, b in zip(low, high, strict=True))
        colours.append("#" + "".join(f"{part:02x}" for part in mixed))
    return colours


for _step, (_light, _dark) in enumerate(zip(_ramp(LIGHT_RAMP), _ramp(DARK_RAMP), strict=True)):
    LIGHT[f"lsp-{_step}"], DARK[f"lsp-{_step}"] = _light, _dark


def lsp_role(lsp: float) -> str:
    """The role of a proportion's colour: the same in every figure of every experiment, amber (low) to blue (1.0)."""
    return f"lsp-{max(0, min(RAMP_STEPS - 1, round(lsp * RAMP_STEPS) - 1))}"


def css_variables(colours: dict[str, str]) -> str:
    """`--ink: #1b1f23; ...` for a style sheet."""
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


def themed(svg: str, title: str, description: str) -> str:
    """A stand-alone SVG from matplotlib's: colours by role, the reader's font, a title and its values in words."""
    by_colour = {colour: role for role, colour in LIGHT.items()}

    def variable(match: re.Match[str]) -> str:
        role = by_colour.get(match[0].lower())
        return f"var(--{role}, {match[0]})" if role else match[0]

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#[0-9a-fA-F]{6}\b(?=[;\"' ])", variable, svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--figure-font, system-ui, sans-serif)", svg)
    svg = svg.replace(MATPLOTLIB_STYLE, "")
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{_style()}"
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + head, svg, count=1)


def inlined(svg: str, prefix: str) -> str:
    """The SVG for use inside a page: no style of its own, and ids that no other figure on the page has."""
    svg = svg.replace(_style(), "")
    svg = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r"href=\"#([^\"]+)\"", rf'href="#{prefix}-\1"', svg)
    return re.sub(r"<svg ", f'<svg role="img" aria-labelledby="{prefix}-title" ', svg, count=1).replace(
        "<title>", f'<title id="{prefix}-title">', 1
    )


def _style() -> str:
    """Both sets of colours, for a file that is opened on its own."""
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} background: {DARK['surface']}; }} }}"
    return f"<style>:root {{ {css_variables(LIGHT)} stroke-linejoin: round; }} {dark}</style>"
