//! The files that a guest is booted from, opened once: none is opened while it runs, nor when it reboots.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use crate::{Args, Error};

/// All of them.
pub struct Files {
    /// The kernel.
    pub kernel: Opened,
    /// The initramfs.
    pub initrd: Option<Opened>,
}

impl Files {
    /// Opens those of `args`.
    pub fn open(args: &Args) -> Result<Self, Error> {
        let initrd = args.initrd.as_deref();
        Ok(Self {
            kernel: Opened::open("kernel", &args.kernel)?,
            initrd: initrd.map(|path| Opened::open("initrd", path)).transpose()?,
        })
    }
}

/// One of them.
#[derive(Debug)]
pub struct Opened {
    what: &'static str,
    path: PathBuf,
    file: File,
}

impl Opened {
    /// Opens the file at `path`, which errors call `what`.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        match File::open(&path) {
            Ok(file) => Ok(Self { what, path, file }),
            Err(source) => Err(Error::File { what, path, source }),
        }
    }

    /// How it is called.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read at any position.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The file, to be read from its beginning.
    pub fn from_start(&self) -> Result<&File, Error> {
        (&self.file).rewind().map_err(|source| self.failed(source))?;
        Ok(&self.file)
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata
            .map(|file| file.len())
            .map_err(|source| self.failed(source))
    }

    /// Says of which file it is that a call failed.
    pub fn failed(&self, source: io::Error) -> Error {
        let (what, path) = (self.what, self.path.clone());
        Error::File { what, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named() {
        let error = Opened::open("kernel", Path::new("/nonexistent/bzImage")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel /nonexistent/bzImage: No such file or directory (os error 2)"
        );
    }
}
