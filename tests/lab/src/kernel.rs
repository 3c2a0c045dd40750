//! The kernels that L1 and L2 run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cache::Cache;
use crate::command::Tool;
use crate::machine::models;
use crate::modules::load_order;
use crate::small_kernel::fingerprint;
use crate::{Arch, Error, packages, say, small_kernel, suite};

/// A kernel for L1 and L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// A 6.12 kernel with few options, built from Debian's source. It boots fastest.
    Small,
    /// A 7.3 kernel with these options and some more. Only long forms and commands by hand use it.
    #[value(name = "small-7.3")]
    Small73,
    /// Debian's 6.12.
    #[value(name = "6.12")]
    Stock612,
    /// Debian's 6.1.
    #[value(name = "6.1")]
    Stock61,
    /// Debian's 6.12 with the drivers of all models of QEMU. Only long forms use it.
    #[value(name = "6.12-models")]
    Models612,
    /// Debian's 7.3. Only long forms use it.
    #[value(name = "7.3")]
    Stock73,
    /// Debian's 6.12 for arm64.
    #[value(name = "6.12-arm64")]
    Arm612,
    /// Debian's 6.12 for arm64, with pages of 16 KiB.
    #[value(name = "6.12-arm64-16k")]
    Arm612Of16K,
}

/// The files of a kernel.
#[derive(Clone, Debug)]
pub struct KernelFiles {
    /// The bzImage.
    pub image: PathBuf,
    /// The modules for L1, in load order.
    pub l1_modules: Vec<PathBuf>,
    /// The folder of modules. `NAME.list` lists the module NAME for L2 with its dependencies.
    pub folder: PathBuf,
}

impl KernelFiles {
    /// The files of the modules `wanted` and of their dependencies, in load order. Built-in modules
    /// have none.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let mut modules: Vec<PathBuf> = Vec::new();
        for name in wanted {
            for module in list(&self.folder, &format!("{name}.list"))? {
                if !modules.contains(&module) {
                    modules.push(module);
                }
            }
        }
        Ok(modules)
    }
}

/// Reads a list of modules; a missing list is empty.
fn list(folder: &Path, name: &str) -> Result<Vec<PathBuf>, Error> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(|module| folder.join(module)).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("read", &path)(error)),
    }
}

impl Kernel {
    /// The kernels that the tests need, without those of long forms.
    #[must_use]
    pub fn of_tests(arch: Arch) -> &'static [Self] {
        match arch {
            Arch::X86_64 => &[Self::Small, Self::Stock612, Self::Stock61],
            Arch::Aarch64 => &[Self::Arm612, Self::Arm612Of16K],
        }
    }

    /// The kernel of a user's choice of an architecture, a kernel, or both: without a kernel,
    /// Debian's 6.12.
    ///
    /// # Errors
    ///
    /// [`Error::OtherArch`] if the kernel is for another architecture.
    pub fn chosen(arch: Option<Arch>, kernel: Option<Self>) -> Result<Self, Error> {
        match (arch, kernel) {
            (Some(arch), Some(kernel)) if kernel.arch() != arch => {
                Err(Error::OtherArch { kernel: kernel.name(), arch: arch.name() })
            }
            (_, Some(kernel)) => Ok(kernel),
            (Some(Arch::Aarch64), None) => Ok(Self::Arm612),
            (_, None) => Ok(Self::Stock612),
        }
    }

    /// The architecture that it is for.
    #[must_use]
    pub fn arch(self) -> Arch {
        match self {
            Self::Arm612 | Self::Arm612Of16K => Arch::Aarch64,
            _ => Arch::X86_64,
        }
    }

    /// The size of its pages in KiB.
    #[must_use]
    pub fn page_kib(self) -> u64 {
        match self {
            Self::Arm612Of16K => 16,
            _ => 4,
        }
    }

    /// Returns the kernel's files; fetches or builds them if the cache lacks them.
    pub fn files(self, cache: &Cache) -> Result<KernelFiles, Error> {
        match self {
            Self::Small => small_kernel::files(cache, small_kernel::OF_6_12),
            Self::Small73 => small_kernel::files(cache, small_kernel::OF_7_3),
            Self::Stock612 => stock(cache, &OF_6_12),
            Self::Stock61 => stock(cache, &OF_6_1),
            Self::Models612 => stock(cache, &Stock { more: &models::modules(), ..OF_6_12 }),
            Self::Arm612 => stock(cache, &OF_ARM64),
            Self::Arm612Of16K => stock(cache, &OF_ARM64_16K),
            Self::Stock73 => stock(cache, &OF_7_3),
        }
    }

    /// Whether it is one of the small kernels. They have iommufd, and a guard against interrupts
    /// that L2 gets twice.
    #[must_use]
    pub fn is_small(self) -> bool {
        matches!(self, Self::Small | Self::Small73)
    }

    /// Whether its iommufd can map BARs, which VFIO exports as dma-bufs (`VFIO_PCI_DMABUF`).
    #[must_use]
    pub fn exports_bars(self) -> bool {
        self == Self::Small73
    }

    /// The kernel's name for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "the small 6.12 kernel",
            Self::Small73 => "the small 7.3 kernel",
            Self::Stock612 => "Debian's 6.12 kernel",
            Self::Stock61 => "Debian's 6.1 kernel",
            Self::Models612 => "Debian's 6.12 kernel with more drivers",
            Self::Stock73 => "Debian's 7.3 kernel",
            Self::Arm612 => "Debian's 6.12 kernel for arm64",
            Self::Arm612Of16K => "Debian's 6.12 kernel for arm64 with pages of 16 KiB",
        }
    }
}

/// A kernel of Debian's archive.
struct Stock<'a> {
    /// The start of its name in the cache.
    name: &'a str,
    /// The series, such as `6.12`.
    series: &'static str,
    /// Packages that may depend on it.
    metapackages: &'a [&'a str],
    arch: Arch,
    /// The release of Debian that has it, if the host's does not.
    suite: Option<&'a str>,
    /// Modules for L2 beyond those of the architecture.
    more: &'a [&'a str],
}

const OF_6_12: Stock<'_> = Stock {
    name: "linux-6.12",
    series: "6.12",
    metapackages: &["linux-image-6.12-amd64", "linux-image-amd64"],
    arch: Arch::X86_64,
    suite: None,
    more: &[],
};
const OF_6_1: Stock<'_> = Stock {
    name: "linux-6.1",
    series: "6.1",
    metapackages: &["linux-image-6.1-amd64", "linux-image-amd64"],
    ..OF_6_12
};
const OF_7_3: Stock<'_> = Stock {
    name: "linux-7.3",
    series: "7.3",
    metapackages: &[],
    suite: Some(small_kernel::BACKPORTS),
    ..OF_6_12
};
const OF_ARM64: Stock<'_> = Stock {
    name: "linux-6.12-arm64",
    metapackages: &["linux-image-arm64"],
    arch: Arch::Aarch64,
    ..OF_6_12
};
const OF_ARM64_16K: Stock<'_> =
    Stock { name: "linux-6.12-arm64-16k", metapackages: &["linux-image-arm64-16k"], ..OF_ARM64 };

impl Stock<'_> {
    /// Fetches the package, and unpacks it in `folder`. The host's apt knows no package of another
    /// architecture.
    fn unpack(&self, folder: &Path) -> Result<(), Error> {
        if self.arch == Arch::Aarch64 {
            return suite::unpack_arm64_kernel(self.series, self.metapackages, folder);
        }
        if let Some(suite) = self.suite {
            return suite::unpack_kernel(suite, self.series, folder);
        }
        let package = packages::kernel_package(self.series, self.metapackages)?;
        packages::unpack(&package, folder)
    }
}

fn stock(cache: &Cache, kernel: &Stock<'_>) -> Result<KernelFiles, Error> {
    let platform = kernel.arch.platform();
    let l2 = [platform.l2_modules, kernel.more].concat();
    // Another list of modules makes another entry.
    let modules = fingerprint(&[platform.l1_modules, &l2].concat().join(" "));
    let folder = cache.entry(&format!("{}-{modules}", kernel.name), |draft| {
        let unpacked = cache.scratch()?;
        kernel.unpack(unpacked.path())?;
        keep_what_is_needed(unpacked.path(), draft, platform.l1_modules, &l2)
    })?;
    Ok(KernelFiles { image: folder.join("vmlinuz"), l1_modules: list(&folder, "l1.list")?, folder })
}

/// Copies the image and the modules of L1 and L2 from an unpacked package to `kept`.
fn keep_what_is_needed(package: &Path, kept: &Path, l1: &[&str], l2: &[&str]) -> Result<(), Error> {
    let tree = entry_named(&module_root(package)?, "")?;
    copy(&image(package, &tree)?, &kept.join("vmlinuz"))?;
    let modules_dep = modules_dep(&tree)?;
    let builtin = tree.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).map_err(Error::file("read", &builtin))?;
    let l2 = l2.iter().map(|name| (*name, std::slice::from_ref(name)));
    for (list, wanted) in std::iter::once(("l1", l1)).chain(l2) {
        let order = load_order(&modules_dep, &builtin, wanted)?;
        let names = order
            .iter()
            .map(|path| keep_module(&tree.join(path), kept))
            .collect::<Result<Vec<_>, _>>()?;
        let path = kept.join(format!("{list}.list"));
        fs::write(&path, names.join("\n")).map_err(Error::file("write", &path))?;
    }
    say("kernel image and modules are in the cache");
    Ok(())
}

/// Packages of 7.3 have the image beside the modules, older ones in /boot.
fn image(package: &Path, tree: &Path) -> Result<PathBuf, Error> {
    let new = tree.join("vmlinuz");
    if new.exists() { Ok(new) } else { entry_named(&package.join("boot"), "vmlinuz-") }
}

/// Debian 13 has the modules under /usr/lib. Debian 12 has them under /lib, and its `depmod` finds
/// no others.
fn module_root(package: &Path) -> Result<PathBuf, Error> {
    let lib = package.join("lib");
    if !lib.exists() {
        symlink("usr/lib", &lib).map_err(Error::file("link", &lib))?;
    }
    Ok(lib.join("modules"))
}

/// Reads `modules.dep`. Packages without it make it when they are installed, so run `depmod`.
fn modules_dep(tree: &Path) -> Result<String, Error> {
    let path = tree.join("modules.dep");
    if !path.exists() {
        packages::ensure(packages::DEPMOD)?;
        let version = tree.file_name().unwrap_or_default();
        // depmod takes the folder of lib/modules.
        let root = tree.ancestors().nth(3).unwrap_or(tree);
        Tool::new("/sbin/depmod").args(["--basedir"]).args([root.as_os_str(), version]).run()?;
    }
    fs::read_to_string(&path).map_err(Error::file("read", &path))
}

/// Copies a module and decompresses it, because not every kernel loads compressed modules. Returns
/// the module's file name.
fn keep_module(module: &Path, kept: &Path) -> Result<String, Error> {
    let compressed = module.extension().is_some_and(|extension| extension == "xz");
    let stem = if compressed { module.file_stem() } else { module.file_name() };
    let name = stem.unwrap_or_default().to_string_lossy().into_owned();
    let target = kept.join(&name);
    if compressed {
        let bytes = Tool::new("xz").args(["--decompress", "--stdout"]).args([module]).output()?;
        fs::write(&target, bytes).map_err(Error::file("write", &target))?;
    } else {
        copy(module, &target)?;
    }
    Ok(name)
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(from, to).map(|_| ()).map_err(Error::file("copy", from))
}

fn entry_named(folder: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    let found =
        entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let missing = || Error::file("find the kernel in", folder)(std::io::ErrorKind::NotFound.into());
    found.map(|entry| entry.path()).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_image_and_modules_with_their_lists() {
        let package = tempfile::tempdir().unwrap();
        let tree = package.path().join("lib/modules/6.1.0-56-amd64");
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(package.path().join("boot")).unwrap();
        fs::write(package.path().join("boot/vmlinuz-6.1.0-56-amd64"), "image").unwrap();
        let built_in = ["virtio_pci", "virtio_console"];
        let x86 = Arch::X86_64.platform();
        let wanted = [x86.l1_modules, x86.l2_modules].concat();
        let names: Vec<_> = wanted.into_iter().filter(|name| !built_in.contains(name)).collect();
        let lines: Vec<_> = names.iter().map(|name| format!("{name}.ko:\n")).collect();
        fs::write(tree.join("modules.dep"), lines.concat()).unwrap();
        let built_in = built_in.map(|name| format!("kernel/{name}.ko\n"));
        fs::write(tree.join("modules.builtin"), built_in.concat()).unwrap();
        names.iter().for_each(|name| fs::write(tree.join(format!("{name}.ko")), name).unwrap());
        let kept = tempfile::tempdir().unwrap();

        keep_what_is_needed(package.path(), kept.path(), x86.l1_modules, x86.l2_modules).unwrap();

        assert_eq!(fs::read_to_string(kept.path().join("vmlinuz")).unwrap(), "image");
        assert_eq!(
            fs::read_to_string(kept.path().join("usb-storage.list")).unwrap(),
            "usb-storage.ko"
        );
        let files = KernelFiles {
            image: PathBuf::new(),
            l1_modules: Vec::new(),
            folder: kept.path().to_owned(),
        };
        let modules = files.modules(&["nvme", "ahci", "nvme", "built-in"]).unwrap();
        assert_eq!(modules, ["nvme.ko", "ahci.ko"].map(|name| kept.path().join(name)));
        assert_eq!(fs::read_to_string(kept.path().join("kvm-amd.ko")).unwrap(), "kvm-amd");
    }
}
