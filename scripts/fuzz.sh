#!/usr/bin/env bash
# Fuzzes the checkpoint reader and converter. usage: scripts/fuzz.sh [SECONDS]     needs: cargo install cargo-fuzz
# cargo-fuzz wants unstable compiler flags; RUSTC_BOOTSTRAP gives them on the stable toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=fuzz/corpus/checkpoint
mkdir -p "$corpus"
for file in tests/data/vision/*.pt; do
  python3 - "$file" "$corpus/$(basename "$file" .pt)" <<'P'
import sys, zipfile
archive = zipfile.ZipFile(sys.argv[1])
open(sys.argv[2], "wb").write(archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
P
done
export RUSTC_BOOTSTRAP=1 WATUS_TENSORRT_INCLUDE=/none TMPDIR=${TMPDIR:-/dev/shm}
exec cargo fuzz run --sanitizer none checkpoint -- -max_total_time="${1:-600}" -max_len=100000 -timeout=20
