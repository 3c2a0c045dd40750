//! Debian packages. The lab installs those that it needs, and fetches and unpacks those of kernels.

use std::fs;
use std::path::{Path, PathBuf};

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

const fn need(file: &'static str, package: &'static str) -> Need {
    Need { file, package }
}

/// The packages for all commands of the lab.
pub const BASE: &[Need] = &[
    need("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    need("/usr/bin/xz", "xz-utils"),
    need("/usr/bin/cc", "gcc"),
    // The static libc: L1 and L2 have no shared libraries.
    need("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
];

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
fn concrete_kernel(depends: &str, series: &str) -> Option<String> {
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
    extract(package, &downloads, folder)
}

/// Does the same with a package of another release of Debian, `suite`. It is fetched from the
/// machine's own mirror, and the machine's package lists do not change.
pub fn unpack_from(suite: &str, package: &str, folder: &Path) -> Result<(), Error> {
    let [downloads, lists] = ["downloads", "lists"].map(|name| folder.join(name));
    for folder in [downloads.clone(), lists.join("partial")] {
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
    }
    let sources = folder.join("sources.list");
    fs::write(&sources, source_line(&mirror()?, suite)).map_err(Error::file("write", &sources))?;
    let options = [
        format!("-oDir::Etc::SourceList={}", sources.display()),
        "-oDir::Etc::SourceParts=-".to_owned(),
        format!("-oDir::State::Lists={}", lists.display()),
    ];
    say(&format!("fetching {package} of Debian's {suite}"));
    apt_get().args(&options).args(["update", "-q"]).run()?;
    apt_get().args(&options).args(["download", "-q", package]).folder(&downloads).run()?;
    extract(package, &downloads, folder)
}

/// A line of apt's sources.list.
fn source_line(mirror: &str, suite: &str) -> String {
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    format!("deb [signed-by={keys}] {mirror} {suite} main\n")
}

/// The machine's mirror of Debian.
fn mirror() -> Result<String, Error> {
    let format = ["indextargets", "--format", "$(REPO_URI)"];
    with_fresh_lists(|| {
        let targets = apt_get().args(format).args(["Label: Debian", "Created-By: Packages"]);
        targets.output().and_then(|output| first_line(&output).ok_or(Error::NoMirror))
    })
}

fn first_line(output: &[u8]) -> Option<String> {
    String::from_utf8_lossy(output).lines().next().map(str::to_owned)
}

/// Unpacks the only package in `downloads` and deletes it.
fn extract(package: &str, downloads: &Path, folder: &Path) -> Result<(), Error> {
    let archive = only_file(downloads)?;
    say(&format!("unpacking {package}"));
    Tool::new("dpkg-deb").args(["--extract"]).args([archive.as_path(), folder]).run()?;
    fs::remove_dir_all(downloads).map_err(Error::file("delete", downloads))
}

fn only_file(folder: &Path) -> Result<PathBuf, Error> {
    let mut entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    let missing = || Error::file("find a package in", folder)(std::io::ErrorKind::NotFound.into());
    entries
        .next()
        .transpose()
        .map_err(Error::file("list", folder))?
        .map(|e| e.path())
        .ok_or_else(missing)
}

/// Does `work`. If it fails, updates the package lists and does it again, because a new machine has
/// no lists or old ones.
fn with_fresh_lists<T>(work: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
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
    fn names_the_suite_of_a_mirror() {
        let line = source_line("http://mirror/debian", "trixie-backports");
        assert!(line.ends_with(" http://mirror/debian trixie-backports main\n"), "{line}");
        assert_eq!(first_line(b"http://a/\nhttp://b/\n").unwrap(), "http://a/");
        assert_eq!(first_line(b""), None);
    }

    #[test]
    fn installs_no_package_that_is_there() {
        ensure(&[need("/etc/passwd", "no-such-package")]).unwrap();
    }
}
