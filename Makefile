# The one door to the project. Everything works from a fresh clone on Debian with Rust; what is missing is installed, and
# named when it is.
#
#   make demo     build the release binary, then the services of examples/shop, and run them
#   make test     every test: the crates, the command line, the conformance with BuildKit
#   make conformance   compare with BuildKit; writes docs/conformance.md when all is equal
#   make check    formatting, lints, documentation, dependencies
#   make fuzz     the parser, expansion and ignore files with random input, FUZZ_SECONDS each
#   make bench    compare with BuildKit, docker, skopeo, buildah and podman; writes docs/benchmarks.md
#   make bench-growth, bench-micro   the same at 500,000 files; the parts of a build by themselves
#   make dist     a static binary in dist/
#   make peers    install and start the builders that tests compare with (`make peers-stop` ends them)
#   make clean    remove what was built

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build demo test conformance packages test-crates test-whole check deny fuzz bench bench-growth bench-micro dist peers peers-stop clean

TRIPLE := $(shell uname -m)-unknown-linux-gnu
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET_DIR)/$(TRIPLE)/release/build-engine
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# nextest runs tests of all programs side by side; plain cargo does without it.
HAVE_NEXTEST := $(shell cargo nextest --version > /dev/null 2>&1 && echo yes)
TEST := $(if $(HAVE_NEXTEST),nextest run,test)

help:
	@sed -n 's/^#   //p' Makefile

# A C compiler is all that the crates need besides Rust.
build:
	@command -v cc > /dev/null || { echo "installing with apt: gcc libc6-dev"; \
	  $(AS_ROOT) apt-get -qq update && $(AS_ROOT) apt-get -qq install -y --no-install-recommends gcc libc6-dev; }
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --target $(TRIPLE) -p build-engine-cli

demo: build
	examples/shop/demo.sh $(BINARY)

test: test-crates test-whole

# Packages that tests need or compare with; quick when they are there.
packages:
	$(AS_ROOT) testkit/peers.sh install

test-crates: packages
	cargo $(TEST) --locked --workspace --exclude build-engine-tests

# Plain `cargo test`: the cases of the conformance suite share an engine, a store and a base within one process.
# The peers are stopped again only if this run has started them.
test-whole: packages build
	running=0; testkit/peers.sh running || running=$$?; \
	status=0; \
	$(AS_ROOT) testkit/peers.sh start && \
	  BUILD_ENGINE_BIN=$$(realpath $(BINARY)) cargo test --locked --no-fail-fast -p build-engine-tests || status=$$?; \
	[ $$running = 0 ] || $(AS_ROOT) testkit/peers.sh stop; \
	exit $$status

conformance: packages build
	running=0; testkit/peers.sh running || running=$$?; \
	status=0; \
	$(AS_ROOT) testkit/peers.sh start && BUILD_ENGINE_CONFORMANCE=write \
	  BUILD_ENGINE_BIN=$$(realpath $(BINARY)) cargo test --locked -p build-engine-tests --test conformance || status=$$?; \
	[ $$running = 0 ] || $(AS_ROOT) testkit/peers.sh stop; \
	exit $$status

check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items
	$(MAKE) deny

deny:
	@command -v cargo-deny > /dev/null || { echo "installing cargo-deny from crates.io"; cargo install --locked --quiet cargo-deny; }
	cargo deny --locked check bans licenses sources

# libFuzzer on stable Rust: coverage comes from a pass of LLVM's, which needs no sanitizer of a nightly compiler.
FUZZ_TARGETS ?= parse expand ignore
FUZZ_SECONDS ?= 60
FUZZ_DIR := $(abspath $(TARGET_DIR))/fuzz
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing

fuzz:
	@command -v c++ > /dev/null || { echo "installing with apt: g++"; \
	  $(AS_ROOT) apt-get -qq update && $(AS_ROOT) apt-get -qq install -y --no-install-recommends g++; }
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --release --locked --manifest-path fuzz/Cargo.toml --target $(TRIPLE) --target-dir $(FUZZ_DIR)
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(FUZZ_DIR)/$$target/corpus; \
	  $(FUZZ_DIR)/$(TRIPLE)/release/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	    -artifact_prefix=$(FUZZ_DIR)/$$target/ $(FUZZ_DIR)/$$target/corpus fuzz/seeds/$$target; \
	done

bench: packages build
	$(AS_ROOT) testkit/peers.sh start
	cargo run --release --locked -p build-engine-bench -- --binary $(BINARY) --merge --write

# What grows to half a million files. Takes long.
bench-growth: packages build
	$(AS_ROOT) testkit/peers.sh start
	cargo run --release --locked -p build-engine-bench -- --binary $(BINARY) --growth --merge --write

# The parts of a build by themselves.
bench-micro:
	cargo bench --locked -p build-engine-bench

dist: build
	mkdir -p dist
	cp $(BINARY) dist/build-engine-$(shell uname -m)-linux
	cd dist && sha256sum build-engine-* > SHA256SUMS
	@file dist/build-engine-* 2> /dev/null || ls -l dist

peers: packages
	$(AS_ROOT) testkit/peers.sh start
	testkit/peers.sh env

peers-stop:
	$(AS_ROOT) testkit/peers.sh stop

clean:
	[ ! -e target/peers ] || $(AS_ROOT) testkit/peers.sh stop
	cargo clean
	rm -rf dist
