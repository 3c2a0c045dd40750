//! Debian packages. The lab installs those that it needs, and fetches and unpacks those of kernels.

use std::fs;
use std::path::Path;

use nix::unistd::Uid;

use crate::command::Tool;
use crate::{Error, say};

/// A package that the lab needs on the host.
pub struct Need {
    /// A file of the package; if it exists, the package is installed.
    pub file: &'static str,
    /// The name of the package.
    pub package: &'static str,
}

/// A need: a file of the package, and the package's name.
pub const fn need(file: &'static str, package: &'static str) -> Need {
    Need { file, package }
}

/// The packages for all commands of the lab, beyond those of an architecture.
pub const BASE: &[Need] = &[need("/usr/bin/xz", "xz-utils"), need("/usr/bin/cc", "gcc")];

/// The packages for building a kernel.
pub const KERNEL_BUILD: &[Need] = &[
    need("/usr/bin/make", "make"),
    need("/usr/bin/flex", "flex"),
    need("/usr/bin/lz4", "lz4"),
    need("/usr/bin/bison", "bison"),
    need("/usr/bin/bc", "bc"),
    need("/usr/bin/perl", "perl"),
    need("/usr/include/libelf.h", "libelf-dev"),
    need("/usr/include/openssl/ssl.h", "libssl-dev"),
];

/// The packages for the kernel's own tests.
pub const SELFTESTS: &[Need] = &[
    need("/usr/include/sys/capability.h", "libcap-dev"),
    need("/usr/include/uuid/uuid.h", "uuid-dev"),
];

/// The package of `lspci`.
pub const LSPCI: &[Need] = &[need("/usr/bin/lspci", "pciutils")];

/// The package of `depmod`, for kernel packages without `modules.dep`.
pub const DEPMOD: &[Need] = &[need("/sbin/depmod", "kmod")];

/// The packages for `cargo lab bench`.
pub const BENCH: &[Need] = &[need("/usr/bin/strace", "strace")];

/// Installs the packages that are missing.
pub fn ensure(needs: &[Need]) -> Result<(), Error> {
    let missing: Vec<&str> = needs
        .iter()
        .filter(|need| !Path::new(need.file).exists())
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Uid::effective().is_root() {
        return Err(Error::NotRoot(missing.join(" ")));
    }
    say(&format!("installing {} (apt-get)", missing.join(", ")));
    with_fresh_lists(|| {
        let install = ["install", "-y", "-q", "--no-install-recommends"];
        apt_get().args(install).args(&missing).run()
    })
}

/// The kernel package of `series` on which one of `metapackages` depends.
pub fn kernel_package(series: &'static str, metapackages: &[&str]) -> Result<String, Error> {
    let none = || Error::NoKernelPackage { series, tried: metapackages.join(", ") };
    with_fresh_lists(|| {
        let mut found = metapackages.iter().filter_map(|name| dependencies(name).ok());
        found.find_map(|text| concrete_kernel(&text, series)).ok_or_else(none)
    })
}

fn dependencies(package: &str) -> Result<String, Error> {
    let output = Tool::new("apt-cache").args(["depends", package]).output()?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Finds the kernel of `series` in the output of `apt-cache depends`.
pub fn concrete_kernel(depends: &str, series: &str) -> Option<String> {
    let prefix = format!("linux-image-{series}.");
    let named = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    named.map(str::to_owned).find(|name| name.starts_with(&prefix))
}

/// Fetches a package and unpacks it in `folder`, without installing it.
pub fn unpack(package: &str, folder: &Path) -> Result<(), Error> {
    let downloads = folder.join("downloads");
    fs::create_dir_all(&downloads).map_err(Error::file("create", &downloads))?;
    say(&format!("fetching Debian's {package}"));
    with_fresh_lists(|| apt_get().args(["download", "-q", package]).folder(&downloads).run())?;
    say(&format!("unpacking {package}"));
    extract_all(&downloads, folder)?;
    fs::remove_dir_all(&downloads).map_err(Error::file("delete", &downloads))
}

/// Unpacks all package files of a folder.
pub fn extract_all(downloads: &Path, folder: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(downloads).map_err(Error::file("list", downloads))?;
    let paths = entries.flatten().map(|entry| entry.path());
    for archive in paths.filter(|path| path.extension().is_some_and(|end| end == "deb")) {
        Tool::new("dpkg-deb").args(["--extract"]).args([&archive, folder]).run()?;
    }
    Ok(())
}

/// Does `work`. If it fails, updates the package lists and does it again, because a new machine has
/// no lists or old ones.
pub fn with_fresh_lists<T>(work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    work().or_else(|first| {
        if !Uid::effective().is_root() {
            return Err(first);
        }
        say("fetching the package lists (apt-get update)");
        apt_get().args(["update", "-q"]).run()?;
        work()
    })
}

fn apt_get() -> Tool {
    Tool::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_kernel_of_a_series() {
        let six_twelve = "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n";
        assert_eq!(
            concrete_kernel(six_twelve, "6.12").unwrap(),
            "linux-image-6.12.117+deb12-amd64"
        );
        assert_eq!(concrete_kernel(six_twelve, "6.1"), None);
        let six_one = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(concrete_kernel(six_one, "6.1").unwrap(), "linux-image-6.1.0-56-amd64");
        assert_eq!(concrete_kernel("linux-image-amd64\n", "6.1"), None);
    }

    #[test]
    fn installs_no_package_that_is_there() {
        ensure(&[need("/etc/passwd", "no-such-package")]).unwrap();
    }
}
