"""The virtual machine's disk image: a Debian root folder made into a GPT disk that boots with GRUB.

No loop device and no kernel module of this machine is needed: mke2fs fills the file system from a
folder, and the boot loader is installed from inside, in one boot with the kernel given by hand.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from lab import kvm
from lab.errors import LabError
from lab.images import BAKED, BASE, bootstrap, cached, hook, key, read_files
from lab.processes import run, run_contained, say, tail

# Beyond the bare host: what boots it.
MACHINE = ("e2fsprogs", "grub-pc", "initramfs-tools", "linux-image-amd64", "lz4")
SIZE = 8 * 2**30
BIOS_BOOT = 2**20  # where GRUB's core image lives on a GPT disk
ROOT_OFFSET = 2 * 2**20


def metal_key(baked: bool) -> str:
    ingredients = [*MACHINE, str(SIZE), *read_files("customize.sh", "metal-setup.sh", "metal-customize.sh")]
    if baked:
        ingredients += [*BAKED, *read_files("bake.sh", "bake-chroot.sh")]
    return key("metal-baked" if baked else "metal", *BASE, *ingredients)


def metal_image(baked: bool) -> Path:
    """The compressed disk every machine's own disk is an overlay of."""
    return cached(metal_key(baked), 5.0, lambda folder: _build(folder, baked)) / "disk.qcow2"


def _build(folder: Path, baked: bool) -> None:
    identity = str(uuid.uuid4())
    hooks = [hook("essential", "metal-setup.sh"), hook("customize", "customize.sh")]
    hooks.append(hook("customize", "metal-customize.sh"))
    if baked:
        hooks.append(hook("customize", "bake-chroot.sh"))
    root = bootstrap(folder, (*BASE, *MACHINE), hooks, LAB_ROOT_UUID=identity, LAB_BAKED=" ".join(BAKED))
    say("  root folder made; making the disk")
    disk = folder / "disk.raw"
    _make_disk(disk, root, identity, folder / "log")
    say("  disk made; installing its boot loader in a first boot")
    _install_boot_loader(folder, disk, root, identity)
    say("  boot loader installed; compressing")
    options = ["-c", "-o", "compression_type=zstd"]
    run("qemu-img", "convert", "-O", "qcow2", *options, disk, folder / "disk.qcow2")
    disk.unlink()
    shutil.rmtree(root)


def _make_disk(disk: Path, root: Path, identity: str, log: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(SIZE)
    # The last MiB holds GPT's second table.
    root_size = SIZE - ROOT_OFFSET - 2**20
    bios_boot = "21686148-6449-6E6F-744E-656564454649"
    table = (
        "label: gpt\n"
        f"start={BIOS_BOOT // 512}, size={(ROOT_OFFSET - BIOS_BOOT) // 512}, type={bios_boot}\n"
        f"start={ROOT_OFFSET // 512}, size={root_size // 512}, type=linux\n"
    )
    run("sfdisk", "--quiet", disk, input_text=table)
    options = ["-q", "-t", "ext4", "-U", identity, "-L", "root", "-E", f"offset={ROOT_OFFSET}"]
    run_contained(["mke2fs", *options, "-d", root, disk, f"{root_size // 1024}k"], log)


def _install_boot_loader(folder: Path, disk: Path, root: Path, identity: str) -> None:
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    (initrd,) = (root / "boot").glob("initrd.img-*")
    console = folder / "boot-loader.log"
    append = f"root=UUID={identity} rw console=ttyS0 panic=-1 init=/install-boot-loader"
    machine = ["-m", "1024", "-display", "none", "-nodefaults", "-no-reboot", "-serial", f"file:{console}"]
    drive = ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
    boot = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", append]
    words = ["qemu-system-x86_64", "-machine", "q35", *machine, *drive, *boot]
    if kvm.works()[0]:
        try:
            run_contained([*words, *kvm.accel("kvm")], folder / "log", timeout=60)
        except LabError:
            kvm.remember("a guest kernel hung while the image was built")
    if not kvm.works()[0]:
        run_contained([*words, *kvm.accel("tcg")], folder / "log", timeout=600)
    if "boot loader status installed" not in console.read_text(errors="replace"):
        raise LabError(f"the boot loader could not be installed: {tail(console)} (all of it: {console})")
