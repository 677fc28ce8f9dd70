"""A robot's turns over HTTP: how long until the first token, by the tokens that are new, and tokens a second of several clients, beside
llama-server on the same GPU.

    python3 benches/turns.py --watus BIN --engine DIR [--llama-server BIN --gguf FILE] [--known 1500] [--rounds 7] [--json FILE]
    python3 benches/turns.py --server NAME=HOST:PORT …
    python3 benches/turns.py --restart --watus BIN --engine DIR

Both servers run at the same time and are asked by turns, each with prompts of its own (made-up tokens of the first 31,000),
so that nothing is known but what is meant to be: with --known, a conversation of so many tokens comes before the new ones.
Clients read answers of 128 tokens to prompts of 128; `gap` is the time between tokens that one client sees, at the median and at 99 %.
Beside a running answer somebody asks with a new prompt of --beside tokens: how long the answer then has its longest gap, in its own
median steps, and how much longer than alone the new one waits for its first token.
With --server any OpenAI-compatible servers that run already are asked, whose vocabulary has 32,000 entries. The GGUF needs a
vocabulary: benches/decode_vs_llama.py makes such.

--restart ends `serve --state` and starts it again: the first token of a turn after --known tokens that it had read before, beside that
of turns while they were in memory, and beside that of a server that knew nothing.
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
import tempfile
import threading
import time

RUNNING = 400
LENGTHS = (1, 4, 8, 16, 17, 24, 32, 33, 48, 61, 64, 65, 96, 128, 256, 512, 1024, 2000)
KNOWN_LENGTHS = (4, 8, 24, 61, 128)
CLIENTS = (1, 2, 4, 8)
ANSWER = 128


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


def arrivals(address, prompt, tokens, heard=lambda count: None):
    """Seconds from the request to each of its tokens, of whose number `heard` is told."""
    body = json.dumps(dict(model="local-trt-llm", prompt=prompt, max_tokens=tokens, stream=True, temperature=0, logit_bias={"2": -100}))
    connection = http.client.HTTPConnection(address, timeout=300)
    begun, seconds = time.perf_counter(), []
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{address}: {response.status}: {response.read()[:500]}")
    for line in response:
        if line.startswith(b"data: {"):
            seconds.append(time.perf_counter() - begun)
            heard(len(seconds))
    connection.close()
    if not seconds:
        raise SystemExit(f"{address}: an answer without a token")
    return seconds


def first_token(address, prompt):
    return arrivals(address, prompt, 2)[0]


def draw(count):
    return [random.randrange(300, 31000) for _ in range(count)]


def measure(servers, known, lengths, rounds):
    """Milliseconds by server and length: medians."""
    begin = {name: draw(known) for name in servers}
    for name, address in servers.items():
        for _ in range(3):
            first_token(address, begin[name] + draw(64))
    samples = {name: {length: [] for length in lengths} for name in servers}
    for _ in range(rounds):
        for length in lengths:
            for name, address in servers.items():
                samples[name][length].append(first_token(address, begin[name] + draw(length)))
    return {name: {length: 1e3 * statistics.median(of) for length, of in by.items()} for name, by in samples.items()}


def together(address, clients):
    """Tokens a second of clients that ask at the same time, and the gaps between each one's tokens in seconds."""
    answers, begun = [], time.perf_counter()
    threads = [threading.Thread(target=lambda prompt: answers.append(arrivals(address, prompt, ANSWER)), args=(draw(128),))
               for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(answers) < clients:
        raise SystemExit(f"{address}: {clients - len(answers)} of {clients} clients got no answer")
    rate = sum(map(len, answers)) / (time.perf_counter() - begun)
    return rate, [late - early for answer in answers for early, late in zip(answer, answer[1:])]


def crowds(servers, rounds):
    """By server and number of clients: tokens a second (median), and gaps in milliseconds."""
    samples = {name: {clients: [] for clients in CLIENTS} for name in servers}
    for _ in range(rounds):
        for clients in CLIENTS:
            for name, address in servers.items():
                samples[name][clients].append(together(address, clients))

    def summary(runs):
        gaps = sorted(gap for _, of in runs for gap in of) or [0.0]
        return {"tokens_per_second": statistics.median(rate for rate, _ in runs), "gap_ms": 1e3 * statistics.median(gaps),
                "gap_p99_ms": 1e3 * gaps[int(len(gaps) * 0.99)]}
    return {name: {clients: summary(runs) for clients, runs in by.items()} for name, by in samples.items()}


def beside(address, length):
    """Seconds of a new prompt's first token, alone and beside a running answer; of that answer's steps the median before, and the
    longest gap until that token came and went."""
    alone = first_token(address, draw(length))
    came, rest = [], threading.Event()

    def ask():
        rest.wait()
        begun = time.perf_counter()
        came.append((begun, first_token(address, draw(length))))

    other = threading.Thread(target=ask)
    other.start()
    begun = time.perf_counter()
    steps = arrivals(address, draw(128), RUNNING, lambda count: rest.set() if count == RUNNING // 8 else None)
    rest.set()
    other.join()
    if not came:
        raise SystemExit(f"{address}: the prompt beside an answer got none itself")
    asked, waited = came[0]
    at = [begun + step for step in steps]
    quiet = statistics.median(late - early for early, late in zip(at, at[1:]) if late < asked)
    gaps = [late - early for early, late in zip(at, at[1:]) if late > asked and early < asked + waited]
    return {"alone": alone, "beside": waited, "step": quiet, "gap": max(gaps, default=0.0), "outlasted": at[-1] > asked + waited}


def besides(servers, length, rounds):
    """By server, milliseconds: medians of what `beside` finds; and whether every answer ran until the new one had begun."""
    samples = {name: [] for name in servers}
    for _ in range(rounds):
        for name, address in servers.items():
            samples[name].append(beside(address, length))

    def summary(runs):
        found = {f"{key}_ms": 1e3 * statistics.median(run[key] for run in runs) for key in ("alone", "beside", "step", "gap")}
        return {**found, "worst_gap_ms": 1e3 * max(run["gap"] for run in runs), "outlasted": all(run["outlasted"] for run in runs)}
    return {name: summary(runs) for name, runs in samples.items()}


def beside_table(length, results):
    print(f"\nA new prompt of {length} tokens beside a running answer\n")
    print("| | a step of the answer | its longest gap | in steps | the worst of all | first token alone | beside the answer | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in results.items():
        ended = "" if row["outlasted"] else " (an answer ended before)"
        print(f"| {name} | {row['step_ms']:.2f} ms | {row['gap_ms']:.1f} ms | {row['gap_ms'] / row['step_ms']:.1f} "
              f"| {row['worst_gap_ms'] / row['step_ms']:.1f} | {row['alone_ms']:.1f} ms | {row['beside_ms']:.1f} ms "
              f"| {row['beside_ms'] / row['alone_ms']:.2f}{ended} |", flush=True)


def restart(args):
    """Milliseconds of a turn's first token after known tokens: none known, in memory, and read from the disk after a restart."""
    known, turn, found = draw(args.known), 24, {}
    with tempfile.TemporaryDirectory() as state:
        command = [args.watus, "serve", args.engine, "--backend", args.backend, "--state", state]
        for start in ("before", "after"):
            with server(f"watus-build-{start}", command, "/health/ready") as port:
                address = f"127.0.0.1:{port}"
                # After a restart the turn is the first request of all.
                for _ in range(3 if start == "before" else 0):
                    first_token(address, draw(64))
                turns = [first_token(address, known + draw(turn)) for _ in range(2 + args.rounds)]
                found[start] = {"first_ms": 1e3 * turns[0], "warm_ms": 1e3 * statistics.median(turns[2:])}
                time.sleep(2)
            found[start]["bytes"] = sum(path.stat().st_size for path in pathlib.Path(state).rglob("*") if path.is_file())
    ratio = found["after"]["first_ms"] / found["after"]["warm_ms"]
    print(f"\nFirst token after {args.known} known tokens: unknown {found['before']['first_ms']:.1f} ms, in memory "
          f"{found['before']['warm_ms']:.1f} ms; after a restart {found['after']['first_ms']:.1f} ms, then {found['after']['warm_ms']:.1f} ms: "
          f"{ratio:.2f}; {found['before']['bytes'] / 1e6:.1f} MB on disk", flush=True)
    return {"restart": {**found, "ratio": ratio}}


def crowd_table(results):
    names = list(results)
    print(f"\nClients at the same time, answers of {ANSWER} tokens\n\n| clients | {' | '.join(names)} |{' ratio |' if len(names) == 2 else ''}")
    print("|---|" + "---|" * (len(names) + (len(names) == 2)))
    for clients in CLIENTS:
        rows = [results[name][clients] for name in names]
        cells = [f"{row['tokens_per_second']:.0f} tok/s, gap {row['gap_ms']:.1f} ms, p99 {row['gap_p99_ms']:.1f} ms" for row in rows]
        ratio = f" {rows[0]['tokens_per_second'] / rows[1]['tokens_per_second']:.2f} |" if len(rows) == 2 else ""
        print(f"| {clients} | {' | '.join(cells)} |{ratio}", flush=True)


def table(title, results):
    names = list(results)
    print(f"\n{title}\n\n| new tokens | {' | '.join(names)} |{' ratio |' if len(names) == 2 else ''}")
    print("|---|" + "---|" * (len(names) + (len(names) == 2)))
    for length in results[names[0]]:
        row = [results[name][length] for name in names]
        ratio = f" {row[0] / row[1]:.2f} |" if len(row) == 2 else ""
        print(f"| {length} | {' | '.join(f'{value:.1f} ms' for value in row)} |{ratio}", flush=True)


def started(stack, args):
    """Addresses of the servers by name: those that run already, or our own."""
    if args.server:
        return dict(server.split("=", 1) for server in args.server)
    if not args.watus or not args.engine:
        raise SystemExit("--watus and --engine, or --server")
    local = lambda name, command, ready: f"127.0.0.1:{stack.enter_context(server(name, command, ready))}"
    ours = [args.watus, "serve", args.engine, "--backend", args.backend]
    servers = {"watus-build": local("watus-build", ours, "/health/ready")}
    if args.llama_server:
        theirs = [args.llama_server, "-m", args.gguf, "-c", 20480, "-np", 8, "-fa", "on", "-ngl", 99]
        servers["llama-server"] = local("llama-server", theirs, "/health")
    return servers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--watus", type=pathlib.Path)
    parser.add_argument("--engine", type=pathlib.Path)
    parser.add_argument("--llama-server", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path)
    parser.add_argument("--server", action="append", metavar="NAME=HOST:PORT", help="one that runs already; may be given again")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--known", type=int, default=1500)
    parser.add_argument("--longest", type=int, default=2000, help="of the lengths that are asked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--client-rounds", type=int, default=3, help="0 leaves out the clients at the same time")
    parser.add_argument("--beside", type=int, default=2000, help="tokens of a new prompt beside a running answer; 0 leaves that out")
    parser.add_argument("--restart", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    random.seed(7)
    if args.restart:
        found = restart(args)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1))
        return
    with contextlib.ExitStack() as stack:
        servers = started(stack, args)
        lengths = [length for length in LENGTHS if length <= args.longest]
        alone = measure(servers, 0, lengths, args.rounds)
        table("First token of a new conversation", alone)
        lengths = [length for length in KNOWN_LENGTHS if length <= args.longest]
        known = measure(servers, args.known, lengths, args.rounds) if args.known else {}
        if known:
            table(f"First token after {args.known} known tokens", known)
        clients = crowds(servers, args.client_rounds) if args.client_rounds else {}
        if clients:
            crowd_table(clients)
        new = besides(servers, args.beside, args.rounds) if args.beside else {}
        if new:
            beside_table(args.beside, new)
    if args.json:
        found = {"alone_ms": alone, "known": args.known, "known_ms": known, "clients": clients, "beside": args.beside, "beside_ms": new}
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
