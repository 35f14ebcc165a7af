#!/bin/sh
# mmdebstrap customize hook for the virtual machine's image: root file system, serial console, network,
# and the unit that takes the host's identity from the machine. $1 is the new root; LAB_ROOT_UUID names
# its file system.
set -eu
root=$1

echo "UUID=$LAB_ROOT_UUID / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
sed -i -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT=""/' \
  -e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0"/' "$root/etc/default/grub"

network() { # name, MAC address, address, whether boot waits for it
  printf '[Match]\nMACAddress=%s\n\n[Link]\nRequiredForOnline=%s\n\n[Network]\nAddress=%s\nIPv6AcceptRA=no\n' \
    "$2" "$4" "$3" >"$root/etc/systemd/network/10-$1.network"
}
network management 52:54:00:4c:41:01 10.0.2.15/24 yes
network e1000e 52:54:00:4c:41:02 10.0.3.15/24 no
network multiqueue 52:54:00:4c:41:03 10.0.4.15/24 no
chroot "$root" systemctl --quiet enable systemd-networkd.service

cat >"$root/usr/lib/systemd/system/lab-identity.service" <<'END'
[Unit]
Description=Take this lab host's name and keys from the machine it runs in
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
DefaultDependencies=no
After=systemd-remount-fs.service
Before=sysinit.target systemd-networkd.service ssh.service

[Service]
Type=oneshot
ExecStart=modprobe qemu_fw_cfg
ExecStart=tar --extract --no-overwrite-dir --directory=/ --file=/sys/firmware/qemu_fw_cfg/by_name/opt/hosttune/identity/raw
ExecStart=hostname --file /etc/hostname
END
install -d "$root/usr/lib/systemd/system/sysinit.target.wants"
ln -s ../lab-identity.service "$root/usr/lib/systemd/system/sysinit.target.wants/"

# Runs once instead of init, on the finished disk: only there can the boot loader be installed.
cat >"$root/install-boot-loader" <<'END'
#!/bin/sh
set -e
finish() {
  sync
  mount -o remount,ro /
  echo "boot loader status $1"
  echo o >/proc/sysrq-trigger
  sleep 60
}
trap 'finish failed' EXIT
mount -t proc proc /proc || :
mount -t sysfs sysfs /sys || :
mount -t devtmpfs devtmpfs /dev || :
mount -o remount,rw /
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
grub-install --target=i386-pc /dev/vda
update-grub
rm /install-boot-loader
trap - EXIT
finish installed
END
chmod 755 "$root/install-boot-loader"
