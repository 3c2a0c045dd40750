//! The set-up of packages, kernels, programs and images. It makes only what is missing.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::initramfs::Initramfs;
use crate::kernel::KernelFiles;
use crate::machine::{Device, Machine, MachineFiles};
use crate::programs::Programs;
use crate::{Arch, Error, Kernel, dumps, packages, selftest, suite};

/// Paths in L1.
pub mod place {
    /// The VMM.
    pub const VMM: &str = "/vmm";
    /// The program that compares the model of /dev/vfio with L1's /dev/vfio.
    pub const CONFORMANCE: &str = "/conformance";

    /// The guest's init, which also runs as an ordinary program; on machines with the host's root.
    pub const GUEST: &str = "/guest";

    /// The guest's kernel.
    pub const KERNEL: &str = "/l2/kernel";
    /// The guest's initramfs.
    pub const INITRD: &str = "/l2/initrd";
    /// The small kernel for guests, on machines with an edu.
    pub const SMALL_KERNEL: &str = "/l2/small-kernel";
    /// The initramfs of the small kernel, without modules.
    pub const SMALL_INITRD: &str = "/l2/small-initrd";
    /// The kernel of Debian, on machines with a disk that has one.
    pub const DEBIAN_KERNEL: &str = "/l2/debian-kernel";
    /// The initrd of Debian.
    pub const DEBIAN_INITRD: &str = "/l2/debian-initrd";

    /// The path of the library's example `name`, one of
    /// [`Arch::examples`](crate::Arch::examples).
    #[must_use]
    pub fn example(name: &str) -> String {
        format!("/examples/{name}")
    }
}

/// The size of a disk image in bytes. It is sparse after its start.
const IMAGE_SIZE: u64 = 64 << 20;

/// The number of random bytes at the start of an image.
const RANDOM_SIZE: u64 = 4 << 20;

/// Debian's packages of QEMU with its firmware.
const QEMU: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

/// Packages of programs that run in an L1 of arm64.
const ARM64_PROGRAMS: &[&str] = &["qemu-system-arm", "strace"];

/// The kernels and programs that machines need.
pub struct Lab {
    cache: Cache,
    programs: Option<Programs>,
}

impl Lab {
    /// Installs missing packages, and builds the programs for machines of this architecture.
    pub fn set_up(arch: Arch) -> Result<Self, Error> {
        packages::ensure(packages::BASE)?;
        packages::ensure(arch.platform().needs)?;
        Ok(Self { cache: Cache::of_user()?, programs: Some(Programs::build(arch)?) })
    }

    /// Sets up a lab that has kernels only, and cannot boot a machine.
    pub fn without_programs() -> Result<Self, Error> {
        packages::ensure(packages::BASE)?;
        Ok(Self { cache: Cache::of_user()?, programs: None })
    }

    /// Like [`set_up`](Self::set_up), with the packages of `cargo lab bench`.
    pub fn set_up_for_bench(arch: Arch) -> Result<Self, Error> {
        packages::ensure(packages::BENCH)?;
        Self::set_up(arch)
    }

    /// Fetches or builds the kernels of the tests that the cache lacks.
    pub fn kernels(&self, arch: Arch) -> Result<(), Error> {
        let kernels = Kernel::of_tests(arch);
        kernels.iter().try_for_each(|kernel| self.kernel(*kernel).map(|_| ()))
    }

    /// Fetches or builds a kernel if the cache lacks it; returns its image.
    pub fn kernel(&self, kernel: Kernel) -> Result<PathBuf, Error> {
        kernel.files(&self.cache).map(|files| files.image)
    }

    /// Fetches the QEMU of the backports of the host's Debian if the cache lacks it, which is the
    /// newest that the archive has for this release; returns the folder in which it is unpacked.
    pub fn newest_qemu(&self) -> Result<PathBuf, Error> {
        self.cache.entry("qemu-backports", |draft| suite::unpack(&suite::backports()?, QEMU, draft))
    }

    /// The root that L1 mounts: the host's, or a folder with the programs of another architecture,
    /// which is fetched if the cache lacks it.
    fn share(&self, arch: Arch) -> Result<PathBuf, Error> {
        match arch {
            Arch::X86_64 => Ok("/".into()),
            Arch::Aarch64 => self
                .cache
                .entry("root-arm64", |draft| suite::unpack_arm64_root(ARM64_PROGRAMS, draft)),
        }
    }

    /// Fetches and builds the kernel's tests of VFIO if the cache lacks them; returns their folder,
    /// with the programs [`VFIO_SELFTESTS`](crate::VFIO_SELFTESTS) in the folders `static` and
    /// `dynamic`.
    pub fn vfio_selftests() -> Result<PathBuf, Error> {
        selftest::vfio_programs(&Cache::of_user()?)
    }

    /// Fetches and builds the kernel's tests of iommufd if the cache lacks them; returns their
    /// folder, with the programs [`SELFTESTS`](crate::SELFTESTS).
    pub fn selftests() -> Result<PathBuf, Error> {
        selftest::programs(&Cache::of_user()?)
    }

    /// Installs `lspci` if it is missing, and fetches its dumps of real machines if the cache lacks
    /// them; returns their folder.
    pub fn lspci_dumps() -> Result<PathBuf, Error> {
        packages::ensure(packages::LSPCI)?;
        dumps::folder(&Cache::of_user()?)
    }

    /// Makes the files of a machine in `folder`.
    pub(crate) fn make_files(
        &self,
        machine: &Machine,
        folder: &Path,
    ) -> Result<MachineFiles, Error> {
        let kernel = machine.kernel.files(&self.cache)?;
        let l2_initrd = folder.join("l2.cpio");
        let guest = machine.guest_kernel.files(&self.cache)?;
        self.l2_initrd(&guest, machine, &l2_initrd)?;
        let mut files = vec![(place::KERNEL, guest.image), (place::INITRD, l2_initrd)];
        if machine.devices.iter().any(|device| device.needs_small()) {
            let small_initrd = folder.join("small.cpio");
            Initramfs::create(&small_initrd, &self.programs()?.guest)?.finish()?;
            files.push((place::SMALL_KERNEL, self.kernel(Kernel::Small)?));
            files.push((place::SMALL_INITRD, small_initrd));
        }
        if let Some(debian) = machine.debian() {
            let debian = debian.files(&self.cache)?;
            files.push((place::DEBIAN_KERNEL, debian.kernel));
            files.push((place::DEBIAN_INITRD, debian.initrd));
        }
        let mut share = None;
        if machine.host_share {
            files.push((place::GUEST, self.programs()?.guest.clone()));
            share = Some(self.share(machine.arch())?);
        }
        let initrd = folder.join("l1.cpio");
        self.l1_initrd(&kernel, &files, &initrd)?;
        let images = machine.devices.iter().enumerate();
        let images =
            images.map(|(index, device)| self.image(*device, folder.join(format!("{index}.img"))));
        let is_new = machine.needs_newest_qemu();
        Ok(MachineFiles {
            qemu: is_new.then(|| self.newest_qemu()).transpose()?,
            share,
            kernel: kernel.image,
            initrd,
            socket: folder.join("agent"),
            monitor: folder.join("monitor"),
            images: images.collect::<Result<_, _>>()?,
        })
    }

    /// Returns the image of a device's disk: that of the cache, or a new one at `path`.
    fn image(&self, device: Device, path: PathBuf) -> Result<PathBuf, Error> {
        match device {
            Device::Debian(debian) => Ok(debian.files(&self.cache)?.disk),
            _ => image(device, path),
        }
    }

    /// The program of the VMM on the host.
    pub fn vmm_program(&self) -> Result<&Path, Error> {
        Ok(&self.programs()?.vmm)
    }

    fn programs(&self) -> Result<&Programs, Error> {
        self.programs.as_ref().ok_or(Error::NoPrograms)
    }

    /// Makes the initramfs of L2. It has only the drivers of the machine's devices, because each
    /// makes every boot of L2 slower.
    fn l2_initrd(&self, kernel: &KernelFiles, machine: &Machine, path: &Path) -> Result<(), Error> {
        let wanted: Vec<&str> = machine
            .devices
            .iter()
            .flat_map(|device| device.modules())
            .copied()
            .chain(machine.arch().platform().button.iter().copied())
            .collect();
        let mut archive = Initramfs::create(path, &self.programs()?.guest)?;
        archive.add_modules(&kernel.modules(&wanted)?)?;
        archive.finish()
    }

    /// Makes the initramfs of L1, with the programs and `files`, each with its path in L1.
    fn l1_initrd(
        &self,
        kernel: &KernelFiles,
        files: &[(&str, PathBuf)],
        path: &Path,
    ) -> Result<(), Error> {
        let programs = self.programs()?;
        let mut archive = Initramfs::create(path, &programs.agent)?;
        archive.add_modules(&kernel.l1_modules)?;
        archive.add(place::VMM, &programs.vmm)?;
        archive.add(place::CONFORMANCE, &programs.conformance)?;
        for name in programs.arch.platform().examples {
            archive.add(&place::example(name), &programs.examples.join(name))?;
        }
        for (place, file) in files {
            archive.add(place, file)?;
        }
        archive.finish()
    }
}

/// Makes the disk image of a device, if it has one.
fn image(device: Device, path: PathBuf) -> Result<PathBuf, Error> {
    if device.is_disk() {
        let random = File::open("/dev/urandom").map_err(Error::file("open", "/dev/urandom"))?;
        let filled = File::create(&path).and_then(|mut file| {
            io::copy(&mut random.take(RANDOM_SIZE), &mut file)?;
            file.set_len(IMAGE_SIZE)
        });
        filled.map_err(Error::file("write", &path))?;
    }
    Ok(path)
}

/// Prints a message of the lab on standard error, because the standard output is the guest's.
pub fn say(what: &str) {
    eprintln!("lab: {what}");
}

/// Prints a guest's output on standard output.
pub(crate) fn out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The SHA-256 of `bytes`, in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_begins_with_random_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(Device::Nvme, folder.path().join("0.img")).unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, IMAGE_SIZE);
        assert!(bytes[..4096].iter().any(|byte| *byte != 0));
        assert_eq!(bytes[4 << 20], 0);
    }

    #[test]
    fn makes_no_image_for_a_device_without_a_disk() {
        let path = image(Device::E1000e, "/no/such/folder/1.img".into()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn hashes_by_sha_256() {
        assert!(sha256(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
