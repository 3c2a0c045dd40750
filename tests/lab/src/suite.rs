//! Packages of another suite of Debian, fetched from the host's mirror by an apt configuration of its
//! own. The host's apt neither sees the suite nor installs anything.

use std::fs;
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

/// Fetches packages of `suite` and unpacks them in `folder`.
pub fn unpack(suite: &str, names: &[&str], folder: &Path) -> Result<(), Error> {
    let apt = Apt::update(suite, folder)?;
    apt.download(names)?;
    apt.unpack_into(folder)
}

/// Fetches the kernel of a series, such as `7.3`, from `suite`, and unpacks it in `folder`. Since
/// 7.x it is several packages.
pub fn unpack_kernel(suite: &str, series: &'static str, folder: &Path) -> Result<(), Error> {
    let apt = Apt::update(suite, folder)?;
    let version = apt.kernel(series)?;
    let names = ["binary", "base", "modules"].map(|part| format!("linux-{part}-{version}"));
    apt.download(&names.each_ref().map(String::as_str))?;
    apt.unpack_into(folder)
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
    mirror: String,
}

impl Apt {
    /// Makes a configuration in a folder of `folder`, with the lists of the suite.
    fn update(suite: &str, folder: &Path) -> Result<Self, Error> {
        packages::ensure(NEEDS)?;
        let apt = Self { folder: folder.join("apt"), suite: suite.to_owned(), mirror: mirror()? };
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = apt.folder.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let (Self { suite, mirror, .. }, list) = (&apt, apt.folder.join("sources.list"));
        let source = format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        fs::write(&list, source).map_err(Error::file("write", &list))?;
        crate::say(&format!("fetching the package lists of {suite}"));
        apt.tool("apt-get").args(["update", "-q"]).run()?;
        Ok(apt)
    }

    /// Fetches packages into the folder.
    fn download(&self, names: &[&str]) -> Result<(), Error> {
        let Self { suite, folder, .. } = self;
        crate::say(&format!("fetching {} of {suite}", names.join(", ")));
        let wanted = names.iter().map(|name| format!("{name}/{suite}"));
        self.tool("apt-get").args(["download", "-q"]).args(wanted).folder(folder).run()
    }

    /// Unpacks the packages in `folder`, and deletes the configuration.
    fn unpack_into(self, folder: &Path) -> Result<(), Error> {
        packages::extract_all(&self.folder, folder)?;
        fs::remove_dir_all(&self.folder).map_err(Error::file("delete", &self.folder))
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
        let options = [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // The folder is the user's, in which apt's own user may not write.
            "APT::Sandbox::User=".to_owned(),
        ];
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
