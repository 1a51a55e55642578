"""A figure that notebooks show by themselves, with and without ``%matplotlib inline``."""

from __future__ import annotations

import io

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """matplotlib's figure, which by itself needs a backend of the notebook to be shown."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=96)
        return buffer.getvalue()
