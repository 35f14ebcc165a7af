#!/bin/sh
# mmdebstrap customize hook for the virtual machine's image: serial console, network, and the unit that
# takes the host's identity from the machine. $1 is the new root.
set -eu
root=$1

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

# The chipset's own watchdog would race the i6300esb for /dev/watchdog; nobody looks at the screen.
printf 'blacklist %s\n' iTCO_wdt bochs psmouse pcspkr kvm ccp >"$root/usr/lib/modprobe.d/lab.conf"

# Runs once instead of init, on the finished disk: only there can the boot loader be installed. It goes on
# from a copy in /run, because a root file system whose running script was removed cannot be made read-only.
cat >"$root/install-boot-loader" <<'END'
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
if [ "$0" = /install-boot-loader ]; then
  mount -o remount,rw /
  mv /install-boot-loader /run/
  exec sh /run/install-boot-loader
fi
if grub-install --target=i386-pc /dev/vda && update-grub && mount -o remount,ro /; then
  echo "boot loader status installed"
fi
sync
echo o >/proc/sysrq-trigger
sleep 60
END
chmod 755 "$root/install-boot-loader"
