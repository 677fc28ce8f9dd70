"""Reads an engine file with Ultralytics' own reader and prints what its predictor would go by.

    python check_engine.py FILE.engine        needs: the package ultralytics, unpacked; torch where it should be imported whole

Without torch, the two functions that read an engine file are taken out of the package's file and run by themselves.
Fails where the plan after the metadata does not begin like one, or a key its exporter writes is missing.
"""

import ast
import contextlib
import importlib.util
import json
import pathlib
import sys


def reader():
    if importlib.util.find_spec("torch"):
        from ultralytics.nn.backends.base import BaseBackend
        return BaseBackend.engine_header, BaseBackend.apply_metadata
    [package] = importlib.util.find_spec("ultralytics").submodule_search_locations
    path = pathlib.Path(package) / "nn/backends/base.py"
    names = ("engine_header", "apply_metadata")
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", None) in names]
    for function in functions:
        function.decorator_list = []
    future = ast.parse("from __future__ import annotations").body
    space = {"contextlib": contextlib, "json": json, "ast": ast}
    exec(compile(ast.fix_missing_locations(ast.Module(future + functions, [])), path, "exec"), space)
    return [space[name] for name in names]


class Backend:
    dynamic = False


engine_header, apply_metadata = reader()
offset, metadata = engine_header(sys.argv[1])
with open(sys.argv[1], "rb") as file:
    file.seek(offset)
    assert file.read(4) in (b"vtrt", b"ftrt"), "no plan after the metadata"
missing = [key for key in ("description", "author", "date", "version", "license", "docs", "head", "stride", "task", "batch",
                           "imgsz", "names", "channels", "end2end", "args") if key not in metadata]
assert not missing, f"missing: {missing}"
backend = Backend()
apply_metadata(backend, metadata)
names = {int(key): value for key, value in backend.names.items()}
print(backend.task, names, backend.imgsz, backend.stride, backend.batch)
