# vmfabric: make demo shows it, make test tries it, make help lists the rest.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
DESTDIR  ?=
PREFIX   ?= /usr/local
TOOLS    := $(CURDIR)/.cache/tools

# Static binaries: one build runs on every distribution of the architecture.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help build demo deps test unit race lint bench fuzz install clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

build: ## build bin/vmfabric, and the hooks and plugins beside it
	$(BUILD) -o bin/vmfabric ./cmd/vmfabric
	$(BUILD) -o bin/vmfabric-hook-libvirt ./hooks/libvirt
	$(BUILD) -o bin/vmfabric-hook-lxd ./hooks/lxd
	$(BUILD) -o bin/vmfabric-plugin-bird ./plugins/bird
	$(BUILD) -o bin/vmfabric-plugin-frr ./plugins/frr

demo: build ## show the whole system; nothing but Go, make and a kernel
	bin/vmfabric demo

deps: ## install what the tests need (Debian, Ubuntu), and fetch their guests' kernel
	@./.ci/deps
	@test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || $(GO) run ./testenv/prepare

# Programs of the race detector sleep for a second when they end. The labs wait
# more than they work, so a few run at a time.
test: deps ## install what is needed, then run every test with the race detector
	@test "$$(id -u)" = 0 || echo "make test: not root, tests that need real daemons are skipped" >&2
	VMFABRIC_LAB=$${VMFABRIC_LAB:-$$(test "$$(id -u)" = 0 && echo must)} GORACE=atexit_sleep_ms=0 \
		$(GO) test -race -count=1 -parallel 3 -timeout 24m ./...

unit: ## run the tests that need no daemon and no root
	$(GO) test -short ./fabric/ ./fabric/clusterfile ./fabric/disk ./fabric/gobgp ./fabric/nodes ./fabric/libvirt/... ./fabric/lxd ./hooks/... ./internal/render ./cmd/...

# Modules that only tidying reads may be out of reach: that is said, not taken for
# an untidy go.mod.
lint: $(TOOLS) ## gofumpt, go vet, staticcheck
	@out="$$($(TOOLS)/gofumpt -l .)"; test -z "$$out" || { echo "not gofumpt-ed:"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(TOOLS)/staticcheck ./...
	@! $(GO) list -f '{{if .CgoFiles}}{{.ImportPath}}{{end}}' ./... | grep . || { echo "cgo has no place here"; exit 1; }
	@diff="$$($(GO) mod tidy -diff 2>.cache/tidy.err)" && exit 0; \
		test -z "$$diff" || { echo "$$diff"; echo "go.mod is not tidy: go mod tidy"; exit 1; }; \
		grep -q 'dial tcp' .cache/tidy.err || { cat .cache/tidy.err; exit 1; }; \
		echo "go.mod not checked for tidiness: the module proxy is out of reach" >&2

bench: ## measure, and write docs/performance.md (root)
	$(GO) run ./internal/bench --out docs/performance.md

FUZZTIME ?= 20s
fuzz: ## run each fuzz target for FUZZTIME
	@$(GO) list ./... | while read -r p; do \
		for f in $$($(GO) test -list '^Fuzz' $$p 2>/dev/null | grep '^Fuzz'); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
		done; done

install: build ## install the program, the hooks, the plugins and the units below DESTDIR
	install -D -m 755 bin/vmfabric $(DESTDIR)$(PREFIX)/sbin/vmfabric
	install -D -m 755 bin/vmfabric-hook-libvirt $(DESTDIR)/etc/libvirt/hooks/qemu.d/vmfabric
	install -D -m 755 bin/vmfabric-hook-lxd $(DESTDIR)$(PREFIX)/lib/vmfabric/hook-lxd
	install -D -m 755 bin/vmfabric-plugin-bird $(DESTDIR)$(PREFIX)/lib/vmfabric/plugin-bird
	install -D -m 755 bin/vmfabric-plugin-frr $(DESTDIR)$(PREFIX)/lib/vmfabric/plugin-frr
	install -D -m 644 packaging/vmfabric.service $(DESTDIR)/etc/systemd/system/vmfabric.service
	install -D -m 644 packaging/vmfabric-reflector@.service $(DESTDIR)/etc/systemd/system/vmfabric-reflector@.service
	install -D -m 644 packaging/90-vmfabric.conf $(DESTDIR)/etc/sysctl.d/90-vmfabric.conf

clean: ## remove what was built
	rm -rf bin .cache

# A module of their own holds the tools at a version, with their checksums.
$(TOOLS): .ci/tools/go.mod .ci/tools/go.sum
	CGO_ENABLED=0 $(GO) -C .ci/tools build -o $@/ tool
	@touch $@
