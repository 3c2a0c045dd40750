//! Packages of another suite of Debian, fetched from the host's mirror by an apt configuration of its
//! own. The host's apt neither sees the suite nor installs anything.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::command::Tool;
use crate::packages::{Need, with_fresh_lists};
use crate::{Error, packages};

/// The keys with which Debian signs its suites.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package of [`KEYS`].
const NEEDS: &[Need] = &[Need { file: KEYS, package: "debian-archive-keyring" }];

/// The start of the names of a kernel's modules.
const MODULES: &str = "linux-modules-";

const OS_RELEASE: &str = "/etc/os-release";

/// The release whose packages for arm64 the lab uses, whatever the host's own is.
const OF_ARM64: &str = "trixie";

/// Fetches packages of `suite` and unpacks them in `folder`.
pub fn unpack(suite: &str, names: &[&str], folder: &Path) -> Result<(), Error> {
    with_apt(folder, suite, None, |apt| apt.download(names))
}

/// Fetches the kernel of a series, such as `7.3`, from `suite`, and unpacks it in `folder`. Since
/// 7.x it is several packages.
pub fn unpack_kernel(suite: &str, series: &'static str, folder: &Path) -> Result<(), Error> {
    with_apt(folder, suite, None, |apt| {
        let version = apt.kernel(series)?;
        let names = ["binary", "base", "modules"].map(|part| format!("linux-{part}-{version}"));
        apt.download(&names.each_ref().map(String::as_str))
    })
}

/// Fetches the arm64 kernel of `series` on which one of `metapackages` depends, and unpacks it in
/// `folder`.
pub fn unpack_arm64_kernel(
    series: &'static str,
    metapackages: &[&str],
    folder: &Path,
) -> Result<(), Error> {
    let none = || Error::NoKernelPackage { series, tried: metapackages.join(", ") };
    with_apt(folder, OF_ARM64, Some("arm64"), |apt| {
        let mut found = metapackages.iter().filter_map(|name| apt.dependencies(name).ok());
        let kernel = found.find_map(|text| packages::concrete_kernel(&text, series));
        apt.download(&[kernel.ok_or_else(none)?.as_str()])
    })
}

/// Fetches arm64 packages with all on which they depend, and unpacks them in `folder`, which is then
/// a root for their programs.
pub fn unpack_arm64_root(names: &[&str], folder: &Path) -> Result<(), Error> {
    with_apt(folder, OF_ARM64, Some("arm64"), |apt| apt.download_all(names))?;
    for name in ["bin", "lib", "sbin"] {
        let (target, path) = (format!("usr/{name}"), folder.join(name));
        symlink(target, &path).map_err(Error::file("link", &path))?;
    }
    // L1 mounts its own here, and can make no folder.
    let mut mounts = ["dev", "proc", "sys", "tmp"].iter().map(|name| folder.join(name));
    mounts.try_for_each(|path| fs::create_dir_all(&path).map_err(Error::file("create", &path)))
}

/// Lets `fetch` put packages into apt's folder, and unpacks them in `folder`.
fn with_apt(
    folder: &Path,
    suite: &str,
    architecture: Option<&'static str>,
    fetch: impl FnOnce(&Apt) -> Result<(), Error>,
) -> Result<(), Error> {
    packages::ensure(NEEDS)?;
    let own = folder.join("apt");
    let apt = Apt { folder: own.clone(), suite: suite.to_owned(), architecture, mirror: mirror()? };
    apt.update()?;
    fetch(&apt)?;
    packages::extract_all(&own, folder)?;
    fs::remove_dir_all(&own).map_err(Error::file("delete", &own))
}

/// The backports of the host's Debian, such as `bookworm-backports`.
pub fn backports() -> Result<String, Error> {
    let release = fs::read_to_string(OS_RELEASE).map_err(Error::file("read", OS_RELEASE))?;
    backports_of(&release).ok_or_else(|| Error::NoBackports(OS_RELEASE.into()))
}

fn backports_of(os_release: &str) -> Option<String> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(format!("{}-backports", name.trim_matches('"')))
}

/// The host's own mirror of Debian's archive.
pub fn mirror() -> Result<String, Error> {
    with_fresh_lists(|| {
        let filter = ["Label: Debian", "Created-By: Packages"];
        let targets = ["indextargets", "--format", "$(REPO_URI)"];
        let output = Tool::new("apt-get").args(targets).args(filter).output()?;
        let output = String::from_utf8_lossy(&output).into_owned();
        let first = output.lines().next().map(str::to_owned);
        first.ok_or(Error::NoMirror)
    })
}

/// An apt configuration in a folder.
struct Apt {
    folder: PathBuf,
    suite: String,
    /// Debian's name of the architecture, if it is not the host's.
    architecture: Option<&'static str>,
    mirror: String,
}

impl Apt {
    /// Fetches the lists of the suite.
    fn update(&self) -> Result<(), Error> {
        for folder in ["lists/partial", "partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let (Self { suite, mirror, .. }, list) = (self, self.folder.join("sources.list"));
        let source = format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        fs::write(&list, source).map_err(Error::file("write", &list))?;
        let status = self.folder.join("status");
        fs::write(&status, "").map_err(Error::file("write", &status))?;
        crate::say(&format!("fetching the package lists of {suite}"));
        self.tool("apt-get").args(["update", "-q"]).run()
    }

    /// What `apt-cache depends` prints of a package.
    fn dependencies(&self, package: &str) -> Result<String, Error> {
        let output = self.tool("apt-cache").args(["depends", package]).output()?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Fetches packages into the folder.
    fn download(&self, names: &[&str]) -> Result<(), Error> {
        crate::say(&format!("fetching {} of {}", names.join(", "), self.suite));
        let wanted = names.iter().map(|name| format!("{name}/{}", self.suite));
        self.tool("apt-get").args(["download", "-q"]).args(wanted).folder(&self.folder).run()
    }

    /// Fetches packages, and those on which they depend, into the folder.
    fn download_all(&self, names: &[&str]) -> Result<(), Error> {
        crate::say(&format!("fetching {} of {}, and its libraries", names.join(", "), self.suite));
        let install = ["install", "-q", "-y", "--no-install-recommends", "--download-only"];
        self.tool("apt-get").args(install).args(names).run()
    }

    /// The version of the kernel of a series that the suite has, such as `7.3.4+deb13-amd64`.
    fn kernel(&self, series: &'static str) -> Result<String, Error> {
        let prefix = format!("{MODULES}{series}.");
        let output = self.tool("apt-cache").args(["pkgnames", &prefix]).output()?;
        let found = plain_kernel(&String::from_utf8_lossy(&output));
        found.ok_or_else(|| Error::NoKernelPackage { series, tried: format!("{prefix}*") })
    }

    fn tool(&self, name: &str) -> Tool {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut options = vec![
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Cache::archives={}", self.folder.display()),
            // The folder is the user's, in which apt's own user may not write.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ];
        if let Some(architecture) = self.architecture {
            options.push(format!("APT::Architecture={architecture}"));
            options.push(format!("APT::Architectures={architecture}"));
            // No package of this architecture is installed.
            options.push(format!("Dir::State::status={}", at("status")));
        }
        Tool::new(name).args(options.iter().flat_map(|option| ["-o", option]))
    }
}

/// The newest kernel of these names of packages that is neither for clouds nor real-time.
fn plain_kernel(names: &str) -> Option<String> {
    let versions = names.lines().filter_map(|name| name.strip_prefix(MODULES));
    let plain = versions.filter(|version| version.matches('-').count() == 1);
    plain.filter(|version| version.ends_with("-amd64")).max().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_the_plain_kernel() {
        let names = "linux-modules-7.3.4+deb13-cloud-amd64\nlinux-modules-7.3.4+deb13-amd64\n\
                     linux-modules-7.3.2+deb13-amd64\nlinux-modules-7.3.4+deb13-rt-amd64\n";
        assert_eq!(plain_kernel(names).unwrap(), "7.3.4+deb13-amd64");
        assert_eq!(plain_kernel("linux-modules-7.3.4+deb13-arm64\n"), None);
    }

    #[test]
    fn names_the_backports_of_the_release() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(backports_of(debian).unwrap(), "bookworm-backports");
        assert_eq!(backports_of("VERSION_CODENAME=\"trixie\"").unwrap(), "trixie-backports");
        assert_eq!(backports_of("ID=other\n"), None);
    }
}
