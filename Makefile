# The two commands of the README, and what developers run by hand. CI runs `make test` and `make demo`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# What clang-format formats, by .clang-format.
C_SOURCES := cpp/include/*.h cpp/src/*.cc cpp/src/*.h cpp/stub/* benches/*.cu \
  src/cuda_executor/*.cu src/cuda_executor/decode_kernel/*.cu src/cuda_executor/decode_kernel/tests/*.h src/cuda_executor/decode_kernel/tests/*.cc
# Of the demo's program; `make demo PROFILE=dev` takes what the tests have compiled.
PROFILE ?= release
BINARY := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/watus-build
DATA := $(or $(XDG_DATA_HOME),$(HOME)/.local/share)/watus-build
.PHONY: demo test check-headers check-features bench fuzz fmt deny spelling package package-test aarch64 aarch64-test
export HEADERS

# Everything from nothing: TensorRT, the tool, a chat model, a detector and two face classifiers as engines, and their answers.
demo:
	scripts/setup-tensorrt.sh > /dev/null
	scripts/setup-onnxruntime.sh > /dev/null
	cargo build --profile $(PROFILE) --quiet
	WATUS_BUILD=$(BINARY) scripts/demo.sh

# Format, lints (with and without TensorRT's headers, and without features), documentation, tests, the shim against every header
# set.
test:
	scripts/setup-tensorrt.sh --all-headers > /dev/null
	scripts/setup-onnxruntime.sh > /dev/null
	scripts/setup-oracles.sh > /dev/null
	cargo fmt --all --check
	"$$(dirname "$$(scripts/setup-oracles.sh)")/clang-format" --dry-run --Werror $(C_SOURCES)
	WATUS_TENSORRT_INCLUDE= cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	scripts/check-features.sh none
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items
	scripts/build-shims.sh target/shims trt11="$(DATA)/headers-0.9.1/TRT-Enterprise-11.4"
	python="$$(scripts/setup-oracles.sh)"; \
	  nvidia="$$(echo "$${python%/bin/*}"/lib/python3*/site-packages/nvidia)"; \
	  export LD_LIBRARY_PATH="$$nvidia/cuda_nvrtc/lib:$${LD_LIBRARY_PATH:-}"; \
	  export WATUS_TEST_NVRTC="$$nvidia/cuda_nvrtc/lib/libnvrtc.so.11.2:$$nvidia/cuda_nvrtc/lib/libnvrtc.so.12:$$nvidia/cu13/lib/libnvrtc.so.13"; \
	  WATUS_TEST_SHIMS=$$PWD/target/shims WATUS_ORACLE_PYTHON="$$python" cargo test --no-fail-fast
	scripts/check-headers.sh

check-headers:
	scripts/check-headers.sh

# Every useful set of cargo features compiles without warnings and brings no crate of another.
check-features:
	scripts/check-features.sh

# The CPU reference against onnxruntime, on the demo's models and a YOLOv8n.
bench: demo
	cargo run --release --quiet --example yolo_engine -- engines
	"$$(scripts/setup-oracles.sh)" benches/cpu_vs_onnxruntime.py --watus $(BINARY) engines/gender/model.onnx engines/age/model.onnx \
	  engines/yolov8n.onnx

# Anything at all for whatever reads files or requests, 15 minutes a target, two at a time (needs `cargo install cargo-fuzz`).
fuzz:
	scripts/fuzz.sh 900

# Advisories (RUSTSEC), licences and sources of every crate, by deny.toml (needs `cargo install cargo-deny`). Where the database of
# advisories cannot be had: make deny DENY="bans licenses sources"
DENY ?= advisories bans licenses sources
deny:
	cargo deny --workspace check $(DENY)

# Misspelt words (needs `pip install typos`).
spelling:
	typos

fmt:
	cargo fmt --all
	"$$(dirname "$$(scripts/setup-oracles.sh)")/clang-format" -i $(C_SOURCES)

# A .deb and a tarball for glibc 2.31 and later (JetPack 5.1 to 7), for either architecture from either, in target/package:
#   make package ARCH=aarch64 HEADERS="trt8=/headers/of/TensorRT-8.5"
# and what they do in a clean root of that glibc, aarch64's under qemu.
ARCH ?= $(shell uname -m)
package:
	scripts/package.sh "$(ARCH)"
package-test:
	scripts/package-test.sh "$(ARCH)"
# The robot's.
aarch64:
	scripts/package.sh aarch64
aarch64-test:
	scripts/package-test.sh aarch64
