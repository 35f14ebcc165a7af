#!/bin/sh
# mmdebstrap essential hook for the virtual machine's image: what the kernel package reads when it builds
# its initramfs, so it has to be there before. $1 is the new root; LAB_ROOT_UUID names its file system.
set -eu
echo "UUID=$LAB_ROOT_UUID / ext4 errors=remount-ro 0 1" >"$1/etc/fstab"
install -d "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\nCOMPRESS=lz4\n' >"$1/etc/initramfs-tools/conf.d/lab"
cat >"$1/etc/initramfs-tools/hooks/lab" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi nvme sd_mod ext4
END
chmod 755 "$1/etc/initramfs-tools/hooks/lab"
