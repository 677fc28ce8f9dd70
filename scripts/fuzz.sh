#!/usr/bin/env bash
# Fuzzes what is read from files and the network. usage: scripts/fuzz.sh [SECONDS [TARGET…]]     needs: cargo install cargo-fuzz
#
# SECONDS are each target's (900); without names all of fuzz/fuzz_targets run, FUZZ_PARALLEL (2) at a time. Inputs begin with
# fuzz/seeds and the tests' data; what is found is kept in target/fuzz/corpus, what fails in target/fuzz/artifacts. Prints a
# line for each target, and ends with 1 if any crashed, took more than 10 s or more than 2 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-900}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { sed -n 2p "$0" >&2; exit 2; }
targets=("${@:2}")
known=$(cd fuzz/fuzz_targets && echo *.rs)
[ ${#targets[@]} -gt 0 ] || read -ra targets <<< "${known//.rs/}"
for target in "${targets[@]}"; do
  [ -f "fuzz/fuzz_targets/$target.rs" ] || { echo "no target $target; there are: ${known//.rs/}" >&2; exit 2; }
done

# cargo-fuzz wants unstable compiler flags; RUSTC_BOOTSTRAP gives them on the stable toolchain.
export RUSTC_BOOTSTRAP=1 WATUS_TENSORRT_INCLUDE=
# Targets write a file for each input: in memory, where that can be.
[ -n "${TMPDIR:-}" ] || { [ -w /dev/shm ] && TMPDIR=/dev/shm; } || TMPDIR=/tmp
TMPDIR=$(mktemp -d "$TMPDIR/watus-fuzz.XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
host=$(rustc -vV | sed -n 's/^host: //p')
build=$PWD/fuzz/target
compile() { cargo fuzz build --sanitizer none --target "$host" --target-dir "$build" "$@"; }
if [ $# -le 1 ]; then compile; else for target in "${targets[@]}"; do compile "$target"; done; fi

work=$PWD/${CARGO_TARGET_DIR:-target}/fuzz
[[ ${CARGO_TARGET_DIR:-} != /* ]] || work=$CARGO_TARGET_DIR/fuzz
python3 fuzz/seed.py "$work/seeds"

# The largest input worth its time.
longest() {
  case $1 in
    gguf | pickle) echo 100000 ;;
    safetensors) echo 30000 ;;
    onnx | chat | recipe) echo 8192 ;;
    schema | template | head) echo 4096 ;;
    *) echo 512 ;;
  esac
}

failures() { find "$work/artifacts/$1" -type f -name "$2-*" -newer "$work/$1.begin" | wc -l; }

fuzz() {
  local target=$1 log=$work/$1.log status=0 options=()
  mkdir -p "$work/corpus/$target" "$work/artifacts/$target"
  touch "$work/$target.begin"
  [ ! -f "fuzz/dictionaries/$target.dict" ] || options+=("-dict=fuzz/dictionaries/$target.dict")
  local folders=("$work/corpus/$target")
  for folder in "fuzz/seeds/$target" "$work/seeds/$target"; do
    [ ! -d "$folder" ] || folders+=("$folder")
  done
  "$build/$host/release/$target" "${folders[@]}" "${options[@]}" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len="$(longest "$target")" -artifact_prefix="$work/artifacts/$target/" -print_final_stats=1 > "$log" 2>&1 || status=$?
  stat() { sed -n "s/^stat::$1: *//p" "$log" | tail -n 1; }
  local crashes timeouts memory
  crashes=$(failures "$target" crash) timeouts=$(failures "$target" timeout) memory=$(failures "$target" oom)
  printf '%-12s %9s runs %7s/s  corpus %5s  peak %5s MB  slowest %3s s  crashes %s  timeouts %s  out of memory %s\n' "$target" \
    "$(stat number_of_executed_units)" "$(stat average_exec_per_sec)" "$(find "$work/corpus/$target" -type f | wc -l)" \
    "$(stat peak_rss_mb)" "$(stat slowest_unit_time_sec)" "$crashes" "$timeouts" "$memory"
  # A target that did not even run has no artifact.
  if [ "$status" -ne 0 ]; then
    touch "$work/failed"
    echo "$target ended with $status; its log is $log, its inputs are in $work/artifacts/$target" >&2
    grep -m 3 -E 'panicked at|^==.*ERROR|memory allocation of' -A 2 "$log" >&2 || tail -n 5 "$log" >&2
  fi
}

rm -f "$work/failed"
for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "${FUZZ_PARALLEL:-2}" ]; do wait -n || true; done
  fuzz "$target" &
done
wait
[ ! -e "$work/failed" ]
