//! The set-up: packages, kernels, programs, images; whatever is there already is left alone.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;

use crate::cache::Cache;
use crate::initramfs::Initramfs;
use crate::kernel::KernelFiles;
use crate::machine::{Device, Machine, MachineFiles};
use crate::programs::Programs;
use crate::{Error, Kernel, packages};

/// Where things lie in L1.
pub mod place {
    /// The VMM.
    pub const VMM: &str = "/vmm";
    /// The program that holds the model of /dev/vfio against L1's.
    pub const CONFORMANCE: &str = "/conformance";
    /// The library's example that attaches and detaches a device.
    pub const ATTACH: &str = "/attach";
    /// The guest's kernel.
    pub const KERNEL: &str = "/l2/kernel";
    /// The guest's initramfs.
    pub const INITRD: &str = "/l2/initrd";
    /// The small kernel, on machines that have a device which only it can drive.
    pub const SMALL_KERNEL: &str = "/l2/small-kernel";
    /// An initramfs without modules.
    pub const SMALL_INITRD: &str = "/l2/small-initrd";
}

/// The size of a disk image; sparse but for its start.
const IMAGE_SIZE: u64 = 64 << 20;

/// How much of an image's start is random.
const RANDOM_SIZE: u64 = 4 << 20;

/// All that machines are made from.
pub struct Lab {
    cache: Cache,
    programs: Option<Programs>,
}

impl Lab {
    /// Installs what is missing and builds the programs.
    pub fn set_up() -> Result<Self, Error> {
        packages::ensure(packages::BASE)?;
        Ok(Self { cache: Cache::of_user()?, programs: Some(Programs::build()?) })
    }

    /// For kernels only.
    pub fn without_programs() -> Result<Self, Error> {
        packages::ensure(packages::BASE)?;
        Ok(Self { cache: Cache::of_user()?, programs: None })
    }

    /// Installs what the comparison with QEMU needs beyond that.
    pub fn set_up_for_bench() -> Result<Self, Error> {
        packages::ensure(packages::BENCH)?;
        Self::set_up()
    }

    /// Makes sure that all kernels are there, before the tests begin.
    pub fn kernels(&self) -> Result<(), Error> {
        Kernel::value_variants().iter().try_for_each(|kernel| self.kernel(*kernel).map(|_| ()))
    }

    /// Makes sure that a kernel is there, without booting it.
    pub fn kernel(&self, kernel: Kernel) -> Result<PathBuf, Error> {
        kernel.files(&self.cache).map(|files| files.image)
    }

    /// Makes the files of a machine, in `folder`.
    pub(crate) fn furnish(&self, machine: &Machine, folder: &Path) -> Result<MachineFiles, Error> {
        let kernel = machine.kernel.files(&self.cache)?;
        let l2_initrd = folder.join("l2.cpio");
        self.l2_initrd(&kernel, machine, &l2_initrd)?;
        let mut files = vec![(place::KERNEL, kernel.image.clone()), (place::INITRD, l2_initrd)];
        if machine.devices.contains(&Device::Edu) {
            let small_initrd = folder.join("small.cpio");
            Initramfs::create(&small_initrd, &self.programs()?.guest)?.finish()?;
            files.push((place::SMALL_KERNEL, self.kernel(Kernel::Small)?));
            files.push((place::SMALL_INITRD, small_initrd));
        }
        let initrd = folder.join("l1.cpio");
        self.l1_initrd(&kernel, &files, &initrd)?;
        let images = machine.devices.iter().enumerate();
        let images =
            images.map(|(index, device)| image(*device, folder.join(format!("{index}.img"))));
        Ok(MachineFiles {
            kernel: kernel.image,
            initrd,
            socket: folder.join("agent"),
            monitor: folder.join("monitor"),
            images: images.collect::<Result<_, _>>()?,
        })
    }

    /// The VMM, as it is built.
    pub fn vmm_program(&self) -> Result<&Path, Error> {
        Ok(&self.programs()?.vmm)
    }

    /// The guest's init, which also runs as a program of its own.
    pub fn guest_program(&self) -> Result<&Path, Error> {
        Ok(&self.programs()?.guest)
    }

    fn programs(&self) -> Result<&Programs, Error> {
        self.programs.as_ref().ok_or(Error::NoPrograms)
    }

    /// With the drivers of the machine's devices only: each costs every boot of L2 some of its time.
    fn l2_initrd(&self, kernel: &KernelFiles, machine: &Machine, path: &Path) -> Result<(), Error> {
        let wanted: Vec<&str> = machine
            .devices
            .iter()
            .flat_map(|device| device.modules())
            .copied()
            .chain(["button", "evdev"])
            .collect();
        let mut archive = Initramfs::create(path, &self.programs()?.guest)?;
        archive.add_modules(&kernel.modules(&wanted)?)?;
        archive.finish()
    }

    /// With `files` for L2, each with its place in L1.
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
        archive.add(place::ATTACH, &programs.attach)?;
        for (place, file) in files {
            archive.add(place, file)?;
        }
        archive.finish()
    }
}

/// A disk image for a device that is a disk.
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

/// Tells the user what the lab does, on standard error: the standard output is the guest's.
pub fn say(what: &str) {
    eprintln!("lab: {what}");
}

/// Passes on what a guest printed.
pub(crate) fn out(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// SHA-256 of bytes, in hexadecimal, as the guest reports it.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_begins_with_random_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(Device::Nvme, folder.path().join("0.img")).unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() as u64, IMAGE_SIZE);
        assert!(bytes[..4096].iter().any(|byte| *byte != 0));
        assert_eq!(bytes[4 << 20], 0);
    }

    #[test]
    fn what_is_no_disk_has_no_image() {
        let path = image(Device::E1000e, "/no/such/folder/1.img".into()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn the_hash_is_sha_256() {
        assert!(sha256(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
