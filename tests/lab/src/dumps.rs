//! lspci's dumps of real machines, from the source of Debian's pciutils. Each file has the config
//! space of some functions, as `lspci -xxxx` printed it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::command::Tool;
use crate::{Error, say, suite};

/// The source of the pciutils of Debian 13, and its hash.
const SOURCE: &str = "pool/main/p/pciutils/pciutils_3.13.0.orig.tar.gz";
const HASH: &str = "SHA256:a03c88a0aab709b1697ca1753766f443e78297f84c7bcd80a82c1422edd7cb42";

/// Returns the folder of the dumps; fetches them if the cache lacks them.
pub fn folder(cache: &Cache) -> Result<PathBuf, Error> {
    cache.entry("pciutils-3.13.0-dumps", fetch)
}

fn fetch(draft: &Path) -> Result<(), Error> {
    say("fetching the source of Debian's pciutils");
    let archive = draft.join("source.tar.gz");
    let source = format!("{}/{SOURCE}", suite::mirror()?.trim_end_matches('/'));
    // The folder is the user's, in which apt's own user may not write.
    let options = ["-o", "APT::Sandbox::User=", "download-file", &source];
    Tool::new("/usr/lib/apt/apt-helper").args(options).args([&archive]).args([HASH]).run()?;
    let only = ["--strip-components=2", "--wildcards", "*/tests/*", "-xf"];
    Tool::new("tar").args(only).args([&archive]).folder(draft).run()?;
    fs::remove_file(&archive).map_err(Error::file("delete", &archive))
}
