"""Licences of everything that is linked into a package, from the crates' own files.

usage: cargo metadata --format-version 1 --filter-platform TRIPLE | python3 notices.py [NAME=FILE...]
  Walks what watus-build and its shims depend on, without tests and build scripts; FILEs are of what is no crate. A text that
  several have alike is printed once. A crate without a licence file is named with its expression, authors and address.
"""

import json
import pathlib
import re
import sys

ROOTS = {"watus-build", "watus-shim-shared"}
FILES = re.compile(r"(?i)^(licen[cs]e|copying|notice|unlicense|copyright)([-._].*)?$")


def linked(metadata):
    """Packages that end up in a binary, by name."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    own = set(metadata["workspace_members"])
    pending = [id for id in own if packages[id]["name"] in ROOTS]
    assert len(pending) == len(ROOTS), f"no {ROOTS} among the members"
    seen = set(pending)
    while pending:
        for dependency in nodes[pending.pop()]["deps"]:
            # What runs while compiling (build scripts, macros of build scripts) is not handed on.
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                pending.append(dependency["pkg"])
    return sorted((packages[id] for id in seen - own), key=lambda package: (package["name"], package["version"]))


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = {path for path in folder.iterdir() if path.is_file() and FILES.match(path.name)}
    if package["license_file"]:
        files.add(folder / package["license_file"])
    return [path.read_text(errors="replace").strip() for path in sorted(files)]


def main():
    holders = {}
    lines = []
    without = []
    for package in linked(json.load(sys.stdin)):
        name = f"{package['name']} {package['version']}"
        licence = package["license"] or "see its text"
        lines.append(f"  {name}: {licence}" + (f", {package['repository']}" if package["repository"] else ""))
        found = texts(package)
        for text in found:
            holders.setdefault(text, []).append(name)
        if not found:
            authors = ", ".join(package["authors"]) or "its authors"
            without.append(f"  {name}: {licence}; copyright {authors}; the crate has no licence file")
    for argument in sys.argv[1:]:
        name, _, file = argument.partition("=")
        lines.append(f"  {name}")
        holders.setdefault(pathlib.Path(file).read_text(errors="replace").strip(), []).append(name)
    print("watus-build is made with the following, each under its own licence.\n")
    print("\n".join(lines))
    if without:
        print("\nWithout a licence file of their own:\n" + "\n".join(without))
    for text, names in holders.items():
        print("\n" + "-" * 80 + "\n" + ", ".join(names) + "\n\n" + text)


main()
