"""Lists what `transformers` may read of each supported configuration: fields.json, by `model_type`.

    pip install torch transformers && python make_fields.py

The fields of the class and of its base, and whatever else the model's code asks its configuration for.
"""

import importlib
import inspect
import json
import pathlib
import re

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TYPES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]


def fields(kind):
    config = CONFIG_MAPPING[kind]()
    name = kind.removesuffix("_text")
    source = inspect.getsource(importlib.import_module(f"transformers.models.{name}.modeling_{name}"))
    if kind == "gemma3_text":
        # What is below is the whole model's, with pictures.
        source = source[: source.index("class Gemma3MultiModalProjector")]
    asked = set(re.findall(r"config\.(\w+)", source))
    asked |= set(re.findall(r'getattr\(\s*(?:self\.)?config,\s*"(\w+)"', source))
    names = set(vars(config)) | set(config.to_dict()) | asked
    return sorted(name for name in names if not name.startswith("_") and not callable(getattr(config, name, None)))


def main():
    path = pathlib.Path(__file__).parent / "fields.json"
    rows = (f"{json.dumps(kind)}: {json.dumps(fields(kind))}" for kind in TYPES)
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
