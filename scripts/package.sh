#!/usr/bin/env bash
# Makes a package for one architecture, from either: watus-build_VERSION_ARCH.deb and a tarball of the same files, with their
# SHA-256 beside.
#
# usage: scripts/package.sh aarch64|x86_64 [OUT]                OUT: target/package
#   HEADERS="NAME=FOLDER …"  shims of further headers (trt8=/headers/of/8.5), or of others than are brought (trt10=, trt11=,
#                            rtx=); `rtx=` with nothing behind leaves that one out
#   HEADERS_FROM="A B"       local clones of NVIDIA/TensorRT and onnx/onnx-tensorrt (scripts/headers.sh --from)
#   KERNELS=FOLDER           kernels that scripts/kernels-ptx.sh made, instead of making them (six minutes)
#   NATIVE=PROGRAM           this machine's watus-build, for completions and man pages, instead of compiling one
#   PROGRAM=FILE SHIMS=FOLDER  what was compiled elsewhere, instead of compiling
#   MINISIGN_KEY=FILE, GPG_KEY=ID  sign each file
#
# Program and shims are compiled for glibc 2.31 (JetPack 5.1: Ubuntu 20.04) by cargo-zigbuild, which this script brings; the
# program without any headers, every shim a file of its own. Needs rustup's target, python3 with pip and venv, dpkg-deb, xz,
# objdump, and the network the first time. docs/package.md has what is in it and why.
set -euo pipefail
usage() { sed -n '5,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
die() { echo "package: $*" >&2; exit 1; }
case "${1:-}" in
  aarch64) arch=aarch64 debian=arm64 ;;
  x86_64) arch=x86_64 debian=amd64 ;;
  *) usage ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
out=${2:-$root/target/package}
mkdir -p "$out"; out=$(realpath "$out")
for given in PROGRAM SHIMS KERNELS NATIVE; do [ -z "${!given:-}" ] || declare "$given=$(realpath "${!given}")"; done
cd "$root"
glibc=2.31
triple=$arch-unknown-linux-gnu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
built=${CARGO_TARGET_DIR:-target}/package-build
data=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build
# Files say when the sources were committed, so that the same sources make the same package.
# Not exported while compiling: crates would be compiled again after every commit.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
for tool in dpkg-deb xz objdump python3 git cargo; do
  command -v "$tool" > /dev/null || die "$tool is missing (sudo apt install dpkg xz-utils binutils python3 git)"
done
scratch=$(mktemp -d "$out/.package-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
tree=$scratch/tree

# zig is compiler, linker and C library of any glibc: a wheel, as is cargo's command for it.
bring_zig() {
  local venv=$data/zigbuild-0.24.1
  if [ ! -e "$venv/.complete" ]; then
    echo "package: bringing zig (100 MB) to $venv" >&2
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check cargo-zigbuild==0.24.1 ziglang==0.17.1
    touch "$venv/.complete"
  fi
  export PATH="$venv/bin:$PATH"
  [ -d "$(rustc --print sysroot)/lib/rustlib/$triple" ] || die "Rust's library for $triple is missing: rustup target add $triple"
}

# NAME=FOLDER of every shim, one a line.
header_sets() {
  declare -A sets=()
  local given=" ${HEADERS:-} " set
  if [[ $given != *" trt10="* || $given != *" trt11="* ]]; then
    local from=()
    # shellcheck disable=SC2206 # two folders
    [ -z "${HEADERS_FROM:-}" ] || from=(--from $HEADERS_FROM)
    for set in $(scripts/headers.sh "$data/headers" "${from[@]}"); do sets[${set%%=*}]=${set#*=}; done
    [ ${#sets[@]} -eq 2 ] || return 1
  fi
  # Not this system's TensorRT, which `--all-headers` passes over.
  if [[ $given != *" rtx="* ]]; then sets[rtx]=$(scripts/setup-tensorrt.sh --all-headers --arch "$arch") || return 1; fi
  for set in ${HEADERS:-}; do
    [[ $set == ?*=* ]] || { echo "package: HEADERS: $set is not NAME=FOLDER" >&2; return 1; }
    sets[${set%%=*}]=${set#*=}
  done
  for set in "${!sets[@]}"; do [ -z "${sets[$set]}" ] || echo "$set=${sets[$set]}"; done | sort
}

compile() {
  bring_zig
  local sets
  sets=$(header_sets) || die "headers could not be had"
  # What `strip` does of this machine's alone; symbols of functions stay, for panics.
  WATUS_TENSORRT_INCLUDE= CARGO_TARGET_DIR=$built \
    cargo zigbuild --quiet --release --locked --target "$triple.$glibc" --bin watus-build
  PROGRAM=$built/$triple/release/watus-build
  SHIMS=$scratch/shims
  # shellcheck disable=SC2086 # one a word
  TARGET=$triple.$glibc scripts/build-shims.sh "$SHIMS" $sets
  zig_licence=$(python3 -c 'import ziglang, os; print(os.path.dirname(ziglang.__file__))')/lib/libcxx/LICENSE.TXT
}

# A program of this machine writes pages and completions: they are alike for all.
native() {
  if [ -n "${NATIVE:-}" ]; then return; fi
  if [ "$arch" = "$(uname -m)" ]; then NATIVE=$PROGRAM; return; fi
  cargo build --quiet --release --locked --bin watus-build
  NATIVE=${CARGO_TARGET_DIR:-target}/release/watus-build
}

pages() {
  local share=$tree/usr/share
  install -d "$share"/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d,man}
  "$NATIVE" completions bash > "$share/bash-completion/completions/watus-build"
  "$NATIVE" completions zsh > "$share/zsh/vendor-completions/_watus-build"
  "$NATIVE" completions fish > "$share/fish/vendor_completions.d/watus-build.fish"
  "$NATIVE" man "$share/man/man1"
  gzip -9n "$share/man/man1"/*.1
}

libraries() {
  local lib=$tree/usr/lib/watus-build shim onnxruntime name
  install -d "$lib/kernels"
  for shim in "$SHIMS"/libwatus_shim-*.so; do install -m 644 "$shim" "$lib/"; done
  onnxruntime=$(scripts/setup-onnxruntime.sh --arch "$arch")
  name=$(cd "$onnxruntime" && echo libonnxruntime.so.*)
  install -m 644 "$onnxruntime/$name" "$lib/$name"
  ln -s "$name" "$lib/libonnxruntime.so.1"
  if [ -z "${KERNELS:-}" ]; then
    # For both architectures once: PTX is the GPU's.
    KERNELS=$built/kernels-$(cat src/cuda_executor/decode_kernel/*.* src/cuda_executor/aux_kernels.cu scripts/nvrtc.py scripts/kernels-ptx.sh | sha256sum | cut -c1-16)
    if [ ! -e "$KERNELS/.complete" ]; then
      rm -rf "$built"/kernels-*
      scripts/kernels-ptx.sh "$KERNELS"
      touch "$KERNELS/.complete"
    fi
  fi
  install -m 644 "$KERNELS"/*.ptx "$lib/kernels/"
  onnxruntime_notices=$(dirname "$onnxruntime")
}

documents() {
  local doc=$tree/usr/share/doc/watus-build share=$tree/usr/share/watus-build also=()
  install -d "$doc" "$share"
  git ls-files -z recipes | xargs -0 cp --parents -t "$share"
  git ls-files -z README.md CHANGELOG.md SECURITY.md docs examples | xargs -0 cp --parents -t "$doc"
  ln -s ../../watus-build/recipes "$doc/recipes" # for the links of README.md
  install -m 755 scripts/demo.sh scripts/setup-tensorrt.sh "$share/"
  cp "$onnxruntime_notices/ThirdPartyNotices.txt" "$doc/onnxruntime-ThirdPartyNotices.txt"
  {
    echo "watus-build is licensed under the Apache License 2.0, below. THIRD-PARTY-NOTICES.txt.gz has the licences of what it is made"
    echo "with, onnxruntime-ThirdPartyNotices.txt.gz those of ONNX Runtime (MIT, Microsoft Corporation), which is in this package as"
    echo "it was published. Shims are compiled with TensorRT's headers (NVIDIA Corporation; those of 10 and 11 under the Apache"
    echo "License 2.0). TensorRT itself is not in it."
    echo
    cat LICENSE
  } > "$doc/copyright"
  also=("ONNX Runtime=$onnxruntime_notices/LICENSE")
  [ ! -e "${zig_licence:-}" ] || also+=("libc++, libc++abi and libunwind of LLVM=$zig_licence")
  local standard
  standard=$(rustc --print sysroot)/share/doc/rust
  for name in COPYRIGHT LICENSE-MIT; do [ ! -e "$standard/$name" ] || also+=("Rust's standard library=$standard/$name"); done
  cargo metadata --format-version 1 --locked --filter-platform "$triple" |
    python3 scripts/notices.py "${also[@]}" > "$doc/THIRD-PARTY-NOTICES.txt"
  gzip -9n "$doc"/*.txt
}

# Modes and times are the package's, not this checkout's.
settle() {
  find "$tree" -type d -exec chmod 755 {} +
  find "$tree" -type f ! -perm /111 -exec chmod 644 {} +
  find "$tree" -type f -perm /111 -exec chmod 755 {} +
  find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
}

tarball() {
  local name=watus-build-$version-$arch
  tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --transform="s,^usr,$name,S" \
    -C "$tree" usr | xz -T0 > "$scratch/$name.tar.xz"
  mv "$scratch/$name.tar.xz" "$out/"
  files+=("$name.tar.xz")
}

deb() {
  local name=watus-build_${version}_$debian.deb size
  size=$(du -sk "$tree/usr" | cut -f1)
  install -d "$tree/DEBIAN"
  install -m 755 scripts/deb/{postinst,prerm,postrm} "$tree/DEBIAN/"
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) > "$tree/DEBIAN/md5sums"
  cat > "$tree/DEBIAN/control" << CONTROL
Package: watus-build
Version: $version
Architecture: $debian
Maintainer: ${MAINTAINER:-The authors of watus-build <watus-build@localhost>}
Installed-Size: $size
Depends: libc6 (>= $glibc), libgcc-s1, libstdc++6
Recommends: ca-certificates, python3-pip
Section: science
Priority: optional
Description: verified TensorRT engines from YAML recipes, on the machine they run on
 Fetches checkpoints, builds TensorRT engines of them, verifies every engine against a
 CPU reference, and runs, measures and serves them. TensorRT is found where JetPack
 or the user put it; kernels for language models are in the package compiled.
CONTROL
  settle
  # Ubuntu 20.04's dpkg reads no zstd.
  dpkg-deb --root-owner-group -Zxz --build "$tree" "$scratch/$name" > /dev/null
  mv "$scratch/$name" "$out/"
  files+=("$name")
}

sums() {
  local file
  for file in "${files[@]}"; do
    (cd "$out" && sha256sum "$file" > "$file.sha256")
    if [ -n "${MINISIGN_KEY:-}" ]; then minisign -S -s "$MINISIGN_KEY" -m "$out/$file"; fi
    if [ -n "${GPG_KEY:-}" ]; then gpg --batch --yes --local-user "$GPG_KEY" --armor --detach-sign "$out/$file"; fi
  done
  # Of all architectures that were made here.
  (cd "$out" && cat ./*.sha256 > SHA256SUMS)
}

files=()
unset SOURCE_DATE_EPOCH
if [ -z "${PROGRAM:-}" ]; then compile; fi
[ -n "${SHIMS:-}" ] || die "PROGRAM is given without SHIMS"
native
export SOURCE_DATE_EPOCH=$epoch
install -D -m 755 "$PROGRAM" "$tree/usr/bin/watus-build"
pages
libraries
documents
settle
tarball
deb
sums
for file in "${files[@]}"; do echo "$out/$file"; done
