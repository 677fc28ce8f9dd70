#!/usr/bin/env bash
# Makes TensorRT available to the build: finds the system's (JetPack's), else, on Linux x86-64 and aarch64, brings
# TensorRT-RTX into the user's data directory. Prints where it is. Does nothing the second time, and needs no network
# then.
#
# usage: setup-tensorrt.sh [--libraries | --all-headers] [--arch x86_64|aarch64]
#   --libraries     no headers, which only compiling needs: all that an installed watus-build wants, and no cargo
#   --all-headers   also unpack the other header sets of the same archive, for `make check-headers`
#   --arch          another machine's TensorRT-RTX, for cross-building
#
# Libraries come from a wheel through pip, headers from a crate file through cargo, both as those are configured here.
# The licence of the libraries is NVIDIA's; it lies beside them.
set -euo pipefail

crate=trtx-sys crate_version=0.9.1
crate_sha256=5480ee056292951daa1bc74532162d6cb75190f091e45d7d97c0c356916ae171
headers_of() { echo "TensorRT-Headers/TRT-RTX-${1%.*.*}"; }

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

libraries= all_headers= arch=$(uname -m) cross=
while [ $# -gt 0 ]; do
  case "$1" in
    --libraries) libraries=1 ;;
    --all-headers) all_headers=1 ;;
    --arch) [ "$2" = "$arch" ] || cross=1; arch=$2; shift ;;
    *) die "unknown option $1" ;;
  esac
  shift
done
# 1.6.1 is the newest that also runs on compute capability 9.0; for aarch64 1.7.1 is the first there is.
case "$arch" in
  x86_64)
    wheel=tensorrt-rtx-cu12-libs version=1.6.1.120 platform=manylinux_2_28_x86_64
    wheel_sha256=3373b82f1e63139f99d572d28a1761cfc79ff3cf33342a1ce0b59a53fea4f01b ;;
  aarch64)
    wheel=tensorrt-rtx-cu13-libs version=1.7.1.116 platform=manylinux_2_35_aarch64
    wheel_sha256=ec8b6cb95a8ea61e31d544dbc5039d35219b311999f92c518a3889aaae74359c ;;
  *) die "no TensorRT for $arch" ;;
esac

if [ -z "$libraries$all_headers$cross" ]; then
  for folder in "/usr/include/$arch-linux-gnu" /usr/include /usr/local/tensorrt/include; do
    if [ -e "$folder/NvInfer.h" ] && [ -e "$folder/NvOnnxParser.h" ]; then
      say "the system has TensorRT headers in $folder; nothing to do"
      echo "$folder"
      exit 0
    fi
  done
  if [ -e /etc/nv_tegra_release ]; then
    die "this is a Jetson without TensorRT's headers; run: sudo apt install libnvinfer-dev libnvonnxparsers-dev"
  fi
fi

if [ -n "$libraries" ] && [ -z "$cross" ]; then
  # Built by any TensorRT that is installed; a Jetson's is JetPack's.
  IFS=: read -ra beside <<< "${LD_LIBRARY_PATH:-}"
  for folder in "${beside[@]}" "/usr/lib/$arch-linux-gnu" /usr/lib64 /usr/lib /usr/local/tensorrt/lib \
    /opt/tensorrt/lib /usr/local/cuda/lib64; do
    for file in "$folder"/libnvinfer.so.*; do
      if [ -e "$file" ]; then say "the system has TensorRT: $file; nothing to do"; exit 0; fi
    done
  done
  if [ -e /etc/nv_tegra_release ]; then die "this is a Jetson without TensorRT; run: sudo apt install tensorrt"; fi
fi

data=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build
target=$data/tensorrt-rtx-$version
mkdir -p "$data"
# One set-up at a time; what a killed one left is removed.
exec 9> "$data/.setup.lock"
flock 9
rm -rf "$data"/.setup-*/
scratch=$(mktemp -d "$data/.setup-XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# cargo puts the crate file into its own cache; `cargo info` is its smallest call that fetches one crate.
unpack_crate() {
  command -v cargo >/dev/null || die "cargo is needed: install Rust first"
  local cache=${CARGO_HOME:-$HOME/.cargo}/registry/cache file
  find_crate() { find "$cache" -name "$crate-$crate_version*.crate" 2>/dev/null | head -n 1 || true; }
  file=$(find_crate)
  if [ -z "$file" ]; then
    (cd "$scratch" && cargo info --quiet "$crate@$crate_version" >/dev/null) || die "cargo could not fetch $crate $crate_version"
    file=$(find_crate)
  fi
  [ -n "$file" ] || die "cargo fetched $crate, but not into $cache"
  echo "$crate_sha256  $file" | sha256sum --check --quiet >/dev/null 2>&1 || die "$file has the wrong sha256; delete it and try again"
  tar -xzf "$file" -C "$scratch" --strip-components=1
}

complete=$target/.complete
if [ -n "$libraries" ]; then complete=$target/lib; fi
if [ ! -e "$complete" ]; then
  say "bringing TensorRT-RTX $version (about 90 MB) to $target"
  command -v python3 >/dev/null || die "python3 with pip is needed for the first set-up"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --platform "$platform" \
    --dest "$scratch" "$wheel==$version" || die "pip could not download $wheel $version"
  file=$(find "$scratch" -maxdepth 1 -name '*.whl')
  echo "$wheel_sha256  $file" | sha256sum --check --quiet >/dev/null 2>&1 || die "the wheel has the wrong sha256"
  mkdir -p "$scratch/new/lib" "$scratch/wheel"
  python3 -m zipfile -e "$file" "$scratch/wheel"
  mv "$scratch"/wheel/tensorrt_rtx_libs/*.so.* "$scratch/new/lib/"
  find "$scratch/wheel" -name 'LICENSE*' -exec cp {} "$scratch/new/" \;
  if [ -z "$libraries" ]; then
    unpack_crate
    cp -r "$scratch/$(headers_of "$version")" "$scratch/new/include"
    touch "$scratch/new/.complete"
  fi
  rm -rf "$target"
  mv "$scratch/new" "$target"
fi

if [ -n "$all_headers" ] && [ ! -e "$data/headers-$crate_version/.complete" ]; then
  unpack_crate
  touch "$scratch/TensorRT-Headers/.complete"
  rm -rf "$data/headers-$crate_version"
  mv "$scratch/TensorRT-Headers" "$data/headers-$crate_version"
fi

say "TensorRT-RTX $version is in $target"
if [ -n "$libraries" ]; then exit 0; fi
echo "$target/include"
