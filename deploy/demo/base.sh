#!/usr/bin/env bash
# Makes a small root with python3 and pip of this machine's own release, for where
# Docker Hub does not answer, unless an earlier run made it. --path only says where.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."

# shellcheck disable=SC1091
. /etc/os-release
cache=${XDG_CACHE_HOME:+$XDG_CACHE_HOME/kiln}
tarball=${cache:-$PWD/.cache}/base-$ID-${VERSION_CODENAME:-unknown}-$(uname -m).tar.gz
if [ "${1:-}" = --path ]; then
	echo "$tarball"
	exit
fi
if [ -s "$tarball" ]; then
	echo "from an earlier run: $tarball"
	exit
fi

fail() {
	echo "base image: $*" >&2
	exit 1
}

# The mirror of this machine's own release, as apt is configured.
apt_mirror() {
	local suite=$1 found
	found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
		sed -E 's/\[[^]]*\]//' | awk -v suite="$suite" '$1 == "deb" && $3 == suite { print $2; exit }')
	[ -n "$found" ] || found=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk -v suite="$suite" '
		function flush() { if (deb && here && uri != "" && !found) { print uri; found = 1 } deb = here = 0; uri = "" }
		/^[[:space:]]*$/ { flush() }
		/^Types:/ { deb = / deb( |$)/ }
		/^URIs:/ { uri = $2 }
		/^Suites:/ { for (i = 2; i <= NF; i++) if ($i == suite) here = 1 }
		END { flush() }')
	echo "${found:-http://deb.debian.org/debian}"
}

command -v debootstrap >/dev/null || fail "Docker Hub does not answer, and debootstrap is missing: make deps"
[ "$(id -u)" -eq 0 ] || fail "Docker Hub does not answer, and debootstrap needs root"
work=$(mktemp -d "${TMPDIR:-/tmp}/kiln-base.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root suite=$VERSION_CODENAME components=main proxy=''
[ "$ID" != ubuntu ] || components=main,universe
mirror=$(apt_mirror "$suite")
echo "bootstrapping $PRETTY_NAME with python3 and pip from $mirror (about a minute, once)"
if command -v apt-config >/dev/null; then eval "$(apt-config shell proxy Acquire::http::Proxy)"; fi
[ -z "$proxy" ] || export http_proxy=$proxy
debootstrap --variant=minbase --components="$components" --include=python3,python3-pip "$suite" "$root" "$mirror" >"$work/debootstrap.log" 2>&1 ||
	{ tail -n 20 "$work/debootstrap.log" >&2; fail "debootstrap failed"; }
# pip may install into this image: it is the image's own Python.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -sfn python3 "$root/usr/bin/python"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/*-old "$root"/var/log/*.log \
	"$root"/usr/share/{doc,info,lintian,locale,man}/*
mkdir -p "$(dirname "$tarball")"
tar --numeric-owner -C "$root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' -cf - . | gzip -1 >"$tarball.$$"
mv "$tarball.$$" "$tarball"
