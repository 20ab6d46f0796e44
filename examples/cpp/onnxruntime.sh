#!/bin/sh
# Collects onnxruntime's C++ headers and library in ./onnxruntime, from packages alone: the headers from Debian's
# libonnxruntime-dev (the next release's, if this one has none), the library from Python's onnxruntime.
#     sh onnxruntime.sh [PYTHON]      a Python that has onnxruntime; default: python3
# Not needed if libonnxruntime-dev can be installed, or with one of onnxruntime's release archives.
set -eu
library=$("${1:-python3}" -c 'import onnxruntime, pathlib; print(*pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))')
cd "$(dirname "$0")" # only now: PYTHON may be a relative path
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

mkdir -p onnxruntime/include onnxruntime/lib "$work/lists/partial" "$work/cache/archives/partial"
ln -sf "$library" onnxruntime/lib/libonnxruntime.so
ln -sf "$library" onnxruntime/lib/libonnxruntime.so.1

# This machine's own package sources, but for trixie, in a separate list, so that nothing on it is upgraded or mixed.
sed '/^#/d; s/bookworm/trixie/g' /etc/apt/sources.list.d/debian.sources > "$work/next.sources"
apt() {
  apt-get -q -o Dir::Etc::sourcelist="$work/next.sources" -o Dir::Etc::sourceparts=- \
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" "$@"
}
apt update
(cd "$work" && apt download libonnxruntime-dev)
dpkg -x "$work"/libonnxruntime-dev_*.deb "$work/root"
cp -r "$work/root/usr/include/onnxruntime/." onnxruntime/include/
