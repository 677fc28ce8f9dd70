#!/usr/bin/env python3
"""An answer word by word, with what it took.

    pip install openai
    python3 stream.py "Cześć, jestem Watus. Kim jestem?"

WATUS_URL names another server than http://localhost:8080.
"""

import os
import sys
import time

import openai

client = openai.OpenAI(base_url=os.environ.get("WATUS_URL", "http://localhost:8080") + "/v1", api_key="not-needed")
begun, first, usage = time.perf_counter(), None, None
stream = client.chat.completions.create(
    model="local-trt-llm", stream=True, stream_options={"include_usage": True}, max_tokens=200,
    messages=[{"role": "user", "content": " ".join(sys.argv[1:]) or "What is the capital of France?"}])
for chunk in stream:
    usage = chunk.usage or usage
    if chunk.choices and chunk.choices[0].delta.content:
        first = first or time.perf_counter()
        print(chunk.choices[0].delta.content, end="", flush=True)
print(f"\n[first token after {1e3 * (first - begun):.0f} ms, {usage.completion_tokens} tokens, prompt "
      f"{usage.prompt_tokens}, {usage.prompt_tokens_details.cached_tokens} of it cached]")
