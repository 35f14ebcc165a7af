#!/bin/sh
# mmdebstrap customize hook: bake the servers (LAB_BAKED) into the image $1.
set -eu
install -m 755 "$(dirname "$0")/bake.sh" "$1/bake.sh"
# shellcheck disable=SC2086 # one word per package
chroot "$1" /bake.sh $LAB_BAKED
rm "$1/bake.sh"
