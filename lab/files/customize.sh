#!/bin/sh
# mmdebstrap customize hook for every lab image: the packages a host may install are downloaded into the
# image (so an `apt-get install` inside a host needs no network), and what must be each host's own goes.
# $1 is the new root; packages.txt is named by LAB_PACKAGES.
set -eu
root=$1
repository=$root/srv/packages

mkdir -p "$repository/partial"
# shellcheck disable=SC2046 # one word per package
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --no-install-recommends --download-only \
  -o Dir::Cache::Archives="$repository" -o APT::Keep-Downloaded-Packages=true -o APT::Sandbox::User=root \
  install $(sed 's/#.*//' "$LAB_PACKAGES")
rm -rf "$repository/partial" "$repository/lock"
(
  cd "$repository"
  for package in *.deb; do
    dpkg-deb --field "$package"
    echo "Filename: ./$package"
    echo "Size: $(stat --format=%s "$package")"
    echo "SHA256: $(sha256sum "$package" | cut -d' ' -f1)"
    echo
  done >Packages
)
chmod -R a+rX "$repository"

# The machine's own mirrors and apt options stay out of the host; its only source is that repository.
rm -rf "$root"/etc/apt/sources.list.d/* "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root"/var/lib/apt/lists/*
echo 'deb [trusted=yes] file:/srv/packages ./' >"$root/etc/apt/sources.list"
chroot "$root" apt-get --quiet update

rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf" "$root/etc/hostname"
: >"$root/etc/machine-id"
: >"$root/etc/resolv.conf"
rm -f "$root/var/lib/dbus/machine-id"
install -d -m 700 "$root/root/.ssh"
