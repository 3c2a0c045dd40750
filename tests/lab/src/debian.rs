//! A whole Debian on a disk: the system of a guest.

use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::Tool;
use crate::packages::Need;
use crate::small_kernel::fingerprint;
use crate::{Error, packages, say, suite};

/// A release of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Debian {
    /// Debian 12, with Linux 6.1.
    Bookworm,
    /// Debian 13, with Linux 6.12.
    Trixie,
}

/// The files of a Debian.
pub(crate) struct DebianFiles {
    /// The image of the disk. Machines do not change it.
    pub disk: PathBuf,
    /// Debian's kernel.
    pub kernel: PathBuf,
    /// Debian's initrd.
    pub initrd: PathBuf,
}

/// The folder of the script that makes the files, and of the files that it puts into the system.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/debian");
const SOURCES: &[&str] = &[
    include_str!("../debian/make"),
    include_str!("../debian/report"),
    include_str!("../debian/report.service"),
];

const NEEDS: &[Need] = &[
    Need { file: "/usr/sbin/debootstrap", package: "debootstrap" },
    Need { file: "/sbin/mke2fs", package: "e2fsprogs" },
];

impl Debian {
    /// Returns the files of the release; makes them if the cache lacks them.
    pub(crate) fn files(self, cache: &Cache) -> Result<DebianFiles, Error> {
        let name = format!("{}-{}", self.name(), fingerprint(&SOURCES.concat()));
        let folder = cache.entry(&name, |draft| self.make(draft))?;
        let [disk, kernel, initrd] = ["disk", "kernel", "initrd"].map(|name| folder.join(name));
        Ok(DebianFiles { disk, kernel, initrd })
    }

    fn make(self, draft: &Path) -> Result<(), Error> {
        packages::ensure(NEEDS)?;
        say(&format!("making a disk with Debian's {} (debootstrap)", self.name()));
        let script = Path::new(FOLDER).join("make");
        Tool::new(script).args([self.name()]).args([draft]).args([suite::mirror()?]).run()
    }

    /// Debian's name of the release.
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}
