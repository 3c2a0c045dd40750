//! The cache of fetched and built files, in the user's XDG cache folder.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;

/// The name of the cache folder. It may be deleted: the lab makes it again.
const NAME: &str = "vfio-passthrough-lab";

/// The cache. An entry is a folder, and exists only if it is complete.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the user's cache (XDG Base Directory Specification: below `$XDG_CACHE_HOME`, or else
    /// below `~/.cache`).
    pub fn of_user() -> Result<Self, Error> {
        let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
        let set =
            env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        Self::at(set.or_else(home).unwrap_or_else(env::temp_dir).join(NAME))
    }

    fn at(folder: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&folder).map_err(Error::file("create", &folder))?;
        Ok(Self { folder })
    }

    /// Returns the entry `name`. If it does not exist, `make` fills an empty folder, which then
    /// becomes the entry; if `make` fails or is interrupted, there is no entry. If two processes
    /// want the same entry, one makes it and the other waits.
    pub fn entry(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let entry = self.folder.join(name);
        if entry.exists() {
            return Ok(entry);
        }
        let _lock = self.lock(name)?;
        if entry.exists() {
            return Ok(entry);
        }
        let draft = self.scratch()?;
        make(draft.path())?;
        fs::rename(draft.path(), &entry).map_err(Error::file("name", &entry))?;
        // The folder has another name now: do not delete it.
        drop(draft.keep());
        Ok(entry)
    }

    /// Locks an entry until the returned file is closed.
    fn lock(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(format!(".{name}.lock"));
        let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
        locked.map_err(Error::file("lock", &path))
    }

    /// A temporary folder on the file system of the entries.
    pub fn scratch(&self) -> Result<TempDir, Error> {
        let scratch = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(&self.folder);
        scratch.map_err(Error::file("create a folder in", &self.folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_an_entry_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("lab")).unwrap();
        let make =
            |draft: &Path| fs::write(draft.join("file"), "x").map_err(Error::file("write", draft));
        let first = cache.entry("kernel", make).unwrap();
        let second =
            cache.entry("kernel", |_| Err(Error::NoModule("not asked again".into()))).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "x");
    }

    #[test]
    fn failed_make_leaves_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().to_owned()).unwrap();
        let half = |draft: &Path| {
            fs::write(draft.join("half"), "x").unwrap();
            Err(Error::NoModule("broken".into()))
        };
        assert!(cache.entry("kernel", half).is_err());
        let left = fs::read_dir(folder.path()).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [".kernel.lock"]);
    }

    #[test]
    fn two_threads_make_one_entry_once() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let made = AtomicU32::new(0);
        let want = || {
            let cache = Cache::at(folder.path().to_owned()).unwrap();
            let make = |_: &Path| {
                made.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(50));
                Ok(())
            };
            cache.entry("kernel", make).unwrap()
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(want);
            assert_eq!(want(), other.join().unwrap());
        });
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }
}
