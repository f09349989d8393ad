#!/usr/bin/env bash
# The demo: a build.requested message becomes an image, the image runs, the same
# message again is answered at once, and a run of the function with a changed
# requirement waits for its new image.
# Everything it starts listens on loopback, lives in one temporary folder and is
# gone at the end. What it downloaded stays in .cache for the next time.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."

readonly example=examples/trainer/function.yaml
work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-demo.XXXXXX")
readonly work
chmod 711 "$work" # the mapped root of the containers walks through
pids=()

# Settings of the person who runs this would change what it shows.
for setting in $(compgen -e KILN_ || true); do unset "$setting"; done

# ---------------------------------------------------------------- small things

now() { echo "${EPOCHREALTIME//[^0-9]/}"; }
since() { printf '%d.%01d s' $((($(now) - $1) / 1000000)) $((($(now) - $1) % 1000000 / 100000)); }

began=$(now)
step_began=$began
step_number=0
step() {
	done_step
	step_number=$((step_number + 1))
	step_began=$(now)
	printf '\n=== %d. %s\n' "$step_number" "$1"
}
done_step() { [ "$step_number" -eq 0 ] || echo "--- $(since "$step_began")"; }

fail() {
	echo "demo: $*" >&2
	exit 1
}

# Ends what this script started, by process id, the latest first.
cleanup() {
	local code=$? i
	trap - EXIT
	trap '' INT TERM
	if [ "$code" -ne 0 ] && [ -s "$work/kiln.log" ]; then
		echo "demo: the last lines of kiln up:" >&2
		tail -n 15 "$work/kiln.log" >&2
	fi
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		kill -TERM "${pids[i]}" 2>/dev/null || true
		wait "${pids[i]}" 2>/dev/null || true
	done
	rm -rf --one-file-system "$work"
	exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# await FILE PID WHAT: waits until the file is there and not empty.
await() {
	local deadline=$((SECONDS + 60))
	until [ -s "$1" ]; do
		kill -0 "$2" 2>/dev/null || fail "$3 ended before it was ready"
		[ "$SECONDS" -lt "$deadline" ] || fail "$3 was not ready after a minute"
		sleep 0.05
	done
}

# ---------------------------------------------------------------- one build

# build ID FUNCTION OUTCOME: publishes the function, follows its log, shows the answer.
build() {
	bin/kiln build --nats-url "$nats_url" -f "$2" --id "$1" --follow
	bin/kiln status --nats-url "$nats_url" "$1" -o json >"$work/status.json"
	bin/kiln-demo size "$3" <"$work/status.json"
}

# versions REQUIREMENTS: imports them with the Python of the image that was just built.
versions() {
	local ref names
	ref=$(bin/kiln-demo field completed.image_ref <"$work/status.json")
	names=$(sed -E 's/==[^,]*//g; s/,/ /g' <<<"$1")
	echo "python /opt/trainer/versions.py $names"
	# shellcheck disable=SC2086 # one word per name
	bin/kiln-demo run-image "$ref" python /opt/trainer/versions.py $names | tee "$work/versions"
	[ "$(wc -l <"$work/versions")" -eq "$(wc -w <<<"$names")" ] || fail "the image did not print one version per requirement"
}

# run_function ROUNDS: runs the changed function, which builds its image if that is missing.
run_function() {
	local packages
	packages=$(sed -E 's/([^=,]+)==[^,]*/"\1"/g' <<<"$changed")
	echo "kiln run -f function.yaml --auto-build --param rounds=$1 --param packages=[$packages]"
	bin/kiln run --nats-url "$nats_url" -f "$work/changed.yaml" --auto-build --param "rounds=$1" --param "packages=[$packages]" |
		tee "$work/run"
	grep -q "^using ${changed##*,}\$" <(sed '/^using /s/ \([^ ]*\)$/==\1/' "$work/run") || fail "the run does not have ${changed##*,}"
	grep -q "round $1 of $1" "$work/run" || fail "the run did not take the parameter"
}

# ---------------------------------------------------------------- the demo

step "What this machine can reach"
# shellcheck disable=SC1091
. /etc/os-release
base='' tarball='' pip_index=''
requirements=humanize==4.9.0,tabulate==0.9.0
changed=humanize==4.9.0,tabulate==0.8.10
if bin/kiln-demo reachable https://registry-1.docker.io/v2/ 2>/dev/null; then
	echo "Docker Hub answers: the base is the example's own, python:3.12-slim"
else
	tarball=$(deploy/demo/base.sh --path)
	echo "Docker Hub does not answer: a base with Python is made from the mirror of $PRETTY_NAME"
	echo "  and replaces python:3.12-slim in the function"
fi
if bin/kiln-demo reachable https://pypi.org/simple/ 2>/dev/null; then
	echo "PyPI answers: the requirements are the example's own"
else
	requirements=kiln-demo-features==1.0,kiln-demo-model==1.0
	changed=kiln-demo-features==1.0,kiln-demo-model==1.1
	bin/kiln-demo index >"$work/index" 2>"$work/index.log" &
	pids+=($!)
	await "$work/index" $! "the package index"
	pip_index=$(head -n 1 "$work/index")
	echo "PyPI does not answer: two packages are made here and served at $pip_index,"
	echo "  they replace humanize and tabulate in the function; kiln up gets pip.index_url"
fi

if [ -n "$tarball" ]; then
	step "The base image"
	deploy/demo/base.sh
	echo "$(($(stat -c %s "$tarball") / 1000000)) MB in $tarball"
fi

step "kiln up: NATS, registry and worker in one process"
if [ -n "$pip_index" ]; then
	export KILN_PIP_INDEX_URL=$pip_index KILN_PIP_TRUSTED_HOSTS=127.0.0.1
fi
# What fails three times on one machine is not worth waiting for.
KILN_WORKER_MAX_ATTEMPTS=3 bin/kiln up --data-dir "$work/data" --nats-addr 127.0.0.1:0 --registry-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 \
	>"$work/kiln.log" 2>&1 &
pids+=($!)
await "$work/data/kiln.json" $! "kiln up"
nats_url=$(bin/kiln-demo field nats_url <"$work/data/kiln.json")
registry=$(bin/kiln-demo field registry <"$work/data/kiln.json")
echo "NATS at $nats_url, registry at $registry"
if [ -n "$tarball" ]; then
	base=$registry/demo/python:${VERSION_CODENAME}
	echo "pushed $base $(bin/kiln-demo push-base "$base" "$tarball" | cut -d' ' -f1)"
fi

step "Publish $example and follow the build"
bin/kiln-demo function -base "$base" -requirements "$requirements" "$example" >"$work/function.yaml"
sed 's/^/  | /' "$work/function.yaml"
build demo-1 "$work/function.yaml" built

step "Run the image: do the requirements import?"
versions "$requirements"

step "Publish the same function again"
build demo-2 "$work/function.yaml" reused

step "Change a requirement and run the function: ${requirements##*,} becomes ${changed##*,}"
bin/kiln-demo function -base "$base" -requirements "$changed" "$example" >"$work/changed.yaml"
run_function 2

step "Run it again, with another parameter"
run_function 3

step "What the event stream remembers"
bin/kiln ls --nats-url "$nats_url"
bin/kiln runs --nats-url "$nats_url"

done_step
printf '\nDone in %s. Start your own with: bin/kiln up\n' "$(since "$began")"
