"""Runs `build --emit onnx`'s model in onnxruntime, the tokens in two parts through its cache, against expected.npy.

    python check_onnx.py [--check] MODEL.onnx EXPECTED.npy      prints the relative error
"""

import sys

import numpy as np
import onnx
import onnxruntime


def main():
    path, expected = sys.argv[-2], np.load(sys.argv[-1])
    if "--check" in sys.argv:  # refuses external data with several hard links
        onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = (7 * np.arange(len(expected)) + 3) % expected.shape[1]
    inputs = {i.name: i for i in session.get_inputs() if i.name.startswith("past")}
    past = {name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for name, i in inputs.items()}
    names = [output.name for output in session.get_outputs()]
    logits, done = [], 0
    for part in (tokens[:15], tokens[15:]):
        total = done + len(part)
        feed = {"input_ids": part[None], "attention_mask": np.ones((1, total), np.int64),
                "position_ids": np.arange(done, total)[None]}
        out = dict(zip(names, session.run(None, {**feed, **past})))
        logits.append(out["logits"][0])
        past = {name: out[name.replace("past_key_values", "present")] for name in past}
        done = total
    error = np.abs(np.concatenate(logits) - expected).max() / np.abs(expected).max()
    print(f"{error:.2e}")
    sys.exit(0 if error < 1e-4 else 1)


if __name__ == "__main__":
    main()
