"""Time a token with and without speculation, by what is said: calls of functions, JSON, questions about a text, a text with a
change (as a prediction), free dialogue in English and Polish. Answers are compared: they must be the same.

    python3 benches/speculation.py --watus BIN --engine DIR [--backend cpu] [--rounds 3] [--max-tokens 96] [--json FILE]
                                   [--shares 1,0.75,0.5,0.25,0] [--without cases]

Two servers of one engine run, one with --no-speculation, and are asked by turns. Times are of streams, from the first token to
the last; medians of all rounds and questions of a kind. Accepted and forced tokens are those of /metrics.

--shares sets by hand how much of a draft is right, which makes a model with random weights as good as any: its own answer is given as
the prediction, with so large a share of its words left as they are and the others replaced. Words must be tokens again, as in the
vocabulary that benches/decode_vs_llama.py makes. --without cases leaves out what is said.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import time

TEXT = """The museum opens at nine on weekdays and at ten on Saturdays and Sundays. The hall of machines on the ground floor shows
steam engines from 1850 to 1910, among them the pump of the Wieliczka salt mine, which lifted four hundred litres of brine a
minute. Visitors with a ticket for the hall may ride the paternoster to the second floor, where the looms of Łódź are kept; they
run every full hour for ten minutes. The café closes half an hour before the museum, and the last guided tour begins at four."""
CODE = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)


def variance(values):
    centre = mean(values)
    return sum((value - centre) ** 2 for value in values) / len(values)
"""


def function(name, description, **properties):
    schema = dict(type="object", properties=properties, required=list(properties))
    return dict(type="function", function=dict(name=name, description=description, parameters=schema))


TOOLS = [
    function("drive", "Drives the robot", direction=dict(enum=["forward", "backward"]),
             distance_in_metres=dict(type="number", minimum=0, maximum=20), speed=dict(enum=["slow", "normal", "fast"])),
    function("turn", "Turns the robot on the spot", angle_in_degrees=dict(type="integer", minimum=-180, maximum=180)),
    function("say", "Speaks to the visitor", text=dict(type="string", maxLength=80)),
]
PLACE = dict(type="object", additionalProperties=False, required=["place", "opening_hour", "closing_hour", "accessible"],
             properties=dict(place=dict(type="string", maxLength=40), opening_hour=dict(type="integer", minimum=0, maximum=23),
                             closing_hour=dict(type="integer", minimum=0, maximum=23), accessible=dict(type="boolean")))


def ask(content, **more):
    return dict(messages=[dict(role="user", content=content)], temperature=0, **more)


CASES = {
    "function calls": [ask(said, tools=TOOLS, tool_choice="required") for said in (
        "Drive two metres forward, slowly.", "Turn around.", "Tell the visitor that the café is closed.")],
    "JSON of a schema": [ask(said, response_format=dict(type="json_schema", json_schema=dict(name="place", schema=PLACE)))
                         for said in ("The museum is open from 9 to 17 and has ramps.", "Kawiarnia: od 8 do 20, schody.")],
    "a question about a text": [ask(f"{TEXT}\n\n{said}") for said in (
        "Quote the sentences about the looms word for word.", "Repeat the whole text above exactly.")],
    "a text with a change": [ask(f"{CODE}\nRewrite this Python with `values` renamed to `numbers`. Answer with the code alone.",
                                 prediction=dict(type="content", content=CODE.replace("values", "numbers")))],
    "free dialogue, English": [ask(said) for said in (
        "Tell me about a day at the sea.", "Why do people like music?", "What would you cook for a friend?")],
    "free dialogue, Polish": [ask(said) for said in (
        "Opowiedz o dniu nad morzem.", "Dlaczego ludzie lubią muzykę?", "Co ugotujesz dla przyjaciela?")],
}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(args, *more):
    """A server of our own, until it answers."""
    port = free_port()
    command = [args.watus, "serve", args.engine, "--backend", args.backend, "--port", str(port), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health/ready")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def counted(port):
    """Speculative tokens so far, by kind."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return {kind: float(value) for kind, value in re.findall(r'watus_speculative_tokens_total{kind="(\w+)"} (\S+)', text)}


def answer(port, body, max_tokens):
    """(what was said, its tokens, milliseconds a token after the first)."""
    body = json.dumps(dict(body, model="local-trt-llm", max_tokens=max_tokens, stream=True,
                           stream_options=dict(include_usage=True)))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {response.read()[:500]}")
    said, tokens, first, last = [], 0, None, None
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        now, chunk = time.perf_counter(), json.loads(line[6:])
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content") or delta.get("tool_calls"):
                first, last = first or now, now
                said.append(delta.get("content") or delta["tool_calls"][0]["function"])
    connection.close()
    # Whether several tokens came in one event is no difference.
    said = "".join(part if isinstance(part, str) else part.get("name", "") + part.get("arguments", "") for part in said)
    milliseconds = 1e3 * (last - first) / (tokens - 1) if first and tokens > 1 else None
    return said, tokens, milliseconds


def heading(first):
    print(f"\n| {first} | tokens | drafted | accepted | forced | ms a token, plain | with speculation | ratio | answers that differ |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)


def compared(name, bodies, ports, max_tokens):
    """Asks both servers by turns, and prints a row of what speculation did to the time. Bodies are pairs, for plain and for fast."""
    plain, fast = ports
    times, tokens, differ, example = {plain: [], fast: []}, 0, 0, None
    before = counted(fast)
    for pair in bodies:
        said = {}
        for port, body in zip(ports, pair):
            said[port], count, milliseconds = answer(port, body, max_tokens)
            if milliseconds:
                times[port].append(milliseconds)
        tokens += count
        if said[plain] != said[fast]:
            differ, example = differ + 1, example or said
    after = counted(fast)
    spent = {kind: int(after[kind] - before.get(kind, 0)) for kind in after}
    old, new = (statistics.median(times[port]) if times[port] else float("nan") for port in ports)
    print(f"| {name} | {tokens} | {spent['drafted']} | {spent['accepted']} | {spent['forced']} | {old:.2f} | {new:.2f} "
          f"| {old / new:.2f} | {differ} of {len(bodies)} |", flush=True)
    if example:
        print(f"{name}: without speculation: {example[plain][:200]}\nwith: {example[fast][:200]}", file=sys.stderr, flush=True)
    return dict(tokens=tokens, plain_ms=old, speculation_ms=new, differ=differ, asked=len(bodies), **spent)


def predicted(share, rounds, plain, max_tokens):
    """Pairs of requests, the second of which predicts what the first says, with a share of the words right."""
    pairs = []
    for seed in range(rounds):
        # Drawn from few tokens, since a greedy answer of random weights goes round in a circle, which is a draft itself.
        body = ask("What do you see?", top_k=20, seed=seed) | dict(temperature=1)
        words = answer(plain, body, max_tokens)[0].split(" ")
        chance = random.Random(seed)
        draft = " ".join(word if chance.random() < share else chance.choice(words) for word in words)
        pairs.append((body, dict(body, prediction=dict(type="content", content=draft))))
    return pairs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watus", required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--shares", type=lambda text: [float(part) for part in text.split(",") if part], default=[])
    parser.add_argument("--without", nargs="*", default=[], choices=["cases"])
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    results, predictions = {}, {}
    with server(args, "--no-speculation") as plain, server(args) as fast:
        if "cases" not in args.without:
            heading("what is said")
            for name, cases in CASES.items():
                pairs = [(case, case) for _ in range(args.rounds) for case in cases]
                results[name] = compared(name, pairs, (plain, fast), args.max_tokens)
        if args.shares:
            heading("a prediction, right in")
        for share in args.shares:
            pairs = predicted(share, args.rounds, plain, args.max_tokens)
            predictions[share] = compared(f"{100 * share:.0f} % of its words", pairs, (plain, fast), args.max_tokens)
    if args.json:
        args.json.write_text(json.dumps(results | ({"predictions": predictions} if predictions else {}), indent=1))


if __name__ == "__main__":
    main()
