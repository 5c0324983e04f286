"""Rich displays of a cell: forms of values for eyes, and figures. Kept until the host takes them.

Objects say how they look by IPython's convention (`_repr_png_` and its like). matplotlib is never
imported from here; its figures are found where the code has imported it.
"""

from __future__ import annotations

import base64
import builtins
import io
import json
import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MOST = 32  # displays of one cell
_FORMS = {  # media type -> the method that gives it, the file name's ending
    "image/png": ("_repr_png_", "png"),
    "image/jpeg": ("_repr_jpeg_", "jpg"),
    "image/svg+xml": ("_repr_svg_", "svg"),
    "text/html": ("_repr_html_", "html"),
    "text/markdown": ("_repr_markdown_", "md"),
    "text/latex": ("_repr_latex_", "tex"),
    "application/json": ("_repr_json_", "json"),
    "application/pdf": ("_repr_pdf_", "pdf"),
}
_BINARY = ("image/png", "image/jpeg", "application/pdf")
_PYPLOT = "matplotlib.pyplot"
_modules, _meta_path = sys.modules, sys.meta_path
_ftruncate, _pwrite = os.ftruncate, os.pwrite

globals()["__builtins__"] = dict(vars(builtins))  # for the functions below


class Displays:
    """What one cell has displayed: (number, ending, content), at most `most_bytes` of it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.kept: list[tuple[int, str, bytes]] = []
        self.number = self.left_out = 0
        self.shown: list[Any] = []  # figures that need not be shown again at the cell's end

    def begin(self) -> None:
        """Forget the last cell's."""
        self.kept, self.shown, self.number, self.left_out = [], [], 0, 0

    def claim(self) -> dict[str, Any]:
        """What the answer says of them; the host asks for the contents next."""
        sizes = [[number, ending, len(data)] for number, ending, data in self.kept]
        found: dict[str, Any] = {"displays": sizes} if sizes else {}
        if self.left_out:
            found["left_out"] = self.left_out
        return found

    def write(self, fd: int) -> None:
        """Give the host the contents, one after the other; none if they cannot be written."""
        at = 0
        try:
            for _, _, data in self.kept:
                view = memoryview(data)
                while view:
                    written = _pwrite(fd, view, at)
                    at, view = at + written, view[written:]
        except OSError:
            _ftruncate(fd, 0)
        self.kept = []

    def display(self, *values: Any, **options: Any) -> None:
        """Show values: their text on standard output, their other forms as displays."""
        for value in values:
            self.show(value)
            print(repr(value))

    def show(self, value: Any) -> None:
        """Keep the forms that a value has besides its text."""
        if type(value).__module__ == "builtins" or isinstance(value, type):
            return
        figures = _modules.get("matplotlib.figure")
        if figures is not None and isinstance(value, figures.Figure):
            self.shown.append(value)
            forms: dict[str, Any] = {"image/png": _png(value)}
        else:
            forms = _forms(value)
        contents = [(_FORMS[k][1], _content(k, v)) for k, v in forms.items()]
        if contents:
            self._keep(contents)

    def _keep(self, contents: list[tuple[str, bytes]]) -> None:
        self.number += 1
        used = sum(len(data) for _, _, data in self.kept)
        for ending, data in contents:
            used += len(data)
            if len(self.kept) >= MOST or used > self.most_bytes:
                self.left_out += 1
                used -= len(data)
            else:
                self.kept.append((self.number, ending, data))

    def figures(self) -> None:
        """Keep matplotlib's open figures, and close them."""
        helpers = _modules.get("matplotlib._pylab_helpers")
        if helpers is None:
            return
        try:
            for manager in helpers.Gcf.get_all_fig_managers():
                figure = manager.canvas.figure
                if not any(figure is one for one in self.shown):
                    self._keep([("png", _png(figure))])
        finally:
            _modules["matplotlib._pylab_helpers"].Gcf.destroy_all()

    def watch_plots(self) -> None:
        """Have `pyplot.show` keep the open figures, also where pyplot is imported later."""
        if _PYPLOT in _modules:
            self._patch(_modules[_PYPLOT])
        else:
            _meta_path.insert(0, _Finder(self))

    def _patch(self, pyplot: ModuleType) -> None:
        def show(*args: Any, **options: Any) -> None:
            """Show the open figures, and close them."""
            self.figures()

        pyplot.show = show  # type: ignore[attr-defined]


class _Finder:
    """Finds pyplot as the others do, and patches it once it has been loaded."""

    def __init__(self, displays: Displays) -> None:
        self.displays = displays

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _PYPLOT:
            return None
        _meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                self.displays._patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    return buffer.getvalue()


def _forms(value: Any) -> dict[str, Any]:
    """Media type -> content, as the value gives them. A method that fails says so on stderr."""
    if callable(getattr(value, "_ipython_canary_method_should_not_exist_", None)):
        return {}  # it has every method one asks for
    found: dict[str, Any] = {}
    bundle = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if isinstance(bundle, tuple) and bundle:
        bundle = bundle[0]
    if isinstance(bundle, Mapping):
        found = {k: bundle[k] for k in _FORMS if bundle.get(k) is not None}
    for media_type, (method, _) in _FORMS.items():
        if media_type not in found:
            content = _call(value, method)
            if isinstance(content, tuple) and content:  # with metadata
                content = content[0]
            if content is not None:
                found[media_type] = content
    return found


def _call(value: Any, method: str, **options: Any) -> Any:
    try:
        function = getattr(value, method, None)
        return function(**options) if callable(function) else None
    except NotImplementedError:
        return None
    except Exception as error:
        print(f"{method} failed: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _content(media_type: str, content: Any) -> bytes:
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(content, str) and media_type in _BINARY:
        return base64.b64decode(content)
    text = content if isinstance(content, str) else json.dumps(content)
    return text.encode("utf-8", "backslashreplace")
