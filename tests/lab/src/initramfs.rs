//! Initramfs archives (Documentation/driver-api/early-userspace/buffer-format).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

use crate::Error;

/// An archive that is being written.
pub struct Initramfs {
    path: PathBuf,
    out: BufWriter<File>,
    folders: BTreeSet<String>,
}

impl Initramfs {
    /// Begins an archive at `path` with the program `init` as `/init`.
    pub fn create(path: &Path, init: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::file("create", path))?;
        let mut archive =
            Self { path: path.to_owned(), out: BufWriter::new(file), folders: BTreeSet::new() };
        archive.add("/init", init)?;
        Ok(archive)
    }

    /// Adds a file of the host as `name`, an absolute path. It is executable.
    pub fn add(&mut self, name: &str, file: &Path) -> Result<(), Error> {
        let contents = fs::read(file).map_err(Error::file("read", file))?;
        self.write(name, &contents)
    }

    /// Adds modules, and `/modules.list` with their paths in the same order.
    pub fn add_modules(&mut self, modules: &[PathBuf]) -> Result<(), Error> {
        let mut list = String::new();
        for module in modules {
            let name =
                format!("/modules/{}", module.file_name().unwrap_or_default().to_string_lossy());
            self.add(&name, module)?;
            list.push_str(&name);
            list.push('\n');
        }
        self.write(crate::protocol::MODULE_LIST, list.as_bytes())
    }

    /// Adds an executable file with these contents, and the folders above it.
    pub fn write(&mut self, name: &str, contents: &[u8]) -> Result<(), Error> {
        let name = name.trim_start_matches('/');
        for (end, _) in name.match_indices('/') {
            self.folder(name.get(..end).unwrap_or_default())?;
        }
        self.entry(name, ModeFileType::Regular, contents)
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<(), Error> {
        let written = trailer(self.out).and_then(|mut out| out.flush());
        written.map_err(Error::file("write", self.path))
    }

    fn folder(&mut self, name: &str) -> Result<(), Error> {
        if self.folders.insert(name.to_owned()) {
            self.entry(name, ModeFileType::Directory, &[])?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, kind: ModeFileType, contents: &[u8]) -> Result<(), Error> {
        let size =
            u32::try_from(contents.len()).map_err(|_| std::io::ErrorKind::FileTooLarge.into());
        let size = size.map_err(Error::file("write", &self.path))?;
        let mut writer =
            Builder::new(name).mode(0o755).set_mode_file_type(kind).write(&mut self.out, size);
        let written = writer.write_all(contents).and_then(|()| writer.finish().map(|_| ()));
        written.map_err(Error::file("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    #[test]
    fn adds_a_folder_before_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let init = folder.path().join("program");
        fs::write(&init, "the init").unwrap();
        let path = folder.path().join("cpio");
        let mut archive = Initramfs::create(&path, &init).unwrap();
        archive.write("/a/b/c", b"1").unwrap();
        archive.write("/a/b/d", b"2").unwrap();
        archive.add_modules(&[init]).unwrap();
        archive.finish().unwrap();

        let mut file = File::open(&path).unwrap();
        let mut names = Vec::new();
        loop {
            let reader = Reader::new(file).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            file = reader.finish().unwrap();
        }
        assert_eq!(
            names,
            ["init", "a", "a/b", "a/b/c", "a/b/d", "modules", "modules/program", "modules.list"]
        );
    }
}
