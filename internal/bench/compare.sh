#!/bin/sh
# Measures this commit and an earlier one by turns on one machine:
#
#	internal/bench/compare.sh MEASUREMENT [COMMIT [TURNS]]
#
# MEASUREMENT is one that go run ./internal/bench --only makes and the earlier commit
# knows, or build (how long make build takes), or lines (of product code by package).
# What is not committed does not count. QUICK=--quick is a smoke run.
set -eu
measurement=${1:?usage: internal/bench/compare.sh MEASUREMENT [COMMIT [TURNS]]}
before=${2:-15f5e45}
turns=${3:-3}
root=$(git rev-parse --show-toplevel)
dir=$(mktemp -d)
end() {
	git -C "$root" worktree remove --force "$dir/before" 2>/dev/null || true
	git -C "$root" worktree remove --force "$dir/now" 2>/dev/null || true
	rm -rf "$dir"
}
trap end EXIT
trap 'exit 1' INT TERM
git -C "$root" worktree add -q --detach "$dir/before" "$before"
git -C "$root" worktree add -q --detach "$dir/now" HEAD

seconds() { # of a command
	began=$(date +%s%N)
	"$@" >"$dir/out" 2>&1 || { cat "$dir/out" >&2; exit 1; }
	echo "$began $(date +%s%N)" | awk '{ printf "%.1f", ($2 - $1) / 1e9 }'
}

build() { # a tree, with an empty build cache, then a full one, then a changed file
	cd "$dir/$1"
	GOCACHE=$dir/cache
	export GOCACHE
	rm -rf "$GOCACHE"
	cold=$(seconds make build)
	warm=$(seconds make build)
	agent=$(find fabric -name agent.go | head -n 1)
	echo "// changed" >>"$agent"
	changed=$(seconds make build)
	git checkout -q "$agent"
	echo "| $1 | $cold | $warm | $changed | $(stat -c %s bin/* | awk '{ printf "%s%.1f", sep, $1 / 1048576; sep = " | " }') |"
}

# The packages that are shipped: no tests, nothing generated, no laboratory, no example.
lines() {
	cd "$dir/$1"
	git ls-files '*.go' | grep -vE '_test\.go$|\.pb\.go$|^(testenv|examples|plugins/internal/testplugin|fabric/gobgp/internal/gobgptest|internal/(bench|e2e|histories|simulate))/' | while read -r f; do
		echo "$(dirname "$f") $(wc -l <"$f")"
	done | awk '{ n[$1] += $2; all += $2 } END { for (p in n) print n[p], p; print all, "all" }' | sort -rn
}

case $measurement in
lines)
	for tree in before now; do
		echo "$tree:"
		(lines $tree)
	done
	;;
build)
	echo "| | nothing cached, s | nothing changed, s | agent.go changed, s | $(echo vmfabric hook-libvirt hook-lxd plugin-bird plugin-frr | sed 's/ /, MiB | /g'), MiB |"
	echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
	i=0
	while [ $((i += 1)) -le "$turns" ]; do
		for tree in before now; do (build $tree); done
	done
	;;
*)
	i=0
	while [ $((i += 1)) -le "$turns" ]; do
		for tree in before now; do
			echo "## $tree, turn $i"
			(cd "$dir/$tree" && go run ./internal/bench --only "$measurement" ${QUICK:-} | sed -n '/^## /,$p' | grep -v '^## ')
		done
	done
	;;
esac
