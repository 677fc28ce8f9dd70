"""What `transformers` says with SmolLM2-135M-Instruct's dequantised weights: 128 greedy tokens after five prompts.

    pip install torch transformers gguf && python make.py SmolLM2-135M-Instruct.Q4_1.gguf

Writes expected.json beside this file. The answers go on after an end token: it is arithmetic that is compared.
"""

import json
import pathlib
import sys

import torch
import transformers

PROMPTS = [
    "Cześć, jestem Watus. Kim jestem?",
    "What is the capital of France?",
    "Write a short story about a robot that learns to whistle.",
    "List three prime numbers and add them.",
    "def fibonacci(n):",
]
TOKENS = 128


def main():
    path = pathlib.Path(sys.argv[1])
    load = dict(pretrained_model_name_or_path=str(path.parent), gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
    model = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                             tokenize=False)
        ids = tokenizer(chat, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
                                 attention_mask=torch.ones_like(ids), suppress_tokens=None, eos_token_id=None)
        answer = out[0, ids.shape[1]:].tolist()
        answers.append({"prompt": prompt, "prompt_tokens": ids[0].tolist(), "tokens": answer})
        print(prompt, "->", tokenizer.decode(answer)[:80])
    text = json.dumps(answers, ensure_ascii=False)
    (pathlib.Path(__file__).parent / "expected.json").write_text(text.replace('}, {', '},\n {') + "\n")


if __name__ == "__main__":
    main()
