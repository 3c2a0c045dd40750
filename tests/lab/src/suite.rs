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

const OS_RELEASE: &str = "/etc/os-release";

/// Fetches packages of `suite` and unpacks them in `folder`.
pub fn unpack(suite: &str, names: &[&str], folder: &Path) -> Result<(), Error> {
    packages::ensure(NEEDS)?;
    let own = folder.join("apt");
    let apt = Apt { folder: own.clone(), suite: suite.to_owned(), mirror: mirror()? };
    apt.fetch(names)?;
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
fn mirror() -> Result<String, Error> {
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
    /// Fetches the lists of the suite, and the packages into the folder.
    fn fetch(&self, names: &[&str]) -> Result<(), Error> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        }
        let (Self { suite, mirror, .. }, list) = (self, self.folder.join("sources.list"));
        let source = format!("deb [signed-by={KEYS}] {mirror} {suite} main\n");
        fs::write(&list, source).map_err(Error::file("write", &list))?;
        crate::say(&format!("fetching {} of {suite}", names.join(", ")));
        self.apt_get().args(["update", "-q"]).run()?;
        let wanted = names.iter().map(|name| format!("{name}/{suite}"));
        self.apt_get().args(["download", "-q"]).args(wanted).folder(&self.folder).run()
    }

    fn apt_get(&self) -> Tool {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            // The folder is the user's, in which apt's own user may not write.
            "APT::Sandbox::User=".to_owned(),
        ];
        Tool::new("apt-get").args(options.iter().flat_map(|option| ["-o", option]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_backports_of_the_release() {
        let debian = "ID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(backports_of(debian).unwrap(), "bookworm-backports");
        assert_eq!(backports_of("VERSION_CODENAME=\"trixie\"").unwrap(), "trixie-backports");
        assert_eq!(backports_of("ID=other\n"), None);
    }
}
