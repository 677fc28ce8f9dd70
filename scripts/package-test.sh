#!/usr/bin/env bash
# Tries a package that scripts/package.sh made, in a clean root of Debian 11, whose glibc is JetPack 5.1's (2.31), and of Debian 12:
# what its files ask of glibc; installing, `doctor`, `recipe check`, building (TensorRT-RTX, no GPU), answers on the CPU, the server;
# upgrade, roll back, removal, and that nothing is left then.
#
# usage: scripts/package-test.sh aarch64|x86_64 [DEB]           DEB: the newest in target/package
#   MIRROR=URL   Debian's archive, http://deb.debian.org/debian
#   ROOTS=DIR    where roots are kept, ~/.local/share/watus-build/roots
#
# Needs debootstrap, fakeroot, curl, objdump, dpkg-deb and user namespaces; for another architecture than this machine's
# qemu-user-static, registered with binfmt_misc by its package, or Linux 6.7, where a namespace has a binfmt_misc of its own.
set -euo pipefail
usage() { sed -n '6,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
die() { echo "package-test: $*" >&2; exit 1; }
say() { echo "== $*"; }
case "${1:-}" in
  aarch64) arch=aarch64 debian=arm64 ;;
  x86_64) arch=x86_64 debian=amd64 ;;
  *) usage ;;
esac
cd "$(dirname "$0")/.."
deb=${2:-}
if [ -z "$deb" ]; then
  for file in target/package/watus-build_*_"$debian".deb; do
    if [ -e "$file" ] && { [ -z "$deb" ] || [ "$file" -nt "$deb" ]; }; then deb=$file; fi
  done
  [ -n "$deb" ] || die "no package in target/package: make package ARCH=$arch"
fi
tools=(debootstrap fakeroot curl objdump dpkg-deb unshare)
[ "$arch" = "$(uname -m)" ] || tools+=("qemu-$arch-static")
for tool in "${tools[@]}"; do
  PATH=$PATH:/usr/sbin command -v "$tool" > /dev/null ||
    die "$tool is missing: sudo apt install debootstrap fakeroot qemu-user-static binutils curl dpkg util-linux"
done
roots=${ROOTS:-${XDG_DATA_HOME:-$HOME/.local/share}/watus-build/roots}
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT

newest() { sort --version-sort | tail -n 1; }

# Whatever is ELF, what it asks of the C library.
symbols() {
  local file asked worst=0
  dpkg-deb --extract "$deb" "$scratch/files"
  while IFS= read -r -d '' file; do
    [ "$(head -c 4 "$file" | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || continue
    asked=$(objdump -T "$file" | grep -oE 'GLIBC_[0-9.]+' | sort -u | newest)
    [ "$(printf '%s\nGLIBC_2.31\n' "$asked" | newest)" = GLIBC_2.31 ] || { echo "${file#"$scratch/files"} asks for $asked" >&2; worst=1; }
    asked=$(objdump -T "$file" | { grep -oE 'GLIBCXX_[0-9.]+' || true; } | sort -u | newest)
    [ "$(printf '%s\nGLIBCXX_3.4.28\n' "$asked" | newest)" = GLIBCXX_3.4.28 ] || { echo "${file#"$scratch/files"} asks for $asked" >&2; worst=1; }
  done < <(find "$scratch/files" -type f \( -name '*.so*' -o -perm /111 \) -print0)
  if objdump -p "$scratch/files/usr/bin/watus-build" "$scratch"/files/usr/lib/watus-build/libwatus_shim-*.so | grep 'NEEDED.*libstdc++'; then
    echo "program or shim needs a libstdc++" >&2; worst=1
  fi
  [ "$worst" = 0 ] || die "JetPack 5.1 has glibc 2.31 and libstdc++ 3.4.28"
}

# A copy of a clean root: the packages every Debian has, unpacked, none configured, for that needs no privileges.
fresh_root() { # SUITE
  local kept=$roots/$1-$debian file
  if [ ! -e "$kept/.complete" ]; then
    say "a root of $1 for $debian"
    rm -rf "$kept"; mkdir -p "$roots"
    PATH=$PATH:/usr/sbin fakeroot debootstrap --foreign --variant=minbase --arch="$debian" --include=ca-certificates \
      "$1" "$kept" "${MIRROR:-http://deb.debian.org/debian}" > "$scratch/debootstrap.log" 2>&1 ||
      { tail -n 5 "$scratch/debootstrap.log" >&2; die "debootstrap failed"; }
    for file in "$kept"/var/cache/apt/archives/*.deb; do dpkg-deb --extract "$file" "$kept"; done
    touch "$kept/.complete"
  fi
  root=$scratch/$1
  cp -a "$kept" "$root"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root/debootstrap"
  # debootstrap in a container leaves a link to this machine's.
  [ ! -L "$root/proc" ] || rm "$root/proc"
  mkdir -p "$root"/{proc,dev,tmp,data,opt,home/watus,etc/systemd/system,var/lib/dpkg/{info,updates}}
  [ -e "$root/var/lib/dpkg/status" ] || : > "$root/var/lib/dpkg/status"
  [ ! -e "$root/usr/bin/cc" ] || die "the root has a compiler"
}

# A command in the root, as its root, in a namespace where the root is one. QEMU names the emulator, if one is needed.
inside() {
  local emulator=''
  if [ "$arch" != "$(uname -m)" ] && [ ! -e "/proc/sys/fs/binfmt_misc/qemu-$arch" ]; then emulator=$(command -v "qemu-$arch-static"); fi
  env -i HOME=/home/watus PATH=/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C.UTF-8 QEMU="$emulator" \
    unshare --user --map-root-user --mount bash "$PWD/scripts/package-root.sh" "$root" "$PWD/tests/data" "$@"
}

# dpkg with this machine's tools and the root's files; scripts of packages obey DPKG_ROOT.
package() {
  fakeroot dpkg --root="$root" --force-architecture --force-depends --force-not-root --force-script-chrootless "$@"
}

listing() {
  (cd "$root" && find . -path ./proc -prune -o -path ./dev -prune -o -path ./tmp -prune -o -path ./home -prune \
    -o -path './var/lib/dpkg' -prune -o -path './var/log' -prune -o -print | sort)
}

with_version() { # VERSION
  rm -rf "$scratch/again"
  dpkg-deb --raw-extract "$deb" "$scratch/again"
  sed -i "s/^Version: .*/Version: $1/" "$scratch/again/DEBIAN/control"
  dpkg-deb --root-owner-group -Zgzip --build "$scratch/again" "$scratch/$1.deb" > /dev/null
}

version_there() { package --status watus-build 2> /dev/null | sed -n 's/^Version: //p'; }

try_doctor() {
  local code=0
  inside watus-build --version
  inside watus-build doctor > "$scratch/doctor" || code=$?
  # There is neither GPU nor JetPack; 8 says so.
  [ "$code" = 0 ] || [ "$code" = 8 ] || { cat "$scratch/doctor"; die "doctor ended with $code"; }
  grep -q '/usr/lib/watus-build/libonnxruntime.so.1.* verifies engines' "$scratch/doctor" ||
    { cat "$scratch/doctor"; die "the package's ONNX Runtime is not found"; }
  local fixture expected
  for fixture in tests/data/roots/*; do
    expected=tests/snapshots/cli__doctor-$(basename "$fixture").snap
    inside watus-build doctor --root "/data/roots/$(basename "$fixture")" > "$scratch/doctor" || true
    # A snapshot is a header between two `---` lines and then the text.
    awk 'dashes == 2 { print } /^---$/ { dashes++ }' "$expected" | diff - "$scratch/doctor"
  done
  inside sh -c 'watus-build recipe check /usr/share/watus-build/recipes/*.yaml' > "$scratch/recipes"
}

# The user's folder in the root: a language model and a classifier of a few kilobytes; nothing is fetched.
build_engines() { # FOLDER OF TENSORRT'S LIBRARIES
  mkdir -p "$root/opt/tensorrt" "$root/home/watus/engines"
  cp "$1"/*.so* "$root/opt/tensorrt/"
  cp tests/data/gguf/llama.gguf "$root/home/watus/"
  cp recipes/images/face.png "$root/home/watus/"
  printf 'version: 1\nname: resnet\nkind: classifier\nsource: { path: /data/vision/resnet }\n' > "$root/home/watus/resnet.yaml"
  printf 'version: 1\nname: tiny\nkind: llm\nsource: { path: llama.gguf }\nmax_input_len: 24\nmax_output_len: 16\n' > "$root/home/watus/tiny.yaml"
  inside env WATUS_TENSORRT_LIB=/opt/tensorrt watus-build build tiny.yaml resnet.yaml
  inside env WATUS_TENSORRT_LIB=/opt/tensorrt watus-build verify engines/tiny engines/resnet
}

answers() {
  inside watus-build inspect engines/resnet > /dev/null
  inside watus-build run --backend cpu engines/resnet face.png
  inside watus-build run --backend cpu engines/tiny --raw --json --max-tokens 8 ABC
}

# The server, asked once and told to end.
serve() {
  inside watus-build serve --backend cpu engines/tiny --port 0 2> "$scratch/log" &
  server=$!
  local address=''
  until [ -n "$address" ]; do
    sleep 0.5
    kill -0 "$server" 2> /dev/null || { cat "$scratch/log"; die "the server ended"; }
    address=$(grep -oE 'http://(127\.0\.0\.1|localhost):[0-9]+' "$scratch/log" | head -n 1) || address=
  done
  curl --silent --fail --retry 60 --retry-all-errors --retry-delay 1 "$address/health/ready" > /dev/null
  curl --silent --fail "$address/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model": "local-trt-llm", "prompt": "ABC", "max_tokens": 8}' | grep '"text"'
  # Told to the program itself, the last of those that started each other.
  local pid=$server below
  while below=$(pgrep --parent "$pid" --full 'serve --backend cpu' | head -n 1) && [ -n "$below" ]; do pid=$below; done
  kill -TERM "$pid"
  wait "$server" || die "the server did not end well: $(tail -n 3 "$scratch/log")"
  server=
}

life() { # what installing, upgrading and removing leave
  listing > "$scratch/before"
  package --install "$deb" | tee "$scratch/said"
  grep -q 'watus-build: has shims for TensorRT: .*rtx' "$scratch/said" || die "the package does not say its shims"
  local document link
  for document in README.md docs/package.md; do
    while IFS= read -r link; do
      [ -e "$root/usr/share/doc/watus-build/$(dirname "$document")/$link" ] || die "$document links to $link, which the package lacks"
    done < <(grep -oE '\]\([^)#:]+\)' "$root/usr/share/doc/watus-build/$document" | sed 's/^](//; s/)$//')
  done
}

end_of_life() {
  local now units=$root/etc/systemd/system
  now=$(version_there)
  with_version "$now+1"
  package --install "$scratch/$now+1.deb" > /dev/null
  [ "$(version_there)" = "$now+1" ] || die "the upgrade did not take"
  answers > /dev/null
  package --install "$deb" > /dev/null
  [ "$(version_there)" = "$now" ] || die "the roll back did not take"
  answers > /dev/null
  # Units of ours go along, others stay.
  mkdir -p "$units"
  # shellcheck disable=SC2016 # backquotes as they are in units
  printf '# Written by `watus-build service install`: x\n[Service]\nExecStart=/usr/bin/watus-build serve /x --port=1\n' > "$units/watus-build@x.service"
  printf '[Service]\nExecStart=/usr/bin/watus-build serve /y\n' > "$units/watus-build@mine.service"
  package --remove watus-build > /dev/null
  [ ! -e "$units/watus-build@x.service" ] || die "a unit of ours is left"
  [ -e "$units/watus-build@mine.service" ] || die "a unit that somebody else wrote is gone"
  rm "$units/watus-build@mine.service"
  package --purge watus-build > /dev/null 2>&1 || true
  rm -rf "$root/opt/tensorrt"
  listing > "$scratch/after"
  diff "$scratch/before" "$scratch/after" || die "the package leaves something behind"
  [ -d "$root/home/watus/engines/tiny" ] || die "the user's engines are gone"
}

command -v fakeroot > /dev/null || die "fakeroot is missing: sudo apt install fakeroot"
say "symbols of $deb"
symbols
# TensorRT-RTX for aarch64 asks for glibc 2.35, so engines are built on Debian 12 there and brought along.
if [ "$arch" = x86_64 ]; then suites=(bullseye); else suites=(bookworm bullseye); fi
libraries=$(dirname "$(scripts/setup-tensorrt.sh --all-headers --arch "$arch")")/lib
for suite in "${suites[@]}"; do
  fresh_root "$suite"
  say "$suite: install, doctor, recipes"
  life
  try_doctor
  say "$suite: engines, answers, server"
  if [ "$suite" = "${suites[0]}" ]; then
    build_engines "$libraries"
    cp -a "$root/home/watus" "$scratch/built"
  else
    rm -rf "$root/home/watus"; cp -a "$scratch/built" "$root/home/watus"
  fi
  answers
  serve
  say "$suite: upgrade, roll back, remove"
  end_of_life
done
echo "ok: $deb"
