"""The colours of the command line. Each can be read on a white and on a black background; a test computes it."""

from __future__ import annotations

GREEN = "color(28)"
RED = "color(160)"
ORANGE = "color(130)"
BLUE = "color(27)"
PURPLE = "color(133)"
TEAL = "color(31)"
