#!/usr/bin/env bash
# Cross-builds watus-build for the robot's architecture and tries it under qemu-user.
#
# usage: scripts/aarch64.sh build|test
#   build   target/aarch64-unknown-linux-gnu/release/watus-build, the shim compiled for TensorRT-RTX 1.7
#   test    `doctor` on the JetPack fixtures; the gender engine and a tiny language model with NVIDIA's own aarch64
#           TensorRT-RTX
#
# Needs Rust's aarch64 standard library (`rustup target add aarch64-unknown-linux-gnu`) and Debian's
# g++-aarch64-linux-gnu; the test also qemu-user-static and arm64's libc6 and libstdc++6. On the robot itself
# none of this is needed: `cargo build --release` finds JetPack's TensorRT.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu
binary=${CARGO_TARGET_DIR:-target}/$target/release/watus-build

need() {
  command -v "$1" > /dev/null || { echo "$1 is missing: $2" >&2; exit 1; }
}

build() {
  need aarch64-linux-gnu-g++ "sudo apt install g++-aarch64-linux-gnu"
  local include
  include=$(scripts/setup-tensorrt.sh --arch aarch64)
  WATUS_TENSORRT_INCLUDE=$include \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc CXX_aarch64_unknown_linux_gnu=aarch64-linux-gnu-g++ \
    AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar \
    cargo build --release --target "$target" --bin watus-build
  file "$binary" 2> /dev/null || ls -l "$binary"
}

test_under_qemu() {
  need qemu-aarch64-static "sudo apt install qemu-user-static"
  [ -e /lib/ld-linux-aarch64.so.1 ] || {
    echo "arm64 libraries are missing: sudo dpkg --add-architecture arm64 && sudo apt update && sudo apt install libc6:arm64 libstdc++6:arm64" >&2
    exit 1
  }
  local root expected code
  scratch=$(mktemp -d) # not local: the trap runs outside
  trap 'rm -rf "$scratch"' EXIT
  for root in tests/data/roots/*; do
    expected=tests/snapshots/cli__doctor-$(basename "$root").snap
    code=0
    qemu-aarch64-static "$binary" doctor --root "$root" > "$scratch/doctor" || code=$?
    # A snapshot is a header between two `---` lines and then the text.
    awk 'dashes == 2 { print } /^---$/ { dashes++ }' "$expected" > "$scratch/expected"
    diff "$scratch/expected" "$scratch/doctor"
    echo "doctor on $(basename "$root"): as on x86-64 (exit code $code)"
  done
  # qemu-user cannot start a child of the guest's kind without binfmt_misc, so the build runs in this one process.
  qemu-aarch64-static "$binary" build --in-process -o "$scratch/engines" recipes/gender.yaml
  qemu-aarch64-static "$binary" verify "$scratch/engines/gender"
  qemu-aarch64-static "$binary" inspect "$scratch/engines/gender"
  qemu-aarch64-static "$binary" run --backend cpu "$scratch/engines/gender" recipes/images/face.png
  # A language model of a few kilobytes: its layer engines, and an answer that is the one x86-64 gives.
  cp tests/data/gguf/llama.gguf "$scratch"
  printf 'version: 1\nname: tiny\nkind: llm\nsource: { path: llama.gguf }\nmax_input_len: 24\nmax_output_len: 16\n' > "$scratch/tiny.yaml"
  qemu-aarch64-static "$binary" build --in-process -o "$scratch/engines" "$scratch/tiny.yaml"
  qemu-aarch64-static "$binary" run --backend cpu "$scratch/engines/tiny" --raw --json --max-tokens 8 ABC
  # The server, asked once and told to end.
  qemu-aarch64-static "$binary" serve --backend cpu "$scratch/engines/tiny" --port 0 2> "$scratch/log" &
  local server=$! address=
  until [ -n "$address" ]; do
    sleep 0.2
    kill -0 "$server" || { cat "$scratch/log"; exit 1; }
    address=$(sed -n 's|.*people at \(http://[^ ]*\).*|\1|p' "$scratch/log")
  done
  until curl --silent --fail "$address/health/ready" > /dev/null; do sleep 0.2; done
  curl --silent --fail "$address/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model": "local-trt-llm", "prompt": "ABC", "max_tokens": 8}'
  echo
  kill -TERM "$server"
  wait "$server"
}

case "${1:-}" in
  build) build ;;
  test) build; test_under_qemu ;;
  *) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
