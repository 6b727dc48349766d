# vmfabric: make demo shows it, make test tries it, make help lists the rest.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
DESTDIR  ?=
PREFIX   ?= /usr/local
BIN      ?= bin
SYSCTL   ?= sysctl
TOOLS    := $(CURDIR)/.cache/tools
NFPM     := $(CURDIR)/.cache/nfpm

# Static binaries: one build runs on every distribution of the architecture.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help packages packages-check guests faults histories simulate fresh soak endure mutants build demo deps test e2e lab race unit lint bench crowd fuzz install clean incus versions vmtest kerneltest

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

build: ## build bin/vmfabric, and the hooks and plugins beside it
	$(BUILD) -o $(BIN)/vmfabric ./cmd/vmfabric
	$(BUILD) -o $(BIN)/vmfabric-hook-libvirt ./hooks/libvirt
	$(BUILD) -o $(BIN)/vmfabric-hook-lxd ./hooks/lxd
	$(BUILD) -o $(BIN)/vmfabric-plugin-bird ./plugins/bird
	$(BUILD) -o $(BIN)/vmfabric-plugin-frr ./plugins/frr

demo: build ## show the whole system; nothing but Go, make and a kernel
	$(BIN)/vmfabric demo

deps: ## install what the tests need (Debian, Ubuntu), and fetch their guests' kernel
	@./.ci/deps
	@test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || $(GO) run ./testenv/prepare

# Programs of the race detector sleep for a second when they end. The labs wait
# more than they work, so a few run at a time, of two packages or as many as the
# second argument says; fewer while the machine is busy (testenv/labtest). They have
# real daemons in them, on machines that are busy: a test that failed is run once
# more by itself, and the summary names it. A data race fails at once. To vet is a
# part of lint.
GOTEST = VMFABRIC_LAB=$${VMFABRIC_LAB:-$$(test "$$(id -u)" = 0 && echo must)} GORACE=atexit_sleep_ms=0 \
	$(TOOLS)/gotestsum --format pkgname --hide-summary skipped --rerun-fails=$(RERUNS) --rerun-fails-max-failures 5 \
		--rerun-fails-run-root-test --rerun-fails-abort-on-data-race --packages "$(1)" -- \
		-count=1 -vet=off -parallel 3 -p $(or $(2),2) -timeout 45m
RERUNS ?= 1

# Those that start whole clusters of processes, which the race detector sees
# nothing of. Those of the built program take as long as all others.
WHOLE  = ./internal/e2e
LABS   = ./internal/bench ./testenv/lab/...
# GoBGP v4.8.0 races with itself: it sets the time of a path, to count what a peer
# was sent, that it reads for whoever watches the best paths. And the servers of one
# process, as tests have them, share settings, which each sets when it starts.
RACY   = ./fabric/gobgp/...
OTHERS = $$($(GO) list ./... | grep -vE '/(internal/(e2e|bench)|testenv/lab/[a-z]*|fabric/gobgp(/.*)?)$$')

test: deps $(TOOLS) ## install what is needed, then run every test; the race detector looks at most
	@test "$$(id -u)" = 0 || echo "make test: not root, tests that need real daemons are skipped" >&2
	@$(MAKE) --no-print-directory -k -j3 e2e lab $(BESIDE)

e2e: $(TOOLS) ## run the tests that start whole clusters of the built program
	$(call GOTEST,$(WHOLE))

lab: $(TOOLS) ## run all others, most with the race detector
	red=; $(call GOTEST,$(OTHERS)) -race || red=1; \
	$(call GOTEST,$(LABS) $(RACY),3) || red=1; test -z "$$red"

race: deps $(TOOLS) ## run every test but those of GoBGP with the race detector
	$(call GOTEST,$(WHOLE) $(LABS) $(OTHERS)) -race

unit: ## run the tests that need no daemon, no root and no namespace
	$(GO) test -short ./...

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

SEEDS ?= 200
FROM  ?= 0
simulate: ## run SEEDS histories of a simulated cluster from seed FROM (0: fresh ones)
	$(GO) test ./internal/simulate -count=1 -run '^TestSimulate$$' -timeout 0 -v -seeds $(SEEDS) -from $(FROM)

BUDGET ?= 20s
fresh: ## run histories of a simulated cluster from fresh seeds for BUDGET
	$(GO) test ./internal/simulate -count=1 -run '^TestFresh$$' -timeout 10m -v -budget $(BUDGET)

DAYS ?= 30
soak: ## run histories of a simulated cluster for DAYS of its time, from seed FROM (0: fresh ones)
	$(GO) test ./internal/simulate -count=1 -run '^TestSoak$$' -timeout 0 -v -days $(DAYS) -from $(FROM)

RATE ?= 1ms
endure: LENGTH = 1h
endure: ## have three nodes of real parts endure faults for LENGTH, from seed FROM (0: a fresh one), guests probed each RATE (root)
	VMFABRIC_LAB=must $(GO) test ./internal/e2e -count=1 -run '^TestEndure$$' -timeout 0 -v -endure $(LENGTH) -from $(FROM) -rate $(RATE)

HISTORIES ?= 400
mutants: ## look for faults that are put into the code on purpose, in at most HISTORIES each
	$(GO) test ./internal/simulate -count=1 -run '^TestMutants$$' -timeout 0 -v -mutants $(HISTORIES)

LENGTH ?= 60s
COUNT  ?= 4
histories: ## check COUNT histories of the registry in etcd under faults, each of LENGTH, and its mutants (root)
	VMFABRIC_LAB=must $(GO) test ./internal/histories -count=1 -run '^Test(LongHistories|Mutants)$$' -timeout 0 -v -histories $(COUNT) -length $(LENGTH) -from $(FROM) -mutants

FAULT ?= ^Test(FaultsOf.*|StoppedForLong)$$
faults: deps ## make the faults of docs/reliability.md as they are there, or those of the tests FAULT, and keep the figures (root)
	VMFABRIC_LAB=must $(GO) test ./internal/e2e -count=1 -parallel 1 -run '$(FAULT)' -timeout 0 -v -faults -figures $(CURDIR)/testenv/faults/figures.tsv
	$(GO) test ./testenv/faults -count=1 -run '^TestDocumentation$$' -update

# Clients that are tried by nothing else come in here, and not with deps.
CLIENT ?= .*
guests: deps ## try what guests of Debian 11, 12 and 13 configure themselves with, and print the table of docs/guests.md (root)
	@./.ci/deps mmdebstrap ipxe
	$(GO) run ./testenv/prepare -clients
	VMFABRIC_LAB=must $(GO) test ./internal/e2e -count=1 -run '^(TestClient(s|sWithoutAnAgent|Firmware|Initramfs|InContainer|InDebianContainer|OfTheReadme)|TestLeaseOfAnInstance)$$/./$(CLIENT)' -timeout 0 -v -clients

# The root of a Debian 13, 300 MB, whose Incus the tests of LXD take in the place of LXD.
INCUS ?= $(CURDIR)/.cache/incus
incus: deps ## try Incus of Debian 13 in the place of LXD, in all of LXD's tests (root)
	@./.ci/deps mmdebstrap
	test -x $(INCUS)/usr/libexec/incus/incusd || mmdebstrap --quiet --variant=apt --include=incus,iproute2,iputils-ping,kmod,nftables,procps trixie $(INCUS)
	VMFABRIC_LAB=must VMFABRIC_LAB_INCUS=$(INCUS) $(GO) test ./fabric/lxd ./internal/e2e -count=1 -timeout 0 -v \
		-run '^Test(Real.*|LifeOfAnInstance|CopyOfAnInstance|LeaseOfAnInstance|PhysicalNIC|LXDAndAgentComeAndGo|HookOfLXD|HookForAll|Projects|ManyInstances|MovesOfMembers|MovesOfInstances|InstancesMove|MembersOfACluster|KVMAndLXDOnTheSameFabric)$$'

# Programs of another release of Debian, 400 MB, have the place of the machine's own; bullseye,
# here and trixie are an upgrade from Debian 11 over this machine's to 13.
RELEASES ?= bullseye,here,trixie
versions: deps ## try libvirt, QEMU, BIRD and FRR of RELEASES of Debian, and live moves from each to the next (root)
	@./.ci/deps mmdebstrap
	$(GO) run ./testenv/prepare
	$(GO) run ./testenv/versions -releases $(RELEASES)

# A machine is made from Debian's packages, two minutes each, and kept. The packages to
# upgrade to have the same programs, and a version that is higher.
SUITE ?= bookworm
vmtest: DIST = dist/vmtest
vmtest: deps ## follow README.md on emulated machines with Debian SUITE, such as bullseye,bookworm,trixie (root)
	@./.ci/deps mmdebstrap
	rm -rf $(DIST)
	@$(MAKE) --no-print-directory packages DIST=$(DIST)
	VERSION=1000 NFPM=$(NFPM)/nfpm packaging/packages/build $(abspath $(BIN)) $(abspath $(DIST))/next
	$(GO) run ./testenv/prepare -machines $(SUITE)
	VMFABRIC_LAB=must $(GO) test ./internal/e2e -count=1 -run '^TestRealNode$$' -timeout 0 -v -machines $(SUITE) -packages $(abspath $(DIST))

KERNELS ?= bullseye,trixie
kerneltest: ## boot the kernels of Debian KERNELS, with vmfabric demo and tests of fabric/kernel inside (root)
	@./.ci/deps mmdebstrap
	$(GO) run ./testenv/prepare -machines $(KERNELS)
	VMFABRIC_LAB=must $(GO) test ./internal/e2e -count=1 -run '^TestBootedKernels$$' -timeout 0 -v -kernels $(KERNELS)

bench: ## measure, and write docs/performance.md (root)
	$(GO) run ./internal/bench --out docs/performance.md

NODES     ?= 10,1000
ADDRESSES ?= 100000
COPIES    ?= 50
crowd: ## measure an etcd of three members with ADDRESSES and with NODES that start at once, COPIES of them with all that an agent keeps (root)
	$(GO) run ./internal/bench --only crowd --nodes $(NODES) --addresses $(ADDRESSES) --copies $(COPIES)

FUZZTIME ?= 20s
fuzz: ## run each fuzz target for FUZZTIME
	@$(GO) list ./... | while read -r p; do \
		for f in $$($(GO) test -list '^Fuzz' $$p 2>/dev/null | grep '^Fuzz'); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$p || exit 1; \
		done; done

INSTALLED = $(addprefix $(BIN)/,vmfabric vmfabric-hook-libvirt vmfabric-hook-lxd vmfabric-plugin-bird vmfabric-plugin-frr)

SOURCES   = go.mod go.sum cmd fabric hooks internal packaging plugins testenv

# What is newer than its sources is installed as it is, and what is not where there
# is no Go: a node needs none, and root's PATH may have none.
.PHONY: built
built:
	@why=; for p in $(INSTALLED); do \
		test -f "$$p" || { why="$$p is not built"; break; }; \
		test -z "$$(find $(SOURCES) \( -name '*.go' ! -name '*_test.go' -o -name '*.tmpl' -o -name '90-vmfabric.conf' -o -name 'go.*' \) -newer "$$p" 2>/dev/null | head -n 1)" || why="$$p is older than its sources"; \
	done; \
	if test -z "$$why"; then exit 0; fi; \
	if command -v $(GO) >/dev/null; then echo "make install: $$why: make build"; $(MAKE) --no-print-directory build; exit; fi; \
	case "$$why" in \
	*'is not built') echo "make install: $$why, and there is no Go here; run make build where there is, and copy $(BIN)/" >&2; exit 1;; \
	*) echo "make install: $$why, and there is no Go here: it is installed as it is; run make build where there is to have what is new" >&2;; \
	esac

install: built ## install the program, the hooks, the plugins and the units below DESTDIR
	install -D -m 755 $(BIN)/vmfabric $(DESTDIR)$(PREFIX)/sbin/vmfabric
	install -D -m 755 $(BIN)/vmfabric-hook-libvirt $(DESTDIR)/etc/libvirt/hooks/qemu.d/vmfabric
	install -D -m 755 $(BIN)/vmfabric-hook-lxd $(DESTDIR)$(PREFIX)/lib/vmfabric/hook-lxd
	install -D -m 755 $(BIN)/vmfabric-plugin-bird $(DESTDIR)$(PREFIX)/lib/vmfabric/plugin-bird
	install -D -m 755 $(BIN)/vmfabric-plugin-frr $(DESTDIR)$(PREFIX)/lib/vmfabric/plugin-frr
	install -D -m 644 packaging/vmfabric.service $(DESTDIR)/etc/systemd/system/vmfabric.service
	install -D -m 644 packaging/vmfabric-reflector@.service $(DESTDIR)/etc/systemd/system/vmfabric-reflector@.service
	install -D -m 644 packaging/90-vmfabric.conf $(DESTDIR)/etc/sysctl.d/90-vmfabric.conf
	@echo "installed below $(or $(DESTDIR),/): $$($(BIN)/vmfabric version 2>/dev/null || echo 'vmfabric, for another machine')"
	@test -n "$(DESTDIR)" || $(SYSCTL) -q -p /etc/sysctl.d/90-vmfabric.conf || \
		echo "make install: the settings of /etc/sysctl.d/90-vmfabric.conf count from the next boot on, or after sysctl -p of it" >&2

DIST ?= dist
packages: build $(NFPM) ## build the deb and rpm packages into dist
	NFPM=$(NFPM)/nfpm packaging/packages/build $(abspath $(BIN)) $(abspath $(DIST))
	@ls -1 $(DIST)

packages-check: ## build the packages, and check them with lintian and rpmlint (root)
	@./.ci/deps lintian rpm rpmlint
	rm -f $(DIST)/*.deb $(DIST)/*.rpm
	@$(MAKE) --no-print-directory packages
	NFPM=$(NFPM)/nfpm $(GO) test ./packaging -count=1 -run '^TestPackages$$' -v -packages $(abspath $(DIST))

clean: ## remove what was built
	rm -rf bin dist .cache

# Modules of their own hold the tools at a version, with their checksums.
$(TOOLS): .ci/tools/go.mod .ci/tools/go.sum
	CGO_ENABLED=0 $(GO) -C .ci/tools build -o $@/ tool
	@touch $@

$(NFPM): .ci/nfpm/go.mod .ci/nfpm/go.sum
	CGO_ENABLED=0 $(GO) -C .ci/nfpm build -o $@/ tool
	@touch $@
