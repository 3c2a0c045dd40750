//! The files that a guest boots from. The VMM opens each once and keeps it for later boots, because
//! a running VMM may not open files.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use super::passed_fds::PassedFds;
use crate::config::{Config, Source};
use crate::error::Error;

/// The boot files.
pub(crate) struct Files {
    pub(crate) kernel: Opened,
    pub(crate) initrd: Option<Opened>,
}

impl Files {
    /// Opens the files of `config`, or takes them from the passed file descriptors.
    pub(crate) fn open(config: &Config, passed: &mut PassedFds) -> Result<Self, Error> {
        let kernel = Opened::new(("kernel", "--kernel"), &config.kernel, passed)?;
        let initrd = config.initrd.as_ref();
        let initrd = initrd.map(|source| Opened::new(("initrd", "--initrd"), source, passed));
        Ok(Self { kernel, initrd: initrd.transpose()? })
    }
}

/// An open boot file.
#[derive(Debug)]
pub struct Opened {
    what: &'static str,
    path: PathBuf,
    file: File,
}

impl Opened {
    /// Opens the file at `path`; errors call the file `what`.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        match File::open(&path) {
            Ok(file) => Ok(Self { what, path, file }),
            Err(source) => Err(Error::File { what, path, source }),
        }
    }

    fn new(
        names: (&'static str, &'static str),
        source: &Source,
        passed: &mut PassedFds,
    ) -> Result<Self, Error> {
        let (what, option) = names;
        match source {
            Source::Path(path) => Self::open(what, path),
            Source::Fd(fd) => {
                let file = passed.remove(*fd)?;
                let path = PathBuf::from(source.to_string());
                match file.metadata() {
                    Ok(metadata) if metadata.is_file() => Ok(Self { what, path, file }),
                    Ok(_) => Err(Error::passed_fd(
                        option,
                        *fd,
                        "the file is not a regular file, and the VMM must read it at any offset",
                    )),
                    Err(source) => Err(Error::File { what, path, source }),
                }
            }
        }
    }

    /// The path, or `fd=N`, for errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, for positioned reads.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file, rewound for sequential reads.
    pub(crate) fn rewound(&self) -> Result<&File, Error> {
        (&self.file).rewind().map_err(|source| self.failed(source))?;
        Ok(&self.file)
    }

    /// The size in bytes.
    pub(crate) fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata.map(|file| file.len()).map_err(|source| self.failed(source))
    }

    /// An I/O error of this file.
    pub(crate) fn failed(&self, source: io::Error) -> Error {
        let (what, path) = (self.what, self.path.clone());
        Error::File { what, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_a_missing_file() {
        let error = Opened::open("kernel", Path::new("/nonexistent/bzImage")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kernel /nonexistent/bzImage: No such file or directory (os error 2)"
        );
    }
}
