#!/usr/bin/env bash
# Compiles the library with each set of cargo features that is of use, warnings and lints being errors, and looks that none brings
# a crate that belongs to another.
#
# usage: scripts/check-features.sh [SET...]
#   A set is `none`, `default`, or names with commas between them, e.g. `fetch,serve`. Without any: none, each feature alone, and
#   default. `none` compiles the tests, benches and examples too that need no feature.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -gt 0 ] || set -- none charts fetch serve default

# Crates that one feature alone may bring; `cli` brings the other three. (hf-hub brings indicatif.)
charts='plotters'
fetch='globset hf-hub indicatif rustls schemars serde_norway sha1 ureq which'
serve='axum hyper hyper-util nvml-wrapper prometheus-client sd-notify tokio tokio-io-timeout tower tower-http'
cli='clap clap_complete clap_mangen ctrlc tracing-subscriber'

# Names and versions of the crates that a set compiles.
crates() {
  cargo tree --quiet --edges normal --prefix none --format '{p}' "$@" | cut -d ' ' -f 1,2 | sort -u
}

for set in "$@"; do
  flags=(--no-default-features --features "$set")
  targets=(--lib)
  case $set in
    none) flags=(--no-default-features) targets=(--all-targets) ;;
    default) flags=() targets=(--lib --bins) ;;
  esac
  brought=$(crates "${flags[@]}")
  for feature in charts fetch serve cli; do
    case ,$set, in *,"$feature",* | *,default,* | *,cli,*) continue ;; esac
    for crate in ${!feature}; do
      if grep -q "^$crate v" <<< "$brought"; then
        echo "FAIL $set: it brings $crate, which is for \`$feature\`" >&2
        exit 1
      fi
    done
  done
  # Its crates are those of any other `cargo clippy`, which `cargo check` with `-D warnings` would compile anew.
  cargo clippy --quiet "${targets[@]}" "${flags[@]}" -- -D warnings
  echo "ok   $set: $(wc -l <<< "$brought") crates"
done
