#!/usr/bin/env bash
# Brings ONNX Runtime, the CPU reference that computes every ONNX operator, into the user's data directory; watus-build
# finds it there. Prints where it is. The second time it only looks whether the library is whole, and needs no network then;
# a damaged one is brought again.
#
# usage: scripts/setup-onnxruntime.sh [--arch x86_64|aarch64]
#
# The library is taken from the wheel on the Python index (glibc 2.28 or newer: Ubuntu 20.04, JetPack 5). Its licence (MIT)
# lies beside it.
set -euo pipefail

version=1.32.0
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

arch=$(uname -m)
while [ $# -gt 0 ]; do
  case "$1" in
    --arch) arch=${2:?--arch wants a name}; shift 2 ;;
    *) die "unknown option $1" ;;
  esac
done
case "$arch" in
  x86_64)
    sha256=99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8
    library=6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f ;;
  aarch64)
    sha256=e36c187006e7a7c8b8d6d57f1a209dd63f52430dca6c282b177718ad6b841054
    library=49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a ;;
  *) die "no ONNX Runtime for $arch; the built-in CPU reference does without" ;;
esac

data=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build
folder=onnxruntime-$version
# Another machine's lies where this one does not look for its own.
if [ "$arch" != "$(uname -m)" ]; then folder=$arch-$folder; fi
target=$data/$folder
mkdir -p "$data"
# One set-up at a time; what a killed one left is removed.
exec 9> "$data/.setup.lock"
flock 9
rm -rf "$data"/.setup-*/

whole() { echo "$library  $target/lib/libonnxruntime.so.$version" | sha256sum --check --quiet >/dev/null 2>&1; }

if [ ! -e "$target/.complete" ] || ! whole; then
  say "bringing ONNX Runtime $version (about 28 MB) to $target"
  command -v python3 >/dev/null || die "python3 with pip is needed for the first set-up"
  scratch=$(mktemp -d "$data/.setup-XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp --abi cp312 --platform "manylinux_2_28_$arch" --dest "$scratch" "onnxruntime==$version" ||
    die "pip could not download onnxruntime $version"
  file=$(find "$scratch" -maxdepth 1 -name '*.whl')
  echo "$sha256  $file" | sha256sum --check --quiet >/dev/null 2>&1 || die "the wheel has the wrong sha256"
  python3 -m zipfile -e "$file" "$scratch/wheel"
  mkdir -p "$scratch/new/lib"
  mv "$scratch/wheel/onnxruntime/capi/libonnxruntime.so.$version" "$scratch/new/lib/"
  mv "$scratch"/wheel/onnxruntime/{LICENSE,ThirdPartyNotices.txt} "$scratch/new/"
  touch "$scratch/new/.complete"
  rm -rf "$target"
  mv "$scratch/new" "$target"
fi
say "ONNX Runtime $version is in $target"
echo "$target/lib"
