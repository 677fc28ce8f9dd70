"""NVRTC and ptxas by hand: what nvrtc-matrix.sh and kernels-ptx.sh do. Needs nothing but Python and the libraries they bring.

The kernels' sources, in their order, and the options each file is compiled with are read from where the program has them.
`nvrtc.py source --out FILE` writes the decode kernel's files as one, for benches/step_phases.cu.
"""

import argparse
import ctypes
import hashlib
import pathlib
import re
import subprocess
import tempfile
import time

KERNELS = pathlib.Path(__file__).resolve().parent.parent / "src/cuda_executor"
# As src/cuda_executor/code.rs has them.
STANDARD = "--std=c++17"
OLDEST = "--gpu-architecture=compute_80"
NEEDED = "7.4"


def sources():
    """The kernels around the engines, and the decode kernel."""
    text = (KERNELS / "decode_kernel/kernel.rs").read_text()
    macro = re.search(r"macro_rules! source \{.*?\n\}\n", text, re.S)[0]
    primitives = re.search(r'SOURCE: &str = source!\("([^"]+\.cu)"\)', text)[1]
    parts = [part or primitives for part in re.findall(r'include_str!\((?:"([^"]+\.cu)"|\$primitives)\)', macro)]
    assert len(parts) > 5, "decode_kernel/kernel.rs names its parts otherwise"
    return (KERNELS / "aux_kernels.cu").read_text(), "".join((KERNELS / "decode_kernel" / part).read_text() for part in parts)


def variants():
    return [line.split() for line in (KERNELS / "decode_kernel/variants.txt").read_text().splitlines()]


class Nvrtc:
    def __init__(self, folder):
        (path,) = [path for path in pathlib.Path(folder).glob("nvidia/*/lib/libnvrtc.so*") if "alt" not in path.name]
        # CUDA 13's does not look for its built-in functions beside itself.
        self.builtins = [ctypes.CDLL(str(builtins)) for builtins in path.parent.glob("libnvrtc-builtins.so*")]
        self.library = ctypes.CDLL(str(path))
        major, minor, count = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"{major.value}.{minor.value}"
        self.check(self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self.check(self.library.nvrtcGetSupportedArchs(numbers))
        self.architectures = set(numbers)

    @staticmethod
    def check(code):
        assert code == 0, f"NVRTC error {code}"

    def compile(self, source, options):
        """(PTX or None, what it said, seconds)"""
        program, size, library = ctypes.c_void_p(), ctypes.c_size_t(), self.library
        self.check(library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None))
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        begun = time.monotonic()
        code = library.nvrtcCompileProgram(program, len(options), given)
        seconds = time.monotonic() - begun

        def text(size_of, get):
            self.check(size_of(program, ctypes.byref(size)))
            buffer = ctypes.create_string_buffer(size.value)
            self.check(get(program, buffer))
            return buffer.value.decode()

        log = text(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog).strip()
        ptx = text(library.nvrtcGetPTXSize, library.nvrtcGetPTX) if code == 0 else None
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return ptx, log, seconds


def assemble(ptxas, ptx, architecture):
    """What ptxas says of each kernel: {name: (registers, bytes spilled, bytes of static shared memory)}."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.ptx"
        path.write_text(ptx)
        command = [ptxas, "-v", f"-arch={architecture}", path, "-o", path.with_suffix(".cubin")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[:8])
    found = {}
    for name, stack, used in re.findall(r"properties for (\w+)\n\s*(.*)\n.*info\s*: (Used .*)", done.stderr):
        number = lambda pattern, text: sum(int(n) for n in re.findall(pattern, text))
        found[name] = (number(r"(\d+) registers", used), number(r"(\d+) bytes spill stores", stack), number(r"(\d+) bytes smem", used))
    return found


def matrix(arguments):
    around, step = sources()
    chosen = [line for line in variants() if "-DKV_BITS=16" in line and "-DRING_DEPTH=2" not in line or "-DTILE_KINDS=31" in line]
    # One plain and one packed variant of a Jetson Orin, and all kinds at once.
    wanted = [("f16", "-DRING_DEPTH=4", "-DTILE_KINDS=0", "-DELEMENT=1"), ("bf16", "-DRING_DEPTH=4", "-DTILE_KINDS=0", "-DELEMENT=2"),
              ("int4", "-DRING_DEPTH=4", "-DTILE_KINDS=1", "-DELEMENT=1"), ("all kinds", "-DRING_DEPTH=2", "-DTILE_KINDS=31", "-DKV_BITS=16")]
    wanted = [(name, next(line for line in chosen if set(flags) <= set(line))) for name, *flags in wanted]
    print("| NVRTC | architecture | compiles | PTX | " + " | ".join(f"{name}, s" for name, _ in wanted) + " | as for 8.0 |")
    print("|---|---|---|---|" + "---|" * len(wanted) + "---|")
    failed, bodies = 0, {}
    for folder in arguments.folders:
        nvrtc = Nvrtc(folder)
        for architecture in (80, 87, 90, 110):
            if architecture not in nvrtc.architectures:
                print(f"| {nvrtc.version} | {architecture} | unknown to it |" + " |" * (len(wanted) + 2))
                continue
            made = [nvrtc.compile(around, [STANDARD, f"--gpu-architecture=compute_{architecture}"])]
            made += [nvrtc.compile(step, [STANDARD, f"--gpu-architecture=compute_{architecture}", *line]) for _, line in wanted]
            ok = all(ptx is not None and not log for ptx, log, _ in made)
            failed += not ok
            codes = [re.sub(r"^\.target.*|^//.*", "", ptx or "", flags=re.M) for ptx, _, _ in made]
            same = codes == bodies.setdefault(nvrtc.version, codes)
            version = sorted(set(re.findall(r"^\.version (\S+)", "\n".join(ptx or "" for ptx, _, _ in made), re.M)))
            seconds = " | ".join(f"{seconds:.1f}" for _, _, seconds in made[1:])
            print(f"| {nvrtc.version} | {architecture} | {'yes' if ok else 'NO'} | {', '.join(version)} | {seconds} | {'yes' if same else 'no'} |", flush=True)
            for _, log, _ in made:
                if log:
                    print("\n".join(log.splitlines()[:5]))
    for ptxas in arguments.ptxas:
        version = re.search(r"release (\S+),", subprocess.run([ptxas, "--version"], capture_output=True, text=True).stdout)[1]
        print(f"\nptxas {version} for 8.7, of what the first NVRTC made for 8.0, `.version` {NEEDED}:\n")
        print("| kernel | variant | registers | spilled, B | static shared, B |\n|---|---|---|---|---|")
        first = Nvrtc(arguments.folders[0])
        for name, source, line in [("", around, [])] + [(name, step, line) for name, line in wanted]:
            ptx, _, _ = first.compile(source, [STANDARD, OLDEST, *line])
            for kernel, (registers, spilled, shared) in sorted(assemble(ptxas, as_needed(ptx), "sm_87").items()):
                print(f"| {kernel} | {name} | {registers} | {spilled} | {shared} |")
    return failed


def as_needed(ptx):
    ptx, count = re.subn(r"^\.version .*$", f".version {NEEDED}", ptx, flags=re.M)
    assert count == 1
    return ptx


def ptx(arguments):
    around, step = sources()
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    nvrtc = Nvrtc(arguments.folders[0])
    made = set()
    for source, line in [(around, [])] + [(step, line) for line in variants()]:
        options = [STANDARD, OLDEST, *line]
        code, log, _ = nvrtc.compile(source, options)
        assert code and not log, log
        code = as_needed(code)
        # An assembler that refuses instructions newer than `.version`; and one of 8.7, which the code runs on.
        for ptxas in arguments.ptxas:
            assemble(ptxas, code, "sm_80")
            assemble(ptxas, code, "sm_87")
        name = hashlib.sha256(f"{' '.join(options)} {source}".encode()).hexdigest() + ".ptx"
        staged = out / f".{name}"
        staged.write_text(code)
        staged.rename(out / name)
        made.add(name)
    # Those of other versions are never asked for.
    for path in out.glob("*.ptx"):
        if path.name not in made:
            path.unlink()
    print(f"{len(made)} files of {sum((out / name).stat().st_size for name in made) / 1e6:.1f} MB in {out}")
    return 0


def source(arguments):
    pathlib.Path(arguments.out).write_text(sources()[1])
    return 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["matrix", "ptx", "source"])
    parser.add_argument("folders", nargs="*", help="with an NVRTC wheel each")
    parser.add_argument("--ptxas", action="append", default=[])
    parser.add_argument("--out")
    arguments = parser.parse_args()
    raise SystemExit({"matrix": matrix, "ptx": ptx, "source": source}[arguments.what](arguments))


main()
