//! What is fetched or built once and kept, under the user's XDG cache folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;

/// The folder of that name is the lab's own; deleting it costs only time.
const NAME: &str = "vfio-passthrough-lab";

/// The cache. An entry is a folder, and is there only when it is whole.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The user's (XDG Base Directory Specification: `$XDG_CACHE_HOME`, else `~/.cache`).
    pub fn of_user() -> Result<Self, Error> {
        let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
        let set = env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute());
        Self::at(set.or_else(home).unwrap_or_else(env::temp_dir).join(NAME))
    }

    fn at(folder: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(Self { folder })
    }

    /// The entry `name`, made by `make` in an empty folder if it is not there yet. A `make` that fails or is
    /// interrupted leaves no entry: the folder gets its name when it is complete.
    pub fn entry(&self, name: &str, make: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
        let entry = self.folder.join(name);
        if entry.exists() {
            return Ok(entry);
        }
        let draft = self.scratch()?;
        make(draft.path())?;
        match fs::rename(draft.path(), &entry) {
            // Another lab was faster: its entry is as good.
            Err(_) if entry.exists() => {}
            Err(error) => return Err(Error::file("name", &entry)(error)),
            // It has a name now, and is no scratch folder any more.
            Ok(()) => drop(draft.keep()),
        }
        Ok(entry)
    }

    /// A folder that is deleted after use, on the same file system as the entries.
    pub fn scratch(&self) -> Result<TempDir, Error> {
        let scratch = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(&self.folder);
        scratch.map_err(Error::file("create a folder in", &self.folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("lab")).unwrap();
        let make = |draft: &Path| fs::write(draft.join("file"), "x").map_err(Error::file("write", draft));
        let first = cache.entry("kernel", make).unwrap();
        let second = cache
            .entry("kernel", |_| Err(Error::NoModule("not asked again".into())))
            .unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "x");
    }

    #[test]
    fn a_failed_make_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        let half = |draft: &Path| {
            fs::write(draft.join("half"), "x").unwrap();
            Err(Error::NoModule("broken".into()))
        };
        assert!(cache.entry("kernel", half).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
