#!/bin/sh
# mmdebstrap essential hook for the virtual machine's image: a small initramfs, written before the kernel
# package builds it. $1 is the new root.
set -eu
install -d "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$1/etc/initramfs-tools/conf.d/lab"
cat >"$1/etc/initramfs-tools/hooks/lab" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi nvme sd_mod ext4
END
chmod 755 "$1/etc/initramfs-tools/hooks/lab"
