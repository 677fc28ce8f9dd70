#!/usr/bin/env bash
# Builds a shim for each set of TensorRT headers: libwatus_shim-NAME.so, which the program finds beside itself, in
# ../lib/watus-build or in the folder WATUS_SHIMS names.
#
# usage: scripts/build-shims.sh OUT NAME=FOLDER...
#   e.g. scripts/build-shims.sh target/shims trt8=/usr/include/aarch64-linux-gnu rtx=~/TensorRT-RTX/include
#   TARGET=aarch64-unknown-linux-gnu.2.31 cross-builds with cargo-zigbuild (pip install cargo-zigbuild ziglang).
#
# FOLDER has NvInfer.h and NvOnnxParser.h. A shim of TensorRT N.M's headers opens N.M and later of that major: those of 8.5 and
# 10.3 serve JetPack 5.1 to 7.2. TensorRT-RTX's fit their own minor version alone.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1; shift
mkdir -p "$out"; out=$(realpath "$out")
cd "$(dirname "$0")/.."
folder=${CARGO_TARGET_DIR:-target}/shims-build
if [ -n "${TARGET:-}" ]; then
  build=(cargo zigbuild --target "$TARGET"); made=$folder/${TARGET%%.*}/release
  link=(python3 -m ziglang c++ -target "${TARGET/-unknown/}")
else
  build=(cargo build); made=$folder/release
  link=("${CXX:-c++}")
fi
mkdir -p "$folder"
echo '{ global: watus_shim; local: *; };' > "$folder/shim.map"
for set in "$@"; do
  name=${set%%=*}; headers=${set#*=}
  for file in NvInfer.h NvOnnxParser.h; do
    [ -f "$headers/$file" ] || { echo "$headers: no $file" >&2; exit 1; }
  done
  WATUS_TENSORRT_INCLUDE=$(realpath "$headers") CARGO_TARGET_DIR=$folder \
    "${build[@]}" --quiet --release --locked -p watus-shim-shared
  # Stripped by the linker: `strip` knows this machine's files alone.
  "${link[@]}" -shared -o "$out/libwatus_shim-$name.so.new" -Wl,--version-script="$folder/shim.map" -Wl,-u,watus_shim \
    -Wl,--gc-sections -Wl,-s "$made/libwatus_shim_shared.a" -lpthread -ldl -lm
  # What is seen outside could be taken for another shim's. objdump reads every architecture's symbols.
  seen=$(objdump -T "$out/libwatus_shim-$name.so.new" | awk '$2 ~ /^[gwu]/ && !/\*UND\*/ { print $NF }')
  [ "$seen" = watus_shim ] ||
    { rm "$out/libwatus_shim-$name.so.new"; echo "the shim of $headers shows more than its table: $seen" >&2; exit 1; }
  mv "$out/libwatus_shim-$name.so.new" "$out/libwatus_shim-$name.so"
  echo "$out/libwatus_shim-$name.so"
done
