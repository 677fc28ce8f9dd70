"""Inputs made of the tests' data, for scripts/fuzz.sh. usage: seed.py FOLDER: FOLDER/TARGET/NAME are written."""

import json
import sys
import zipfile
from pathlib import Path

repository = Path(__file__).parent.parent
data = repository / "tests/data"
out = Path(sys.argv[1])


def seed(target, name, content):
    folder = out / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


for path in (repository / "recipes").glob("*.yaml"):
    seed("recipe", path.stem, path.read_bytes())
for path in (data / "gguf").glob("*.gguf"):
    seed("gguf", path.stem, path.read_bytes())
for path in (data / "vision").glob("*.pt"):
    archive = zipfile.ZipFile(path)
    seed("pickle", path.stem, archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl"))))
# As the target wants it: config.json, a zero byte, the header.
for path in data.glob("*/*/model.safetensors"):
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    config = json.dumps(json.loads((path.parent / "config.json").read_text()))
    seed("safetensors", path.parent.name, config.encode() + b"\0" + header.strip())
