"""A robot's turns over HTTP: how long until the first token, by the tokens that are new, beside llama-server on the same GPU.

    python3 benches/turns.py --watus BIN --engine DIR [--llama-server BIN --gguf FILE] [--known 1500] [--rounds 7] [--json FILE]

Both servers run at the same time and are asked by turns, each with prompts of its own (made-up tokens of the first 31,000),
so that nothing is known but what is meant to be: with --known, a conversation of so many tokens comes before the new ones.
The GGUF needs a vocabulary: benches/decode_vs_llama.py makes such.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import random
import socket
import statistics
import subprocess
import time

LENGTHS = (1, 4, 8, 16, 17, 24, 32, 33, 48, 61, 64, 65, 96, 128, 256, 512, 1024, 2000)
KNOWN_LENGTHS = (4, 8, 24, 61, 128)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(name, command, ready):
    """A server of our own, until it answers."""
    port = free_port()
    process = subprocess.Popen([*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
                               stdout=subprocess.DEVNULL, stderr=open(f"{name}.log", "w"))
    try:
        begun = time.monotonic()
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}: {open(f'{name}.log').read()[-2000:]}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", ready)
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.2)
        print(f"{name}: ready after {time.monotonic() - begun:.1f} s", flush=True)
        yield port
    finally:
        process.terminate()
        process.wait()


def first_token(port, model, prompt):
    """Seconds from the request to its first token."""
    body = json.dumps(dict(model=model, prompt=prompt, max_tokens=2, stream=True, temperature=0, logit_bias={"2": -100}))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    begun = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read()[:500]}")
    for line in response:
        if line.startswith(b"data: {"):
            seconds = time.perf_counter() - begun
            break
    response.read()
    connection.close()
    return seconds


def measure(servers, known, lengths, rounds):
    """Milliseconds by server and length: medians."""
    draw = lambda count: [random.randrange(300, 31000) for _ in range(count)]
    begin = {name: draw(known) for name in servers}
    for name, port in servers.items():
        for _ in range(3):
            first_token(port, "local-trt-llm", begin[name] + draw(64))
    samples = {name: {length: [] for length in lengths} for name in servers}
    for _ in range(rounds):
        for length in lengths:
            for name, port in servers.items():
                samples[name][length].append(first_token(port, "local-trt-llm", begin[name] + draw(length)))
    return {name: {length: 1e3 * statistics.median(of) for length, of in by.items()} for name, by in samples.items()}


def table(title, results):
    names = list(results)
    print(f"\n{title}\n\n| new tokens | {' | '.join(names)} |{' ratio |' if len(names) == 2 else ''}")
    print("|---|" + "---|" * (len(names) + (len(names) == 2)))
    for length in results[names[0]]:
        row = [results[name][length] for name in names]
        ratio = f" {row[0] / row[1]:.2f} |" if len(row) == 2 else ""
        print(f"| {length} | {' | '.join(f'{value:.1f} ms' for value in row)} |{ratio}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--watus", required=True, type=pathlib.Path)
    parser.add_argument("--engine", required=True, type=pathlib.Path)
    parser.add_argument("--llama-server", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--known", type=int, default=1500)
    parser.add_argument("--longest", type=int, default=2000, help="of the lengths that are asked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    random.seed(7)
    with contextlib.ExitStack() as stack:
        ours = [args.watus, "serve", args.engine, "--backend", args.backend]
        servers = {"watus-build": stack.enter_context(server("watus-build", ours, "/health/ready"))}
        if args.llama_server:
            theirs = [args.llama_server, "-m", args.gguf, "-c", 20480, "-np", 8, "-fa", "on", "-ngl", 99]
            servers["llama-server"] = stack.enter_context(server("llama-server", theirs, "/health"))
        lengths = [length for length in LENGTHS if length <= args.longest]
        alone = measure(servers, 0, lengths, args.rounds)
        table("First token of a new conversation", alone)
        lengths = [length for length in KNOWN_LENGTHS if length <= args.longest]
        known = measure(servers, args.known, lengths, args.rounds) if args.known else {}
        if known:
            table(f"First token after {args.known} known tokens", known)
    if args.json:
        args.json.write_text(json.dumps({"alone_ms": alone, "known": args.known, "known_ms": known}, indent=1))


if __name__ == "__main__":
    main()
