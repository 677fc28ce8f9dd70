"""How fast a kernel reads memory that was not copied to the device: pinned and mapped memory of the host, a file's own pages.

    python3 benches/mapped_memory.py [--mib 1024] [--file PATH] [--json FILE]

Read by one kernel, in 16 bytes a thread: (a) device memory, (b) host memory of cuMemHostAlloc(DEVICEMAP), (c) a file's mapping
registered by cuMemHostRegister(READ_ONLY | DEVICEMAP), (d) the same of a mapping that is private and writable, its pages copied,
(e) anonymous memory that is registered. On a graphics card b to e cross the bus and cannot be faster than it; on an integrated
GPU they are the same chips as (a), and what this prints there is what using weights as they lie would cost. What cannot be done
says why. ctypes on libcuda.so.1; nvcc compiles the kernel, or NVRTC where there is none.
"""

import argparse
import ctypes
import json
import mmap
import pathlib
import shutil
import statistics
import subprocess
import tempfile

SOURCE = r"""
extern "C" __global__ void add_up(uint4 const* in, unsigned long long count, unsigned int* out) {
  unsigned int sum = 0;
  unsigned long long const step = (unsigned long long)gridDim.x * blockDim.x;
  unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {  // four reads under way in each thread
    uint4 const a = in[i], b = in[i + step], c = in[i + 2 * step], d = in[i + 3 * step];
    sum += a.x + a.y + a.z + a.w + b.x + b.y + b.z + b.w + c.x + c.y + c.z + c.w + d.x + d.y + d.z + d.w;
  }
  for (; i < count; i += step) {
    uint4 const a = in[i];
    sum += a.x + a.y + a.z + a.w;
  }
  atomicAdd(out, sum);
}
"""

# cuda.h
MULTIPROCESSORS, INTEGRATED, CAN_MAP, UNIFIED, PAGEABLE, MAJOR, MINOR = 16, 18, 19, 41, 88, 75, 76
PAGEABLE_BY_TABLES, READ_ONLY_REGISTER = 100, 113
HOSTALLOC_DEVICEMAP, REGISTER_DEVICEMAP, REGISTER_READ_ONLY = 2, 2, 8

CUDA = ctypes.CDLL("libcuda.so.1")
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class Refused(Exception):
    pass


def call(name, *arguments):
    status = getattr(CUDA, name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        CUDA.cuGetErrorName(status, ctypes.byref(text))
        raise Refused(f"{name}: {(text.value or b'?').decode()} ({status})")


def attribute(device, which):
    value = number(0)
    try:
        call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
    except Refused:
        return 0  # newer than the driver
    return value.value


def ptx(architecture):
    if shutil.which("nvcc"):
        with tempfile.TemporaryDirectory() as folder:
            source, made = pathlib.Path(folder, "k.cu"), pathlib.Path(folder, "k.ptx")
            source.write_text(SOURCE)
            subprocess.run(["nvcc", f"-arch={architecture}", "-ptx", "-o", made, source], check=True)
            return made.read_bytes()
    names = [f"libnvrtc.so{end}" for end in ("", ".13", ".12", ".11.2")]
    for name in names:
        try:
            nvrtc = ctypes.CDLL(name)
        except OSError:
            continue
        program, length = pointer(), size()
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"k.cu", 0, None, None)
        options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
        if nvrtc.nvrtcCompileProgram(program, 1, options) != 0:
            raise SystemExit(f"{name} cannot compile the kernel for {architecture}")
        nvrtc.nvrtcGetPTXSize(program, ctypes.byref(length))
        text = ctypes.create_string_buffer(length.value)
        nvrtc.nvrtcGetPTX(program, text)
        return text.raw
    raise SystemExit("neither nvcc nor NVRTC is here")


class Gpu:
    def __init__(self):
        call("cuInit", 0)
        self.device, context, module, self.kernel = number(), pointer(), pointer(), pointer()
        call("cuDeviceGet", ctypes.byref(self.device), 0)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(100)
        call("cuDeviceGetName", name, 100, self.device)
        self.name = name.value.decode()
        has = lambda which: attribute(self.device, which)
        self.can = {"integrated": has(INTEGRATED), "maps host memory": has(CAN_MAP), "one address space": has(UNIFIED),
                    "reads pageable memory": has(PAGEABLE), "by the host's page tables": has(PAGEABLE_BY_TABLES),
                    "registers read-only memory": has(READ_ONLY_REGISTER)}
        architecture = f"compute_{has(MAJOR)}{has(MINOR)}"
        call("cuModuleLoadData", ctypes.byref(module), ptx(architecture))
        call("cuModuleGetFunction", ctypes.byref(self.kernel), module, b"add_up")
        self.blocks = 8 * has(MULTIPROCESSORS)
        self.out, self.begin, self.end = ctypes.c_uint64(), pointer(), pointer()
        call("cuMemAlloc_v2", ctypes.byref(self.out), size(4))
        for event in (self.begin, self.end):
            call("cuEventCreate", ctypes.byref(event), 0)

    def read(self, address, length, runs=7):
        """Bytes a second (median), and the sum."""
        place, count, out = ctypes.c_uint64(address), ctypes.c_uint64(length // 16), self.out
        arguments = (pointer * 3)(*(ctypes.cast(ctypes.byref(it), pointer) for it in (place, count, out)))
        rates, total = [], ctypes.c_uint32()
        for run in range(runs + 2):
            call("cuMemsetD32_v2", out, 0, size(1))
            call("cuEventRecord", self.begin, None)
            call("cuLaunchKernel", self.kernel, self.blocks, 1, 1, 256, 1, 1, 0, None, arguments, None)
            call("cuEventRecord", self.end, None)
            call("cuEventSynchronize", self.end)
            milliseconds = ctypes.c_float()
            call("cuEventElapsedTime", ctypes.byref(milliseconds), self.begin, self.end)
            if run >= 2:
                rates.append(length / milliseconds.value * 1e3)
        call("cuMemcpyDtoH_v2", ctypes.byref(total), out, size(4))
        return statistics.median(rates), total.value


def mapping(file, length, writable):
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_PRIVATE if writable else mmap.MAP_SHARED
    if file is None:
        protection, flags, fd = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1
    else:
        fd = file.fileno()
    start = LIBC.mmap(None, length, protection, flags, fd, 0)
    if start == ctypes.c_void_p(-1).value:
        raise Refused("mmap failed")
    return start


def device_memory(gpu, file, length):
    address = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(address), size(length))
    try:
        start = mapping(file, length, False)
        call("cuMemcpyHtoD_v2", address, pointer(start), size(length))
        LIBC.munmap(start, length)
        return gpu.read(address.value, length)
    finally:
        call("cuMemFree_v2", address)


def device_address(start):
    address = ctypes.c_uint64()
    call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), pointer(start), 0)
    return address.value


def pinned(gpu, file, length):
    start = pointer()
    call("cuMemHostAlloc", ctypes.byref(start), size(length), HOSTALLOC_DEVICEMAP)
    try:
        file.seek(0)
        file.readinto((ctypes.c_char * length).from_address(start.value))
        return gpu.read(device_address(start.value), length)
    finally:
        call("cuMemFreeHost", start)


def registered(gpu, start, length, flags):
    call("cuMemHostRegister_v2", pointer(start), size(length), flags)
    try:
        return gpu.read(device_address(start), length)
    finally:
        call("cuMemHostUnregister", pointer(start))


def of_file(writable, flags):
    def read(gpu, file, length):
        start = mapping(file, length, writable)
        try:
            if writable:  # copied page by page, so that they are this process's own
                for at in range(0, length, mmap.PAGESIZE):
                    page = ctypes.c_char.from_address(start + at)
                    page.value = page.value
            return registered(gpu, start, length, flags)
        finally:
            LIBC.munmap(start, length)
    return read


def anonymous(gpu, file, length):
    start = mapping(None, length, True)
    try:
        file.seek(0)
        file.readinto((ctypes.c_char * length).from_address(start))
        return registered(gpu, start, length, REGISTER_DEVICEMAP)
    finally:
        LIBC.munmap(start, length)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--file", type=pathlib.Path, help="a file of at least so many bytes; otherwise one is made in this folder")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    length = args.mib << 20
    gpu = Gpu()
    print(f"{gpu.name}: " + ", ".join(f"{what}: {'yes' if is_so else 'no'}" for what, is_so in gpu.can.items()) + "\n")
    kinds = [("device memory", device_memory),
             ("pinned host memory, mapped", pinned),
             ("a file's mapping, registered (READ_ONLY, DEVICEMAP)", of_file(False, REGISTER_READ_ONLY | REGISTER_DEVICEMAP)),
             ("a file's mapping, registered (DEVICEMAP)", of_file(False, REGISTER_DEVICEMAP)),
             ("a file's private pages, registered (DEVICEMAP)", of_file(True, REGISTER_DEVICEMAP)),
             ("anonymous memory, registered (DEVICEMAP)", anonymous)]
    results, sums = [], set()
    with tempfile.NamedTemporaryFile(dir=".") if args.file is None else open(args.file, "rb") as file:
        if args.file is None:
            block = bytes((at * 7919 >> 3) & 255 for at in range(1 << 20))
            for _ in range(args.mib):
                file.write(block)
            file.flush()
        elif args.file.stat().st_size < length:
            raise SystemExit(f"{args.file} has fewer than {length} bytes")
        print("| read by a kernel | GB/s | of device memory's |\n|---|---|---|")
        for name, run in kinds:
            try:
                rate, total = run(gpu, file, length)
            except Refused as why:
                results.append({"kind": name, "refused": str(why)})
                print(f"| {name} | not possible: {why} | |")
                continue
            sums.add(total)
            results.append({"kind": name, "bytes_per_second": rate})
            first = results[0].get("bytes_per_second")
            print(f"| {name} | {rate / 1e9:.1f} | {f'{rate / first:.3f}' if first else ''} |")
    if len(sums) > 1:
        raise SystemExit(f"the kernel read different things: {sums}")
    if args.json:
        args.json.write_text(json.dumps({"device": gpu.name, "can": gpu.can, "mib": args.mib, "results": results}))


if __name__ == "__main__":
    main()
