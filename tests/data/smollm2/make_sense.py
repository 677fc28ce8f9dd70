"""Perplexity of the texts of src/verify/sense with SmolLM2-135M-Instruct's dequantised weights in `transformers`.

    pip install torch transformers gguf accelerate && python make_sense.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes sense.json beside this file: tokens scored, bytes of UTF-8 they spell, perplexity, bits a byte.
"""

import json
import math
import pathlib
import sys

import torch
import transformers

HERE = pathlib.Path(__file__).parent


def main():
    path = pathlib.Path(sys.argv[1])
    load = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
    model = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
    found = {}
    for name, language in [("english", "English"), ("code", "code"), ("polish", "Polish")]:
        text = (HERE.parents[2] / f"src/verify/sense/{name}.txt").read_text(encoding="utf-8").rstrip()
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:]).item()
        tokens, size = ids.shape[1] - 1, len(tokenizer.decode(ids[0, 1:]).encode())
        found[language] = {"tokens": tokens, "bytes": size, "perplexity": math.exp(loss),
                           "bits": loss / math.log(2) * tokens / size}
        print(language, found[language])
    (HERE / "sense.json").write_text(json.dumps(found, indent=1) + "\n")


main()
