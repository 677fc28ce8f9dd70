"""Memory over time while a language model is loaded: page cache of the weights' files, anonymous memory, device memory.

    python3 benches/load_memory.py --watus BIN ENGINE [--runs 3] [--prompt TEXT] [--keep-cache] [--json FILE] [--gpu 0]

Runs `watus-build run ENGINE PROMPT` and looks at it every 20 ms: mincore(2) on the files that the manifest calls weights (which
tells their owner alone), RssAnon of the process and its children, nvidia-smi for the device (where it has no such figure, as on a
Jetson, what is no longer MemAvailable). Before each run the files leave the page cache, so that what is seen is this run's;
--keep-cache leaves them there, as after a download. Needs nothing but Python and the tool.
"""

import argparse
import ctypes
import json
import mmap
import os
import pathlib
import shutil
import statistics
import subprocess
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
WINDOW = 256 << 20  # bytes asked for at once
PAUSE = 0.02


class Pages:
    """Pages of a file, whose mapping is never touched."""

    def __init__(self, path):
        self.path, self.bytes = path, path.stat().st_size
        if os.geteuid() not in (0, path.stat().st_uid) and not os.access(path, os.W_OK):
            raise SystemExit(f"{path}: the kernel tells its pages to its owner alone")
        with open(path, "rb") as file:
            self.start = LIBC.mmap(None, self.bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if self.start == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"cannot map {path}")
        self.told = ctypes.create_string_buffer(WINDOW // mmap.PAGESIZE)

    def cached(self):
        resident = 0
        for first in range(0, self.bytes, WINDOW):
            length = min(WINDOW, self.bytes - first)
            if LIBC.mincore(self.start + first, length, self.told) != 0:
                raise OSError(ctypes.get_errno(), f"mincore of {self.path}")
            pages = -(-length // mmap.PAGESIZE)
            # Only the lowest bit counts.
            resident += pages - self.told.raw[:pages].translate(LOWEST).count(0)
        return resident * mmap.PAGESIZE

    def drop(self):
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


LOWEST = bytes(byte & 1 for byte in range(256))


def field(path, name):
    """A figure in kB of a file such as /proc/meminfo, in bytes; 0 where there is none."""
    try:
        for line in open(path):
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # the process has ended
    return 0


def family(process):
    """A process and those it started."""
    found, pending = [], [process]
    while pending:
        one = pending.pop()
        found.append(one)
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                pending += map(int, open(f"/proc/{one}/task/{task}/children").read().split())
        except OSError:
            pass
    return found


class Device(threading.Thread):
    """Device memory in use, as nvidia-smi prints it ten times a second; no figure: what is no longer available."""

    def __init__(self, gpu):
        super().__init__(daemon=True)
        self.used, self.shared, self.process = 0, True, None
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
            first = subprocess.run(query, capture_output=True, text=True).stdout.strip()
            if first.isdigit():
                self.shared, self.used = False, int(first) << 20
                self.process = subprocess.Popen([*query, "-lms", "100"], stdout=subprocess.PIPE, text=True)
        if not self.shared:
            self.start()

    def run(self):
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.used = int(line) << 20

    def now(self):
        if self.shared:
            return field("/proc/meminfo", "MemTotal") - field("/proc/meminfo", "MemAvailable")
        return self.used

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()


def weights(engine):
    record = json.loads((engine / "manifest.json").read_text())["llm"]
    return [engine / "weights" / name for name in record["weights"]]


def measure(args, files, device):
    if not args.keep_cache:
        for file in files:
            file.drop()
    time.sleep(0.5)
    before = {"cache": sum(file.cached() for file in files), "device": device.now()}
    command = [args.watus, "run", str(args.engine), args.prompt, "--raw", "--max-tokens", "8"]
    started, samples = time.monotonic(), []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = []
    listener = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    listener.start()
    while process.poll() is None:
        samples.append({
            "seconds": time.monotonic() - started,
            "cache": sum(file.cached() for file in files),
            "anonymous": sum(field(f"/proc/{one}/status", "RssAnon") for one in family(process.pid)),
            "device": device.now() - before["device"],
        })
        time.sleep(PAUSE)
    listener.join(5)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{''.join(said)}")
    after = {"cache": sum(file.cached() for file in files), "device": 0, "anonymous": 0}
    return {"before": before, "samples": samples, "after": after, "seconds": time.monotonic() - started}


def peaks(run):
    """The most of each, the most of all at one time, and what was left of each at the last look."""
    of = lambda what: max((sample[what] for sample in run["samples"]), default=0)
    host = max((sample["cache"] + sample["anonymous"] for sample in run["samples"]), default=0)
    # The very last looks see a process that is being taken apart.
    samples = run["samples"]
    last = samples[-1 - len(samples) // 20] if samples else run["after"]
    return {"cache": of("cache"), "anonymous": of("anonymous"), "device": of("device"), "host": host,
            "cache at the end": last["cache"], "anonymous at the end": last["anonymous"],
            "cache afterwards": run["after"]["cache"], "seconds": run["seconds"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=pathlib.Path)
    parser.add_argument("--watus", default="target/release/watus-build")
    parser.add_argument("--prompt", default="Hello")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--gpu", default="0")
    parser.add_argument("--keep-cache", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    files = [Pages(path) for path in weights(args.engine)]
    device = Device(args.gpu)
    try:
        runs = [measure(args, files, device) for _ in range(args.runs)]
    finally:
        device.stop()
    found = [peaks(run) for run in runs]
    middle = lambda what: statistics.median(one[what] for one in found)
    size = sum(file.bytes for file in files)
    kind = "of the machine's memory" if device.shared else "of the device's memory"
    print(f"{args.engine.name}: weights' files {size / 1e6:,.0f} MB, {len(runs)} runs of {middle('seconds'):.1f} s, medians\n")
    print("| MB | peak | at the end |\n|---|---|---|")
    rows = [("weights' files in the page cache", "cache", "cache at the end"),
            ("anonymous", "anonymous", "anonymous at the end"),
            ("both at one time", "host", None), (kind, "device", None)]
    for name, peak, end in rows:
        print(f"| {name} | {middle(peak) / 1e6:,.0f} | {f'{middle(end) / 1e6:,.0f}' if end else ''} |")
    print(f"| in the page cache when it has ended | | {middle('cache afterwards') / 1e6:,.0f} |")
    print("\nOver time, of the last run:\n\n| s | page cache | anonymous | device |\n|---|---|---|---|")
    samples = runs[-1]["samples"]
    for sample in samples[::max(1, len(samples) // 20)]:
        print("| {seconds:.1f} | {cache} | {anonymous} | {device} |".format(
            seconds=sample["seconds"], **{what: f"{sample[what] / 1e6:,.0f}" for what in ("cache", "anonymous", "device")}))
    if args.json:
        args.json.write_text(json.dumps(runs))


if __name__ == "__main__":
    main()
